"""Start several processes by PyTorch's own launcher, and end with the exit code of the program that it started.

    python util/torchrun.py [torchrun's arguments] PROGRAM [ARGUMENTS]

torchrun itself ends with 1 whatever its processes ended with, under a page of its own. Here what the program printed
stands alone, and 0, 1, 2, 99 (asked to end by SIGTERM or SIGUSR1) and 130 (Ctrl-C) mean what they mean for one process.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path[:] = [str(Path(__file__).resolve().parent.parent), *sys.path[1:]]

from torch.distributed.elastic.multiprocessing import SignalException  # noqa: E402
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: E402
from torch.distributed.run import parse_args, run  # noqa: E402

from util import stopping  # noqa: E402
from util.errors import ENDED_BY_ITSELF  # noqa: E402

SHUTDOWN_S = 600


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="retina-") as folder:
        marker = Path(folder) / "exit_code"
        os.environ[ENDED_BY_ITSELF] = str(marker)
        # a signal is passed on; then the processes have so long for the step that they are in and a checkpoint
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_S))
        try:
            run(parse_args(arguments))
        except ChildFailedError as error:
            if marker.exists():
                return int(marker.read_text(encoding="ascii"))
            rank, failure = error.get_first_failure()
            print(f"error: process {rank} ended with {failure.exitcode} ({failure.signal_name()}); what was saved stays: "
                  "start again to go on", file=sys.stderr, flush=True)
            return 1
        except SignalException as signalled:
            if marker.exists():
                return int(marker.read_text(encoding="ascii"))
            print(f"stopped by {signalled.sigval.name}: what was saved stays; start again to go on", file=sys.stderr,
                  flush=True)
            return stopping.EXIT_CODE if signalled.sigval in stopping.SIGNALS else 128 + signalled.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
