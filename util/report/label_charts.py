"""The charts of several labels an image: each label is a class of its own, drawn as one of many."""

import numpy as np
import pandas as pd

from util.metrics.calibration import reliability, softmax
from util.metrics.curves import (
    MOST_CURVES,
    RELIABILITY_BINS,
    SCORE_BINS,
    Curves,
    precision_recall_points,
    quantiles,
    roc_points,
)
from util.metrics.multilabel.figures import figures_of
from util.metrics.multilabel.predictions import Label, labels_of, stored_decisions
from util.metrics.predictions import class_names_of, unit_of
from util.metrics.table import MULTILABEL, of_kind
from util.report import class_charts
from util.report.charts import Chart
from util.report.class_charts import Scored

OF_WHAT = "Probability of a label, all labels together"


def scored_of(table: pd.DataFrame, split: str, heading: str,
              entries: dict[str, dict] | None = None) -> Scored:
    """What the charts show of a split's predictions. entries: its stored metrics; values are computed where
    they lack."""
    names, entries = class_names_of(table), entries or {}
    labels = labels_of(table, stored_decisions(entries, names))
    wanted = [metric.name for metric in of_kind(MULTILABEL, "per_label")]
    if not {f"{metric}_{name}" for metric in wanted for name in names} <= entries.keys():
        computed = figures_of(table)
        entries = {name: {"value": value, "lower": None, "upper": None} for name, value in computed.items()
                   } | entries
    rows = [{metric: entries[f"{metric}_{name}"] for metric in wanted} for name in names]
    return Scored(split, heading, names, _curves(labels), np.zeros((0, 0), np.int64), rows, entries,
                  unit_of(table), "label")


def _curves(labels: list[Label]) -> Curves:
    """Those of each label, and all cells of the table together as one yes-or-no answer."""
    images = np.array([label.images.true.sum() for label in labels])
    shown = sorted(np.argsort(-images, kind="stable")[:MOST_CURVES].tolist())
    found: dict[str, dict[int, object]] = {"roc": {}, "precision_recall": {}, "own": {}, "others": {}}
    for k in shown:
        is_there, scores = labels[k].images.true == 1, labels[k].images.probabilities[:, 1]
        found["roc"][k] = roc_points(is_there, scores)
        found["precision_recall"][k] = precision_recall_points(is_there, scores)
        found["own"][k], found["others"][k] = quantiles(scores[is_there]), quantiles(scores[~is_there])
    true = np.concatenate([label.images.true for label in labels]) == 1
    scores = np.concatenate([label.images.probabilities[:, 1] for label in labels])
    calibration = [("as predicted", reliability(scores, true, RELIABILITY_BINS))]
    if any(label.temperature for label in labels):
        warm = np.concatenate([softmax(label.images.logits / (label.temperature or 1))[:, 1]
                               for label in labels])
        calibration.append(("after each label's temperature", reliability(warm, true, RELIABILITY_BINS)))
    parts = [(name, np.histogram(scores[part], bins=SCORE_BINS, range=(0, 1))[0])
             for name, part in (("without the label", ~true), ("with the label", true))]
    curves = {name: {k: points for k, points in found[name].items() if points is not None}
              for name in ("roc", "precision_recall")}
    return Curves(curves["roc"], curves["precision_recall"], calibration, OF_WHAT, parts,
                  [found["own"].get(k) for k in range(len(labels))],
                  [found["others"].get(k) for k in range(len(labels))], len(labels) - len(shown))


def roc_of(table: pd.DataFrame, split: str) -> Chart | None:
    """The labels' ROC curves; None where no label has images of both kinds."""
    return class_charts.roc(scored_of(table, split, f"{split}, {len(table):,} images"))
