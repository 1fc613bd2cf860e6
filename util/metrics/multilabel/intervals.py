"""A 95 % interval for every metric of several labels.

A label's are those of two classes on its images. Those of the means come from resamples of all images, and
from DeLong's influences and sandwich errors, averaged over the labels image by image.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from util.metrics import delong
from util.metrics.bootstrap import DRAWS, draws_for, groups_of
from util.metrics.intervals import (
    bootstrapped,
    calibration_influences,
    calibration_means,
    collect,
    entry,
    intervals_of,
    is_shifted,
)
from util.metrics.multilabel.figures import (
    COUNTS,
    LabelFigures,
    auc_influences,
    fewest,
    means,
    of_label,
    patients_of,
    spread,
)
from util.metrics.multilabel.predictions import THRESHOLD, Label, labels_of
from util.metrics.predictions import unit_of
from util.metrics.table import SCORE_PARTS, row_of


def multilabel_intervals(table: pd.DataFrame, seed: int = 0, draws: int = DRAWS,
                         decided: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, dict]:
    """All metrics of a predictions table with their intervals: {name: {"value", "lower", "upper", "method",
    …}}, the means under the bare names and each label's as <metric>_<label>; "without" names the labels that
    a mean leaves out, where it is undefined. decided: see `labels_of`."""
    labels, groups, number = labels_of(table, decided), groups_of(patients_of(table)), len(table)
    figures, draws = LabelFigures(labels), draws_for(number, draws)
    raw = collect(figures.by_label, number, groups, draws, seed)
    together, values, entries = figures.together(raw), figures.values(), {}
    for label in labels:
        own = None  # of a label that is not known of all images, resamples of those where it is
        if label.known.all() or not label.known.any():
            own = {metric: found for (name, metric), found in raw.items() if name == label.name}
        found = intervals_of(label.images, seed, draws, label.operating, label.temperature, own)
        entries |= of_label(found, label.name) | {
            f"{name}_{label.name}": entry(values[f"{name}_{label.name}"]) for name in (*COUNTS, THRESHOLD)}
    names = [label.name for label in labels]
    for name in means(together, names):
        if row_of(name).interval:
            entries[name] = bootstrapped(name, values[name], together[name], groups, draws, seed,
                                         unit_of(table))
            if is_shifted(name) and not math.isnan(entries[name]["lower"]):
                _widen_shifted(entries[name], together[name])
    entries |= _auc_mean(labels, values["roc_auc"], groups) | _calibration_means(labels, groups)
    for name in means(together, names).keys() & entries.keys():
        parts = SCORE_PARTS if name == "score" else [name]
        left_out = [label for label in names
                    if any(math.isnan(values.get(f"{part}_{label}", 0.0)) for part in parts)]
        entries[name] |= {"without": left_out} if left_out else {}
    entries["n"] = entry(number)
    order = [name for name in values if name in entries]
    return {name: entries[name] for name in (*order, *(name for name in entries if name not in values))}


def _widen_shifted(found: dict, replicates: np.ndarray) -> None:
    """A mean over labels keeps the shift that chance makes and not its spread, so that the resamples' shift,
    which is smaller than the metric's own, is not hidden by their spread any more. Chance adds to the true
    error as a variance does, once in the metric v and twice in a resample r: the truth is about
    sqrt(2 v^2 - r^2), and the interval reaches as much further down as that lies below v - (r - v), and up to
    the metric itself."""
    value, resampled = found["value"], float(np.nanmean(replicates))
    mirrored, truth = 2 * value - resampled, math.sqrt(max(0.0, 2 * value**2 - resampled**2))
    found |= {"lower": max(0.0, found["lower"] - max(0.0, mirrored - truth)),
              "upper": max(found["upper"], value)}


def _auc_mean(labels: list[Label], value: float, groups: np.ndarray | None) -> dict[str, dict]:
    variance = delong.variance(auc_influences(labels)["roc_auc"], groups)
    lower, upper = delong.logit_interval(value, variance, fewest(labels, "roc_auc"))
    return {"roc_auc": entry(value, lower, upper, None if math.isnan(lower) else "DeLong")}


def _calibration_means(labels: list[Label], groups: np.ndarray | None) -> dict[str, dict]:
    estimates = []
    for label in labels:
        pair = calibration_influences(label.images, 1)
        estimates.append(tuple((value, spread(label, influence)) for value, influence in pair))
    return calibration_means(estimates, groups)
