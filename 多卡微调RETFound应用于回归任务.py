"""main_regression.py under the name that its users type: the same flags, the same behaviour."""

import sys

from main_regression import main
from util.errors import exit_code_of

if __name__ == "__main__":
    sys.exit(exit_code_of(main))
