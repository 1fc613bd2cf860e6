"""The predictions of K models: of those of --folds the out-of-fold table, and the mean of several models.

Each fold's model has thresholds and temperatures of its own, which the next fold chose. So a metric of the
out-of-fold table that depends on a decision is computed from the decisions of each row's own model.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import logit

from util.metrics.predictions import kind_and_names
from util.metrics.table import CLASSIFICATION, REGRESSION, SANDWICH, is_better_low, row_of

FOLD = "fold"  # the column
SMALLEST = 1e-300
TRAININGS = 3.0


def out_of_fold(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """{fold: its predictions table} -> one table with the column `fold`, sorted by index."""
    parts = []
    for fold, table in tables.items():
        parts.append(table.copy())
        parts[-1].insert(list(table).index("split") + 1, FOLD, str(fold))
    return pd.concat(parts).sort_values("index", kind="stable", ignore_index=True)


def mean_of(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Predictions tables of the same rows by several models -> the table of their mean: of probabilities, and
    logits whose softmax (of several labels the sigmoid) they are; of numbers themselves."""
    kind, names = kind_and_names(tables[0])
    table = tables[0].copy()
    if kind == REGRESSION:
        for name in names:
            table[f"pred_{name}"] = np.mean([one[f"pred_{name}"] for one in tables], axis=0)
        return table
    shares = {name: np.mean([one[f"prob_{name}"].to_numpy(np.float64) for one in tables], axis=0)
              for name in names}
    for name, share in shares.items():
        table[f"prob_{name}"] = share
        if kind == CLASSIFICATION:
            table[f"logit_{name}"] = np.log(np.maximum(share, SMALLEST))
        else:
            table[f"logit_{name}"] = logit(np.clip(share, SMALLEST, 1 - 1e-16))
    if kind == CLASSIFICATION:
        highest = np.argmax(list(shares.values()), axis=0)
        table["predicted_class"] = np.array(names, dtype=object)[highest]
    return table


def mean_decided(decided: Sequence[Mapping[str, object]]) -> dict:
    """Thresholds for the mean of several models: the means of theirs, where all have one. No temperature: the
    mean is of probabilities before it."""
    found = [one.get("thresholds") or {} for one in decided]
    common = [name for name in found[0] if all(name in other for other in found)]
    return {"thresholds": {name: float(np.mean([one[name] for one in found])) for name in common}}


def widened(entries: Mapping[str, dict], number: int) -> dict[str, dict]:
    """Entries of an out-of-fold table of `number` folds, with intervals that also hold what they leave out.

    Resampling its images says how far the metric would differ on other images that these very K models have
    not seen. The models differ with their training images, too, and are not independent: each image trains
    K - 2 of them. No unbiased estimate of that variance can be made from one set of folds (Bengio and
    Grandvalet, JMLR 2004), so the sampling variance is multiplied by 1 + 3 / K, in the manner of Nadeau and
    Bengio's correction (Machine Learning 2003); the 3 is measured: benchmarks/fold_coverage.py says how often
    the intervals hold the mean metric of models that are trained on so many images, with it and without.
    """
    factor = math.sqrt(1 + TRAININGS / number)
    found = {}
    for name, one in entries.items():
        value, lower, upper = one["value"], one["lower"], one["upper"]
        if lower is None or math.isnan(lower) or math.isnan(value):
            found[name] = one
            continue
        low, high = value - factor * (value - lower), value + factor * (upper - value)
        row = row_of(name)
        if row.interval != SANDWICH and lower >= 0:
            low = max(0.0, low)
        if row.interval != SANDWICH and not is_better_low(name):
            high = min(1.0, high)
        found[name] = one | {"lower": low, "upper": high, "widened": factor}
    return found


def called(table: pd.DataFrame, thresholds: Mapping[str, float]) -> pd.DataFrame:
    """The table with its decisions alone: {class or label: threshold} -> its probability and logit are 0.75
    and ±log 3 by whether it is called, so that 0.5 is the threshold whatever it was."""
    table = table.copy()
    kind, names = kind_and_names(table)
    for name, threshold in thresholds.items():
        sign = np.where(table[f"prob_{name}"].to_numpy(np.float64) >= threshold, 1.0, -1.0)
        table[f"prob_{name}"], table[f"logit_{name}"] = 0.5 + sign / 4, sign * np.log(3)
        if kind == CLASSIFICATION:  # of two classes
            table[f"prob_{names[0]}"], table[f"logit_{names[0]}"] = 0.5 - sign / 4, 0.0
    return table


def cooled(table: pd.DataFrame, temperatures: Mapping[str, float]) -> pd.DataFrame:
    """The table of two classes or more with logits, by columns' names, divided by a temperature. The
    probabilities are made of them anew by those who read them."""
    return table.assign(**{f"logit_{name}": table[f"logit_{name}"] / value
                           for name, value in temperatures.items()})
