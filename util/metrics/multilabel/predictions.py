"""From a multi-label model's outputs to the predictions table, and from the table to each label as two
classes.

Columns of the table beside those of every one: true_<label> (1, 0, NaN where not known), prob_<label> and
logit_<label>, whose sigmoid the probability is. N is the number of images, T of labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from util.metrics.bootstrap import groups_of
from util.metrics.calibration import fit_temperature, softmax
from util.metrics.curves import counts_at_thresholds
from util.metrics.predictions import (
    SAMPLE_COLUMNS,
    class_names_of,
    further_columns,
    require_finite,
    unit_of,
)
from util.metrics.table import METRICS
from util.metrics.weighted import Images, operating_thresholds

NAMES = ["0", "1"]  # of a label's two classes: without it, with it
UNCHOSEN = 0.5  # the threshold of a label that val does not have
THRESHOLD, TEMPERATURE = "threshold", "temperature"
POINTS = tuple(metric.name for metric in METRICS if "_at_" in metric.name)


def two_logits(logits: np.ndarray) -> np.ndarray:
    """(N,) log odds -> (N, 2) logits of without and with, whose softmax has the sigmoid in its second
    column."""
    return np.column_stack([np.zeros_like(logits), logits])


def predictions_table(samples: pd.DataFrame, true: np.ndarray, logits: np.ndarray,
                      labels: Sequence[str]) -> pd.DataFrame:
    """Samples (columns index, path, patient, split), true values and logits (N, T) -> the table, sorted by
    index. RunError where logits are NaN or infinite."""
    logits = np.asarray(logits, dtype=np.float64)
    require_finite(logits, samples["path"], "outputs")
    columns = {name: samples[name].to_numpy() for name in ("index", *SAMPLE_COLUMNS)}
    columns |= {f"true_{name}": true[:, place] for place, name in enumerate(labels)}
    columns |= {f"prob_{name}": softmax(two_logits(logits[:, place]))[:, 1]
                for place, name in enumerate(labels)}
    columns |= {f"logit_{name}": logits[:, place] for place, name in enumerate(labels)}
    columns |= {name: samples[name].to_numpy(dtype=object) for name in further_columns(samples)}
    return pd.DataFrame(columns).sort_values("index", ignore_index=True)


@dataclass(frozen=True)
class Label:
    """One label of a table. known: (N,) the rows, in the order of their index, where it is known; images:
    those rows as two classes, the second called from the threshold on; operating: probabilities from which on
    it is called at an operating point."""

    name: str
    known: np.ndarray
    images: Images
    threshold: float
    operating: dict[str, float]
    temperature: float | None = None


def labels_of(table: pd.DataFrame, decided: Mapping[str, Mapping[str, float]] | None = None) -> list[Label]:
    """The labels of a table. decided: `decide` of val; None: chosen on this very table."""
    decided = decide(table, calibrate=False) if decided is None else decided
    thresholds, temperatures = decided.get("thresholds") or {}, decided.get("temperatures") or {}
    table = table.sort_values("index")
    found = []
    for name in class_names_of(table):
        threshold = thresholds.get(f"{THRESHOLD}_{name}", UNCHOSEN)
        known, images = _two_classes(table, name, threshold)
        operating = {point: thresholds[f"{point}_{name}"] for point in POINTS
                     if f"{point}_{name}" in thresholds}
        found.append(Label(name, known, images, threshold, operating, temperatures.get(name)))
    return found


def _two_classes(table: pd.DataFrame, name: str, threshold: float) -> tuple[np.ndarray, Images]:
    true = table[f"true_{name}"].to_numpy(np.float64)
    known = ~np.isnan(true)
    probability = table[f"prob_{name}"].to_numpy(np.float64)[known]
    logits = two_logits(table[f"logit_{name}"].to_numpy(np.float64)[known])
    return known, Images(NAMES, true[known].astype(np.int64), (probability >= threshold).astype(np.int64),
                         np.column_stack([1 - probability, probability]), logits,
                         groups_of(table["patient"].to_numpy(dtype=object)[known]), None,
                         unit_of(table))


def decide(table: pd.DataFrame, calibrate: bool) -> dict[str, dict[str, float]]:
    """What is chosen on val's table and used on test: {"thresholds": {"threshold_<label>": of the highest F1,
    "sensitivity_at_90_specificity_<label>": …}}, and with `calibrate` "temperatures" {label: temperature}.
    Of a label of which the table has one kind alone nothing is chosen."""
    table, thresholds, temperatures = table.sort_values("index"), {}, {}
    for name in class_names_of(table):
        _, images = _two_classes(table, name, UNCHOSEN)
        if len(np.unique(images.true)) < 2:
            continue
        scores = images.probabilities[:, 1]
        thresholds[f"{THRESHOLD}_{name}"] = best_threshold(images.true == 1, scores)
        thresholds |= {f"{point}_{name}": value for point, value in operating_thresholds(images).items()}
        if calibrate:
            temperatures[name] = fit_temperature(images.logits, images.true)
    return {"thresholds": thresholds, **({"temperatures": temperatures} if calibrate else {})}


def stored_decisions(entries: Mapping[str, Mapping[str, object]],
                     labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """What was decided on val, as far as the entries of a split's metrics say it."""
    found = {word: {name: entries[f"{word}_{name}"]["value"] for name in labels
                    if isinstance((entries.get(f"{word}_{name}") or {}).get("value"), float)}
             for word in (THRESHOLD, TEMPERATURE)}
    return {"thresholds": {f"{THRESHOLD}_{name}": value for name, value in found[THRESHOLD].items()},
            "temperatures": found[TEMPERATURE]}


def best_threshold(is_positive: np.ndarray, scores: np.ndarray) -> float:
    """The probability from which on images are called so that F1 is highest; of equal ones the lowest."""
    hits, false_alarms = counts_at_thresholds(is_positive, scores)
    f1 = 2 * hits / (hits + false_alarms + is_positive.sum())
    levels = np.unique(scores)[::-1]
    return float(levels[np.flatnonzero(f1 == f1.max())[-1]])
