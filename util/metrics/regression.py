"""From a table of predicted numbers to figures.

The table has a row an image: index, path, patient, split, then true_<target> and pred_<target> of each target, in the
CSV's own units; a true value that is missing is NaN and left out of that target's figures.
"""

import math
import os

import numpy as np
import pandas as pd

from util.core.errors import InputError, RunError
from util.core.run_files import read_table
from util.metrics.table import REGRESSION, of_kind
from util.metrics.target_scale import TargetScale

TEXT_COLUMNS = ("path", "patient", "split")
# of a target; their means over the targets stand under the bare names
FIGURES = tuple(metric.name for metric in of_kind(REGRESSION, "per_target") if metric.name != "n")


def metric_columns(targets: list[str]) -> tuple[str, ...]:
    """The columns of metrics_val.csv and metrics_test.csv of a regression."""
    return ("epoch", "val_loss", *FIGURES, "n", *(f"{figure}_{name}" for name in targets for figure in (*FIGURES, "n")))


def predictions_table(samples: pd.DataFrame, true: np.ndarray, predicted: np.ndarray, targets: list[str]) -> pd.DataFrame:
    """Samples (columns index, path, patient, split), true and predicted values (N, T) -> the table, sorted by index.

    Raises RunError where a prediction is NaN or infinite.
    """
    bad = ~np.isfinite(predicted).all(axis=1)
    if bad.any():
        raise RunError(f"{bad.sum()} of {len(bad)} images have predictions that are NaN or infinite (the first: "
                       f"{samples['path'].iloc[int(np.argmax(bad))]}): the weights have diverged or are damaged")
    columns = {name: samples[name].to_numpy() for name in ("index", *TEXT_COLUMNS)}
    for number, name in enumerate(targets):
        columns |= {f"true_{name}": true[:, number], f"pred_{name}": predicted[:, number]}
    return pd.DataFrame(columns).sort_values("index", ignore_index=True)


def targets_of(columns) -> list[str]:
    """The targets of a predictions table's header, in order."""
    return [name.removeprefix("pred_") for name in columns if name.startswith("pred_")]


def read_predictions(path: str | os.PathLike) -> pd.DataFrame:
    """Read what run_files.write_predictions wrote, equal in every bit. InputError for a file that is no such table."""
    def columns(header):
        names = targets_of(header)
        return names and ["index", *TEXT_COLUMNS, *(f"true_{name}" for name in names)]

    def types(header):
        return {"index": np.int64} | {name: np.float64 for name in header if name.startswith(("true_", "pred_"))}

    return read_table(path, columns, types)


def target_figures(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """R², Pearson's r, mean absolute error, root mean squared error and n of one target; pairs without a truth are left out.

    R² is 1 - squared error / squared deviation from the mean of these very images (scikit-learn's r2_score), NaN for
    fewer than two images or a constant truth; r is NaN where either side is constant. All are NaN for no image.
    """
    known = ~np.isnan(true)
    true, predicted = np.asarray(true, np.float64)[known], np.asarray(predicted, np.float64)[known]
    if not len(true):
        return dict.fromkeys(FIGURES, math.nan) | {"n": 0}
    error = predicted - true
    of_true, of_predicted = true - true.mean(), predicted - predicted.mean()
    constant, flat = true.min() == true.max(), predicted.min() == predicted.max()
    r2 = math.nan if constant else 1 - (error**2).sum() / (of_true**2).sum()
    pearson = math.nan if constant or flat else (of_true * of_predicted).sum() / math.sqrt(
        (of_true**2).sum() * (of_predicted**2).sum())
    return {"r2": float(r2), "pearson": float(pearson), "mae": float(np.abs(error).mean()),
            "rmse": float(math.sqrt((error**2).mean())), "n": len(true)}


def smooth_l1(error: np.ndarray, beta: float) -> np.ndarray:
    """Huber's loss divided by beta (Girshick, Fast R-CNN, 2015): quadratic below beta, linear above."""
    size = np.abs(error)
    return np.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def regression_metrics(table: pd.DataFrame, scale: TargetScale, beta: float) -> tuple[dict[str, float], list[str]]:
    """All figures of a predictions table, and lines that say what they leave out.

    Returns ({loss, r2, pearson, mae, rmse, n, then r2_<target> …, n_<target>}, notes): figures in the CSV's units, the
    bare names their means over the targets where they are defined, n the number of images; loss is the mean smooth L1
    of all known values in standardised units. Raises RunError for an empty table, InputError for another table.
    """
    if table.empty:
        raise RunError("there are no predictions to score")
    lacking = [name for name in scale.names if f"pred_{name}" not in table or f"true_{name}" not in table]
    if lacking:
        raise InputError(f"predictions: no columns of the target {', '.join(lacking)}")
    table = table.sort_values("index")  # sums of floats depend on their order, in the last bit
    true, predicted = (table[[f"{kind}_{name}" for name in scale.names]].to_numpy(np.float64) for kind in ("true", "pred"))
    by_target = [target_figures(true[:, number], predicted[:, number]) for number in range(len(scale.names))]
    losses = smooth_l1(scale.standardise(predicted) - scale.standardise(true), beta)
    known = losses[~np.isnan(losses)]
    figures = {"loss": float(known.mean()) if len(known) else math.nan}
    figures |= {figure: _mean_of_defined([entry[figure] for entry in by_target]) for figure in FIGURES}
    figures["n"] = len(table)
    for name, entry in zip(scale.names, by_target, strict=True):
        figures |= {f"{figure}_{name}": entry[figure] for figure in (*FIGURES, "n")}
    undefined = [name for name, entry in zip(scale.names, by_target, strict=True) if math.isnan(entry["r2"])]
    notes = []
    if undefined:
        notes.append(f"R² is undefined for {', '.join(undefined)} (fewer than two values, or all the same): its mean is over "
                     f"the other {len(by_target) - len(undefined)} of {len(by_target)} targets")
    return figures, notes


def _mean_of_defined(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
