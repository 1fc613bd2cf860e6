"""The curves of a report as numbers: ROC, precision-recall, reliability, histograms, thinned to what a page
can hold.

N is the number of images. Nothing here draws.
"""

from dataclasses import dataclass

import numpy as np

from util.metrics.calibration import BINS, reliability, softmax

MOST_CURVES = 60  # classes that get curves, the most frequent ones
MOST_POINTS = 300  # of a curve: a step is then below a pixel of any chart here
SCORE_BINS = 20
# of the probability of one of two classes; util/metrics/calibration.py says how many of the highest one
RELIABILITY_BINS = 10


def counts_at_thresholds(is_class: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives (T,) when all images with a score of at least each of the T distinct ones are
    taken, the highest score first. is_class: (N,) bool; scores: (N,)."""
    order = np.argsort(-scores, kind="stable")
    ends = (np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1) if len(scores)
            else np.zeros(0, np.int64))
    hits = np.cumsum(is_class[order])[ends] if len(scores) else np.zeros(0, np.int64)
    return hits, ends + 1 - hits


def roc_points(is_class: np.ndarray, scores: np.ndarray,
               most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray] | None:
    """(1 - specificity, sensitivity) from (0, 0) to (1, 1), each a point of scikit-learn's roc_curve; None
    where all images are of one kind. Points between two on a straight line are left out, then all but about
    `most`, evenly along the curve."""
    hits, false_alarms = counts_at_thresholds(is_class, scores)
    if not len(hits) or not hits[-1] or not false_alarms[-1]:
        return None
    hits, false_alarms = np.append(0, hits), np.append(0, false_alarms)
    corner = np.ones(len(hits), bool)  # whole numbers: what lies on a line does so exactly
    corner[1:-1] = (np.diff(hits)[1:] * np.diff(false_alarms)[:-1]
                    != np.diff(hits)[:-1] * np.diff(false_alarms)[1:])
    x, y = false_alarms[corner] / false_alarms[-1], hits[corner] / hits[-1]
    kept = evenly_along(x, y, most)
    return x[kept], y[kept]


def precision_recall_points(is_class: np.ndarray, scores: np.ndarray,
                            most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray] | None:
    """(recall, precision) by falling threshold up to the first full recall, each a point of scikit-learn's
    precision_recall_curve; None where the class is absent. Of thresholds with the same recall the highest
    precision stands there, as average precision counts it; of many points the lowest and highest precision of
    each of most / 2 equal steps of recall stay, so that every peak does."""
    hits, false_alarms = counts_at_thresholds(is_class, scores)
    if not len(hits) or not hits[-1]:
        return None
    rises = np.diff(hits, prepend=0) > 0
    recall, precision = hits[rises] / hits[-1], (hits / (hits + false_alarms))[rises]
    kept = extremes_of_steps(recall, precision, most)
    return recall[kept], precision[kept]


def evenly_along(x: np.ndarray, y: np.ndarray, most: int) -> np.ndarray:
    """Numbers of at most `most` points of a curve, at even distances along it (|dx| + |dy|), its ends among
    them."""
    if len(x) <= most:
        return np.arange(len(x))
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    wanted = np.linspace(0, way[-1], most)
    return np.unique(np.clip(np.searchsorted(way, wanted), 0, len(x) - 1))


def extremes_of_steps(x: np.ndarray, y: np.ndarray, most: int) -> np.ndarray:
    """Numbers of the lowest and highest y in each of most / 2 equal steps of x (ascending), and of both
    ends."""
    if len(x) <= most:
        return np.arange(len(x))
    edges = np.searchsorted(x, np.linspace(x[0], x[-1], most // 2 + 1)[1:-1])
    kept = {0, len(x) - 1}
    for start, stop in zip([0, *edges], [*edges, len(x)], strict=True):
        if stop > start:
            kept |= {start + int(y[start:stop].argmin()), start + int(y[start:stop].argmax())}
    return np.array(sorted(kept))


def quantiles(values: np.ndarray) -> np.ndarray | None:
    """The 5th, 25th, 50th, 75th and 95th percentile; None of nothing."""
    return np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)) if len(values) else None


@dataclass
class Curves:
    """What is drawn of a classification's split. Of two classes the second one is the event.

    roc, precision_recall: {class number: points}; calibration: [(label, `reliability`)], raw and, where there
    is a temperature, after it; of_what: whose probability; scores: [(label, images a bin)]; own, others: by
    class the `quantiles` of its probability among its images and the rest.
    """

    roc: dict[int, tuple[np.ndarray, np.ndarray]]
    precision_recall: dict[int, tuple[np.ndarray, np.ndarray]]
    calibration: list[tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]
    of_what: str
    scores: list[tuple[str, np.ndarray]]
    own: list[np.ndarray | None]
    others: list[np.ndarray | None]
    left_out: int  # classes that get no curve, beyond MOST_CURVES


def curves_of(true: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, logits: np.ndarray,
              names: list[str], temperature: float | None = None) -> Curves:
    """true, predicted: (N,) class numbers; probabilities, logits: (N, K)."""
    num_classes, images = len(names), np.bincount(true, minlength=len(names))
    shown = sorted(np.argsort(-images, kind="stable")[:MOST_CURVES].tolist())
    roc, precision_recall, own, others = {}, {}, [], []
    for k in shown:
        is_class, scores = true == k, probabilities[:, k]
        roc[k] = roc_points(is_class, scores) if num_classes != 2 or k == 1 else None
        precision_recall[k] = precision_recall_points(is_class, scores)
        own.append(quantiles(scores[is_class]))
        others.append(quantiles(scores[~is_class]))
    versions = {"as predicted": probabilities}
    if temperature:
        versions[f"after temperature {temperature:.3g}"] = softmax(logits / temperature)
    if num_classes == 2:
        calibration = [(label, reliability(p[:, 1], true == 1, RELIABILITY_BINS))
                       for label, p in versions.items()]
        shown_scores, of_what = probabilities[:, 1], f"Probability of {names[1]}"
        parts = {names[k]: true == k for k in (0, 1)}
    else:
        calibration = [(label, reliability(p.max(axis=1), p.argmax(axis=1) == true, BINS))
                       for label, p in versions.items()]
        shown_scores, of_what = probabilities.max(axis=1), "Probability of the predicted class"
        parts = {"right": predicted == true, "wrong": predicted != true}
    # how many of the probabilities lie in each of equal bins of 0 to 1
    scores = [(label, np.histogram(shown_scores[part], bins=SCORE_BINS, range=(0, 1))[0])
              for label, part in parts.items()]
    return Curves({k: points for k, points in roc.items() if points},
                  {k: p for k, p in precision_recall.items() if p}, calibration, of_what, scores, own, others,
                  num_classes - len(shown))
