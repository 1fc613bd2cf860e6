"""The names of the splits: which images train, which choose, and which sets are scored at the end.

train, val and test, in a table also iv for val and ev for test. A further test set has a name of its own.
In a table test:NAME is another internal one, of the same source as train, and ev:NAME an external one, of
another hospital or camera; as folders they are test_NAME and ev_NAME. In the table of images, in names of
files and in the report both are test_NAME.
"""

import re
from collections.abc import Collection, Iterable, Sequence

from util.core.errors import InputError

SPLITS = ("train", "val", "test")
TEST = "test"
# internal, external
SPLIT_NAMES = {"train": "train", "val": "val", "test": "test", "iv": "val", "ev": "test"}
KNOWN = (*SPLIT_NAMES, "test:NAME", "ev:NAME")
_FURTHER = re.compile(r"(test|ev)[:_](.+)", re.IGNORECASE)
_NAME = re.compile(r"\w[\w.-]{0,59}")  # what a file's name can hold on every system


def split_of(cell: str) -> str | None:
    """The split that a table's cell, or a folder's name, means; None for no such word. InputError for a
    further test set whose name no file can have."""
    if cell.lower() in SPLIT_NAMES:
        return SPLIT_NAMES[cell.lower()]
    further = _FURTHER.fullmatch(cell)
    if further is None:
        return None
    if not _NAME.fullmatch(further[2]):
        raise InputError(f"split {cell!r}: {further[2]!r} becomes part of file names, so it takes letters, "
                         "numbers and . _ - alone (at most 60)")
    return f"{TEST}_{further[2]}"


def external_of(cells: Iterable[str]) -> tuple[str, ...]:
    """The external test sets among a table's cells. InputError for a name that is both internal and
    external."""
    kinds: dict[str, set[str]] = {}
    for cell in set(cells):
        further = _FURTHER.fullmatch(cell)
        if further is not None:
            kinds.setdefault(f"{TEST}_{further[2]}", set()).add(further[1].lower())
    both = [name.removeprefix(f"{TEST}_") for name, kind in kinds.items() if len(kind) > 1]
    if both:
        raise InputError(f"test set {both[0]} is both internal (test:{both[0]}) and external (ev:{both[0]}): "
                         "give one another name")
    return tuple(sorted(name for name, kind in kinds.items() if "ev" in kind))


def is_test(split: str) -> bool:
    """Whether it is a test set, the plain one or a further one."""
    return split == TEST or split.startswith(f"{TEST}_")


def plain(split: str) -> str:
    """train, val or test: what is done with the split."""
    return TEST if is_test(split) else split


def in_order(found: Collection[str], external: Collection[str] = ()) -> list[str]:
    """Splits in the order in which they are shown: train, val, test, further internal test sets by name, then
    external ones."""
    further = sorted(split for split in found if split not in SPLITS)
    return [*(split for split in SPLITS if split in found),
            *(split for split in further if split not in external),
            *(split for split in further if split in external)]


def test_sets(found: Sequence[str]) -> list[str]:
    """Those of the splits that are test sets, in the same order."""
    return [split for split in found if is_test(split)]
