"""Probabilities that are fitted anew to another test set: on a share of its images, and tried on the others.

Two corrections are compared with the outputs as they are: intercepts alone, which are exact where the shares
of the classes are the one thing that changed, and intercepts with a slope.
"""

import json
import math

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
from util.metrics.predictions import class_names_of, class_numbers
from util.options.groups import Options

SHOWN = ("loss", "brier", "ece", "calibration_slope", "calibration_intercept")
AS_IT_IS, INTERCEPTS, SLOPE = "as it is", "intercepts", "slope and intercepts"


def split_of(name: str) -> str:
    """The test set that --recalibrate names."""
    return name if is_test(name) else f"{TEST}_{name}"


def write(folder: RunFolder, split: str, predictions: pd.DataFrame, options: Options) -> list[str]:
    """recalibration_SPLIT.json; lines for the user."""
    found, problem = recalibrate(predictions, options.metrics.recalibrate_share, options.run.seed,
                                 options.data.class_order)
    if problem:
        return [f"recalibration of {split}: {problem}"]
    with folder.writing(folder.file(f"recalibration_{split}.json")) as path:
        write_whole(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    lines = [f"{split} recalibrated on {found['fitted']:,} of its images; on the other {found['scored']:,}:"]
    for name, entries in found["metrics"].items():
        shown = "  ".join(f"{metric.replace('calibration_', '')} {_written(entries[metric]['value'])}"
                          for metric in SHOWN)
        lines.append(f"  {name:<20}  {shown}")
    enough = ("intercepts seem to be enough" if found["p_of_slope"] >= 0.05 else
              "more has changed than the shares of the classes")
    return [*lines, f"  slope {found['slope']:.3f}, p {found['p_of_slope']:.3g} against 1: {enough}"]


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
    true = class_numbers(table, "true_class", names)
    groups = groups_of(table["patient"].to_numpy(dtype=object))
    units = np.arange(len(table)) if groups is None else groups
    drawn = np.random.default_rng(seed).permutation(units.max() + 1)
    fitted = np.isin(units, drawn[:round(share * len(drawn))])
    corrections = {INTERCEPTS: calibration.fit_recalibration(logits[fitted], true[fitted], False),
                   SLOPE: calibration.fit_recalibration(logits[fitted], true[fitted], True)}
    if fitted.all() or not fitted.any() or None in corrections.values():
        return {}, (f"nothing can be fitted to {fitted.sum():,} images: a class is absent among them, or the "
                    "outputs part the classes without an error, or don't tell them apart")
    plain, both = corrections.values()
    outputs = {AS_IT_IS: logits} | {name: one.of(logits) for name, one in corrections.items()}
    metrics = {name: _metrics(table[~fitted], values[~fitted], seed, order, draws)
               for name, values in outputs.items()}
    statistic = max(0.0, 2 * (both.log_likelihood - plain.log_likelihood))
    return {"share": share, "fitted": int(fitted.sum()), "scored": int((~fitted).sum()), "slope": both.slope,
            "intercepts": dict(zip(names, both.intercepts, strict=True)),
            "intercepts_alone": dict(zip(names, plain.intercepts, strict=True)),
            "p_of_slope": float(chdtrc(1, statistic)), "metrics": metrics}, ""


def _metrics(rows: pd.DataFrame, logits: np.ndarray, seed: int, order: list[str] | None,
             draws: int) -> dict[str, dict]:
    names = class_names_of(rows)
    rows = rows.assign(target=class_numbers(rows, "true_class", names))
    entries = classification_intervals(predictions_table(rows, logits, names), seed, draws, order=order)
    return {name: {key: None if isinstance(value, float) and math.isnan(value) else value
                   for key, value in entries[name].items()} for name in SHOWN}
