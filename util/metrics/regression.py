"""From a table of predicted numbers to metrics.

Everything is computed from that table (util/metrics/predictions.py); a true value that is missing is NaN and
left out of that target's metrics. N is the number of images, T of targets.
"""

import math

import numpy as np
import pandas as pd

from util.core.errors import InputError, RunError
from util.metrics.bootstrap import mean_of_defined
from util.metrics.predictions import SAMPLE_COLUMNS, further_columns, require_finite
from util.metrics.table import REGRESSION, of_kind
from util.metrics.target_scale import TargetScale

# of a target; their means over the targets stand under the bare names
FIGURES = tuple(metric.name for metric in of_kind(REGRESSION, "per_target") if metric.name != "n")


def metric_columns(targets: list[str]) -> tuple[str, ...]:
    """The columns of metrics_val.csv and metrics_test.csv of a regression."""
    return ("epoch", "val_loss", *FIGURES, "n",
            *(f"{figure}_{name}" for name in targets for figure in (*FIGURES, "n")))


def predictions_table(samples: pd.DataFrame, true: np.ndarray, predicted: np.ndarray,
                      targets: list[str]) -> pd.DataFrame:
    """Samples (columns index, path, patient, split), true and predicted values (N, T) -> the table, sorted by
    index.

    Raises RunError where a prediction is NaN or infinite.
    """
    require_finite(predicted, samples["path"], "predictions")
    columns = {name: samples[name].to_numpy()
               for name in ("index", *SAMPLE_COLUMNS, *further_columns(samples))}
    for number, name in enumerate(targets):
        columns |= {f"true_{name}": true[:, number], f"pred_{name}": predicted[:, number]}
    return pd.DataFrame(columns).sort_values("index", ignore_index=True)


def target_figures(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """R², Pearson's r, mean absolute error, root mean squared error and n of one target; pairs without a
    truth are left out.

    R² is 1 - squared error / squared deviation from the mean of these very images (scikit-learn's r2_score),
    NaN for fewer than two images or a constant truth; r is NaN where either side is constant. All are NaN for
    no image.
    """
    found = target_figures_of(moments(true, predicted).sum(axis=0, keepdims=True))
    return {name: float(value[0]) for name, value in found.items()} | {"n": int((~np.isnan(true)).sum())}


def pairs_of(table: pd.DataFrame, targets: list[str]) -> dict[str, list[np.ndarray]]:
    """{target: [true values (N,), predicted ones (N,)]} of a predictions table."""
    return {name: [table[f"{kind}_{name}"].to_numpy(np.float64) for kind in ("true", "pred")]
            for name in targets}


def moments(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(N, 8) whose weighted sums a target's metrics are made of; 0 where the truth is unknown. Centred, so
    that no digits are lost."""
    known = ~np.isnan(true)
    y, p = (np.where(known, values - values[known].sum() / max(1, known.sum()), 0.0)
            for values in (true, predicted))
    error = np.where(known, predicted - true, 0.0)
    return np.column_stack([known.astype(np.float64), y, p, y * y, p * p, y * p, np.abs(error), error**2])


def target_figures_of(sums: np.ndarray) -> dict[str, np.ndarray]:
    """(B, 8) sums of `moments` -> {metric: (B,)}."""
    n, y, p, yy, pp, yp, absolute, squared = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        of_true, of_predicted, together = yy - y * y / n, pp - p * p / n, yp - y * p / n
        # a resample of one image, or of equal ones: what is left is rounding
        flat = of_true <= 1e-12 * yy
        is_flat = flat | (of_predicted <= 1e-12 * pp)
        return {"r2": np.where(flat, np.nan, 1 - squared / of_true),
                "pearson": np.where(is_flat, np.nan, together / np.sqrt(of_true * of_predicted)),
                "mae": absolute / n, "rmse": np.sqrt(squared / n)}


def figures_of(table: pd.DataFrame, targets: list[str]) -> dict[str, float]:
    """All metrics of a predictions table but the loss: r2 … and n, then r2_<target> … and n_<target> of
    each."""
    by_target = {name: target_figures(*pair) for name, pair in pairs_of(table, targets).items()}
    means = {figure: float(mean_of_defined([found[figure] for found in by_target.values()]))
             for figure in FIGURES}
    return means | {"n": len(table)} | {f"{figure}_{name}": value for name, found in by_target.items()
                                        for figure, value in found.items()}


def smooth_l1(error: np.ndarray, beta: float) -> np.ndarray:
    """Huber's loss divided by beta (Girshick, Fast R-CNN, 2015): quadratic below beta, linear above."""
    size = np.abs(error)
    return np.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def regression_metrics(table: pd.DataFrame, scale: TargetScale,
                       beta: float) -> tuple[dict[str, float], list[str]]:
    """All metrics of a predictions table, and lines that say what they leave out.

    Returns ({loss, r2, pearson, mae, rmse, n, then r2_<target> …, n_<target>}, notes): metrics in the CSV's
    units, the bare names their means over the targets where they are defined, n the number of images; loss is
    the mean smooth L1 of all known values in standardised units. Raises RunError for an empty table,
    InputError for another table.
    """
    if table.empty:
        raise RunError("there are no predictions to score")
    lacking = [name for name in scale.names if f"pred_{name}" not in table or f"true_{name}" not in table]
    if lacking:
        raise InputError(f"predictions: no columns of the target {', '.join(lacking)}")
    table = table.sort_values("index")  # sums of floats depend on their order, in the last bit
    true, predicted = (table[[f"{kind}_{name}" for name in scale.names]].to_numpy(np.float64)
                       for kind in ("true", "pred"))
    losses = smooth_l1(scale.standardise(predicted) - scale.standardise(true), beta)
    figures = {"loss": float(mean_of_defined(losses.ravel()))} | figures_of(table, list(scale.names))
    undefined, notes = [name for name in scale.names if math.isnan(figures[f"r2_{name}"])], []
    if undefined:
        notes.append(f"R² is undefined for {', '.join(undefined)} (fewer than two values, or all the same): "
                     f"its mean is over the other {len(scale.names) - len(undefined)} of {len(scale.names)} "
                     "targets")
    return figures, notes
