"""A CSV with several labels an image -> the table of images (see util/data/tables.py).

Beside the columns that every table has stand true_LABEL (0, 1, NaN where not known). `label` is what all of
a row's cells say (1;0;?), so that a fingerprint of the data covers them; `target` numbers these combinations.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from util.core.errors import InputError
from util.data import cases, covariates, groups
from util.data.csv_columns import read_images_csv, refuse_repeated, require_splits, some
from util.data.labels import cells as label_cells
from util.data.splits import SPLITS, external_of, needed, plain, pooled
from util.data.tables import Data, csv_table
from util.options.data import DataOptions

PREFIX = "true_"


def read_labels_csv(asked: DataOptions, splits: Sequence[str] = SPLITS,
                    known: Sequence[str] | None = None) -> tuple[Data, list[str]]:
    """The CSV that is asked for, an image a row -> (Data without classes, the labels in order).

    Labels are the columns label_cols, in their order, or the names in label_col, by the alphabet; known:
    those of a checkpoint, whose order is then taken. Raises InputError naming column and line.
    """
    csv_file, columns = asked.csv_file, list(asked.label_cols)
    _refuse_two_roles(asked)
    others = dict.fromkeys(columns, "--label_cols") if columns else {asked.label_col: "--label_col"}
    cells, row_splits, notes = read_images_csv(csv_file, asked.path_col, asked.split_col, asked.patient_col,
                                               groups.flags(asked) | cases.flags(asked) | others
                                               | covariates.flags(asked, (*others, asked.path_col,
                                                                          asked.split_col)),
                                               asked.path_suffix)
    row_splits = pooled(row_splits, asked.folds)
    if columns:
        names, values = columns, label_cells.of_columns(csv_file, cells[columns])
    else:
        names, values, lines = label_cells.of_names(csv_file, cells[asked.label_col])
        notes += lines
        if not names:
            raise InputError(f"{csv_file}: column {asked.label_col} names no label at all")
    numbers = pd.DataFrame(values, cells.index, names)
    if known is not None:
        numbers, names = _as_known(csv_file, numbers, known, of_columns=bool(columns)), list(known)
    written = pd.Series(label_cells.written(numbers.to_numpy()), cells.index)
    refuse_repeated(csv_file, cells[asked.path_col], {"in two splits": row_splits,
                                                      "with other labels": written})
    require_splits(csv_file, cells[asked.split_col], row_splits, needed(splits, asked.folds))
    kept = row_splits.map(plain).isin(splits)
    table, of_patients = csv_table(csv_file, cells[kept], row_splits[kept], asked.path_col, asked.patient_col,
                                   written[kept])
    table.insert(3, "target", pd.factorize(table["label"], sort=True)[0].astype(np.int64))
    notes += [*of_patients, *groups.add(table, csv_file, cells[kept], asked),
              *cases.add(table, csv_file, cells[kept], asked),
              *covariates.add(table, csv_file, cells[kept], asked)]
    table = pd.concat([table, numbers[kept].reset_index(drop=True).add_prefix(PREFIX)], axis=1)
    return Data(table, [], [*notes, *_notes(table, names)],
                external=external_of(cells[asked.split_col][kept])), names


def values_of(rows: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """(N, T) of 0, 1 and NaN where not known."""
    return rows[[PREFIX + name for name in names]].to_numpy(np.float64)


def counts(table: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """{split: {label: [images that have it, images that don't]}}; the others are not known."""
    return {split: {name: [int((column == value).sum()) for value in (1, 0)]
                    for name, column in zip(names, values_of(rows, names).T, strict=True)}
            for split, rows in table.groupby("split", sort=False)}


def _refuse_two_roles(asked: DataOptions) -> None:
    names = asked.label_cols
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    others = [name for name in dict.fromkeys(names) if name in (asked.path_col, asked.split_col,
                                                                asked.patient_col)]
    if repeated:
        raise InputError(f"--label_cols names {some(repeated)} twice")
    if others:
        raise InputError(f"--label_cols {some(others)}: that column is the path, the split or the patient of "
                         f"{asked.csv_file}")


def _as_known(csv_file: str, numbers: pd.DataFrame, known: Sequence[str],
              of_columns: bool) -> pd.DataFrame:
    """The labels of a checkpoint. Of columns all must be there; names that no row has are 0 where the row's
    labels are known."""
    unknown = [name for name in numbers if name not in known]
    absent = [name for name in known if name not in numbers]
    if unknown or (absent and of_columns):
        raise InputError(f"{csv_file}: the checkpoint's labels are {some(known, 50)}; "
                         + (f"it has no {some(unknown, 10)}" if unknown else
                            f"--label_cols lacks {some(absent, 10)}") + ": name the same ones")
    for name in absent:
        numbers = numbers.assign(**{name: np.where(numbers.isna().all(axis=1), np.nan, 0.0)})
    return numbers[list(known)]


def _notes(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """What is missing, by label and split, and labels that a split has of one kind alone."""
    lacking, notes, alike = [], [], {}
    for name in names:
        absent = table[PREFIX + name].isna()
        if absent.any():
            by_split = ", ".join(f"{split} {count:,}" for split, count
                                 in table["split"][absent].value_counts(sort=False).items())
            lacking.append(f"{name} ({by_split})")
    if lacking:
        notes.append(f"labels are not known in some rows, which loss and metrics of the label leave out: "
                     f"{some(lacking, 20)}")
    for split, of_labels in counts(table, names).items():
        if split != "train":
            alike[split] = [name for name, (there, absent) in of_labels.items() if not there or not absent]
    return notes + [f"{split} has images of one kind alone (with or without it) of {some(found, 20)}: its "
                    "ROC AUC is undefined there" for split, found in alike.items() if found]
