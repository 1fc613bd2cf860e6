"""A scheduler's wish that a run ends: SIGTERM and SIGUSR1, answered at a moment that loses nothing.

Slurm, Grid Engine, LSF and Kubernetes send a signal some time before they kill. A training that can keep its
place holds the wish back until its next step, writes a checkpoint and ends; everything else ends at once.
Both end with EXIT_CODE, which a scheduler can be told to queue the job again for.
"""

import ctypes
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 99  # Grid Engine queues a job again that ends so; LSF's and Slurm's settings can name it


class StopRequested(BaseException):
    """The run ends because it was asked to; like KeyboardInterrupt no `except Exception` takes it for an
    error.

    `together`: all processes know it and end at the same place. Alone, a process can't tell a scheduler's
    signal from that of its launcher, which ends the others so when one has died, and knows by itself whether
    to start them again.
    """

    def __init__(self, saved: str = "what was saved stays", together: bool = False) -> None:
        super().__init__(saved)
        self.saved, self.together = saved, together


class _Wish:
    signal_name = ""  # of the first signal that came
    interrupted = False  # by Ctrl-C
    holders = 0
    # what answered the end of a child until `leave`
    child_handler: Callable[[int, FrameType | None], object] | int | None = None


def code_of(number: int) -> int:
    """The exit code of what a signal ended."""
    return EXIT_CODE if number in SIGNALS else 128 + number


def asked() -> bool:
    """Whether this process was asked to end. KeyboardInterrupt where one was raised before and got lost, as
    in a library that takes any error of a callback for its own."""
    if _Wish.interrupted:
        raise KeyboardInterrupt
    return bool(_Wish.signal_name)


def signal_name() -> str:
    """SIGTERM or SIGUSR1; "another process's signal" where this process got none."""
    return _Wish.signal_name or "another process's signal"


def is_held() -> bool:
    return _Wish.holders > 0


@contextmanager
def held() -> Iterator[None]:
    """Inside, a signal is only written down: the code asks `asked()` where it can end well. One that came
    after the last time it asked ends it here."""
    _Wish.holders += 1
    try:
        yield
    finally:
        _Wish.holders -= 1
    end_if_asked()


def end_if_asked() -> None:
    """StopRequested (KeyboardInterrupt) where a signal came that is not held back."""
    if asked() and not is_held():
        raise StopRequested


@contextmanager
def answered() -> Iterator[None]:
    """Inside, the signals are answered; those that the process was started to ignore stay ignored.

    A second signal changes nothing: launchers pass on what a scheduler has sent to every process already.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there alone
        yield
        return
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
    _Wish.signal_name, _Wish.interrupted, _Wish.holders = "", False, 0
    for number, handler in before.items():
        if number != signal.SIGINT and handler != signal.SIG_IGN:
            signal.signal(number, _on_signal)
    if before[signal.SIGINT] == signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)
    try:
        yield
    finally:
        _Wish.signal_name, _Wish.interrupted = "", False
        if _Wish.child_handler is not None:
            signal.signal(signal.SIGCHLD, _Wish.child_handler)
            _Wish.child_handler = None
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _on_signal(number: int, frame: FrameType | None) -> None:
    first = not _Wish.signal_name
    _Wish.signal_name = _Wish.signal_name or signal.Signals(number).name
    if first and not _Wish.holders:
        raise StopRequested


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    _Wish.interrupted = True
    raise KeyboardInterrupt


def leave() -> None:
    """From here on a signal changes nothing: the process is on its way out, and says why by itself. Nor does
    the end of a loader's worker, which the loader would report once more."""
    _Wish.holders += 1
    if _Wish.child_handler is None and threading.current_thread() is threading.main_thread():
        _Wish.child_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def end_with_parent(number: int) -> None:
    """Linux: this process gets a signal where the one that started it is killed. It would run on unseen, into
    the folder of the next launch."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, number, 0, 0, 0)


def leave_to_parent() -> None:
    """In a helper process, such as a loader's worker: a scheduler's signal is for the process that it works
    for."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_helpers() -> None:
    """At the exit of the process that they work for: SIGTERM, by which Python would end them, is nothing to
    them."""
    helpers = multiprocessing.active_children()
    if helpers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # their end is no failure that the loader has to report
    for helper in helpers:
        helper.kill()
