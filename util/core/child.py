"""A program that runs others, one at a time, and hands on to them what is to stop it."""

import contextlib
import os
import signal
import subprocess
from typing import Any

from util.core import signals
from util.core.errors import RunError

HANDED_ON = (signal.SIGINT, *signals.SIGNALS, signal.SIGHUP)


class Children:
    """Inside the context, signals are for the child that runs just then. asked: the first that came, else 0.

    The child has a process group of its own, so that Ctrl-C reaches it once and in one way whoever sends it:
    to the whole group, as a terminal does (SIGINT), or to the program alone, which stops its workers (the
    others).
    """

    def __init__(self) -> None:
        self.asked, self._process = 0, None

    def __enter__(self) -> "Children":
        # what is ignored stays so: nohup wants a closed terminal to stop nothing
        heard = [number for number in HANDED_ON if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._on_signal) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, words: list[str], **how: Any) -> int:
        """Exit code of a command, negative where a signal ended it, as subprocess counts; how: of Popen.
        RunError where it can't be started."""
        if self.asked:
            return -self.asked
        try:
            self._process = subprocess.Popen(words, process_group=0, **how)
        except OSError as error:
            raise RunError(f"{words[0]} can't be started ({error.strerror})") from error
        if self.asked:  # it came while the child was being started
            self._hand_on(self.asked)
        code = self._process.wait()
        self._process = None
        return code

    def _on_signal(self, number: int, _frame: object) -> None:
        self.asked = self.asked or number
        if self._process is not None:
            self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            if number == signal.SIGINT:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)
