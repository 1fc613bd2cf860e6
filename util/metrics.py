"""From a table of predictions to figures, and from figures to the files of a run.

Everything is computed from one table with a row an image (columns index, path, patient, split, true_class,
predicted_class, then prob_<class> and logit_<class>, the classes in the order of the model's outputs). The table can be
written and read back without losing a bit, so every figure can be computed again from the saved file.

N is the number of images, K the number of classes. Counts (accuracy, F1, kappa, ...) all come from one (K, K) confusion
matrix, so a bootstrap needs to resample no more than that; AUC and average precision come from sorted probabilities.
"""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd

from util.errors import InputError, RunError

TEXT_COLUMNS = ("path", "patient", "split", "true_class", "predicted_class")
SCORE_PARTS = ("f1", "roc_auc", "kappa")  # the best epoch has the highest mean of these on val
# The columns of metrics_val.csv and metrics_test.csv; users' scripts read those from val_loss to kappa by name.
METRIC_COLUMNS = ("epoch", "val_loss", "accuracy", "f1", "roc_auc", "hamming", "jaccard", "precision", "recall",
                  "average_precision", "kappa", "score", "n", "brier")


# ---- the predictions table ------------------------------------------------------------------------------------------

def predictions_table(samples: pd.DataFrame, logits: np.ndarray, class_names: list[str]) -> pd.DataFrame:
    """Put samples and outputs into the predictions table, sorted by index.

    samples: columns index, path, patient, split and target (int, 0..K-1); a missing patient becomes "".
    logits: (N, K), row i belongs to row i of samples. Probabilities are their softmax, computed in float64.
    Raises ValueError where the pieces don't belong together, RunError where logits are NaN or infinite.
    """
    class_names = list(class_names)
    logits = np.asarray(logits, dtype=np.float64)
    if logits.shape != (len(samples), len(class_names)):
        raise ValueError(f"logits {logits.shape} for {len(samples)} samples and {len(class_names)} classes")
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"class names are not unique: {class_names}")
    if samples["index"].duplicated().any():
        raise ValueError("an index stands in the samples twice")
    target = samples["target"].to_numpy(dtype=np.int64)
    if ((target < 0) | (target >= len(class_names))).any():
        raise ValueError(f"targets must lie in 0..{len(class_names) - 1}")
    _refuse_non_finite(logits, samples["path"])

    names = np.array(class_names, dtype=object)
    columns = {
        "index": samples["index"].to_numpy(dtype=np.int64),
        "path": samples["path"].astype(str).to_numpy(dtype=object),
        "patient": samples["patient"].astype(object).where(samples["patient"].notna(), "").map(str).to_numpy(),
        "split": samples["split"].astype(str).to_numpy(dtype=object),
        "true_class": names[target],
        "predicted_class": names[logits.argmax(axis=1)],
    }
    probabilities = np.exp(_log_softmax(logits))
    columns |= {f"prob_{name}": probabilities[:, k] for k, name in enumerate(class_names)}
    columns |= {f"logit_{name}": logits[:, k] for k, name in enumerate(class_names)}
    return pd.DataFrame(columns).sort_values("index", ignore_index=True)


def class_names_of(table: pd.DataFrame) -> list[str]:
    """The K class names of a predictions table, in the order of the model's outputs."""
    return [column.removeprefix("prob_") for column in table.columns if column.startswith("prob_")]


def write_predictions(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write the table as CSV (UTF-8), whole or not at all; floats get as many digits as reading them back needs."""
    # Text is always quoted: minimal quoting forgets the carriage return, which file names may hold.
    _write_whole(path, table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC))


def read_predictions(path: str | os.PathLike) -> pd.DataFrame:
    """Read what `write_predictions` wrote, equal in every bit; text stays text, even "01", "NA" or "".

    Raises InputError for a file that is not there or is no table of predictions.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    names = [column.removeprefix("prob_") for column in header if column.startswith("prob_")]
    needed = ["index", *TEXT_COLUMNS, *(f"logit_{name}" for name in names)]
    missing = [column for column in needed if column not in header]
    if missing or not names or len(set(header)) != len(header):
        problem = f"lacks the columns {', '.join(missing)}" if missing else "has no prob_<class> columns"
        if len(set(header)) != len(header):
            problem = "has a column twice"
        raise InputError(f"{path}: {problem}; a predictions_*.csv of this program is needed")
    # Not pandas' own reader: which of its releases and options read floats exactly, and "NA" as text, keeps changing.
    types = {"index": np.int64} | {f"{kind}_{name}": np.float64 for kind in ("prob", "logit") for name in names}
    try:
        columns = dict(zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True))
        return pd.DataFrame({column: np.array(cells, dtype=types.get(column, object))
                             for column, cells in columns.items()})
    except ValueError as error:
        raise InputError(f"{path}: not a table of predictions ({error})") from error


# ---- figures --------------------------------------------------------------------------------------------------------

def confusion_matrix(true: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count images by true class (row) and predicted class (column).

    true, predicted: class numbers, (N,), or (..., N) for many resamples at once. Returns int64 counts (..., K, K).
    """
    true, predicted = np.broadcast_arrays(np.asarray(true), np.asarray(predicted))
    if true.size and not (0 <= min(true.min(), predicted.min()) <= max(true.max(), predicted.max()) < num_classes):
        raise ValueError(f"class numbers must lie in 0..{num_classes - 1}")
    resamples, cells = math.prod(true.shape[:-1]), num_classes * num_classes
    cell = true.reshape(resamples, true.shape[-1]) * num_classes + predicted.reshape(resamples, true.shape[-1])
    cell = cell + np.arange(resamples)[:, None] * cells
    counts = np.bincount(cell.ravel(), minlength=resamples * cells)
    return counts.reshape(*true.shape[:-1], num_classes, num_classes)


def count_figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The figures that need no more than counts, for one confusion matrix or a stack of them.

    confusion: (..., K, K), rows true, columns predicted. Every value has shape (...).
    F1, Jaccard, precision and recall are means over all K classes, 0 for a class without what the quotient needs.
    Hamming is that of (N, K) one-hot matrices: a wrong image has two wrong entries, so 2 * errors / (N * K).
    Kappa (Cohen, 1960, unweighted) is NaN where chance alone agrees always; everything is NaN for no images.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    num_classes = confusion.shape[-1]
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    n, correct = true.sum(axis=-1), hits.sum(axis=-1)
    some = np.where(n > 0, 1.0, np.nan)

    def macro(part, whole):
        return _quotient(part, whole, 0.0).mean(axis=-1) * some

    accuracy = _quotient(correct, n, np.nan)
    # Both terms of kappa times n squared are whole numbers, so the 0/0 is met exactly and not as 1e-17.
    kappa = 1 - _quotient(n * (n - correct), n * n - (true * predicted).sum(axis=-1), np.nan)
    return {
        "accuracy": accuracy,
        "f1": macro(2 * hits, true + predicted),
        "hamming": _quotient(2 * (n - correct), n * num_classes, np.nan),
        "jaccard": macro(hits, true + predicted - hits),
        "precision": macro(hits, predicted),
        "recall": macro(hits, true),
        "kappa": kappa,
    }


def rank_figures(is_class: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """ROC AUC and average precision of one class against the rest.

    is_class: (N,) bool; scores: (N,), higher means more likely this class. Equal scores are one threshold.
    AUC is Mann and Whitney's U over all pairs, a tie counting half; NaN unless both kinds are there.
    Average precision is the sum of (rise of recall) * precision over the thresholds, without interpolation, as
    scikit-learn defines it; NaN where the class is absent.
    """
    levels, level = np.unique(scores, return_inverse=True)
    inside = np.bincount(level[is_class], minlength=len(levels))[::-1].astype(np.float64)  # highest score first
    total = np.bincount(level, minlength=len(levels))[::-1].astype(np.float64)
    outside = total - inside
    num_inside, num_outside = inside.sum(), outside.sum()
    if num_inside == 0:
        return math.nan, math.nan
    average_precision = (inside / num_inside * (np.cumsum(inside) / np.cumsum(total))).sum()
    if num_outside == 0:
        return math.nan, float(average_precision)
    beaten = num_outside - np.cumsum(outside) + outside / 2
    return float((inside * beaten).sum() / (num_inside * num_outside)), float(average_precision)


def classification_metrics(table: pd.DataFrame) -> tuple[dict[str, float], list[str]]:
    """All figures of a predictions table, and lines that say what they leave out.

    Returns ({loss, accuracy, f1, roc_auc, hamming, jaccard, precision, recall, average_precision, kappa, score, n,
    brier}, notes). loss is the mean cross-entropy (nats) of the logits in float64, roc_auc and average_precision are
    one-vs-rest means over the classes where they are defined, score the mean of f1, roc_auc and kappa (of those of
    them that are defined). brier is scikit-learn's: the squared error of the probabilities summed over the classes,
    halved for two classes, so that it is then the usual mean (p - y)^2. An undefined figure is NaN; the order of the
    rows changes nothing.
    Raises RunError for non-finite outputs or an empty table, InputError for a class that has no column.
    """
    if table.empty:
        raise RunError("there are no predictions to score")
    table = table.sort_values("index")  # sums of floats depend on their order, in the last bit
    names = class_names_of(table)
    probabilities = table[[f"prob_{name}" for name in names]].to_numpy(dtype=np.float64)
    logits = table[[f"logit_{name}" for name in names]].to_numpy(dtype=np.float64)
    _refuse_non_finite(np.hstack([logits, probabilities]), table["path"])
    true, predicted = _class_numbers(table, "true_class", names), _class_numbers(table, "predicted_class", names)

    one_hot = np.eye(len(names), dtype=bool)[true]
    by_class = np.array([rank_figures(one_hot[:, k], probabilities[:, k]) for k in range(len(names))])
    auc, average_precision = (_mean_of_defined(column) for column in by_class.T)
    squared_error = ((probabilities - one_hot) ** 2).sum(axis=1).mean()
    counts = count_figures(confusion_matrix(true, predicted, len(names)))
    figures = {name: float(value) for name, value in counts.items()} | {
        "loss": float(-_log_softmax(logits)[one_hot].mean()),
        "roc_auc": auc,
        "average_precision": average_precision,
        "n": len(table),
        "brier": float(squared_error / 2 if len(names) == 2 else squared_error),
    }
    figures["score"] = _mean_of_defined(np.array([figures[part] for part in SCORE_PARTS]))
    order = [column.removeprefix("val_") for column in METRIC_COLUMNS if column != "epoch"]
    return {name: figures[name] for name in order}, _notes(names, one_hot.sum(axis=0), figures)


def _notes(names: list[str], images: np.ndarray, figures: dict[str, float]) -> list[str]:
    notes = []
    absent = [name for name, count in zip(names, images, strict=True) if count == 0]
    if absent:
        listed = ", ".join(map(repr, absent[:10])) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        notes.append(f"no images of {len(absent)} of the {len(names)} classes ({listed}): each counts as 0 in f1, "
                     "jaccard, precision and recall; roc_auc and average_precision are means over the others")
    if math.isnan(figures["roc_auc"]):
        notes.append("roc_auc is undefined: all images are of one class")
    if math.isnan(figures["kappa"]):
        notes.append("kappa is undefined: all images are of one class and all are predicted as it")
    defined = [part for part in SCORE_PARTS if not math.isnan(figures[part])]
    if len(defined) < len(SCORE_PARTS):
        notes.append(f"the score is made of {' and '.join(defined)} alone, so it compares with no other score")
    return notes


def _class_numbers(table: pd.DataFrame, column: str, names: list[str]) -> np.ndarray:
    numbers = pd.Index(names, dtype=object).get_indexer(table[column].astype(object))
    if (numbers < 0).any():
        stray = table[column].iloc[int(np.argmax(numbers < 0))]
        raise InputError(f"predictions: {column} {stray!r} has no prob_ column; the classes are "
                         + ", ".join(map(repr, names)))
    return numbers


def _refuse_non_finite(values: np.ndarray, paths: pd.Series) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise RunError(f"{bad.sum()} of {len(bad)} images have outputs that are NaN or infinite (the first: "
                       f"{paths.iloc[int(np.argmax(bad))]}): the weights have diverged or are damaged")


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _quotient(part: np.ndarray, whole: np.ndarray, otherwise: float) -> np.ndarray:
    """part / whole, and `otherwise` where whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(part.shape, otherwise), where=whole != 0)


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


# ---- the files of a run ---------------------------------------------------------------------------------------------

def metrics_row(metrics: dict[str, float], epoch: int | None = None) -> dict[str, float | int | None]:
    """The figures of `classification_metrics` under the names of METRIC_COLUMNS; epoch None leaves that cell empty."""
    return {"epoch": epoch} | {column: metrics[column.removeprefix("val_")] for column in METRIC_COLUMNS[1:]}


def append_metrics_row(path: str | os.PathLike, row: dict[str, float | int | None]) -> None:
    """Add one evaluation to a metrics CSV; a new file gets the header METRIC_COLUMNS first.

    row: a value for every column but epoch, which may be missing or None. A last line without its line end (a run
    that died while writing) is dropped. Raises InputError where the file has another header, ValueError for a row
    that doesn't fit.
    """
    if set(row) | {"epoch"} != set(METRIC_COLUMNS):
        raise ValueError(f"a metrics row needs {', '.join(METRIC_COLUMNS)}; got {', '.join(row)}")
    cells = ["" if row.get(column) is None else _number_text(row[column]) for column in METRIC_COLUMNS]
    lines = _metrics_lines(path) or [",".join(METRIC_COLUMNS) + "\n"]
    _write_whole(path, "".join([*lines, ",".join(cells) + "\n"]))


def write_metrics_json(path: str | os.PathLike, metrics: dict[str, float]) -> None:
    """Write {metric: {"value", "lower", "upper"}}, whole or not at all; NaN becomes null, bounds are null so far."""
    def entry(value):
        return {"value": None if math.isnan(value) else value, "lower": None, "upper": None}

    figures = {name: entry(value) for name, value in metrics.items()}
    _write_whole(path, json.dumps(figures, indent=2, allow_nan=False) + "\n")


def cut_rows_after(path: str | os.PathLike, epoch: int) -> None:
    """Drop the rows of a metrics CSV that are past an epoch, so that a resumed run writes each epoch once.

    Rows without an epoch stay, a line without its line end goes. A missing file is fine.
    Raises InputError for another header or a row that doesn't fit it.
    """
    def stays(line, number):
        cells = line.rstrip("\r\n").split(",")
        try:
            if len(cells) != len(METRIC_COLUMNS):
                raise ValueError(f"{len(cells)} cells for {len(METRIC_COLUMNS)} columns")
            return cells[0] == "" or float(cells[0]) <= epoch
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; mend or remove that line") from error

    lines = _metrics_lines(path)
    kept = lines[:1] + [line for number, line in enumerate(lines[1:], 2) if stays(line, number)]
    _rewrite_if_changed(path, kept)


def cut_log_after(path: str | os.PathLike, epoch: int) -> None:
    """The same for log.txt, one JSON object with "epoch" a line; a last line that is cut short goes.

    Lines without an epoch stay. A missing file is fine. Raises InputError for a line in the middle that is no JSON
    object.
    """
    def stays(line, number):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), (int, float, type(None))):
                raise ValueError("no JSON object with a number as its epoch")
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; mend or remove that line") from error
        return entry.get("epoch") is None or entry["epoch"] <= epoch

    lines = _whole_lines(_text_of(path))
    _rewrite_if_changed(path, [line for number, line in enumerate(lines, 1) if stays(line, number)])


def _metrics_lines(path: str | os.PathLike) -> list[str]:
    """Header and rows with their line ends; [] for a file that is missing, empty, or cut short inside its header."""
    text, header = _text_of(path), ",".join(METRIC_COLUMNS)
    lines = _whole_lines(text)
    ours = lines[0].rstrip("\r\n") == header if lines else header.startswith(text)
    if not ours:
        raise InputError(f"{path}: has other columns than this program writes ({header}); "
                         "move that file away or choose another --task")
    return lines


def _text_of(path: str | os.PathLike) -> str:
    if not Path(path).exists():
        return ""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read()


def _whole_lines(text: str) -> list[str]:
    """The lines that have their line end: every line is written with it, so one without was cut short."""
    return [line + "\n" for line in text.split("\n")[:-1]]  # splitlines would also cut at U+2028 and others


def _number_text(value: float | int) -> str:
    return str(int(value)) if isinstance(value, (int, np.integer)) else repr(float(value))


def _rewrite_if_changed(path: str | os.PathLike, lines: list[str]) -> None:
    text = "".join(lines)
    if text != _text_of(path):
        _write_whole(path, text)


def _write_whole(path: str | os.PathLike, text: str) -> None:
    """Write to a temporary name, then rename, so that nobody ever reads half a file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # surrogateescape: file names on Linux are bytes, and those that are not UTF-8 must survive too
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
