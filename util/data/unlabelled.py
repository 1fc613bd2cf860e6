"""Images without labels: a folder or a CSV -> the table of images, and the table of what a model says of
them.

The table is that of util/data/tables.py with one split, "input", and no labels; covariate_NAME (text)
stands beside as in util/data/regression.py. The CSV's other columns are kept as they are written.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from util.core.errors import InputError
from util.data import cases
from util.data.csv_columns import (
    file_names,
    is_missing,
    located,
    read_columns,
    refuse_absent,
    refuse_empty,
)
from util.data.image_endings import EXTENSIONS, left_out
from util.data.leakage.search import name_patients
from util.data.tables import Data, picture_table, pictures_below
from util.metrics.classification import predictions_table
from util.metrics.multilabel import predictions as multilabel
from util.options.data import DataOptions

SPLIT = "input"


@dataclass
class Unlabelled(Data):
    """`Data` without classes; others: the CSV's other columns as text, by name, a row a row of `table`'s
    `index`."""

    others: pd.DataFrame = field(default_factory=pd.DataFrame)


def read_unlabelled(source: str, path_col: str = "path", covariates: tuple[str, ...] = (),
                    path_suffix: str = "") -> Unlabelled:
    """All images in a folder and below (hidden files left out), or those of a CSV, in its order; InputError.

    Relative paths of a CSV start at its folder, or where the first of them is (`csv_columns.located`);
    path_suffix: an ending that they lack; an image may stand there twice. covariates: columns that are read.
    """
    if os.path.isdir(source):
        if covariates:
            raise InputError(f"--input {source} is a folder, but this model reads {', '.join(covariates)} "
                             "beside each image: pass a CSV with these columns and the path")
        return _read_folder(source)
    if not os.path.exists(source):
        raise InputError(f"--input {source}: not there")
    if source.lower().endswith(EXTENSIONS):
        raise InputError(f"--input {source} is an image: name its folder, or a CSV with a column path")
    return _read_csv(source, path_col, covariates, path_suffix)


def _read_folder(folder: str) -> Unlabelled:
    ignored: list[str] = []
    paths = pictures_below(folder, ignored)
    notes = left_out(ignored)
    if not paths:
        raise InputError(f"--input {folder}: no image ({', '.join(end[1:] for end in EXTENSIONS)}) in it or "
                         "below" + "".join(f"; {note}" for note in notes))
    return Unlabelled(_table(paths), [], notes)


def _read_csv(csv_file: str, path_col: str, covariates: tuple[str, ...], path_suffix: str) -> Unlabelled:
    flags = {path_col: "--path_col"} | dict.fromkeys(covariates, "a covariate of this model")
    cells, notes = read_columns(
        csv_file, lambda header: [*flags, *(name for name in header if name and name not in flags)], flags,
        exact=path_col)
    files = file_names(csv_file, cells[path_col], path_suffix)
    refuse_empty(csv_file, files)
    paths = pd.Series(located(csv_file, list(files)), files.index, dtype=object)
    refuse_absent(csv_file, paths)
    table = _table(list(paths))
    for name in covariates:
        table[f"covariate_{name}"] = list(cells[name])
        missing = cells[name].map(is_missing).sum()
        if missing:
            notes.append(f"covariate {name} is missing in {missing:,} of {len(table):,} rows: told to the "
                         "model as missing")
    cells[path_col] = cells[path_col].str.strip()
    others = cells.drop(columns="path") if path_col == "path" else cells
    return Unlabelled(table, [], notes, others=others.reset_index(drop=True))


def _table(paths: list[str]) -> pd.DataFrame:
    empty = [""] * len(paths)
    return picture_table(paths, empty, [SPLIT] * len(paths), empty)


def name_cases(data: Unlabelled, asked: DataOptions, source: str, typed: frozenset[str]) -> Unlabelled:
    """The images with the cases that a model judges (util/data/cases.py), named as in its training.
    InputError where nothing says which they are."""
    table, notes = data.table, []
    by_name = asked.case_regex and (asked.case_col is None or "case_regex" in typed)
    column = None if by_name or not asked.has_cases else asked.case_col or asked.patient_col
    if column is not None:
        if column not in data.others:
            raise InputError(f"--input {source} has no column {column}, which names the cases that this "
                             "model judges: pass a CSV with it, or name them by --case_col or --case_regex")
        names = data.others[column].iloc[table["index"]]
        names = list(names.mask(names.map(is_missing), ""))
        table = table.assign(**{cases.COLUMN if asked.case_col else "patient": names})
    elif not by_name and asked.case and asked.patient_regex:
        table, notes = name_patients(table, asked.patient_regex)
    table, lines = cases.named(table, asked, typed)
    return replace(data, table=table, notes=[*data.notes, *notes, *lines])


# ---- what is written ---------------------------------------------------------------------------------------

def with_answers(data: Unlabelled, answers: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """path, the CSV's other columns, the answers (a row a row of data.table) -> (the table, lines about
    renamed columns)."""
    others = (data.others.iloc[data.table["index"]].reset_index(drop=True) if len(data.others)
              else pd.DataFrame())
    known, renamed = {"path", *answers.columns, *others.columns}, {}
    for name in others.columns:
        if name in ("path", *answers.columns):
            renamed[name] = f"input_{name}"
            while renamed[name] in known:
                renamed[name] += "_"
    others = others.rename(columns=renamed)
    table = pd.concat([data.table[["path"]].reset_index(drop=True), others, answers], axis=1)
    lines = ["columns of the CSV that have the name of one that is written: "
             + ", ".join(f"{name} is now {other}" for name, other in renamed.items())] if renamed else []
    return table, lines


def class_answers(paths: pd.Series, logits: np.ndarray, class_names: list[str],
                  temperature: float | None = None,
                  thresholds: dict[str, float] | None = None) -> pd.DataFrame:
    """predicted_class, prob_<class>, logit_<class> (the model's own) of logits (N, K).

    Probabilities are softmax(logits / temperature). thresholds: {"sensitivity_at_90_specificity": t, …} of
    two classes, probabilities of the second one before any temperature; called_at_90_specificity is then 1
    where t is reached. Raises RunError for logits that are NaN or infinite.
    """
    rows = pd.DataFrame({"index": np.arange(len(logits)), "path": paths.to_numpy(), "patient": "",
                         "split": SPLIT, "target": 0})
    plain = predictions_table(rows, logits, class_names)
    scaled = np.asarray(logits, np.float64) / temperature if temperature else logits
    table = predictions_table(rows, scaled, class_names) if temperature else plain
    columns = {name: table[name] for name in ("predicted_class", *(f"prob_{name}" for name in class_names))}
    columns |= {f"logit_{name}": plain[f"logit_{name}"] for name in class_names}
    for name, threshold in (thresholds or {}).items():
        called = (plain[f"prob_{class_names[1]}"] >= threshold).astype(np.int64)
        columns[f"called_at_{name.partition('_at_')[2]}"] = called
    return pd.DataFrame(columns)


def label_answers(paths: pd.Series, logits: np.ndarray, labels: list[str],
                  decided: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """predicted_<label> (1 from val's threshold on), prob_<label>, logit_<label> (the model's own) of logits
    (N, T), and called_at_90_specificity_<label> and the like where val has chosen such thresholds.

    decided: `util.metrics.multilabel.predictions.decide` of val. Probabilities are those after a label's
    temperature; thresholds are of those before. Raises RunError for logits that are NaN or infinite.
    """
    rows = pd.DataFrame({"index": np.arange(len(logits)), "path": paths.to_numpy(), "patient": "",
                         "split": SPLIT})
    temperatures, nothing = decided.get("temperatures") or {}, np.full(logits.shape, np.nan)
    scaled = np.asarray(logits, np.float64) / [temperatures.get(name, 1.0) for name in labels]
    warm = multilabel.predictions_table(rows, nothing, scaled, labels)
    plain = multilabel.predictions_table(rows, nothing, logits, labels)
    columns, called = {}, {}
    for label in multilabel.labels_of(plain, {"thresholds": decided.get("thresholds") or {}}):
        chances = plain[f"prob_{label.name}"]
        columns[f"predicted_{label.name}"] = (chances >= label.threshold).astype(np.int64)
        for point, threshold in label.operating.items():
            called[f"called_at_{point.partition('_at_')[2]}_{label.name}"] = (chances >= threshold).astype(
                np.int64)
    columns |= {f"prob_{name}": warm[f"prob_{name}"] for name in labels}
    columns |= {f"logit_{name}": plain[f"logit_{name}"] for name in labels}
    return pd.DataFrame(columns | called)


def skipped_file(output: str | os.PathLike) -> Path:
    """Where the images are listed that are left out: of FILE.csv in FILE.skipped.csv, of FILE.npz in
    FILE.npz.skipped.csv."""
    path = Path(output)
    return path.with_name(path.name.removesuffix(".csv") + ".skipped.csv")


def images_file(output: str | os.PathLike) -> Path:
    """Where the images of the cases are listed, with their weights."""
    path = Path(output)
    return path.with_name(path.name.removesuffix(".csv") + ".images.csv")


def fundus_files(output: str | os.PathLike) -> tuple[Path, Path, Path]:
    """With --fundus_crop auto: the table of what was found, its sheet, and what is remembered until the
    output is written."""
    path = Path(output)
    stem = path.name.removesuffix(".csv")
    return (path.with_name(f"{stem}.fundus_crop.csv"), path.with_name(f"{stem}.fundus_crop.png"),
            path.with_name(f".{path.name}.fields.npy"))


def facts_file(output: str | os.PathLike) -> Path:
    """Where it is remembered which images decode and what they are, until the output is written."""
    return Path(output).with_name(f".{Path(output).name}.checked.npy")


def forget(output: str | os.PathLike) -> None:
    """Remove what was remembered of the images for a launch that is cut: the output is written."""
    for file in (facts_file(output), fundus_files(output)[2]):
        file.unlink(missing_ok=True)
        file.with_stem(f"{file.stem}_as_stored").unlink(missing_ok=True)
