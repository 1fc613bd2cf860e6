"""Rows of the page and their cases; see the package's docstring."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bad_input.place import Place

REFUSED, SKIPPED, ACCEPTED, FAILED = "refused", "skipped", "accepted", "failed"
# What each outcome means to a user: exit code 2 with one line; the file is left out, counted and listed; it
# works; exit code 1 with one line, because it shows only while the program runs.
CODES = {REFUSED: 2, SKIPPED: 0, ACCEPTED: 0, FAILED: 1}


@dataclass(frozen=True)
class Row:
    """A line of the page.

    kind: the heading that it stands under. says: the program's words, … for what differs from case to case;
    every case's
    output is held to them. does: what it does beside, in plain words. outcome: of REFUSED, SKIPPED, ACCEPTED,
    FAILED.
    """

    kind: str
    what: str
    says: str
    remedy: str
    outcome: str = REFUSED
    does: str = ""

    @property
    def pattern(self) -> re.Pattern:
        """What a line has to match that says this."""
        return re.compile(".*".join(re.escape(part) for part in self.says.split("…")), re.S)


@dataclass(frozen=True)
class Case:
    """make: fills an empty `Place` and returns the command line. names: words that the line must hold beside
    its row's."""

    row: Row
    name: str
    make: Callable[["Place"], list] = field(compare=False)
    names: tuple[str, ...] = ()
    program: str = "main_finetune.py"
    real: bool = False  # also in a process of its own
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        return re.sub(r"[^\w.-]+", "_", f"{self.row.outcome}-{self.row.what[:40]}-{self.name}")


class Table:
    """The cases of one file, in order."""

    def __init__(self):
        self.cases: list[Case] = []

    def add(self, row: Row, name: str, make: Callable, *names: str, **more) -> None:
        self.cases.append(Case(row, name, make, names, **more))

    def case(self, row: Row, name: str, *names: str, **more):
        """The same as a decorator of `make`."""

        def take(make):
            self.add(row, name, make, *names, **more)
            return make

        return take


def all_cases() -> list[Case]:
    """Every case, in the order of the page; no two have one id."""
    from tests.bad_input import (
        checkpoints,
        contents,
        elsewhere,
        flags,
        folders,
        hostile,
        numbers,
        odd_pictures,
        pictures,
        stored,
        tables,
    )

    rooms = (pictures, odd_pictures, folders, tables, numbers, checkpoints, hostile, contents, stored, flags,
             elsewhere)
    cases = [case for table in dict.fromkeys(room.TABLE for room in rooms) for case in table.cases]
    ids = [case.id for case in cases]
    assert len(set(ids)) == len(ids), sorted({name for name in ids if ids.count(name) > 1})
    return cases
