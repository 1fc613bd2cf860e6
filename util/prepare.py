"""python -m util.prepare NAME RAW_DIR OUT_DIR: a public data set becomes the folders that training reads."""

import sys

from util.core.ending import exit_code_of
from util.data.public.prepare import main

if __name__ == "__main__":
    sys.exit(exit_code_of(main))
