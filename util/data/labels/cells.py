"""What the cells of a CSV say of labels: (N, T) of 0, 1 and NaN where a label is not known."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from util.core.errors import InputError
from util.core.plain_numbers import number_of
from util.data.csv_columns import is_missing, refuse_two_spellings, some

PARTED_BY = re.compile(r"[;|]")
NONE_OF_THEM = {"", "none", "-"}  # in a column of names: no label is there
MOST = 1000  # labels: a column of sentences has more


def of_columns(csv_file: str, cells: pd.DataFrame) -> np.ndarray:
    """Columns of 0 and 1, one a label; an empty cell, NA and the like are not known. InputError for another
    value, with its column and line."""
    known = {cell: _value(cell) for cell in set(cells.to_numpy().ravel())}
    values = cells.apply(lambda column: column.map(known))
    for name in cells:
        wrong = cells[name][values[name].isna() & ~cells[name].map(is_missing)]
        if len(wrong):
            listed = some([f"line {line} {cell!r}" for line, cell in wrong.items()])
            raise InputError(f"{csv_file}: label {name} is neither 0 nor 1 in {len(wrong)} of {len(cells)} "
                             f"rows: {listed}; correct them, or leave the cells empty (not known)")
    return values.to_numpy(np.float64)


def _value(cell: str) -> float:
    """NaN where it is missing, or no 0 or 1."""
    try:
        number = float("nan") if is_missing(cell) else number_of(cell)
    except ValueError:
        number = float("nan")
    return number if number in (0, 1) else float("nan")


def of_names(csv_file: str, cells: pd.Series) -> tuple[list[str], np.ndarray, list[str]]:
    """A column of names parted by ; or | -> (the names in order, their values, lines about rows that name
    none, or that are not known). InputError for a name in two spellings, or twice in one cell."""
    parts = {cell: _names_in(cell) for cell in set(cells)}
    twice = cells[cells.map(lambda cell: len(set(parts[cell] or ())) < len(parts[cell] or ()))]
    if len(twice):
        raise InputError(f"{csv_file}: column {cells.name} names a label twice in one cell: line "
                         f"{twice.index[0]} {twice.iloc[0]!r}")
    names = sorted({name for found in parts.values() for name in found or ()})
    if len(names) > MOST:
        raise InputError(f"{csv_file}: column {cells.name} names {len(names):,} labels, such as "
                         f"{some(names, 3)}: at most {MOST:,} are learned")
    refuse_two_spellings(csv_file, pd.Series(names, dtype=object, name=cells.name))
    rows = {cell: [float("nan")] * len(names) if found is None else [float(name in found) for name in names]
            for cell, found in parts.items()}
    values = np.array([rows[cell] for cell in cells], np.float64).reshape(len(cells), len(names))
    without, unknown = (int(cells.map(lambda cell, wanted=wanted: parts[cell] == wanted).sum())
                        for wanted in ([], None))
    lines = [(without, "name no label: all labels are 0 there"),
             (unknown, "say that their labels are not known: left out of loss and metrics")]
    return names, values, [f"{csv_file}: {count:,} of {len(cells):,} rows {what}"
                           for count, what in lines if count]


def _names_in(cell: str) -> list[str] | None:
    """None: nothing is known."""
    if cell.lower() in NONE_OF_THEM:
        return []
    if is_missing(cell):
        return None
    return [part.strip() for part in PARTED_BY.split(cell) if part.strip()]


def written(values: np.ndarray) -> list[str]:
    """A text a row of (N, T), such as 1;0;?, for the fingerprint of the data and for strata."""
    marks = np.where(np.isnan(values), "?", np.where(values == 1, "1", "0"))
    return [";".join(row) for row in marks]


def refuse_constant(names: Sequence[str], values: np.ndarray, where: str) -> None:
    """InputError for a label that is the same in all rows where it is known: there is nothing to learn."""
    for name, column in zip(names, values.T, strict=True):
        known = column[~np.isnan(column)]
        if not len(known):
            raise InputError(f"label {name} is known in no row of {where}: leave it out, or fill it in")
        if known.min() == known.max():
            raise InputError(f"label {name} is constant in {where} ({known[0]:g} in all {len(known):,} rows "
                             "that know it): leave it out, or add images of the other kind")
