"""The report's charts as PNG files in the run's folder, for slides and papers: drawn by matplotlib.

Margins are fixed: matplotlib's own layouts measure every label several times, which takes longer than the drawing.
"""

from pathlib import Path

import numpy as np

from util.metrics.curves import Curves
from util.report.bland_altman import agreement_figures, agreement_files
from util.report.charts import confusion_matrix_figure, learning_curves_figure, save_figure
from util.report.figures import with_interval
from util.report.fonts import drawable
from util.report.run_data import Run, Split

COLOURS = ("#1f5fae", "#c05a00", "#1a7f5a", "#a8327d", "#7a5a12", "#0b7f9e", "#6446b5", "#b3261e")


def classification_pictures(run: Run, split: Split, curves: Curves, rows: list[dict], looks: dict[int, str]) -> list[str]:
    """roc_, precision_recall_, reliability_ and scores_SPLIT.png, whole or not at all; lines for the user."""
    from matplotlib import style

    labels, (title,), notes = drawable(run.names, [f"{run.title}, {split.name}, {split.images:,} images"])
    names = labels if len(labels) == 2 else [name for name, _ in curves.scores]  # of two classes the histograms are theirs
    of_what = f"Probability of {labels[1]}" if len(labels) == 2 else curves.of_what
    kept = (run.folder, split.name, title)
    with style.context("default"):
        for key, heading, points, name, x, y in (
                ("roc", "ROC curves", curves.roc, "roc_auc", "1 − specificity", "Sensitivity"),
                ("precision_recall", "Precision-recall curves", curves.precision_recall, "average_precision",
                 "Recall (sensitivity)", "Precision")):
            if points:
                notes += _classes(kept, key, heading, points, [row[name] for row in rows], labels, looks, (x, y))
        notes += _reliability(kept, curves, of_what)
        notes += _scores(kept, curves, of_what, names)
    return notes


def other_pictures(run: Run) -> list[str]:
    """What training draws too, where it is not there, or older than what it is drawn from; lines for the user."""
    notes = []
    log, picture = run.folder / "log.txt", run.folder / "learning_curves.png"
    if len(run.log) > 1 and _is_older(picture, log):
        notes += learning_curves_figure(run.log, picture, best_epoch=run.best_epoch)
    for split in run.splits.values():
        source = run.folder / f"predictions_{split.name}.csv"
        if split.table is None:
            continue
        if run.kind == "classification":
            picture = run.folder / f"confusion_matrix_{split.name}.png"
            if _is_older(picture, source):
                notes += confusion_matrix_figure(split.table, run.names, picture, f"{split.name}, {split.images:,} images")
        elif any(_is_older(run.folder / file, source) for file in agreement_files(split.name, run.names)):
            notes += agreement_figures(split.table, run.names, run.folder, split.name)
    return notes


def _is_older(picture: Path, source: Path) -> bool:
    return not picture.exists() or picture.stat().st_mtime < source.stat().st_mtime


def _figure(kept, heading: str, labels: tuple[str, str], limits=((0, 1), (0, 1))):
    from matplotlib.figure import Figure

    title = kept[2]
    figure = Figure(figsize=(5.2, 4.9))
    axes = figure.add_axes((0.125, 0.115, 0.845, 0.775))
    axes.set_title(heading, loc="left", fontsize=12, pad=22)
    axes.text(0, 1.025, title, transform=axes.transAxes, fontsize=8.5, color="0.35", parse_math=False)
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    axes.set_xlabel(labels[0], parse_math=False)
    axes.set_ylabel(labels[1], parse_math=False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(kept, key: str, figure, axes, where: str = "best") -> list[str]:
    folder, split, _ = kept
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(fontsize=8, loc=where, frameon=True, framealpha=0.85, edgecolor="0.85")
        for text in legend.get_texts():
            text.set_parse_math(False)
    return save_figure(figure, folder / f"{key}_{split}.png", crop=False)


def _classes(kept, key, heading, points, entries, labels, looks, axis_labels) -> list[str]:
    figure, axes = _figure(kept, heading, axis_labels, ((-0.01, 1.01), (-0.01, 1.01)))
    if key == "roc":
        axes.plot((0, 1), (0, 1), color="0.6", linewidth=1, linestyle="--")
    for k, (x, y) in points.items():
        colour = None if looks[k] == "faint" else COLOURS[int(looks[k][1:])]
        look = {"color": colour or "0.75", "linewidth": 1.7 if colour else 0.8, "zorder": 3 if colour else 2}
        look["label"] = f"{_in_legend(labels[k])}  {with_interval(entries[k])}" if colour else None
        if key == "roc":
            axes.plot(x, y, **look)
        else:
            axes.step(np.append(0, x), np.append(y[0], y), where="pre", **look)
    return _save(kept, key, figure, axes, "lower right" if key == "roc" else "lower left")


def _reliability(kept, curves: Curves, of_what: str) -> list[str]:
    figure, axes = _figure(kept, "Reliability diagram", (_short(of_what), "Share that came true (grey bars: images)"))
    axes.plot((0, 1), (0, 1), color="0.6", linewidth=1, linestyle="--")
    bins = len(curves.calibration[0][1][2])
    for (label, (mean, share, images)), colour in zip(curves.calibration, COLOURS, strict=False):
        known = images > 0
        axes.plot(mean[known], share[known], marker="o", markersize=4, linewidth=1.5, color=colour, label=label)
    counts = curves.calibration[0][1][2]
    # below the curve, as tall as a fifth of the axes, each with its number
    for number in np.flatnonzero(counts):
        height = 0.18 * counts[number] / counts.max()
        axes.bar((number + 0.5) / bins, height, 0.8 / bins, color="0.82", zorder=1)
        axes.text((number + 0.5) / bins, height + 0.008, f"{counts[number]:,}", ha="center", fontsize=6.5, color="0.35")
    return _save(kept, "reliability", figure, axes, "upper left")


def _scores(kept, curves: Curves, of_what: str, names: list[str]) -> list[str]:
    counts = [histogram for _, histogram in curves.scores]
    figure, axes = _figure(kept, "Score distribution", (_short(of_what), "Images"),
                           ((0, 1), (0, 1.06 * max(1, int((counts[0] + counts[1]).max())))))
    bins = len(counts[0])
    middles = (np.arange(bins) + 0.5) / bins
    base = np.zeros(bins)
    for place in (1, 0):
        axes.bar(middles, counts[place], 0.92 / bins, bottom=base, color=COLOURS[place], alpha=0.75,
                 label=f"{_in_legend(names[place])} ({int(counts[place].sum()):,})")
        base = base + counts[place]
    return _save(kept, "scores", figure, axes)


def _in_legend(name: str) -> str:
    """A name that begins with _ would not stand in the legend."""
    return f"\u200b{name}" if name.startswith("_") else name


def _short(text: str) -> str:
    return text if len(text) < 60 else text[:58] + "…"
