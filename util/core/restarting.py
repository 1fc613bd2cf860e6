"""Start one process, and start it again when it dies of a signal: what a launcher does for several, without
its start-up time.

    python util/core/restarting.py RESTARTS PROGRAM [ARGUMENTS]

It dies of a signal where the system kills it for memory, or a library crashes; the program then finds its own
last checkpoint. Any exit code is the program's own word and ends this, too. Signals that are sent here are
passed on.
"""

import functools
import signal
import sys
from pathlib import Path

sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

from util.core import signals  # noqa: E402
from util.core.child import Children  # noqa: E402


def main(arguments: list[str]) -> int:
    restarts = int(arguments[0])
    # where this process is killed without a word, the one that works is asked to end, and keeps its place
    end_with_this_process = functools.partial(signals.end_with_parent, signal.SIGTERM)
    with Children() as children:
        for restart in range(restarts + 1):
            code = children.run([sys.executable, *arguments[1:]], preexec_fn=end_with_this_process)
            if code >= 0:
                return code
            if children.asked:
                return signals.code_of(children.asked)
            name = signal.Signals(-code).name
            why = " (the system kills so what takes too much memory)" if -code == signal.SIGKILL else ""
            if restart < restarts:
                print(f"the program was ended by {name}{why}: it goes on from its last checkpoint, restart "
                      f"{restart + 1} of {restarts}", file=sys.stderr, flush=True)
    print(f"error: the program was ended by {name}{why} {restarts + 1} times; what was saved stays: start "
          "again to go on", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
