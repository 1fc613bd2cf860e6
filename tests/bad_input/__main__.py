"""See the package's docstring."""

import sys

from tests.bad_input.page import PAGE, counts_text, page
from tests.bad_input.table import all_cases

if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        print(f"{PAGE}: {counts_text(all_cases())}")
    else:
        print(page(), end="")
