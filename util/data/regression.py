"""A CSV with numbers to predict -> the table of images (see util/data/tables.py), checked before anything is
built.

Beside the columns that every table has stand true_TARGET (float, NaN where missing) and covariate_NAME (text
as it is written). `label` is what the cells of a row's targets say, so that a fingerprint of the data covers
them.
"""

import itertools
import os
import re

import numpy as np
import pandas as pd

from util.core.errors import InputError
from util.core.plain_numbers import number_of
from util.data.csv_columns import (
    SEPARATORS,
    file_names,
    is_missing,
    joined,
    patients_of,
    read_columns,
    refuse_absent,
    refuse_empty,
    refuse_repeated,
    refuse_two_spellings,
    refuse_unknown,
    some,
)
from util.data.tables import SPLIT_NAMES, SPLITS, Data, picture_table


def read_regression_csv(csv_file, targets, path_col="path", split_col="split", patient_col=None,
                        covariates=(),
                        transforms=None, dropna=False, splits=SPLITS, path_suffix=""):
    """A CSV with an image a row -> Data without classes; relative paths start at the CSV's folder.

    targets: names of the T numeric columns; transforms: none or log, one a target; covariates: names of
    columns that are read beside the image; path_suffix: an ending that the paths lack. Missing cells stay
    missing; with dropna, rows that lack a target are left out, and counted in a note. Splits are train, val
    (or iv), test (or ev); each of `splits` must occur. Raises InputError naming column and line: absent
    column, text or infinite values in a target, a logarithm of what is not above 0, an unknown split, one
    image twice, files that are not there.
    """
    flags = {path_col: "--path_col", split_col: "--split_col", patient_col: "--patient_col"}
    flags |= dict.fromkeys(targets, "--targets") | dict.fromkeys(covariates, "--covariates")
    names = list(dict.fromkeys([path_col, split_col, *([patient_col] if patient_col else []), *targets,
                                *covariates]))
    _refuse_two_roles(csv_file, path_col, split_col, targets, covariates)
    cells, lines, separator = read_columns(csv_file, names, flags, exact=path_col)
    columns = dict(zip(names, cells, strict=True))
    columns[path_col] = file_names(csv_file, columns[path_col], path_suffix)
    notes = [] if separator == "," else [f"{csv_file}: columns are separated by {SEPARATORS[separator]}"]
    for name in (path_col, split_col):
        refuse_empty(csv_file, name, columns[name], lines)
    refuse_unknown(csv_file, split_col, columns[split_col], lines, SPLIT_NAMES)
    numbers = {name: _numbers(csv_file, name, columns[name], lines) for name in targets}
    for name, transform in zip(targets, transforms or ["none"] * len(targets), strict=True):
        if transform == "log":
            _refuse_not_positive(csv_file, name, numbers[name], lines)
    row_splits = [SPLIT_NAMES[written.lower()] for written in columns[split_col]]
    refuse_repeated(csv_file, columns[path_col], lines, {"in two splits": row_splits})

    kept = np.isin(row_splits, splits)
    if dropna:
        whole = ~np.isnan(np.stack([numbers[name] for name in targets], axis=1)).any(axis=1)
        if (kept & ~whole).any():
            notes.append(f"--dropna left out {(kept & ~whole).sum():,} of {kept.sum():,} rows that lack a "
                         "target")
        kept &= whole
    paths, row_splits, lines = (list(itertools.compress(column, kept))
                                for column in (columns[path_col], row_splits, lines))
    absent = [split for split in splits if split not in row_splits]
    if absent:
        there = some(sorted(set(columns[split_col])))
        raise InputError(f"{csv_file}: no row with {split_col} "
                         f"{some(absent)}{' after --dropna' if dropna else ''}; there is {there}")
    paths = joined(os.path.dirname(csv_file), paths)
    refuse_absent(csv_file, paths, lines)
    picked = {name: list(itertools.compress(column, kept)) for name, column in columns.items()}
    labels = [";".join(row) for row in zip(*(picked[name] for name in targets), strict=True)]
    patients = [""] * len(paths)
    if patient_col:
        patients, of_patients = patients_of(csv_file, patient_col, picked[patient_col])
        notes += of_patients
    table = picture_table(paths, labels, row_splits, patients)
    more = {f"true_{name}": numbers[name][kept] for name in targets}
    more |= {f"covariate_{name}": picked[name] for name in covariates}
    table = pd.concat([table, pd.DataFrame(more)], axis=1)
    for name in targets:
        notes += _extreme(name, numbers[name][kept])
    for name in covariates:
        present = [cell for cell in picked[name] if not is_missing(cell)]
        try:
            notes += _extreme(name, np.array(list(map(number_of, present))))
        except ValueError:  # a category
            refuse_two_spellings(csv_file, name, present)
    return Data(
        table, [], notes + _missing(table, targets, "true_") + _missing(table, covariates, "covariate_")
    )


def _refuse_two_roles(csv_file, path_col, split_col, targets, covariates):
    repeated = [name for name in dict.fromkeys(targets) if list(targets).count(name) > 1]
    if repeated:
        raise InputError(f"--targets names {some(repeated)} twice")
    both = [name for name in covariates if name in targets or name in (path_col, split_col)]
    if both:
        raise InputError(f"--covariates {some(both)}: already a target, the path or the split of {csv_file}")
    both = [name for name in targets if name in (path_col, split_col)]
    if both:
        raise InputError(f"--targets {some(both)}: that column is the path or the split of {csv_file}")


def _numbers(csv_file, name, cells, lines):
    """The column as (N,) float64, NaN where missing; InputError for text and for infinite values."""
    values, wrong = np.full(len(cells), np.nan), []
    for row, cell in enumerate(cells):
        if is_missing(cell):
            continue
        try:
            values[row] = number_of(cell)
        except ValueError:
            wrong.append(row)
    if wrong:
        first = "; ".join(f"line {lines[row]} {cells[row]!r}" for row in wrong[:5])
        comma = any(re.fullmatch(r"-?\d+,\d+", cells[row]) for row in wrong[:5])
        raise InputError(
            f"{csv_file}: column {name} has text in {len(wrong)} of {len(cells)} rows: {first}"
            f"{' and more' if len(wrong) > 5 else ''}; "
            + ("write decimals with a point" if comma else "correct them, or leave the cells empty (missing)")
        )
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        first = "; ".join(f"line {lines[row]} {cells[row]!r}" for row in infinite[:5])
        raise InputError(f"{csv_file}: column {name} is infinite in {len(infinite)} rows: {first}; correct "
                         "them, or leave the cells empty (missing)")
    return values


def _refuse_not_positive(csv_file, name, values, lines):
    wrong = np.flatnonzero(values <= 0)  # NaN is not
    if len(wrong):
        first = "; ".join(f"line {lines[row]} {values[row]:g}" for row in wrong[:5])
        raise InputError(f"{csv_file}: --target_transform log, but column {name} is not above 0 in "
                         f"{len(wrong)} rows: {first}")


def _extreme(name, values):
    """A warning for one value, several times, that lies further from all others than they do from each other:
    -999, 9999."""
    values = values[np.isfinite(values)]
    lines = []
    for value in (values.min(), values.max()) if len(values) else ():
        others = values[values != value]
        if (count := np.count_nonzero(values == value)) < 2 or len(np.unique(others)) < 3:
            continue
        if np.abs(others - value).min() > np.ptp(others):
            lines.append(f"warning: {name} is {value:g} in {count:,} rows, far from all others "
                         f"({others.min():g} to {others.max():g}): if that stands for a missing value, leave "
                         "these cells empty")
    return lines


def _missing(table, names, prefix):
    """A note for each column that lacks values, by split."""
    notes = []
    for name in names:
        column = table[prefix + name]
        absent = column.isna() if prefix == "true_" else column.map(is_missing)
        if absent.any():
            by_split = ", ".join(f"{split} {count:,} of {(table['split'] == split).sum():,}"
                                 for split, count in table["split"][absent].value_counts().items())
            kind = (
                "target, left out of loss and figures"
                if prefix == "true_"
                else "covariate, told to the model as missing"
            )
            notes.append(f"{name} is missing in some rows ({by_split}): a missing {kind}")
    return notes


def parse_transforms(given, targets):
    """`--target_transform`: one for all, or one a target -> a list as long as targets. Raises InputError."""
    if len(given) == 1:
        return list(given) * len(targets)
    if len(given) != len(targets):
        raise InputError(f"--target_transform {' '.join(given)}: one for all targets, or one for each of the "
                         f"{len(targets)}")
    return list(given)
