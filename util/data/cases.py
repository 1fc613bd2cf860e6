"""Cases: the images of an eye, a patient or a volume that are judged together, as one sample.

The column `case` of the table of images names the case of each; a table without it has an image a sample. The
outputs of a case are made of those of its images (`pooled`), so that a model is one of images, whatever they
are parts of:

mean       the mean of the images' outputs
max        classification: the outputs of the image that is least like the first class (the lowest grade),
           as one suspicious section decides over a volume; several labels, regression: the largest value of
           each label or target
attention  the mean weighted by a learned attention (util/model/case_attention.py)

N is the number of images, C of cases, K of outputs.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from util.core.errors import InputError
from util.data.csv_columns import is_missing, names_in_paths, refuse_two_spellings
from util.options.data import ATTENTION, MAX, MEAN, DataOptions

COLUMN = "case"


def flags(asked: DataOptions) -> dict[str, str]:
    """{column: the flag that names it}."""
    return {} if asked.case_col is None else {asked.case_col: "--case_col"}


def add(table: pd.DataFrame, csv_file: str, cells: pd.DataFrame, asked: DataOptions) -> list[str]:
    """Add the column of --case_col to a table of images, whose rows are those of `cells`; a line about images
    that name no case. InputError for one case in two spellings."""
    if asked.case_col is None:
        return []
    names = cells[asked.case_col]
    names = names.mask(names.map(is_missing), "")
    refuse_two_spellings(csv_file, names[names != ""])
    table[COLUMN] = list(names)
    lacking = (names == "").sum()
    return [f"{csv_file}: {lacking:,} of {len(names):,} rows name no case in column {asked.case_col}: each "
            "is one of its own"] if lacking else []


def named(table: pd.DataFrame, asked: DataOptions,
          typed: frozenset[str] = frozenset()) -> tuple[pd.DataFrame, list[str]]:
    """The table with the column `case`, checked, where cases are asked for; lines about it.

    A column wins over an expression unless only that was typed, both over --case patient. Raises InputError
    for a case in two splits, with two labels or with two patients, and where nothing names the cases.
    """
    lines = []
    if asked.case_regex and (COLUMN not in table or "case_regex" in typed):
        cases, lines = names_in_paths(table["path"], asked.case_regex, "case", with_folder=True,
                                      must_match="case_regex" in typed)
    elif COLUMN in table:
        cases = list(table[COLUMN])
    elif asked.case == "patient":
        cases = list(table["patient"])
        if not any(cases):
            raise InputError("--case patient: no patient is known; name their column with --patient_col, or "
                             "an expression for file names with --patient_regex")
    else:
        return table, []
    # an image that names none stands alone
    cases = [case or path for case, path in zip(cases, table["path"], strict=True)]
    table = table.assign(**{COLUMN: cases})
    _require_one(table, "split", "stand in two splits", "keep all images of a case in one")
    labels = ["label"] if "target" in table else [name for name in table if name.startswith("true_")]
    for column in labels:
        _require_one(table, column, f"have images with different {_label(column)}", "a case has one")
    known = table[table["patient"] != ""]
    _require_one(known, "patient", "have images of two patients", "name the cases so that each has one")
    for column in [name for name in table if name.startswith("group_")]:
        name, known = column.removeprefix("group_"), table[column].where(table[column] != "")
        of_case = known.groupby(table[COLUMN])
        several = of_case.transform("nunique") > 1
        if several.any():
            lines.append(f"{table.loc[several, COLUMN].nunique():,} cases have images of different groups of "
                         f"{name}: they are in no group of it")
        told = known.isna() & of_case.transform("first").notna() & ~several
        if told.any():
            lines.append(f"{told.sum():,} images that name no {name} are in the group of their case's others")
        table[column] = of_case.transform("first").mask(several).fillna("")
    return table, lines


def _label(column: str) -> str:
    return "labels" if column == "label" else f"values of {column.removeprefix('true_')}"


def _require_one(table: pd.DataFrame, column: str, what: str, remedy: str) -> None:
    """InputError where the images of a case differ in a column; a value that is missing differs from
    others."""
    several = table.groupby(COLUMN, sort=False)[column].nunique(dropna=False) > 1
    if several.any():
        first = several.idxmax()
        rows = table[table[COLUMN] == first].drop_duplicates(column)
        shown = "; ".join(f"{path} {value}" for path, value in zip(rows["path"][:2], rows[column][:2],
                                                                   strict=True))
        raise InputError(f"{several.sum():,} cases {what}, the first is {first} ({shown}): {remedy}")


def describe(table: pd.DataFrame, splits: Sequence[str], asked: DataOptions) -> list[str]:
    """The terminal's line about them, where there are any."""
    if COLUMN not in table:
        return []
    sizes = table.groupby([COLUMN, "split"], sort=False).size()
    numbers = sizes.groupby("split").size()
    counted = ", ".join(f"{split} {numbers[split]:,}" for split in splits)
    low, high = sizes.min(), sizes.max()
    images = f"{low:,} to {high:,} images" if low < high else f"{low:,} image{'s' if low > 1 else ''}"
    return [f"cases      {counted}; of {images} each, judged together by --pool {asked.pool}"]


def counted(table: pd.DataFrame, splits: Sequence[str]) -> dict[str, dict[str, int]]:
    """{"cases": {split: how many}}, for run.json; {} where there are none."""
    if COLUMN not in table:
        return {}
    numbers = table.groupby("split")[COLUMN].nunique()
    return {"cases": {split: int(numbers[split]) for split in splits}}


# ---- from images to cases ----------------------------------------------------------------------------------

def of_images(rows: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of images -> (a row a case, which is that of its first image, with `images`, how many there are;
    (N,) the place of each image's case)."""
    owners, _ = pd.factorize(rows[COLUMN])
    table = rows[~rows[COLUMN].duplicated()].reset_index(drop=True)
    return table.assign(images=np.bincount(owners)), owners


def pooled(rows: pd.DataFrame, outputs: np.ndarray, pool: str,
           classifies: bool) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows of images and their (N, K) outputs, of attention (N, K + 1) with its scores behind them -> a row a
    case, (C, K) outputs, and (N,) the weight of each image in its case, 1 together."""
    table, owners = of_images(rows)
    outputs = np.asarray(outputs, np.float64)
    if pool == ATTENTION:
        scores, outputs = outputs[:, -1], outputs[:, :-1]
        highest = _by_case(np.maximum, scores, owners)
        weights = np.exp(scores - highest[owners])
        weights /= np.bincount(owners, weights)[owners]
    elif pool == MEAN:
        weights = 1 / np.bincount(owners)[owners]
    elif pool == MAX and classifies:
        like_first = log_softmax(outputs, axis=1)[:, 0]
        order = np.lexsort((like_first, owners))  # of equal ones the first
        weights = np.zeros(len(owners))
        weights[order[np.searchsorted(owners[order], np.arange(len(table)))]] = 1.0
    elif pool == MAX:
        highest = _by_case(np.maximum, outputs, owners)
        weights = (outputs == highest[owners]).sum(axis=1).astype(np.float64)
        return table, highest, weights / np.bincount(owners, weights)[owners]
    else:
        raise ValueError(f"pool {pool}")
    return table, _by_case(np.add, outputs * weights[:, None], owners), weights


def _by_case(operation: np.ufunc, values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Sums, or maxima, of the rows of each case."""
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], np.arange(owners.max() + 1))
    return operation.reduceat(values[order], starts, axis=0)
