"""A CSV with numbers to predict -> the table of images (see util/data/tables.py), checked before anything is
built.

Beside the columns that every table has stand true_TARGET (float, NaN where missing) and covariate_NAME (text
as it is written). `label` is what the cells of a row's targets say, so that a fingerprint of the data covers
them.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from util.core.errors import InputError
from util.core.plain_numbers import number_of
from util.data import cases, covariates, groups
from util.data.csv_columns import (
    extreme_values,
    is_missing,
    missing_values,
    read_images_csv,
    refuse_repeated,
    require_splits,
    some,
)
from util.data.splits import SPLITS, external_of, needed, plain, pooled
from util.data.tables import Data, csv_table
from util.options.data import DataOptions


def read_regression_csv(asked: DataOptions, splits: Sequence[str] = SPLITS) -> Data:
    """The CSV that is asked for, with an image a row -> Data without classes; relative paths start at the
    CSV's folder.

    targets: names of the T numeric columns; target_transform: none or log, one for all or one a target;
    covariates: names of columns that are read beside the image. Missing cells stay missing; with dropna, rows
    that lack a target are left out, and counted in a note. Splits are train, val (or iv), test (or ev); each
    of `splits` must occur. Raises InputError naming column and line: absent column, text or infinite values
    in a target, a logarithm of what is not above 0, an unknown split, one image twice, files that are not
    there.
    """
    csv_file, targets = asked.csv_file, asked.targets
    transforms = parse_transforms(asked.target_transform, targets)
    _refuse_two_roles(asked)
    others = (groups.flags(asked) | cases.flags(asked) | dict.fromkeys(targets, "--targets")
              | covariates.flags(asked, (*targets, asked.path_col, asked.split_col)))
    cells, row_splits, notes = read_images_csv(csv_file, asked.path_col, asked.split_col, asked.patient_col,
                                               others, asked.path_suffix)
    row_splits = pooled(row_splits, asked.folds)
    numbers = pd.DataFrame({name: _numbers(csv_file, cells[name]) for name in targets})
    for name, transform in zip(targets, transforms, strict=True):
        if transform == "log":
            _refuse_not_positive(csv_file, numbers[name])
    refuse_repeated(csv_file, cells[asked.path_col], {"in two splits": row_splits})

    kept = row_splits.map(plain).isin(splits)
    if asked.dropna:
        lacking = kept & numbers.isna().any(axis=1)
        if lacking.any():
            notes.append(f"--dropna left out {lacking.sum():,} of {kept.sum():,} rows that lack a target")
        kept &= ~lacking
    require_splits(csv_file, cells[asked.split_col], row_splits[kept], needed(splits, asked.folds),
                   " after --dropna" if asked.dropna else "")
    cells, numbers = cells[kept], numbers[kept]
    labels = [";".join(row) for row in cells[targets].itertuples(index=False)]
    table, of_patients = csv_table(csv_file, cells, row_splits[kept], asked.path_col, asked.patient_col,
                                   labels)
    notes += [*of_patients, *groups.add(table, csv_file, cells, asked),
              *cases.add(table, csv_file, cells, asked)]
    for name in targets:
        table[f"true_{name}"] = numbers[name].to_numpy()
        notes += extreme_values(name, numbers[name].to_numpy())
    of_covariates = covariates.add(table, csv_file, cells, asked)
    for name in targets:
        notes += missing_values(name, table[f"true_{name}"].isna(), table["split"],
                                "target, left out of loss and figures")
    return Data(table, [], [*notes, *of_covariates], external=external_of(cells[asked.split_col]))


def _refuse_two_roles(asked: DataOptions) -> None:
    targets, others = asked.targets, (asked.path_col, asked.split_col)
    repeated = [name for name in dict.fromkeys(targets) if targets.count(name) > 1]
    if repeated:
        raise InputError(f"--targets names {some(repeated)} twice")
    both = [name for name in targets if name in others]
    if both:
        raise InputError(f"--targets {some(both)}: that column is the path or the split of {asked.csv_file}")


def _numbers(csv_file: str, cells: pd.Series) -> pd.Series:
    """The column as float64, NaN where missing; InputError for text and for infinite values."""
    values = pd.Series([_number(cell) for cell in cells], cells.index, dtype=object)
    text = cells[values.map(lambda value: value is None)]
    if len(text):
        comma = any(re.fullmatch(r"-?\d+,\d+", cell) for cell in text[:5])
        what_to_do = ("write decimals with a point" if comma
                      else "correct them, or leave the cells empty (missing)")
        raise InputError(f"{csv_file}: column {cells.name} has text in {len(text)} of {len(cells)} rows: "
                         f"{_first(text)}{' and more' if len(text) > 5 else ''}; {what_to_do}")
    values = values.astype(np.float64)
    infinite = cells[np.isinf(values)]
    if len(infinite):
        raise InputError(f"{csv_file}: column {cells.name} is infinite in {len(infinite)} rows: "
                         f"{_first(infinite)}; correct them, or leave the cells empty (missing)")
    return values


def _number(cell: str) -> float | None:
    """NaN where it is missing, None for text."""
    try:
        return math.nan if is_missing(cell) else number_of(cell)
    except ValueError:
        return None


def _first(cells: pd.Series) -> str:
    return "; ".join(f"line {line} {cell!r}" for line, cell in cells[:5].items())


def _refuse_not_positive(csv_file: str, values: pd.Series) -> None:
    wrong = values[values <= 0]  # NaN is not
    if len(wrong):
        first = "; ".join(f"line {line} {value:g}" for line, value in wrong[:5].items())
        raise InputError(f"{csv_file}: --target_transform log, but column {values.name} is not above 0 in "
                         f"{len(wrong)} rows: {first}")


def parse_transforms(given: Sequence[str], targets: Sequence[str]) -> list[str]:
    """`--target_transform`: one for all, or one a target -> a list as long as targets. Raises InputError."""
    if len(given) == 1:
        return list(given) * len(targets)
    if len(given) != len(targets):
        raise InputError(f"--target_transform {' '.join(given)}: one for all targets, or one for each of the "
                         f"{len(targets)}")
    return list(given)
