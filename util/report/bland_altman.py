"""Predicted against true numbers: a scatter plot and a Bland-Altman plot of each target."""

import re

import numpy as np
import pandas as pd

from util.metrics.predictions import unit_of
from util.report import charts
from util.report.charts import HEIGHT, MUTED, SERIES, WIDTH, Chart, Panel, axes_in, own_style
from util.report.metric_tables import written

MOST_POINTS = 2000  # drawn; of more, so many chosen evenly, and the caption says so
FRAME = (0.68, 0.52, WIDTH - 0.14, HEIGHT - 0.1)


def agreement_files(split: str, targets: list[str]) -> list[str]:
    """agreement_SPLIT_TARGET.png of each target; what a file name can't hold becomes _, a name met again gets
    a number."""
    names = [re.sub(r"[^\w.-]+", "_", target) for target in targets]
    numbered = [name if name not in names[:place] else f"{name}_{place + 1}"
                for place, name in enumerate(names)]
    return [f"agreement_{split}_{name}.png" for name in numbered]


@own_style()
def agreement(split: str, table: pd.DataFrame, targets: list[str], number: int) -> Chart | None:
    """The chart of one target of a predictions table (columns true_<target>, pred_<target>); None where no
    truth is known.

    Left: predicted against true, with the line of equality. Right: the differences predicted - true against
    the mean of both, with their mean and the 95 % limits of agreement, mean ± 1.96 sd (Bland and Altman,
    Lancet 1986).
    """
    target = targets[number]
    true, predicted = (table[f"{kind}_{target}"].to_numpy(np.float64) for kind in ("true", "pred"))
    known = np.isfinite(true)
    true, predicted = true[known], predicted[known]
    if not len(true):
        return None
    shown = np.linspace(0, len(true) - 1, min(len(true), MOST_POINTS)).astype(int)
    some = f"; {len(true):,} {unit_of(table)}"
    if len(shown) < len(true):
        some = f"; {len(shown):,} of {len(true):,} {unit_of(table)} drawn"
    figure, (left, bottom, right, top) = charts.empty_figure(2 * WIDTH, HEIGHT), FRAME
    how = (5.0, 0.55) if len(shown) <= 300 else (3.5, 0.4)
    ends = room_around(np.concatenate([true, predicted]))
    scatter = axes_in(figure, FRAME, ends, ends, ("True", "Predicted"))
    charts.equality(scatter, *ends)
    _draw_dots(scatter, true[shown], predicted[shown], *how)
    bias, lower, upper = limits_of_agreement(true, predicted)
    means, differences = (true + predicted) / 2, predicted - true
    plot = axes_in(figure, (left + WIDTH, bottom, right + WIDTH, top), room_around(means),
                   room_around(np.append(differences, [bias, lower, upper, 0]), 0.08),
                   ("Mean of true and predicted", "Predicted − true"))
    plot.axhline(0, color=MUTED, linewidth=0.8, alpha=0.5)
    _draw_dots(plot, means[shown], differences[shown], *how)
    for value, label, line in ((bias, "mean", "-"), (lower, "−1.96 sd", "--"), (upper, "+1.96 sd", "--")):
        if np.isfinite(value):
            plot.axhline(value, color=SERIES[1], linewidth=1.3, linestyle=line)
            plot.annotate(f"{label} {written(value)}", (1, value), (-2, 4), textcoords="offset points",
                          xycoords=("axes fraction", "data"), ha="right", fontsize=9, color=charts.INK,
                          bbox={"facecolor": charts.PANEL, "linewidth": 0, "alpha": 0.8, "pad": 0.3})
    limits = " to ".join(written(value if np.isfinite(value) else None) for value in (lower, upper))
    panels = [
        Panel(f"scatter-{split}-{number}", f"{target}: predicted against true",
              f"{split}. Each dot is one of the {unit_of(table)}; the broken line is equality. True values "
              "from "
              f"{written(float(true.min()))} to {written(float(true.max()))}.",
              (0, 0, WIDTH, HEIGHT), [scatter], f"Broken line: equality{some}"),
        Panel(f"bland-{split}-{number}", f"{target}: Bland-Altman plot",
              f"{split}. Difference predicted minus true against their mean: mean difference "
              f"{written(bias)}, 95 % limits of agreement {limits}.",
              (WIDTH, 0, 2 * WIDTH, HEIGHT), [plot],
              f"Mean difference ± 1.96 sd: the 95 % limits of agreement{some}")]
    return Chart(figure, panels, f"{target}, {split} ({len(true):,} {unit_of(table)})", targets, "target")


def _draw_dots(axes: "charts.Axes", x: np.ndarray, y: np.ndarray, size: float, alpha: float) -> None:
    """Points as one path of short lines with round ends: a tenth of the SVG text of as many circles."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points = np.repeat(np.stack([x, y], axis=1), 2, axis=0)
    points[1::2, 0] += 1e-4 * np.diff(axes.get_xlim())  # Agg draws no line without a length
    path = Path(points, np.tile([Path.MOVETO, Path.LINETO], len(x)))
    path.should_simplify = False
    axes.add_artist(PathPatch(path, fill=False, edgecolor=SERIES[0], linewidth=size, capstyle="round",
                              alpha=alpha, snap=False))


def limits_of_agreement(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """Mean difference predicted - true, and the mean ± 1.96 standard deviations (n - 1) of the
    differences."""
    difference = predicted - true
    bias = float(difference.mean())
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    return bias, bias - spread, bias + spread


def room_around(values: np.ndarray, share: float = 0.05) -> tuple[float, float]:
    """The range of the finite values, widened by a share of it on both sides; around a single value by 1 or
    its tenth."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    extra = (high - low) * share or max(abs(low) * 0.1, 1e-9 if low else 1.0)
    return low - extra, high + extra
