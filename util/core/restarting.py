"""Start one process, and start it again when it dies of a signal: what a launcher does for several, without its start-up time.

    python util/core/restarting.py RESTARTS PROGRAM [ARGUMENTS]

It dies of a signal where the system kills it for memory, or a library crashes; the program then finds its own last checkpoint.
Any exit code is the program's own word and ends this, too. Signals that are sent here are passed on.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

from util.core import signals  # noqa: E402

PASSED_ON = (*signals.SIGNALS, signal.SIGINT, signal.SIGHUP)


class Child:
    """The process that works, and the signals that it has to get."""

    def __init__(self):
        self.process, self.asked = None, 0

    def run(self, words: list[str]) -> int:
        """Exit code of the command; negative where a signal ended it, as subprocess counts."""
        if self.asked:
            return -self.asked
        # a process group of its own: Ctrl-C in a terminal reaches all of this group, and it is to get it once
        self.process = subprocess.Popen(words, process_group=0, preexec_fn=_end_with_this_process)
        if self.asked:  # it came while the process was started
            self._pass_on(self.asked)
        return self.process.wait()

    def on_signal(self, number: int, frame) -> None:
        self.asked = self.asked or number
        if self.process is not None:
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number) if number == signal.SIGINT else self.process.send_signal(number)


def _end_with_this_process() -> None:
    """Where this process is killed without a word, the one that works is asked to end, and keeps its place."""
    signals.end_with_parent(signal.SIGTERM)


def main(arguments: list[str]) -> int:
    restarts, child = int(arguments[0]), Child()
    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup wants a closed terminal to stop nothing
            signal.signal(number, child.on_signal)
    for restart in range(restarts + 1):
        code = child.run([sys.executable, *arguments[1:]])
        if code >= 0:
            return code
        if child.asked:
            return signals.code_of(child.asked)
        name = signal.Signals(-code).name
        why = " (the system kills so what takes too much memory)" if -code == signal.SIGKILL else ""
        if restart < restarts:
            print(f"the program was ended by {name}{why}: it goes on from its last checkpoint, restart {restart + 1} of "
                  f"{restarts}", file=sys.stderr, flush=True)
    print(f"error: the program was ended by {name}{why} {restarts + 1} times; what was saved stays: start again to go on",
          file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
