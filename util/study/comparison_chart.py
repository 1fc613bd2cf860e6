"""A comparison as an image: a forest plot of the groups, and below it one of their differences.

matplotlib is imported where the image is drawn (see util/report/charts.py).
"""

import math
import os
import textwrap
from typing import TYPE_CHECKING, Any

from util.metrics.table import is_better_low
from util.report.charts import save_figure, titled
from util.report.fonts import shown_names
from util.study.comparison import LEVEL, Comparison, Summary, Test
from util.study.comparison_text import difference_text, figure_text, p_text, summary_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_METRICS = 6  # beside each other
MOST_PAIRS = 15  # beyond, the differences from the first group alone are drawn
ROW, COLUMN = 0.34, 2.9  # inches
NOTE: dict[str, Any] = {
    "textcoords": "offset points", "fontsize": 6, "va": "bottom", "ha": "center", "color": "0.25",
    "annotation_clip": False, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.4}}
BLUE, GREY, RED = "#08519c", "0.55", "#a50f15"


def forest_figure(comparison: Comparison, path: str | os.PathLike) -> list[str]:
    """Draw point and interval of each group and metric, and of the differences, into a PNG, whole or not at
    all.

    Grey dots are single seeds. A difference is filled where Holm's p is below 0.05; AUCs' are DeLong's.
    Returns lines for the user: what was left out of the image, names that no installed font can draw.
    """
    from matplotlib import style

    metrics = comparison.metrics[:MOST_METRICS]
    names = [group.name for group in comparison.groups]
    labels = shown_names(names, "group")
    tests = [[test for test in comparison.main_tests() if test.metric == metric] for metric in metrics]
    pairs = list(dict.fromkeys((test.first, test.second) for tests_of in tests for test in tests_of))
    left_out = (
        (len(metrics) < len(comparison.metrics),
         f"the image shows the first {MOST_METRICS} metrics; the tables have all {len(comparison.metrics)}"),
        (len(pairs) > MOST_PAIRS,
         f"the image shows the differences from {names[0]} alone; the tables have all {len(pairs)} pairs"))
    notes = [text for is_so, text in left_out if is_so]
    if len(pairs) > MOST_PAIRS:
        pairs = [pair for pair in pairs if pair[0] == names[0]]
    with style.context("default"):
        figure = _draw(comparison, metrics, tests, pairs, dict(zip(names, labels, strict=True)))
        return notes + save_figure(figure, path, names=(names, "group"))


def _draw(comparison: Comparison, metrics: list[str], tests: list[list[Test]], pairs: list[tuple[str, str]],
          labels: dict[str, str]) -> "Figure":
    from matplotlib.figure import Figure

    heights = [len(labels), *([len(pairs)] if pairs else [])]
    base = pairs[0][0] if len({first for first, _ in pairs}) == 1 and len(pairs) > 1 else None
    height = ROW * sum(heights) + 0.75 * len(heights)
    figure = Figure(figsize=(COLUMN * len(metrics), height))
    figure.subplots_adjust(left=0, right=1, bottom=0.4 / height, top=1 - 0.3 / height, wspace=0.12,
                           hspace=0.75 * len(heights) / (ROW * sum(heights)))
    all_axes = figure.subplots(len(heights), len(metrics), squeeze=False, height_ratios=heights)
    for column, (metric, of_metric) in enumerate(zip(metrics, tests, strict=True)):
        _draw_groups(all_axes[0, column], [comparison.summary(name, metric) for name in labels])
        arrow = "  (lower is better)" if is_better_low(metric) else ""
        all_axes[0, column].set_title(titled(metric) + arrow, fontsize=9, loc="left", parse_math=False)
        rows = [list(labels.values())]
        if pairs:
            _draw_differences(all_axes[1, column], of_metric, pairs)
            all_axes[1, column].xaxis.set_visible(bool(of_metric))
            all_axes[1, column].set_title("Difference", fontsize=9, loc="left", color="0.3")
            rows.append([f"{'…' if base else labels[first]} – {labels[second]}" for first, second in pairs])
        for axes, texts in zip(all_axes[:, column], rows, strict=True):
            axes.set(yticks=range(len(texts)), yticklabels=[], ylim=(len(texts) - 0.5, -0.6))
            # no tick labels, whose text can't be replaced
            for row, text in enumerate(texts if column == 0 else []):
                axes.text(-0.03, row, text, transform=axes.get_yaxis_transform(), ha="right", va="center",
                          fontsize=8, parse_math=False)
            axes.margins(x=0.08)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelsize=7)
            axes.locator_params(axis="x", nbins=5)
            axes.grid(axis="x", color="0.92", linewidth=0.6)
            axes.spines[["top", "right", "left"]].set_visible(False)
            _keep_inside(axes)
    caption = _caption(comparison, metrics, bool(pairs)) + (f" …: {labels[base]}." if base else "")
    caption = textwrap.fill(caption, 20 + 46 * len(metrics), break_on_hyphens=False)
    figure.text(0, 0, caption, fontsize=7, color="0.3", va="top", parse_math=False)
    return figure


def _draw_groups(axes: "Axes", summaries: list[Summary]) -> None:
    for row, one in enumerate(summaries):
        if len(one.values) > 1 and not math.isnan(one.mean):
            axes.plot(one.values, [row] * len(one.values), "o", color="none", markeredgecolor=GREY,
                      markersize=4, zorder=3)
        _draw_row(axes, row, (one.mean, one.lower, one.upper), summary_text(one), BLUE, BLUE)


def _draw_differences(axes: "Axes", tests: list[Test], pairs: list[tuple[str, str]]) -> None:
    if tests:
        axes.axvline(0, color="0.4", linewidth=0.8)
    by_pair = {(test.first, test.second): test for test in tests}
    for row, pair in enumerate(pairs):
        test = by_pair.get(pair)
        if test is None:
            _draw_row(axes, row, (math.nan,) * 3, "no test")
        else:
            looks = (RED, RED) if test.p_holm < LEVEL else (BLUE, "white")
            _draw_row(axes, row, (test.difference, test.lower, test.upper), difference_text(test), *looks)


def _draw_row(axes: "Axes", row: int, estimate: tuple[float, float, float], text: str, colour: str = GREY,
              filled: str = GREY) -> None:
    """A value with its interval and its text; a word in place of a value that is not defined."""
    value, lower, upper = estimate
    if math.isnan(value):
        axes.text(0.02, row, text if text == "no test" else "undefined", transform=axes.get_yaxis_transform(),
                  fontsize=7, color=GREY, va="center")
        return
    if not math.isnan(lower):
        axes.plot([lower, upper], [row, row], color=colour, linewidth=1.4, solid_capstyle="butt")
    axes.plot([value], [row], "s", color=filled, markeredgecolor=colour, markersize=5, zorder=4)
    axes.annotate(text, (value, row), (0, 4), **NOTE)


def _keep_inside(axes: "Axes") -> None:
    """Texts over points near an end of the axis grow inwards, not into the next panel."""
    left, right = axes.get_xlim()
    for text in axes.texts:
        if hasattr(text, "xy"):
            place = (text.xy[0] - left) / (right - left)
            text.set_horizontalalignment("left" if place < 0.28 else "right" if place > 0.72 else "center")


def _caption(comparison: Comparison, metrics: list[str], tested: bool) -> str:
    several = any(len(group.runs) > 1 for group in comparison.groups)
    parts = [f"{comparison.split}, {comparison.images:,} {comparison.unit}. Bars: 95 % intervals.",
             "Squares: means over seeds; circles: single seeds." if several else "",
             "Filled (red): Holm-corrected p < 0.05." if tested else ""]
    parts += [f"Test that all {test.groups} have one {titled(test.metric)}: chi-square "
              f"{figure_text(test.chi_square)}, {test.degrees_of_freedom} df, p {p_text(test.p)} (joint "
              "DeLong)."
              for test in comparison.joint if test.metric in metrics and not math.isnan(test.p)]
    return " ".join(filter(None, parts))
