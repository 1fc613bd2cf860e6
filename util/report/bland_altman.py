"""Predicted against true numbers: a scatter plot and a Bland–Altman plot of each target, one PNG a target."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from util.report.charts import save_figure
from util.report.fonts import drawable

MOST_POINTS = 5000  # drawn one by one; of more, so many chosen evenly, and the caption says so


def agreement_files(split: str, targets: list[str]) -> list[str]:
    """agreement_SPLIT_TARGET.png of each target; what a file name can't hold becomes _, a name met again gets a number."""
    names = [re.sub(r"[^\w.-]+", "_", target) for target in targets]
    numbered = [name if name not in names[:place] else f"{name}_{place + 1}" for place, name in enumerate(names)]
    return [f"agreement_{split}_{name}.png" for name in numbered]


def agreement_figures(table: pd.DataFrame, targets: list[str], folder: str | os.PathLike, split: str) -> list[str]:
    """Draw one PNG a target of a predictions table (columns true_<target>, pred_<target>); lines for the user.

    Left: predicted against true, with the line of equality. Right: the differences predicted - true against the mean of
    both, with their mean and the 95 % limits of agreement, mean ± 1.96 sd (Bland and Altman, Lancet 1986).
    """
    from matplotlib import style

    labels, _, notes = drawable(targets, [], "target")
    with style.context("default"):
        for target, label, file in zip(targets, labels, agreement_files(split, targets), strict=True):
            known = table[f"true_{target}"].notna()
            true, predicted = (table[f"{kind}_{target}"][known].to_numpy(np.float64) for kind in ("true", "pred"))
            if not len(true):
                notes.append(f"{target}: no known values in {split}, so no picture")
                continue
            notes += save_figure(_draw(true, predicted, f"{label}, {split}"), Path(folder) / file)
    return notes


def limits_of_agreement(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """Mean difference predicted - true, and the mean ± 1.96 standard deviations (n - 1) of the differences."""
    difference = predicted - true
    bias = float(difference.mean())
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    return bias, bias - spread, bias + spread


def _draw(true, predicted, title):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = np.linspace(0, len(true) - 1, min(len(true), MOST_POINTS)).astype(int)
    look = {"s": 9, "alpha": 0.55 if len(shown) < 1000 else 0.3, "color": "#08519c", "linewidths": 0}
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    room = 0.05 * (high - low) or 1.0
    left.scatter(true[shown], predicted[shown], **look)
    left.plot([low - room, high + room], [low - room, high + room], color="0.5", linewidth=1, linestyle="--",
              label="equality")
    left.set_xlim(low - room, high + room)
    left.set_ylim(low - room, high + room)
    left.set_xlabel("True")
    left.set_ylabel("Predicted")
    left.legend(fontsize=8, frameon=False, loc="upper left")
    bias, lower, upper = limits_of_agreement(true, predicted)
    right.scatter((true + predicted)[shown] / 2, (predicted - true)[shown], **look)
    right.axhline(0, color="0.8", linewidth=0.8)
    for value, label, line in ((bias, "mean", "-"), (lower, "−1.96 sd", "--"), (upper, "+1.96 sd", "--")):
        if np.isfinite(value):
            right.axhline(value, color="#a63603", linewidth=1, linestyle=line)
            right.annotate(f"{label} {value:.3g}", (1, value), (-2, 2), xycoords=("axes fraction", "data"), ha="right",
                           textcoords="offset points", fontsize=8, color="#a63603")
    right.set_xlabel("Mean of true and predicted")
    right.set_ylabel("Predicted − true")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    some = f"; {len(shown):,} of them drawn" if len(shown) < len(true) else ""
    figure.suptitle(f"{title} ({len(true):,} images{some})", fontsize=11, x=0.02, ha="left", parse_math=False)
    return figure
