"""How a program ends: one line and an exit code for what is no bug of ours, and a mark for the launcher.

0 done, 1 a failed run, 2 wrong input, 99 asked to end by a scheduler's signal (util/core/signals.py), 130
Ctrl-C.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from util.core import machine_faults, signals
from util.core.disk import replacing
from util.core.errors import InputError, PeerEnded, PeerLost, RunError, one_line
from util.core.secrets import without_secrets

LAUNCHER_GRACE_S = 3.0
# A file that util/parallel/torchrun.py names: the exit code of an attempt that ended by its own word. A
# launcher starts the processes again whatever they ended of, and a wrong flag does not get right by that.
ENDED_BY_ITSELF = "RETINA_ENDED_BY_ITSELF"
ATTEMPT = "RETINA_ATTEMPT"  # a name that the launcher draws for each start of all processes
# the process with a process group, whose threads may outlive it, see `exit_with`
THREADS_LEFT = "RETINA_THREADS_LEFT"


def exit_code_of(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> int:
    """Run `main(argv)`: 0, or 2 (wrong input), 1 (failed run), 99 (asked to end) or 130 (Ctrl-C) after one
    line. Our own bugs keep their traceback.

    Under a launcher the main process prints; the others hold their exit back for a moment, since the launcher
    ends everybody as soon as one leaves.
    """
    if argv is None:  # a launch of its own, not a call
        machine_faults.speak_utf8()
        sys.unraisablehook = machine_faults.unraisable
    machine_faults.keep_standard_streams()
    rank = os.environ.get("RANK" if "WORLD_SIZE" in os.environ else "OMPI_COMM_WORLD_RANK", "0")
    size = os.environ.get("WORLD_SIZE", os.environ.get("OMPI_COMM_WORLD_SIZE", ""))
    # a rank that can't be is an error that has to be seen
    is_main = not (rank.isdecimal() and int(rank) > 0) or (size.isdecimal() and int(rank) >= int(size))
    with signals.answered():
        return _guarded(main, argv, is_main, rank)


def _guarded(main: Callable[[list[str] | None], int | None], argv: list[str] | None, is_main: bool,
             rank: str) -> int:
    marker = os.environ.get(ENDED_BY_ITSELF)
    try:
        return main(argv) or 0
    except (InputError, RunError, PeerEnded) as error:
        code = error.exit_code if isinstance(error, PeerEnded) else 2 if isinstance(error, InputError) else 1
        if is_main:
            print(f"error: {one_line(without_secrets(str(error)))}", file=sys.stderr, flush=True)
        return _leave(code, is_main)
    except PeerLost as error:
        print(f"error (process {rank}): {one_line(str(error))}", file=sys.stderr, flush=True)
        return 1
    except signals.StopRequested as stop:
        if is_main and (stop.together or not marker):
            print(f"stopped by {signals.signal_name()}: {stop.saved}; start again to go on (training with "
                  "--resume auto)", file=sys.stderr, flush=True)
        return _leave(signals.EXIT_CODE, is_main) if stop.together or not marker else signals.EXIT_CODE
    except BrokenPipeError:
        machine_faults.forget_unread()
        print("error: nobody reads what this program prints (a closed pipe): stopped; what was saved "
              "stays", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        if is_main:
            print("interrupted: what was saved stays; training goes on with --resume auto, a search with "
                  "--optuna_resume, predict.py and latent_feature.py when they are started "
                  "again", file=sys.stderr, flush=True)
        return 130


def _leave(code: int, is_main: bool) -> int:
    """Tell the launcher that this launch ended by its own word; the main process's line comes first."""
    signals.leave()
    leave_mark(code)
    if not is_main:
        time.sleep(LAUNCHER_GRACE_S)
    return code


def exit_with(code: int) -> None:
    """End this process with an exit code; at once, after all that is to be done at an exit, where a process
    group's threads would be in the way.

    A sharded model's group lives on in PyTorch's caches, and a thread of it that wants Python while Python is
    being taken down ends the process by a signal ("terminate called without an active exception", seen once
    in some 15 launches). After an error nobody takes the group down: that waits for peers that sit in a
    collective.
    """
    if os.environ.get(THREADS_LEFT) == str(os.getpid()):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def end_after_traceback() -> None:
    """Let a bug of ours, too, end this process at once, when its traceback is printed: torch.distributed has
    set how that is done."""
    printed = sys.excepthook

    def end(*error: Any) -> None:
        printed(*error)
        exit_with(1)

    sys.excepthook = end


def leave_mark(code: int) -> None:
    """Tell the launcher of this machine, if it is ours, that this end is meant: no restart, and this exit
    code."""
    marker = os.environ.get(ENDED_BY_ITSELF)
    if marker:
        with replacing(marker) as partial:
            partial.write_text(str(code), encoding="ascii")
