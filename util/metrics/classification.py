"""From a classification's outputs to the predictions table, and from the table to metrics.

Everything is computed from that table (util/metrics/predictions.py), so every metric can be computed again
from the saved file. N is the number of images, K the number of classes.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from util.core.errors import RunError
from util.metrics.calibration import softmax
from util.metrics.predictions import further_columns, require_finite
from util.metrics.table import CLASSIFICATION, SCORE_PARTS, of_kind
from util.metrics.weighted import Images, WeightedFigures

# The columns of metrics_val.csv and metrics_test.csv; users' scripts read those from val_loss to kappa by
# name.
METRIC_COLUMNS = ("epoch", *("val_loss" if metric.name == "loss" else metric.name
                             for metric in of_kind(CLASSIFICATION, "csv")))


# ---- the predictions table ---------------------------------------------------------------------------------

def predictions_table(samples: pd.DataFrame, logits: np.ndarray, class_names: list[str]) -> pd.DataFrame:
    """Put samples and outputs into the predictions table, sorted by index.

    samples: columns index, path, patient, split and target (int, 0..K-1); a missing patient becomes "".
    logits: (N, K), row i belongs to row i of samples. Probabilities are their softmax, computed in float64.
    Raises ValueError where the pieces don't belong together, RunError where logits are NaN or infinite.
    """
    class_names = list(class_names)
    logits = np.asarray(logits, dtype=np.float64)
    target = samples["target"].to_numpy(dtype=np.int64)
    problems = {
        f"logits {logits.shape} for {len(samples)} samples and {len(class_names)} classes":
            logits.shape != (len(samples), len(class_names)),
        f"class names are not unique: {class_names}": len(set(class_names)) != len(class_names),
        "an index stands in the samples twice": samples["index"].duplicated().any(),
        f"targets must lie in 0..{len(class_names) - 1}":
            bool(((target < 0) | (target >= len(class_names))).any())}
    if any(problems.values()):
        raise ValueError("; ".join(text for text, is_so in problems.items() if is_so))
    require_finite(logits, samples["path"], "outputs")

    names, patients = np.array(class_names, dtype=object), samples["patient"].astype(object)
    columns = {
        "index": samples["index"].to_numpy(dtype=np.int64),
        "path": samples["path"].astype(str).to_numpy(dtype=object),
        "patient": patients.where(patients.notna(), "").map(str).to_numpy(),
        "split": samples["split"].astype(str).to_numpy(dtype=object),
        "true_class": names[target],
        "predicted_class": names[logits.argmax(axis=1)],
    }
    probabilities = softmax(logits)
    columns |= {f"prob_{name}": probabilities[:, k] for k, name in enumerate(class_names)}
    columns |= {f"logit_{name}": logits[:, k] for k, name in enumerate(class_names)}
    columns |= {name: samples[name].to_numpy(dtype=object) for name in further_columns(samples)}
    return pd.DataFrame(columns).sort_values("index", ignore_index=True)


# ---- metrics -----------------------------------------------------------------------------------------------

def classification_metrics(table: pd.DataFrame,
                           order: Sequence[str] | None = None) -> tuple[dict[str, float], list[str]]:
    """All metrics of a predictions table, and lines that say what they leave out. order: of the classes,
    where it was typed.

    Returns ({loss, accuracy, f1, roc_auc, hamming, jaccard, precision, recall, average_precision, kappa,
    score, n, brier, qwk, balanced_accuracy, mae_grades, ece}, notes). loss is the mean cross-entropy (nats)
    of the logits in float64, roc_auc and average_precision are one-vs-rest means over the classes where they
    are defined, score the mean of f1, roc_auc and kappa (of those of them that are defined). brier is
    scikit-learn's: the squared error of the probabilities summed over the classes, halved for two classes, so
    that it is then the usual mean (p - y)^2. mae_grades is the mean distance of predicted and true class in
    their order, ece the expected calibration error (see util/metrics/calibration.py). An undefined metric is
    NaN; the order of the rows changes nothing. Raises RunError for non-finite outputs or an empty table,
    InputError for a class that has no column.
    """
    if table.empty:
        raise RunError("there are no predictions to score")
    images = Images.of(table, order)
    paths = table.sort_values("index")["path"]
    require_finite(np.hstack([images.logits, images.probabilities]), paths, "outputs")
    figures = figures_of_outputs(images)
    return figures, _notes(images, figures)


def figures_of_outputs(images: Images) -> dict[str, float]:
    """The metrics of classification_metrics, of finite outputs."""
    figures = WeightedFigures(images).values()
    return {metric.name: figures[metric.name] for metric in of_kind(CLASSIFICATION, "csv")}


def _notes(images: Images, figures: dict[str, float]) -> list[str]:
    names, defined = images.names, [part for part in SCORE_PARTS if not math.isnan(figures[part])]
    absent = [name for name, is_of in zip(names, images.one_hot.T, strict=True) if not is_of.any()]
    listed = ", ".join(map(repr, absent[:10])) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
    notes = (
        (images.ranks is None,
         "qwk and mae_grades are left out: nothing says in which order these classes stand (--class_order, "
         "or names that begin with whole numbers)"),
        (absent,
         f"no {images.unit} of {len(absent)} of the {len(names)} classes ({listed}): each counts as 0 in f1, "
         "jaccard, precision and recall; roc_auc and average_precision are means over the others"),
        (math.isnan(figures["roc_auc"]), f"roc_auc is undefined: all {images.unit} are of one class"),
        (math.isnan(figures["kappa"]),
         f"kappa is undefined: all {images.unit} are of one class and all are predicted as it"),
        (len(defined) < len(SCORE_PARTS),
         f"the score is made of {' and '.join(defined)} alone, so it compares with no other score"))
    return [text for is_so, text in notes if is_so]
