"""How a run can end that is not our own bug.

An `InputError` is something the user can fix (exit code 2), a `RunError` a run that failed through no fault
of the input (exit code 1). Both reach the terminal as one line (util/core/ending.py); anything else is a bug
and keeps its traceback.
"""

import re

_ENDLESS = re.compile(r"\S{400,}")


class InputError(Exception):
    """Wrong input: the message says what, where and how to fix it, in one line. Exit code 2."""


def reject_if(*problems: tuple[object, str]) -> None:
    """InputError with the text of the first of (whether there is a problem, its text) that is one."""
    for is_there, text in problems:
        if is_there:
            raise InputError(text)


class RunError(Exception):
    """A run that failed (diverged, full disk, a peer that died): one line. Exit code 1.

    `everywhere` says that all processes raise it together, so that one of them printing it is enough.
    """

    def __init__(self, message: str, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class PeerLost(Exception):
    """The connection to another process is lost: one line, exit code 1. A launcher may start all of them
    again."""


class PeerEnded(Exception):
    """The main process reported an error that ends all; this one leaves with the same code and says
    nothing."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.exit_code = 2 if kind == "InputError" else 1


def one_line(text: str) -> str:
    """Text whose line ends, terminal codes and bytes of no encoding are written out, and whose endless words
    are shortened: a file's name may be any of that."""
    text = _ENDLESS.sub(lambda word: f"{word[0][:100]}…{word[0][-100:]}", text)
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode()
                   for letter in text)
