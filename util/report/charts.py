"""Pictures of a run: the confusion matrix and the learning curves, as PNG files that also print in grey.

matplotlib takes most of a second to import, so it is imported where a picture is drawn. Figures are made as objects,
without pyplot (no window, no display), and in matplotlib's own default style whatever the user's settings are.
"""

import math
import os
import textwrap
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd

from util.metrics.table import BY_NAME
from util.report.fonts import drawable, fit_fonts

DPI = 150
MAX_CLASSES_WITH_SHARES = 12  # beyond, a cell is too small for two lines that can be read
MAX_CLASSES_WITH_COUNTS = 60  # beyond, it is too small for one

LEARNING_RATE = "lr"


def titled(name: str) -> str:
    """What a panel of a metric is called, or one of the learning rate."""
    row = BY_NAME.get(name)
    return "Learning rate" if name == LEARNING_RATE else row.title if row else name



# ---- confusion matrix -----------------------------------------------------------------------------------------------

def confusion_matrix_figure(table_or_confusion: pd.DataFrame | np.ndarray, class_names: list[str],
                            path: str | os.PathLike, title: str = "") -> list[str]:
    """Draw the confusion matrix into a PNG, whole or not at all.

    table_or_confusion: a predictions table (columns true_class and predicted_class), or counts (K, K) with rows true.
    Colour is the share of the row; each cell holds the count and that share, or the count alone where there are many
    classes (the caption says which). Returns lines for the user: names that no installed font can draw.
    Raises ValueError where the counts are not those of these K classes.
    """
    from matplotlib import style

    confusion = _counts(table_or_confusion, class_names)
    labels, (title,), notes = drawable(class_names, [title])
    with style.context("default"):
        return notes + save_figure(_draw_confusion(confusion, labels, title), path)


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Each count as a share of its row, that is of the images of that true class: (K, K); NaN in an empty row."""
    confusion = np.asarray(confusion, dtype=np.float64)
    images = confusion.sum(axis=1, keepdims=True)
    return np.divide(confusion, images, out=np.full(confusion.shape, np.nan), where=images > 0)


def cell_texts(confusion: np.ndarray) -> list[list[str]]:
    """What stands in the cells of a (K, K) confusion matrix: count and row share; with many classes counts above 0."""
    confusion = np.asarray(confusion)
    if len(confusion) > MAX_CLASSES_WITH_COUNTS:
        return [["" for _ in row] for row in confusion]
    if len(confusion) > MAX_CLASSES_WITH_SHARES:
        return [[str(count) if count else "" for count in row] for row in confusion]
    return [[f"{count}\n{_percent(share)}" for count, share in zip(counts, shares, strict=True)]
            for counts, shares in zip(confusion, row_shares(confusion), strict=True)]


def _draw_confusion(confusion, labels, title):
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    num_classes, shares = len(labels), row_shares(confusion)
    cell = 1.25 if num_classes <= 2 else max(min(0.9, 0.36 + 2.2 / num_classes, 20 / num_classes), 0.02)  # inches
    side = cell * num_classes
    font_size = 10 if cell > 0.6 else 8 if cell > 0.5 else 7
    style = {"fontsize": font_size, "parse_math": False}  # a "$" in a name is a "$"

    # The axes are exactly as large as their cells; whatever stands around them is found by the tight bounding box.
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    colours = colormaps["Blues"].with_extremes(bad="0.92")
    middles = np.arange(num_classes)
    # not imshow, which resamples the few cells to millions of pixels, and twice: seconds with 39 classes
    image = axes.pcolormesh(middles, middles, np.ma.masked_invalid(shares), cmap=colours, vmin=0, vmax=1,
                            shading="nearest", edgecolors="0.88",
                            linewidth=0.5 if num_classes <= MAX_CLASSES_WITH_COUNTS else 0)
    axes.invert_yaxis()
    for row, texts in enumerate(cell_texts(confusion)):
        for column, text in enumerate(texts):
            if text:
                ink = _ink_on(colours(np.ma.masked_invalid(shares)[row, column]))
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=font_size, linespacing=1.3,
                          in_layout=False)  # it lies inside the axes: the tight bounding box need not measure it

    step = max(1, math.ceil(font_size / 72 / cell))  # with hundreds of classes only every step-th is named
    shown = range(0, num_classes, step)
    column_labels, turn = _turned(labels, cell * 72 / font_size)
    axes.set_xticks(shown, [column_labels[k] for k in shown], **style, **turn)
    axes.set_yticks(shown, [f"{labels[k]}  ({confusion[k].sum()})" for k in shown], **style)
    axes.set_xlabel("Predicted class", fontsize=font_size + 1, labelpad=8)
    axes.set_ylabel("True class (images)", fontsize=font_size + 1, labelpad=8)
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.6")

    ticks = [0, 0.25, 0.5, 0.75, 1]
    bar = figure.colorbar(image, cax=figure.add_axes((1 + 0.15 / side, 0, 0.14 / side, 1)), ticks=ticks)
    bar.ax.set_yticklabels([_percent(tick) for tick in ticks], fontsize=font_size)
    bar.set_label("Share of the true class", fontsize=font_size)
    bar.outline.set_edgecolor("0.6")

    width = max(side, 3.5) * 72  # points
    heading = "\n".join(textwrap.wrap(title, int(width / (0.6 * (font_size + 3)))))
    axes.set_title(heading, loc="left", pad=10, parse_math=False, fontsize=font_size + 3)
    caption = "\n".join(textwrap.wrap(_caption(confusion), int(width / (0.5 * font_size))))
    axes.annotate(caption, (0, 0), (0, -8), xycoords=("axes fraction", axes.xaxis.label), textcoords="offset points",
                  va="top", ha="left", color="0.3", fontsize=font_size, linespacing=1.3)
    return figure


def _turned(labels, width):
    """Labels for columns `width` em wide: lying, broken between words, if they fit so; else turned. And how to turn."""
    broken = ["\n".join(textwrap.wrap(label, max(1, int(width / 0.6)), break_long_words=False)) for label in labels]
    lines = [line for label in broken for line in label.split("\n")]
    if max(map(_width_in_em, lines)) < width and len(lines) <= 3 * len(labels):
        return broken, {"linespacing": 1.1}
    if len(labels) <= MAX_CLASSES_WITH_SHARES:
        return labels, {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    return labels, {"rotation": 90}


def _width_in_em(text):
    """About how wide a text is, in units of its font size: a Chinese character fills the square."""
    return sum(1.0 if unicodedata.east_asian_width(mark) in "WF" else 0.6 for mark in text)


def _counts(table_or_confusion, class_names):
    num_classes = len(class_names)
    if isinstance(table_or_confusion, pd.DataFrame):
        names = pd.Index(list(class_names), dtype=object)
        true, predicted = (names.get_indexer(table_or_confusion[column].astype(object))
                           for column in ("true_class", "predicted_class"))
        if min(true.min(initial=0), predicted.min(initial=0)) < 0:
            raise ValueError(f"the table holds other classes than {', '.join(map(repr, class_names))}")
        counts = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
        return counts.reshape(num_classes, num_classes)
    confusion = np.asarray(table_or_confusion)
    if confusion.shape != (num_classes, num_classes) or not np.issubdtype(confusion.dtype, np.integer):
        raise ValueError(f"whole counts ({num_classes}, {num_classes}) are needed; got {confusion.dtype} "
                         f"{confusion.shape}")
    return confusion


def _caption(confusion):
    right, images = int(np.trace(confusion)), int(confusion.sum())
    if len(confusion) <= MAX_CLASSES_WITH_SHARES:
        cells = "Each cell: images, and their share of the true class (row)."
    elif len(confusion) <= MAX_CLASSES_WITH_COUNTS:
        cells = "Number: images (blank: none). Colour: share of the true class (row)."
    else:
        cells = "Colour: share of the true class (row)."
    empty = int((confusion.sum(axis=1) == 0).sum())
    grey = f" Grey: no images of {'this class' if empty == 1 else f'these {empty} classes'}." if empty else ""
    return f"{cells}{grey} {right} of {images} images on the diagonal" + (
        f" ({100 * right / images:.1f} %)." if images else ".")


def _percent(share):
    """Whole per cent, but neither 0 nor 100 for what is only near it."""
    if np.isnan(share):
        return "–"
    if 0 < share < 0.005:
        return "<1 %"
    return ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _ink_on(colour):
    """White on an RGBA colour where that has a contrast of 4 or more (WCAG 2), else black, which then has above 5.

    On middle blues black has a little more contrast by that formula, but is the harder one to read.
    """
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) >= 4 else "black"


# ---- learning curves ------------------------------------------------------------------------------------------------

def learning_curves_figure(log_rows: list[dict], path: str | os.PathLike, title: str = "",
                           best_epoch: int | None = None) -> list[str]:
    """Draw everything that changed over the epochs into one PNG, a small panel a figure; whole or not at all.

    log_rows: one dict an epoch, with "epoch" and numbers named as in the log: train_loss, val_loss, val_<metric> or
    <metric>, lr. train_ and val_ of one name share a panel; a name that is no metric's gets a panel when it
    begins with val_. best_epoch is marked, and its values stand over the panels (else those of the last epoch).
    Returns lines for the user; without a single epoch no picture is drawn.
    """
    from matplotlib import style

    rows = sorted((row for row in log_rows if row.get("epoch") is not None), key=lambda row: row["epoch"])
    panels = curve_panels(rows)
    if not panels:
        return ["no epoch is logged, so there are no learning curves to draw"]
    _, (title,), notes = drawable([], [title])
    with style.context("default"):
        return notes + save_figure(_draw_curves([row["epoch"] for row in rows], panels, title, best_epoch), path, crop=False)


def curve_panels(rows):
    """{figure: {"train" or "val": values, NaN where an epoch lacks one}} in the metrics' own order, then by name."""
    panels = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        source, name = ("train", key[6:]) if key.startswith("train_") else ("val", key.removeprefix("val_"))
        values = [row.get(key) for row in rows]
        numbers = [float(value) if isinstance(value, (int, float)) else math.nan for value in values]
        is_drawn = (name == LEARNING_RATE or name in BY_NAME or key.startswith("val_")) and name != "n"
        if is_drawn and any(map(math.isfinite, numbers)):
            panels.setdefault(name, {})[source] = np.where(np.isfinite(numbers), numbers, np.nan)

    def place(name: str) -> tuple[float, str]:
        row = BY_NAME.get(name)
        return (math.inf if row is None or row.curve is None else row.curve, name)

    return dict(sorted(panels.items(), key=lambda item: place(item[0])))


def _draw_curves(epochs, panels, title, best_epoch):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    width, height, top = 2.75 * columns + 0.2, 2.1 * lines + 0.3 + (0.4 if title else 0), 0.35 + (0.4 if title else 0)
    figure = Figure(figsize=(width, height))
    # margins in inches: matplotlib's own layouts measure every label several times and take seconds
    figure.subplots_adjust(left=0.5 / width, right=1 - 0.1 / width, top=1 - top / height, bottom=0.55 / height,
                           wspace=0.28, hspace=0.42)
    all_axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    marked = epochs.index(best_epoch) if best_epoch in epochs else len(epochs) - 1
    marker = "o" if len(epochs) <= 30 else ""
    for axes, (name, curves) in zip(all_axes, panels.items(), strict=False):
        for source, values in curves.items():
            look = {"color": "0.35", "linestyle": "--"} if source == "train" else {"color": "#08519c"}
            axes.plot(epochs, values, marker=marker, markersize=2.5, linewidth=1.2, **look,
                      label={"train": "training", "val": "validation"}[source])
        if best_epoch in epochs:
            axes.axvline(best_epoch, color="0.6", linewidth=0.8, linestyle=":")
        value = curves.get("val", curves.get("train"))[marked]
        heading = f"{titled(name)}   {_figure_text(value)}"
        axes.set_title(heading, fontsize=9, loc="left", parse_math=False)
        if len(curves) > 1:
            axes.legend(fontsize=7, frameon=False)
        axes.grid(color="0.9", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7, labelbottom=True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        if len(epochs) == 1:
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    for axes in all_axes[len(panels):]:
        axes.set_visible(False)
    which = "the best epoch (dotted)" if best_epoch in epochs else "the last epoch"
    figure.supxlabel(f"Epoch. The numbers are those of {which}, {epochs[marked]}.", fontsize=8, color="0.3")
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, y=1 - 0.1 / height, ha="left", va="top", parse_math=False)
    return figure


def _figure_text(value):
    if np.isnan(value):
        return "–"
    return f"{value:.4f}" if 0.01 <= abs(value) < 100 or value == 0 else f"{value:.3g}"


# ---- files -----------------------------------------------------------------------------------------------------------

def save_figure(figure, path, crop=True) -> list[str]:
    """Write to a temporary name, then rename, so that nobody ever reads half a picture. crop: to what is drawn.

    Every chart passes here, and gets the fonts that its text needs; a line where there are none, once a run.
    """
    path = Path(path)
    notes = fit_fonts(figure)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", pil_kwargs={"compress_level": 3},
                       **({"bbox_inches": "tight", "pad_inches": 0.12} if crop else {}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return notes
