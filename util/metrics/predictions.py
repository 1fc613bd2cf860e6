"""The predictions table, from which every metric is computed: a row an image or case, and one reader for
all tasks.

Its columns: index, path, patient, split; then of a classification true_class, predicted_class, prob_<class>
and logit_<class>, the classes in the order of the model's outputs; of several labels an image true_<label>,
prob_<label> and logit_<label>; of a regression true_<target> and pred_<target>, in the CSV's own units;
group_<column> of each --group_col. Where images are judged together, a row is a case: case and images say
which and of how many, and path is its first image. A table that was written is read back equal in every bit.
"""

import csv
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from util.core.errors import InputError, RunError
from util.metrics.table import CLASSIFICATION, MULTILABEL, REGRESSION

SAMPLE_COLUMNS = ("path", "patient", "split")
# the case, how many images it has; in a table of its images the weight of each
OF_CASES = ("case", "images", "weight")
CLASS_COLUMNS = ("true_class", "predicted_class")


@dataclass(frozen=True)
class Evaluated:
    """The predictions table of a split, a row an image or case; of cases also that of their images, each with
    its weight, made where it is called."""

    table: pd.DataFrame
    images: Callable[[], pd.DataFrame] | None = None


def unit_of(columns: Iterable[str]) -> str:
    """What a row of a table, or of one with this header, is: images or cases."""
    return "cases" if "case" in columns else "images"


def class_names_of(columns: Iterable[str]) -> list[str]:
    """The K classes or labels of a table or its header, in the order of the outputs; [] of a regression."""
    return [name.removeprefix("prob_") for name in columns if name.startswith("prob_")]


def kind_and_names(columns: Iterable[str]) -> tuple[str, list[str]]:
    """The task of a table (or its header), and its classes, labels or targets."""
    columns = list(columns)
    classes = class_names_of(columns)
    if classes and CLASS_COLUMNS[1] not in columns and {f"true_{name}" for name in classes} <= set(columns):
        return MULTILABEL, classes
    targets = [name.removeprefix("pred_") for name in columns if name.startswith("pred_")]
    return (CLASSIFICATION, classes) if classes else (REGRESSION, targets)


def further_columns(columns: Iterable[str]) -> list[str]:
    """The columns of a table, or its header, of its groups (util/data/groups.py) and cases
    (util/data/cases.py)."""
    return [name for name in columns if name in OF_CASES or name.startswith("group_")]


def common_patients(first: pd.DataFrame, second: pd.DataFrame) -> int:
    """How many known patients two tables share."""
    return len(set(first["patient"]) & set(second["patient"]) - {""})


def read_predictions(path: str | os.PathLike) -> pd.DataFrame:
    """Read what run_files.write_predictions wrote; text stays text, even "01", "NA" or "", an empty cell of
    numbers is NaN. InputError for a file that is not there or is no such table."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    kind, names = kind_and_names(header)
    text = [*SAMPLE_COLUMNS, *(CLASS_COLUMNS if kind == CLASSIFICATION else ())]
    begins = {CLASSIFICATION: ("prob_", "logit_"), MULTILABEL: ("true_", "prob_", "logit_"),
              REGRESSION: ("true_", "pred_")}[kind]
    numbers = [f"{begin}{name}" for begin in begins for name in names]
    missing = [column for column in ("index", *text, *numbers) if column not in header]
    problem = ("has a column twice" if len(set(header)) < len(header) else
               "has no columns of predictions" if not names else
               f"lacks the columns {', '.join(missing)}" if missing else "")
    if problem:
        raise InputError(f"{path}: {problem}; a predictions_*.csv of this program is needed")
    # Not pandas' own reader: which of its releases and options read floats exactly, and "NA" as text, varies.
    types = {"index": np.int64} | dict.fromkeys(numbers, np.float64)
    try:
        columns = zip(*rows, strict=True) if rows else [()] * len(header)
        by_name = dict(zip(header, columns, strict=True))
        by_name |= {name: [cell or "nan" for cell in by_name[name]] for name in numbers}
        return pd.DataFrame({name: np.array(cells, types.get(name, object))
                             for name, cells in by_name.items()})
    except ValueError as error:
        raise InputError(f"{path}: not a table of predictions ({error})") from error


def class_numbers(table: pd.DataFrame, column: str, names: list[str]) -> np.ndarray:
    """(N,) the places in `names` of a column's classes. InputError for one that is not among them."""
    numbers = pd.Index(names, dtype=object).get_indexer(table[column].astype(object))
    if (numbers < 0).any():
        stray = table[column].iloc[int(np.argmax(numbers < 0))]
        raise InputError(f"predictions: {column} {stray!r} has no prob_ column; the classes are "
                         + ", ".join(map(repr, names)))
    return numbers


def require_finite(values: np.ndarray, paths: pd.Series, what: str) -> None:
    """RunError where rows of (N, …) values hold NaN or infinity: how many do, and the first one's path."""
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise RunError(f"{bad.sum()} of {len(bad)} images have {what} that are NaN or infinite (the first: "
                       f"{paths.iloc[int(np.argmax(bad))]}): the weights have diverged or are damaged")
