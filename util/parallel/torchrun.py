"""Start several processes by PyTorch's own launcher, and end with the exit code of the program that it started.

    python util/parallel/torchrun.py [torchrun's arguments] PROGRAM [ARGUMENTS]

torchrun itself ends with 1 whatever its processes ended with, under a page of its own. Here what the program printed
stands alone, and 0, 1, 2, 99 (asked to end by SIGTERM or SIGUSR1) and 130 (Ctrl-C) mean what they mean for one process.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost node would fill the screen with the store's warnings
sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

from torch.distributed import DistError  # noqa: E402
from torch.distributed.elastic.multiprocessing import SignalException  # noqa: E402
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: E402
from torch.distributed.elastic.rendezvous.api import RendezvousError  # noqa: E402
from torch.distributed.run import parse_args, run  # noqa: E402

from util.core import signals  # noqa: E402
from util.core.ending import ENDED_BY_ITSELF  # noqa: E402
from util.parallel.nodes import End, run_together  # noqa: E402

SHUTDOWN_S = 600


def main(arguments: list[str]) -> int:
    parsed = parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="retina-") as folder:
        marker = Path(folder) / "exit_code"
        os.environ[ENDED_BY_ITSELF] = str(marker)
        # a signal is passed on; then the processes have so long for the step that they are in and a checkpoint
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_S))
        if parsed.nnodes.isdecimal() and int(parsed.nnodes) > 1 and parsed.rdzv_backend == "static":
            return run_together(parsed, lambda: once(parsed, marker))
        end = once(parsed, marker)
        if end.line:
            print(end.line, file=sys.stderr, flush=True)
    return end.code


def once(parsed, marker: Path) -> End:
    """Run PyTorch's launcher with its arguments, as read. marker: where the program says that it ended by its own word."""
    try:
        run(parsed)
    except ChildFailedError as error:
        if marker.exists():
            return End(int(marker.read_text(encoding="ascii")))
        rank, failure = error.get_first_failure()
        return End(1, f"error: process {rank} ended with {failure.exitcode} ({failure.signal_name()}); what was saved stays: "
                   "start again to go on", meant=False)
    except (DistError, RendezvousError) as error:
        return End(1, f"error: the nodes lost each other ({str(error).splitlines()[0][:160]}); what was saved stays: start "
                   "again to go on", meant=False)
    except SignalException as signalled:
        if marker.exists():
            return End(int(marker.read_text(encoding="ascii")))
        return End(signals.code_of(signalled.sigval), f"stopped by {signalled.sigval.name}: what was saved stays; start again "
                   "to go on")
    return End(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
