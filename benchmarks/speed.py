"""How much sooner things are done than in the plain way, on this machine: one table.

    python benchmarks/speed.py                       # all of it, some 30 minutes on two cores
    python benchmarks/speed.py --only step           # reading, step, wait, probe, start, growth or whole
    python benchmarks/speed.py --json speed.json     # also as rows {what, plain, ours, ratio, goal}
    python benchmarks/speed.py --quick               # every measure once, small: that it runs, not how fast

The two ways take turns, and the table shows medians. Nothing else should run meanwhile.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from benchmarks import (  # noqa: E402
    growth,
    probing,
    reading,
    starting,
    stepping,
    waiting,
    whole_program,
)
from benchmarks.timing import as_text  # noqa: E402
from util.core.machine import usable_cores  # noqa: E402
from util.model.precision import cpu_has_bf16  # noqa: E402

PARTS = {"reading": reading, "step": stepping, "wait": waiting, "probe": probing, "start": starting,
         "growth": growth, "whole": whole_program}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    parser.add_argument("--quick", action="store_true",
                        help="run every measure once, on little: for its correctness")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts of the table")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        for name in options.only:
            print(f"{name} …", file=sys.stderr, flush=True)
            rows += PARTS[name].rows(Path(folder), options.quick)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"{platform.machine()}, {usable_cores()} cores, bf16 instructions: "
          f"{'yes' if cpu_has_bf16() else 'no'}; GPU: {gpu}; PyTorch {torch.__version__}\n")
    print(as_text(rows))
    if options.json:
        fields = ("what", "plain", "ours", "ratio", "goal")
        content = [{field: getattr(row, field) for field in fields} for row in rows]
        Path(options.json).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n",
                                      encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
