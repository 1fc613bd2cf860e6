"""main_finetune.py under the name that its users type: the same flags; the column of classes is partition."""

from functools import partial

from main_finetune import main
from util.core.ending import exit_code_of, exit_with

if __name__ == "__main__":
    exit_with(exit_code_of(partial(main, label_col="partition")))
