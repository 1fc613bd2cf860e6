"""Probabilities that are fitted anew to another test set: on a share of its images, and tried on the others.

Two corrections are compared with the outputs as they are: intercepts alone, which are exact where the shares
of the classes are the one thing that changed, and intercepts with a slope. Of several labels each is fitted
anew, as two classes.
"""

import json
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from jobs.run_folder import RunFolder
from util.core.run_files import write_whole
from util.data.splits import TEST, is_test
from util.metrics import calibration
from util.metrics.bootstrap import DRAWS, groups_of
from util.metrics.classification import predictions_table
from util.metrics.intervals import classification_intervals
from util.metrics.multilabel.predictions import NAMES, two_logits
from util.metrics.predictions import class_names_of, class_numbers, kind_and_names, unit_of
from util.metrics.table import MULTILABEL
from util.options.groups import Options

SHOWN = ("loss", "brier", "ece", "calibration_slope", "calibration_intercept")
INTERCEPT_KEYS = ("intercepts", "intercepts_alone")  # beside the slope, and without one
AS_IT_IS, INTERCEPTS, SLOPE = "as it is", "intercepts", "slope and intercepts"


def split_of(name: str) -> str:
    """The test set that --recalibrate names."""
    return name if is_test(name) else f"{TEST}_{name}"


def write(folder: RunFolder, split: str, predictions: pd.DataFrame, options: Options) -> list[str]:
    """recalibration_SPLIT.json; lines for the user."""
    share, seed = options.metrics.recalibrate_share, options.run.seed
    if kind_and_names(predictions)[0] == MULTILABEL:
        found = recalibrate_labels(predictions, share, seed)
        lines = _lines_of_labels(found)
    else:
        found, problem = recalibrate(predictions, share, seed, options.data.class_order)
        if problem:
            return [f"recalibration of {split}: {problem}"]
        lines = _lines(found)
    with folder.writing(folder.file(f"recalibration_{split}.json")) as path:
        write_whole(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    unit = unit_of(predictions)
    return [f"{split} recalibrated on {found['fitted']:,} of its {unit}; on the other {found['scored']:,}:",
            *lines]


def _lines(found: dict) -> list[str]:
    lines = []
    for name, entries in found["metrics"].items():
        shown = "  ".join(f"{metric.replace('calibration_', '')} {_written(entries[metric]['value'])}"
                          for metric in SHOWN)
        lines.append(f"  {name:<20}  {shown}")
    return [*lines, f"  {_slope(found)}"]


def _lines_of_labels(found: dict) -> list[str]:
    width = max(map(len, found["labels"]))
    lines = [f"  loss {AS_IT_IS} > {INTERCEPTS} alone > {SLOPE}"]
    for name, one in found["labels"].items():
        losses = " > ".join(_written(entries["loss"]["value"]) for entries in one.get("metrics", {}).values())
        lines.append(f"  {name:<{width}}  {one.get('problem') or f'{losses}; {_slope(one)}'}")
    return lines


def _slope(found: dict) -> str:
    enough = ("intercepts seem to be enough" if found["p_of_slope"] >= 0.05 else
              "more has changed than the shares of the classes")
    return f"slope {found['slope']:.3f}, p {found['p_of_slope']:.3g} against 1: {enough}"


def _written(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def recalibrate(table: pd.DataFrame, share: float, seed: int, order: list[str] | None = None,
                draws: int = DRAWS) -> tuple[dict, str]:
    """({"share", "fitted", "scored", "slope", "intercepts": {class: value}, "p_of_slope", "metrics":
    {correction: {metric: entry}}}, "") of a predictions table, plain values, NaN as None; or ({}, why there
    is none).

    Whole patients are on one side. p_of_slope: of the likelihood ratio test of the slope against 1, on the
    images of the fit. The metrics are those of the other images.
    """
    names = class_names_of(table)
    logits = table[[f"logit_{name}" for name in names]].to_numpy(np.float64)
    rows = table.assign(target=class_numbers(table, "true_class", names))
    found, problem = _fitted_anew(rows, logits, _drawn(table, share, seed),
                                  lambda rows, logits: _metrics(rows, logits, names, seed, order, draws))
    if problem:
        return {}, problem
    intercepts = {key: dict(zip(names, found[key], strict=True)) for key in INTERCEPT_KEYS}
    return {"share": share, **found, **intercepts}, ""


def recalibrate_labels(table: pd.DataFrame, share: float, seed: int, draws: int = DRAWS) -> dict:
    """{"share", "fitted", "scored", "labels": {label: as `recalibrate`, of its two classes and the images
    where it is known, the intercepts as that of its log odds; or {"problem": why there is none}}}. The images
    of the fit are the same for all labels."""
    drawn, of_labels = _drawn(table, share, seed), {}
    for name in class_names_of(table):
        known = table[f"true_{name}"].notna().to_numpy()
        rows = table[known].assign(target=table.loc[known, f"true_{name}"].astype(int))
        logits = two_logits(rows[f"logit_{name}"].to_numpy(np.float64))
        found, problem = _fitted_anew(rows, logits, drawn[known],
                                      lambda rows, logits: _metrics(rows, logits, NAMES, seed, None, draws))
        of_labels[name] = {"problem": problem} if problem else found | {
            key: float(found[key][1] - found[key][0]) for key in INTERCEPT_KEYS}
    return {"share": share, "fitted": int(drawn.sum()), "scored": int((~drawn).sum()), "labels": of_labels}


def _drawn(table: pd.DataFrame, share: float, seed: int) -> np.ndarray:
    """(N,) whether a row belongs to the share that is fitted to; whole patients do, or don't."""
    groups = groups_of(table["patient"].to_numpy(dtype=object))
    units = np.arange(len(table)) if groups is None else groups
    drawn = np.random.default_rng(seed).permutation(units.max() + 1)
    return np.isin(units, drawn[:round(share * len(drawn))])


def _fitted_anew(rows: pd.DataFrame, logits: np.ndarray, fitted: np.ndarray,
                 metrics: Callable[[pd.DataFrame, np.ndarray], dict]) -> tuple[dict, str]:
    """The result of rows (with "target") and their logits (N, K), intercepts by class; or ({}, why there is
    none)."""
    true = rows["target"].to_numpy()
    corrections = {INTERCEPTS: calibration.fit_recalibration(logits[fitted], true[fitted], False),
                   SLOPE: calibration.fit_recalibration(logits[fitted], true[fitted], True)}
    if fitted.all() or not fitted.any() or None in corrections.values():
        return {}, (f"nothing can be fitted to {fitted.sum():,} {unit_of(rows)}: a class is absent "
                    "among them, or the outputs part the classes without an error, or don't tell them apart")
    plain, both = corrections.values()
    outputs = {AS_IT_IS: logits} | {name: one.of(logits) for name, one in corrections.items()}
    statistic = max(0.0, 2 * (both.log_likelihood - plain.log_likelihood))
    return {"fitted": int(fitted.sum()), "scored": int((~fitted).sum()), "slope": both.slope,
            **dict(zip(INTERCEPT_KEYS, (both.intercepts, plain.intercepts), strict=True)),
            "p_of_slope": float(chdtrc(1, statistic)),
            "metrics": {name: metrics(rows[~fitted], values[~fitted]) for name, values in outputs.items()}
            }, ""


def _metrics(rows: pd.DataFrame, logits: np.ndarray, names: list[str], seed: int, order: list[str] | None,
             draws: int) -> dict[str, dict]:
    entries = classification_intervals(predictions_table(rows, logits, names), seed, draws, order=order)
    return {name: {key: None if isinstance(value, float) and math.isnan(value) else value
                   for key, value in entries[name].items()} for name in SHOWN}
