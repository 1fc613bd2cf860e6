"""main_regression.py under the name that its users type: the same flags, the same behaviour."""

from main_regression import main
from util.core.ending import exit_code_of, exit_with

if __name__ == "__main__":
    exit_with(exit_code_of(main))
