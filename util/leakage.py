"""python -m util.leakage: the same photograph or patient in two splits of a folder or a CSV."""

import sys

from util.core.ending import exit_code_of
from util.data.leakage.search import main

if __name__ == "__main__":
    sys.exit(exit_code_of(main))
