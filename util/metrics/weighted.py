"""Metrics of a classification for many weightings of the same images at once: ones give the metrics,
resamples the bootstrap.

B is the number of weightings, N of images, K of classes. What stands in the order of the images
(probabilities, ranks, bins) is prepared once; a weighting then costs a few passes over N.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from util.metrics import class_order
from util.metrics.bootstrap import groups_of, mean_of_defined
from util.metrics.calibration import BINS, confidence_bins, softmax
from util.metrics.predictions import class_names_of, class_numbers, unit_of
from util.metrics.table import METRICS, SCORE_PARTS

OPERATING_POINTS = (90, 95)  # per cent


@dataclass(frozen=True)
class Ranks:
    """One class's images from the highest score to the lowest; images of equal score are one level."""

    order: np.ndarray  # (N,)
    inside: np.ndarray  # places in that order of the images of the class
    starts: np.ndarray  # where a level that holds some begins, among `inside`
    first: np.ndarray  # and among all: its first place
    last: np.ndarray  # and its last one

    @classmethod
    def of(cls, is_class: np.ndarray, scores: np.ndarray) -> "Ranks":
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        ends = np.append(begins[1:], len(order)) - 1
        level = np.repeat(np.arange(len(begins)), ends - begins + 1)
        inside = np.flatnonzero(is_class[order])
        levels, starts = np.unique(level[inside], return_index=True)
        return cls(order, inside, starts, begins[levels], ends[levels])

    def figures(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, N) -> ROC AUC and average precision (B,) of the class against the rest.

        AUC is Mann and Whitney's U over all pairs, a tie counting half; NaN unless both kinds are there.
        Average precision is the sum of (rise of recall) * precision over the thresholds, without
        interpolation, as scikit-learn defines it; NaN where the class is absent.
        """
        ordered = weights[:, self.order]
        running = np.cumsum(ordered, axis=1)
        if not len(self.inside):
            return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
        total = running[:, -1]
        inside = ordered[:, self.inside]
        if len(self.starts) < len(self.inside):
            inside = np.add.reduceat(inside, self.starts, axis=1)
        hits = np.cumsum(inside, axis=1)
        number = hits[:, -1].astype(np.float64)
        until = running[:, self.last]
        before = np.where(self.first > 0, running[:, self.first - 1], 0)
        missed = before - hits + inside  # others of a higher score
        tied = until - before - inside
        others = total - number
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = (inside * (hits / np.maximum(until, 1e-30))).sum(axis=1) / number
            beaten = inside * (others[:, None] - missed - tied / 2)
            return beaten.sum(axis=1, dtype=np.float64) / (number * others), precision


@dataclass(frozen=True)
class Images:
    """What the metrics of a predictions table are computed from."""

    names: list[str]
    true: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    logits: np.ndarray
    groups: np.ndarray | None  # patients
    ranks: np.ndarray | None  # (K,) places of the classes in their order, where it is known
    unit: str = "images"  # or cases

    @classmethod
    def of(cls, table: pd.DataFrame, order: Sequence[str] | None = None) -> "Images":
        """order: of the classes, where it was typed."""
        table = table.sort_values("index")
        names = class_names_of(table)
        probabilities, logits = (table[[f"{kind}_{name}" for name in names]].to_numpy(np.float64)
                                 for kind in ("prob", "logit"))
        return cls(names, class_numbers(table, "true_class", names),
                   class_numbers(table, "predicted_class", names),
                   probabilities, logits, groups_of(table["patient"].to_numpy(dtype=object)),
                   class_order.ranks(names, order), unit_of(table))

    @property
    def one_hot(self) -> np.ndarray:
        return np.eye(len(self.names), dtype=bool)[self.true]


class WeightedFigures:
    """figures(weights (B, N)) -> {name: (B,)}, of images and, for two classes, thresholds chosen on val.

    temperature: also the metrics of probabilities that are softened or sharpened by it, as <name>_calibrated.
    """

    def __init__(self, images: Images, thresholds: dict[str, float] | None = None,
                 temperature: float | None = None) -> None:
        self.images = images
        self.operating_hits = operating_hits(images, (thresholds or {}) if len(images.names) == 2 else {})
        one_hot = images.one_hot
        self.ranks = [Ranks.of(one_hot[:, k], images.probabilities[:, k]) for k in range(len(images.names))]
        cells = images.true * len(images.names) + images.predicted
        self.by_cell = np.argsort(cells, kind="stable")
        self.cells, self.cell_starts = np.unique(cells[self.by_cell], return_index=True)
        # a column each: sums of these over the images, divided by the weights' sum, are metrics
        ranks = np.zeros(len(images.names)) if images.ranks is None else images.ranks
        columns = {"loss": _losses(images.logits, one_hot),
                   "brier": _squared_errors(images.probabilities, one_hot),
                   "mae_grades": np.abs(ranks[images.true] - ranks[images.predicted])}
        gaps = {"ece": _gaps(images.probabilities, images.true)}
        if temperature is not None:
            warm = softmax(images.logits / temperature)
            columns |= {"loss_calibrated": _losses(images.logits / temperature, one_hot),
                        "brier_calibrated": _squared_errors(warm, one_hot)}
            gaps["ece_calibrated"] = _gaps(warm, images.true)
        self.means, self.gaps = list(columns), list(gaps)
        self.columns = np.column_stack([*columns.values(), *gaps.values()])

    def values(self) -> dict[str, float]:
        """The metrics of the images as they are, and their number."""
        found = self(np.ones((1, len(self.images.true))))
        return {name: float(value[0]) for name, value in found.items()} | {"n": len(self.images.true)}

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        images, number = self.images, len(self.images.names)
        confusion = np.zeros((len(weights), number * number))
        confusion[:, self.cells] = np.add.reduceat(weights[:, self.by_cell], self.cell_starts, axis=1)
        confusion = confusion.reshape(len(weights), number, number)
        figures = count_figures(confusion, images.ranks) | class_count_figures(confusion, images.names)
        ranks = np.array([ranks.figures(weights) for ranks in self.ranks])  # (K, 2, B)
        figures["roc_auc"], figures["average_precision"] = mean_of_defined(ranks)
        figures["score"] = mean_of_defined([figures[part] for part in SCORE_PARTS])
        for k, name in enumerate(images.names):
            figures[f"roc_auc_{name}"], figures[f"average_precision_{name}"] = ranks[k]
        total = weights.sum(axis=1, dtype=np.float64)
        sums = weights @ self.columns.astype(weights.dtype, copy=False)
        figures |= {name: _quotient(sums[:, place], total) for place, name in enumerate(self.means)}
        for place, name in enumerate(self.gaps):
            gaps = sums[:, len(self.means) + place * BINS:len(self.means) + (place + 1) * BINS]
            figures[name] = _quotient(np.abs(gaps).sum(axis=1), total)
        for name, (is_right, among) in self.operating_hits.items():
            hits, number_among = (weights @ of.astype(weights.dtype) for of in (is_right & among, among))
            figures[name] = _quotient(hits, number_among)
        if images.ranks is None:
            figures |= {metric.name: np.full(len(weights), np.nan) for metric in METRICS
                        if metric.needs_order}
        return figures


def confusion_matrix(true: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) counts of images by true class (row) and predicted class (column); both are class numbers
    (N,)."""
    counts = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def count_figures(confusion: np.ndarray, ranks: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The metrics that need no more than counts, for one confusion matrix or a stack of them.

    confusion: (..., K, K), rows true, columns predicted. Every value has shape (...).
    F1, Jaccard, precision and recall are means over all K classes, 0 for a class without what the quotient
    needs. Hamming is that of (N, K) one-hot matrices: a wrong image has two wrong entries, so 2 * errors / (N
    * K). Kappa (Cohen, 1960, unweighted) is NaN where chance alone agrees always, and so is qwk, with
    quadratic weights of the distance between the classes (Cohen, 1968), which is meant for grades: `ranks`
    (K,) are their places (not given: 0, 1, …). Balanced accuracy is the mean recall of the classes that are
    there. Everything is NaN for no images.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    num_classes = confusion.shape[-1]
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    n, correct = true.sum(axis=-1), hits.sum(axis=-1)
    some = np.where(n > 0, 1.0, np.nan)

    def macro(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return _quotient(part, whole, 0.0).mean(axis=-1) * some

    # Both terms of kappa times n squared are whole numbers, so the 0/0 is met exactly and not as 1e-17.
    kappa = 1 - _quotient(n * (n - correct), n * n - (true * predicted).sum(axis=-1))
    ranks = np.arange(num_classes) if ranks is None else ranks
    distance = (ranks[:, None] - ranks) ** 2
    by_chance = np.einsum("...i,ij,...j->...", true, distance.astype(np.float64), predicted)
    qwk = 1 - _quotient(n * (confusion * distance).sum(axis=(-2, -1)), by_chance)
    balanced = _quotient(_quotient(hits, true, 0.0).sum(axis=-1), (true > 0).sum(axis=-1))
    return {
        "accuracy": _quotient(correct, n),
        "balanced_accuracy": balanced,
        "f1": macro(2 * hits, true + predicted),
        "hamming": _quotient(2 * (n - correct), n * num_classes),
        "jaccard": macro(hits, true + predicted - hits),
        "precision": macro(hits, predicted),
        "recall": macro(hits, true),
        "kappa": kappa,
        "qwk": qwk,
    }


def _quotient(part: np.ndarray, whole: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    """part / whole, and `otherwise` where whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(part.shape, otherwise), where=whole != 0)


def class_count_figures(confusion: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Sensitivity, specificity, precision and F1 of each class against the rest, and its images:
    {<metric>_<class>: (...)}.

    confusion: (..., K, K). NaN where nothing is divided by: no image of the class, none of the others, none
    predicted.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    others = true.sum(axis=-1)[..., None] - true
    by_figure = {"sensitivity": _quotient(hits, true),
                 "specificity": _quotient(others - (predicted - hits), others),
                 "precision": _quotient(hits, predicted),
                 "f1": _quotient(2 * hits, true + predicted), "n": true}
    return {f"{figure}_{name}": values[..., k] for figure, values in by_figure.items()
            for k, name in enumerate(names)}


def operating_thresholds(images: Images) -> dict[str, float]:
    """For two classes, the probabilities of the second one (the positive class) from which on it is called,
    chosen on these images: {"sensitivity_at_90_specificity": threshold, …}; {} for more classes or where one
    is absent.

    Of the thresholds that keep the given specificity, the one of highest sensitivity (the lowest); and the
    other way round.
    """
    if len(images.names) != 2 or len(np.unique(images.true)) < 2:
        return {}
    scores, positive = images.probabilities[:, 1], images.true == 1
    levels = np.append(np.unique(scores), np.nextafter(scores.max(), np.inf))  # the last one calls nobody
    sensitivity = 1 - np.searchsorted(np.sort(scores[positive]), levels) / positive.sum()
    specificity = np.searchsorted(np.sort(scores[~positive]), levels) / (~positive).sum()
    found = {}
    for point in OPERATING_POINTS:
        keep, share = point / 100 - 1e-12, f"at_{point}"
        found |= {f"sensitivity_{share}_specificity": float(levels[specificity >= keep].min()),
                  f"specificity_{share}_sensitivity": float(levels[sensitivity >= keep].max())}
    return found


def operating_hits(images: Images, thresholds: dict[str, float]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{operating point: ((N,) who is rightly called or passed over, (N,) among whom)}."""
    scores, positive = images.probabilities[:, -1], images.true == 1
    return {name: (scores >= threshold, positive) if name.startswith("sensitivity")
            else (scores < threshold, ~positive) for name, threshold in thresholds.items()}


def _losses(logits: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    return -log_softmax(logits, axis=1)[one_hot]


def _squared_errors(probabilities: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    return ((probabilities - one_hot) ** 2).sum(axis=1) / (2 if one_hot.shape[1] == 2 else 1)


def _gaps(probabilities: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(N, BINS): being right minus the confidence, in the column of the image's bin; see calibration."""
    confidence = probabilities.max(axis=1)
    gaps = np.zeros((len(true), BINS))
    is_right = probabilities.argmax(axis=1) == true
    gaps[np.arange(len(true)), confidence_bins(confidence)] = is_right - confidence
    return gaps
