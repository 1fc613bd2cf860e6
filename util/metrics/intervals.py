"""A 95 % interval for every metric of a predictions table, by the method that holds its promise for it.

ROC AUC: DeLong's on the logit scale. Shares of independent images (accuracy, sensitivity, …): Wilson's.
Calibration slope and intercept: their sandwich errors. Everything else, and every share where patients have
several images: the bootstrap of patients, or of images where no patient is known. benchmarks/coverage.py
measures how often they hold the truth.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from util.core import signals
from util.metrics import calibration, delong
from util.metrics.bootstrap import (
    DRAWS,
    basic_interval,
    corrected_interval,
    draws_for,
    groups_of,
    mean_of_defined,
    percentile_interval,
    resamples,
    wilson_interval,
)
from util.metrics.predictions import unit_of
from util.metrics.regression import FIGURES as REGRESSION_FIGURES
from util.metrics.regression import moments, pairs_of, target_figures_of
from util.metrics.table import BASIC, CORRECTED, SANDWICH, SCORE_PARTS, is_better_low, row_of
from util.metrics.weighted import (
    Images,
    WeightedFigures,
    class_count_figures,
    confusion_matrix,
    count_figures,
    operating_hits,
)

# BASIC: chance alone makes these larger, in a resample once more than in the sample. Of their percentiles: a
# sum of absolute values is folded at 0, and 95 % hold the truth in only 90 %.
SHIFTED_LEVEL = 0.98


def classification_intervals(table: pd.DataFrame, seed: int = 0, draws: int = DRAWS,
                             thresholds: dict[str, float] | None = None,
                             temperature: float | None = None,
                             order: Sequence[str] | None = None) -> dict[str, dict]:
    """All metrics of a predictions table with their intervals: {name: {"value", "lower", "upper", "method",
    …}}.

    Beside those of classification_metrics: of each class sensitivity, specificity, precision, f1, roc_auc,
    average_precision and n as <metric>_<class>; calibration_slope and calibration_intercept (of the second of
    two classes; of more a mean over the classes, each against the rest); with `thresholds` that were chosen
    on other images (see operating_thresholds) the operating points of two classes; with `temperature` loss,
    brier and ece after it, _calibrated. order: of the classes, where it was typed
    (util/metrics/class_order.py). A bootstrap's entry also says resamples, seed and in how many resamples the
    metric is undefined; these are left out of it.
    """
    return intervals_of(Images.of(table, order), seed, draws, thresholds, temperature)


def intervals_of(images: Images, seed: int, draws: int, thresholds: dict[str, float] | None = None,
                 temperature: float | None = None,
                 replicates: dict[str, np.ndarray] | None = None) -> dict[str, dict]:
    """classification_intervals of images. replicates: their resamples with this seed, where they are known
    already."""
    thresholds, draws = thresholds or {}, draws_for(len(images.true), draws)
    figures = WeightedFigures(images, thresholds, temperature)
    values = figures.values() | ({} if temperature is None else {"temperature": temperature})
    if replicates is None:
        replicates = collect(figures, len(images.true), images.groups, draws, seed)
    entries = {name: entry(value) if not row_of(name).interval
               else bootstrapped(name, value, replicates[name], images.groups, draws, seed, images.unit)
               for name, value in values.items()}
    _widen_without_hits(entries, images, draws, seed)
    entries |= _auc_entries(images, values) | _calibration_entries(images)
    if images.groups is None:
        entries |= _share_entries(images, values, thresholds)
    return {name: entries[name] for name in (*values, *(name for name in entries if name not in values))}


def classification_replicates(table: pd.DataFrame, draws: int = DRAWS, seed: int = 0,
                              order: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """{metric: (draws,)} of resamples; tables of the same images and patients, and the same seed, are
    resampled alike.
    order: of the classes, where it was typed."""
    images = Images.of(table, order)
    return collect(WeightedFigures(images, {}), len(images.true), images.groups, draws, seed)


def regression_intervals(table: pd.DataFrame, figures: dict[str, float], targets: list[str], seed: int = 0,
                         draws: int = DRAWS) -> dict[str, dict]:
    """The same for a regression: r2, pearson, mae and rmse of each target and their means; `figures` are the
    values, from regression_metrics (its loss has no interval: it is in units of the training's loss)."""
    groups, draws = groups_of(table["patient"].to_numpy(dtype=object)), draws_for(len(table), draws)
    replicates = regression_replicates(table, targets, draws, seed)
    unit = unit_of(table)
    return {name: bootstrapped(name, value, replicates[name], groups, draws, seed, unit)
            if name in replicates else entry(value)
            for name, value in figures.items()}


def regression_replicates(table: pd.DataFrame, targets: list[str], draws: int = DRAWS,
                          seed: int = 0) -> dict[str, np.ndarray]:
    """{metric: (draws,)} of resamples, r2 … and r2_<target> …; as classification_replicates."""
    table = table.sort_values("index")
    groups = groups_of(table["patient"].to_numpy(dtype=object))
    return collect(regression_figures(table, targets), len(table), groups, draws, seed)


def regression_figures(table: pd.DataFrame,
                       targets: list[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """weights (B, N) of a predictions table's rows, which are in the order of their index -> {metric:
    (B,)}."""
    columns = np.column_stack([moments(*pair) for pair in pairs_of(table, targets).values()])

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        sums = (weights.astype(np.float64) @ columns).reshape(len(weights), len(targets), -1)
        found = {f"{figure}_{name}": values for number, name in enumerate(targets)
                 for figure, values in target_figures_of(sums[:, number]).items()}
        for figure in REGRESSION_FIGURES:
            found[figure] = mean_of_defined([found[f"{figure}_{name}"] for name in targets])
        return found

    return figures


def drops(internal: dict[str, dict], external: dict[str, dict]) -> dict[str, dict]:
    """How much worse each metric is on an external test set, with its interval: {name: {"value", "lower",
    "upper", "method"}}, positive where it is worse there.

    internal, external: entries of two sets of different images and patients. The interval is made of theirs,
    whatever method made them: with (l, u) about x and (l', u') about y, that of x - y reaches down by
    sqrt((x - l)^2 + (u' - y)^2) and up by sqrt((u - x)^2 + (y - l')^2) (Zou and Donner, Statistics in
    Medicine 2008; of two shares with Wilson's intervals it is Newcombe's). Metrics without an interval in
    both are left out, means that are not over the same labels, and those whose best value is neither the
    highest nor the lowest (calibration slope and intercept).
    """
    found = {}
    for name, one in internal.items():
        other, row = external.get(name), row_of(name)
        if row is None or row.interval in ("", SANDWICH) or other is None:
            continue
        if not (_has_interval(one) and _has_interval(other)) or not is_comparable(one, other):
            continue
        better, worse = (other, one) if is_better_low(name) else (one, other)
        down = math.hypot(better["value"] - better["lower"], worse["upper"] - worse["value"])
        up = math.hypot(better["upper"] - better["value"], worse["value"] - worse["lower"])
        lost = better["value"] - worse["value"]
        found[name] = entry(lost, lost - down, lost + up, "of both intervals")
    return found


def is_comparable(one: dict, other: dict) -> bool:
    """Whether two entries are means over the same labels, or no means."""
    return one.get("without") == other.get("without")


def _has_interval(found: dict) -> bool:
    return all(isinstance(found.get(part), float | int) and math.isfinite(found[part])
               for part in ("value", "lower", "upper"))


def drop_table(internal: dict[str, dict], external: dict[str, dict], lost: dict[str, dict]) -> str:
    """What `drops` found as a CSV."""
    rows = [{"metric": name, "internal": internal[name]["value"], "external": external[name]["value"],
             "drop": found["value"], "lower": found["lower"], "upper": found["upper"]}
            for name, found in lost.items()]
    columns = ["metric", "internal", "external", "drop", "lower", "upper"]
    return pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n")


def entry(value: float, lower: float = math.nan, upper: float = math.nan, method: str | None = None,
          **more: object) -> dict:
    """One metric's part of metrics_*.json."""
    return {"value": value, "lower": lower, "upper": upper, "method": method, **more}


def collect(figures: Callable[[np.ndarray], dict[str, np.ndarray]], number: int, groups: np.ndarray | None,
             draws: int, seed: int) -> dict[str, np.ndarray]:
    parts = []
    for weights in resamples(number, groups, draws, seed):
        signals.end_if_asked()  # no handler interrupts a thread that computes it
        parts.append(figures(weights))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def bootstrap_interval(name: str, value: float, replicates: np.ndarray) -> tuple[float, float, int]:
    """(lower, upper, undefined) of a metric from its resamples, by what suits that metric."""
    if is_shifted(name):
        return basic_interval(replicates, value, 0.0, SHIFTED_LEVEL)
    if row_of(name).interval == CORRECTED:
        return corrected_interval(replicates, value)
    return percentile_interval(replicates)


def is_shifted(name: str) -> bool:
    return row_of(name).interval == BASIC


def _widen_without_hits(entries: dict[str, dict], images: Images, draws: int, seed: int) -> None:
    """Where no image of a class is right, none is in any resample either: half an image is added as one that
    is, and intervals of counts reach as far as those of resamples with it do."""
    number = len(images.names)
    confusion = confusion_matrix(images.true, images.predicted, number).astype(np.float64)
    without = (np.diagonal(confusion) == 0) & (confusion.sum(axis=1) > 0)
    if not without.any():
        return
    chances = confusion + np.diag(0.5 * without)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(images.true), chances.ravel() / chances.sum(), size=draws)
    drawn = drawn.reshape(draws, number, number)
    figures = count_figures(drawn, images.ranks) | class_count_figures(drawn, images.names)
    figures["score"] = mean_of_defined([
        np.broadcast_to(entries[part]["value"], draws) if part == "roc_auc" else figures[part]
        for part in SCORE_PARTS])
    for name, replicates in figures.items():
        lower, upper, _ = percentile_interval(replicates)
        if name in entries and entries[name]["method"] and not math.isnan(lower):
            own = entries[name]
            own |= {"lower": float(np.fmin(own["lower"], min(lower, own["value"]))),
                    "upper": float(np.fmax(own["upper"], max(upper, own["value"]))),
                    "without_hits": np.array(images.names, dtype=object)[without].tolist()}


def bootstrapped(name: str, value: float, replicates: np.ndarray, groups: np.ndarray | None, draws: int,
                 seed: int, unit: str) -> dict:
    if math.isnan(value):
        return entry(value)
    lower, upper, undefined = bootstrap_interval(name, value, replicates)
    # no error at all in any resample: that says nothing about how far off the metric may be
    if lower == upper:
        lower = upper = math.nan
    method = f"bootstrap of {unit}" if groups is None else "bootstrap of patients"
    return entry(value, lower, upper, method, resamples=draws, seed=seed, undefined=undefined)


def _auc_entries(images: Images, values: dict[str, float]) -> dict[str, dict]:
    found = {}
    for name, influence in auc_influences(images).items():
        variance = delong.variance(influence, images.groups)
        lower, upper = delong.logit_interval(values[name], variance, fewest_of(images, name),
                                             images.groups is not None and is_of_one_class(images, name))
        found[name] = entry(values[name], lower, upper, None if math.isnan(lower) else "DeLong")
    return found


def auc_influences(images: Images) -> dict[str, np.ndarray]:
    """{roc_auc and roc_auc_<class>: (N,) what each image adds to its error}, see util/metrics/delong.py."""
    one_hot, scores = images.one_hot, images.probabilities
    by_class = {f"roc_auc_{name}": delong.auc_influence(one_hot[:, k], scores[:, k])[1]
                for k, name in enumerate(images.names)}
    return {"roc_auc": delong.macro_auc_influence(one_hot, scores)[1]} | by_class


def is_of_one_class(images: Images, name: str) -> bool:
    """Whether an AUC is that of one class against the rest; the mean of more than two classes is none."""
    return name != "roc_auc" or len(images.names) == 2


def fewest_of(images: Images, name: str) -> int:
    """Independent images (or patients) of the rarer kind, the class of an AUC or the rest; of roc_auc, of the
    class with the fewest that has any."""
    units = np.arange(len(images.true)) if images.groups is None else images.groups
    counts = [min(len(np.unique(units[is_class])), len(np.unique(units[~is_class])))
              for label, is_class in zip(images.names, images.one_hot.T, strict=True)
              if name in ("roc_auc", f"roc_auc_{label}")]
    return min(filter(None, counts), default=0)


def calibration_influences(images: Images, k: int) -> tuple[calibration.Estimate, calibration.Estimate]:
    """Slope and intercept of one class, each with its influences (N,)."""
    log_odds = calibration.class_log_odds(images.logits, k)
    return calibration.slope_and_intercept(log_odds, images.one_hot[:, k])


def _calibration_entries(images: Images) -> dict[str, dict]:
    classes = [1] if len(images.names) == 2 else range(len(images.names))
    return calibration_means([calibration_influences(images, k) for k in classes], images.groups)


def calibration_means(estimates: Sequence[tuple[calibration.Estimate, calibration.Estimate]],
                      groups: np.ndarray | None) -> dict[str, dict]:
    """Entries of the mean slope and intercept of those classes (or labels) where they are defined. estimates:
    of each its slope and its intercept, with their influences (N,)."""
    found = {}
    for place, name in enumerate(("calibration_slope", "calibration_intercept")):
        defined = [pair[place] for pair in estimates if not math.isnan(pair[place][0])]
        if not defined:
            found[name] = entry(math.nan)
            continue
        value, influence = float(np.mean([v for v, _ in defined])), np.mean([i for _, i in defined], axis=0)
        found[name] = entry(value, *calibration.wald_interval(value, influence, groups), "sandwich",
                            classes=len(defined))
    return found


def _share_entries(images: Images, values: dict[str, float], thresholds: dict[str, float]) -> dict[str, dict]:
    """Wilson's intervals, where every image stands alone."""
    right, number = images.true == images.predicted, len(images.names)
    shares = {"accuracy": (right, np.ones(len(right), bool))}
    for k, name in enumerate(images.names):
        true, predicted = images.true == k, images.predicted == k
        shares |= {f"sensitivity_{name}": (predicted, true), f"specificity_{name}": (~predicted, ~true),
                   f"precision_{name}": (true, predicted)}
    shares |= operating_hits(images, thresholds if number == 2 else {})
    found = {}
    for name, (hit, among) in shares.items():
        bounds = wilson_interval(int((hit & among).sum()), int(among.sum()))
        found[name] = entry(values[name], *bounds, None if math.isnan(bounds[0]) else "Wilson")
    accuracy = found["accuracy"]  # Hamming loss is 2 (1 - accuracy) / K
    lower, upper = (2 * (1 - accuracy[bound]) / number for bound in ("upper", "lower"))
    found["hamming"] = entry(values["hamming"], lower, upper, "Wilson")
    return found
