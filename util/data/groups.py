"""Groups that a run's metrics are told apart for: camera, site, sex, bands of age.

A column of a CSV becomes a column group_NAME of the table of images and of its predictions, "" where a cell
says nothing.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from util.core.errors import InputError
from util.core.plain_numbers import number_of
from util.data.csv_columns import is_missing, refuse_two_spellings, some
from util.options.data import DataOptions

PREFIX = "group_"
MOST = 12  # groups of a column: their pairs are compared


def flags(asked: DataOptions) -> dict[str, str]:
    """{column: the flag that names it}."""
    return dict.fromkeys(asked.group_col, "--group_col")


def add(table: pd.DataFrame, csv_file: str, cells: pd.DataFrame, asked: DataOptions) -> list[str]:
    """Add the groups' columns to a table of images, whose rows are those of `cells`; lines about rows in no
    group. Raises InputError, see `named`."""
    notes, bins = [], bins_of(asked.group_bins, asked.group_col)
    for column in asked.group_col:
        names, lines = named(csv_file, cells[column], bins.get(column))
        table[PREFIX + column] = list(names)
        notes += lines
    return notes


def columns_of(table: pd.DataFrame) -> list[str]:
    """The columns that groups are taken from, without the prefix."""
    return [name.removeprefix(PREFIX) for name in table if name.startswith(PREFIX)]


def in_order(names: Iterable[str]) -> list[str]:
    """Groups' names: bands and numbers by their size, then others by the alphabet."""
    def place(name: str) -> tuple[float, bool, str]:
        first = name.removeprefix("below ").split(" ")[0]
        number = number_of(first) if _is_number(first) else math.inf
        return number, not name.startswith("below "), name
    return sorted(names, key=place)


def bins_of(words: Sequence[str], columns: Sequence[str]) -> dict[str, list[float]]:
    """`--group_bins age=40,60` -> {column: rising edges}. InputError."""
    found = {}
    for word in words:
        column, _, edges = word.partition("=")
        try:
            numbers = [number_of(edge) for edge in edges.split(",")]
        except ValueError:
            numbers = []
        if not numbers or any(not a < b for a, b in itertools.pairwise(numbers)) or not np.isfinite(
                numbers).all():
            raise InputError(f"--group_bins {word}: COLUMN=NUMBER,NUMBER with rising numbers, such as "
                             "age=40,60")
        if column not in columns:
            raise InputError(f"--group_bins {word}: {column} is none of --group_col "
                             f"{' '.join(columns) or '(none is named)'}")
        found[column] = numbers
    return found


def named(csv_file: str, cells: pd.Series, edges: Sequence[float] | None) -> tuple[pd.Series, list[str]]:
    """A column's cells -> (the name of each row's group, "" where none is known; a line about those).

    edges: bands of numbers, each up to but without its upper edge. Raises InputError for a column with one
    group, with too many, with a group of one image, or with text where there are edges.
    """
    names = cells.mask(cells.map(is_missing), "")
    known = names[names != ""]
    if edges is not None:
        names = names.where(names == "", _bands(csv_file, known, edges).reindex(names.index))
        known = names[names != ""]
    else:
        refuse_two_spellings(csv_file, known)
    counts = known.value_counts()
    if len(counts) > MOST:
        raise InputError(f"{csv_file}: column {cells.name} has {len(counts)} groups, and at most {MOST} are "
                         f"compared: merge some, or cut numbers into bands (--group_bins {cells.name}=40,60)")
    if len(counts) < 2:
        raise InputError(f"{csv_file}: column {cells.name} has {len(counts)} group, and groups are compared: "
                         "take it out of --group_col")
    lone = sorted(counts.index[counts == 1])
    if lone:
        line = known.index[known == lone[0]][0]
        raise InputError(f"{csv_file}: column {cells.name} has a group of one image ({some(lone)}; line "
                         f"{line}): merge it with another, or leave the cell empty")
    lacking = (names == "").sum()
    return names, [f"{csv_file}: {lacking:,} of {len(names):,} rows name no {cells.name}: they are in no "
                   "group of it"] if lacking else []


def _bands(csv_file: str, known: pd.Series, edges: Sequence[float]) -> pd.Series:
    try:
        numbers = known.map(number_of).astype(np.float64)
    except ValueError:
        wrong = next(cell for cell in known if not _is_number(cell))
        raise InputError(f"{csv_file}: column {known.name} holds {wrong!r}, and --group_bins needs numbers: "
                         "correct it, or leave the cell empty") from None
    written = [f"{edge:g}" for edge in edges]
    labels = [f"below {written[0]}", *(f"{low} to {high}" for low, high in itertools.pairwise(written)),
              f"{written[-1]} and above"]
    return pd.Series(np.array(labels, dtype=object)[np.searchsorted(edges, numbers, side="right")],
                     known.index, dtype=object)


def _is_number(cell: str) -> bool:
    try:
        number_of(cell)
    except ValueError:
        return False
    return True
