"""python -m util.report RUN …: the report of each run's folder is made again, from its files alone."""

import sys

from util.core.ending import exit_code_of
from util.core.errors import InputError, RunError
from util.options.parsing import OneLineParser


def make_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m util.report", description="Write report.html and the charts of runs again."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, OUTPUT_DIR/TASK")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Make the report of each run's folder again, from its files alone."""
    runs, failed = make_parser().parse_args(argv).runs, []

    from util.report.page import write_report  # brings torch and pandas: --help does not wait for them

    for folder in runs:
        try:
            print(*write_report(folder), sep="\n")
        except InputError as error:
            failed.append(str(error))
        except OSError as error:
            raise RunError(f"{folder}: the report can't be written ({error.strerror})") from error
    if failed:
        raise InputError("; ".join(failed))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
