"""From a table of predictions to figures.

Everything is computed from one table with a row an image (columns index, path, patient, split, true_class,
predicted_class, then prob_<class> and logit_<class>, the classes in the order of the model's outputs). The table can be
written and read back without losing a bit, so every figure can be computed again from the saved file.

N is the number of images, K the number of classes. Counts (accuracy, F1, kappa, ...) all come from one (K, K) confusion
matrix, so a bootstrap needs to resample no more than that; AUC and average precision come from sorted probabilities.
"""

import math
import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from util.core.errors import InputError, RunError
from util.core.run_files import read_table
from util.metrics import class_order
from util.metrics.calibration import expected_calibration_error
from util.metrics.table import CLASSIFICATION, SCORE_PARTS, of_kind

TEXT_COLUMNS = ("path", "patient", "split", "true_class", "predicted_class")
# The columns of metrics_val.csv and metrics_test.csv; users' scripts read those from val_loss to kappa by name.
METRIC_COLUMNS = ("epoch", *("val_loss" if metric.name == "loss" else metric.name for metric in of_kind(CLASSIFICATION, "csv")))


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
    probabilities = probabilities_of(logits)
    columns |= {f"prob_{name}": probabilities[:, k] for k, name in enumerate(class_names)}
    columns |= {f"logit_{name}": logits[:, k] for k, name in enumerate(class_names)}
    return pd.DataFrame(columns).sort_values("index", ignore_index=True)


def class_names_of(table: pd.DataFrame) -> list[str]:
    """The K class names of a predictions table, in the order of the model's outputs."""
    return [column.removeprefix("prob_") for column in table.columns if column.startswith("prob_")]


def read_predictions(path: str | os.PathLike) -> pd.DataFrame:
    """Read what run_files.write_predictions wrote, equal in every bit. InputError for a file that is no such table."""
    def columns(header):
        names = [column.removeprefix("prob_") for column in header if column.startswith("prob_")]
        return names and ["index", *TEXT_COLUMNS, *(f"logit_{name}" for name in names)]

    def types(header):
        return {"index": np.int64} | {column: np.float64 for column in header if column.startswith(("prob_", "logit_"))}

    return read_table(path, columns, types)


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


def count_figures(confusion: np.ndarray, ranks: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The figures that need no more than counts, for one confusion matrix or a stack of them.

    confusion: (..., K, K), rows true, columns predicted. Every value has shape (...).
    F1, Jaccard, precision and recall are means over all K classes, 0 for a class without what the quotient needs.
    Hamming is that of (N, K) one-hot matrices: a wrong image has two wrong entries, so 2 * errors / (N * K).
    Kappa (Cohen, 1960, unweighted) is NaN where chance alone agrees always, and so is qwk, with quadratic weights of the
    distance between the classes (Cohen, 1968), which is meant for grades: `ranks` (K,) are their places (not given: 0, 1, …).
    Balanced accuracy is the mean recall
    of the classes that are there. Everything is NaN for no images.
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
    ranks = np.arange(num_classes) if ranks is None else ranks
    distance = (ranks[:, None] - ranks) ** 2
    by_chance = np.einsum("...i,ij,...j->...", true, distance.astype(np.float64), predicted)
    qwk = 1 - _quotient(n * (confusion * distance).sum(axis=(-2, -1)), by_chance, np.nan)
    present = true > 0
    balanced = _quotient(_quotient(hits, true, 0.0).sum(axis=-1), present.sum(axis=-1), np.nan)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": balanced,
        "f1": macro(2 * hits, true + predicted),
        "hamming": _quotient(2 * (n - correct), n * num_classes, np.nan),
        "jaccard": macro(hits, true + predicted - hits),
        "precision": macro(hits, predicted),
        "recall": macro(hits, true),
        "kappa": kappa,
        "qwk": qwk,
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


def classification_metrics(table: pd.DataFrame, order: Sequence[str] | None = None) -> tuple[dict[str, float], list[str]]:
    """All figures of a predictions table, and lines that say what they leave out. order: of the classes, where it was typed.

    Returns ({loss, accuracy, f1, roc_auc, hamming, jaccard, precision, recall, average_precision, kappa, score, n, brier,
    qwk, balanced_accuracy, mae_grades, ece}, notes). loss is the mean cross-entropy (nats) of the logits in float64,
    roc_auc and average_precision are one-vs-rest means over the classes where they are defined, score the mean of f1,
    roc_auc and kappa (of those of them that are defined). brier is scikit-learn's: the squared error of the probabilities
    summed over the classes, halved for two classes, so that it is then the usual mean (p - y)^2. mae_grades is the mean
    distance of predicted and true class in their order, ece the expected calibration error (see util/metrics/calibration.py).
    An undefined figure is NaN; the order of the rows changes nothing.
    Raises RunError for non-finite outputs or an empty table, InputError for a class that has no column.
    """
    if table.empty:
        raise RunError("there are no predictions to score")
    table = table.sort_values("index")  # sums of floats depend on their order, in the last bit
    names = class_names_of(table)
    probabilities = table[[f"prob_{name}" for name in names]].to_numpy(dtype=np.float64)
    logits = table[[f"logit_{name}" for name in names]].to_numpy(dtype=np.float64)
    _refuse_non_finite(np.hstack([logits, probabilities]), table["path"])
    true, predicted = class_numbers(table, "true_class", names), class_numbers(table, "predicted_class", names)
    ranks = class_order.ranks(names, order)
    figures = figures_of_outputs(true, predicted, probabilities, logits, ranks)
    return figures, _notes(names, np.bincount(true, minlength=len(names)), figures, ranks)


def figures_of_outputs(true: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, logits: np.ndarray,
                       ranks: np.ndarray | None) -> dict[str, float]:
    """The figures of classification_metrics, of images in the order of their index.

    true, predicted: (N,) class numbers; probabilities, logits: (N, K) float64, finite; ranks: (K,) places of the classes in
    their order (util/metrics/class_order.py), None where it is not known: qwk and mae_grades are NaN.
    """
    num_classes = logits.shape[1]
    one_hot = np.eye(num_classes, dtype=bool)[true]
    by_class = np.array([rank_figures(one_hot[:, k], probabilities[:, k]) for k in range(num_classes)])
    auc, average_precision = (_mean_of_defined(column) for column in by_class.T)
    squared_error = ((probabilities - one_hot) ** 2).sum(axis=1).mean()
    counts = count_figures(confusion_matrix(true, predicted, num_classes), ranks)
    figures = {name: float(value) for name, value in counts.items()} | {
        "loss": float(-_log_softmax(logits)[one_hot].mean()),
        "roc_auc": auc,
        "average_precision": average_precision,
        "n": len(true),
        "brier": float(squared_error / 2 if num_classes == 2 else squared_error),
        "mae_grades": math.nan if ranks is None else float(np.abs(ranks[true] - ranks[predicted]).mean()),
        "ece": expected_calibration_error(probabilities, true),
    }
    if ranks is None:
        figures["qwk"] = math.nan
    figures["score"] = _mean_of_defined(np.array([figures[part] for part in SCORE_PARTS]))
    return {metric.name: figures[metric.name] for metric in of_kind(CLASSIFICATION, "csv")}


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """(N, K) logits -> their softmax, in float64, as it stands in a predictions table."""
    return np.exp(_log_softmax(np.asarray(logits, dtype=np.float64)))


def _notes(names: list[str], images: np.ndarray, figures: dict[str, float], ranks: np.ndarray | None) -> list[str]:
    notes = []
    if ranks is None:
        notes.append("qwk and mae_grades are left out: nothing says in which order these classes stand (--class_order, or "
                     "names that begin with whole numbers)")
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


def class_numbers(table: pd.DataFrame, column: str, names: list[str]) -> np.ndarray:
    """(N,) the places in `names` of a column's classes. InputError for one that is not among them."""
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
