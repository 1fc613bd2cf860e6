"""python -m util.demo_data FOLDER: fundus-like images, drawn for a first run."""

import sys

from util.core.ending import exit_code_of
from util.data.public.demo import main

if __name__ == "__main__":
    sys.exit(exit_code_of(main))
