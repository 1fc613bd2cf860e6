"""The charts of a classification's split: confusion matrix, curves, calibration, scores."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from util.metrics.bootstrap import wilson_interval
from util.metrics.curves import Curves
from util.report import charts
from util.report.charts import GRID, HEIGHT, INK, MUTED, SERIES, SHARES, WIDTH, Chart, Panel, axes_in, em, own_style, wrapped
from util.report.metric_tables import with_interval
from util.report.fonts import MAX_NAME, shown_names

MAX_CLASSES_WITH_SHARES = 12  # beyond, a cell is too small for two lines that can be read
MAX_CLASSES_WITH_COUNTS = 60  # beyond, it is too small for one
MAX_WRAPPED = 70  # characters of a name that has several lines
MOST_ROWS = 40  # classes in one chart of their probabilities, which then still fits a printed page
# A cell's text turns white on the light page, or black on the dark one, where its colour asks for it (contrast above 4.5).
DARK_FROM, BRIGHT_FROM, CELL_ALPHA = 0.92, 0.68, 0.92
MAX_HALF = 5.7  # inches of a confusion matrix in half of the page's width
BOX = (0, 0, WIDTH, HEIGHT)
SLANT = math.radians(40)
FRAME = (0.62, 0.48, WIDTH - 0.14, HEIGHT - 0.1)


@dataclass
class Scored:
    """What the charts of a split show. counts: (K, K), true by predicted; rows: of each class its metrics; entries: of the whole split."""

    split: str
    heading: str
    names: list[str]
    curves: Curves
    counts: np.ndarray
    rows: list[dict[str, dict]]
    entries: dict[str, dict]

    @property
    def of_what(self) -> str:
        """Whose probability, for an axis."""
        event = f"Probability of {shown_names(self.names)[1]}" if len(self.names) == 2 else self.curves.of_what
        return event if len(event) < 60 else "Predicted probability"


# ---- curves ---------------------------------------------------------------------------------------------------------

def looks_of(classes: list[int], rows: list[dict[str, dict]]) -> dict[int, str]:
    """A colour for each class; where there are more than colours, for those of the lowest ROC AUC, and grey for the rest."""
    if len(classes) <= len(SERIES):
        return {k: f"s{place}" for place, k in enumerate(classes)}
    auc = {k: math.inf if rows[k]["roc_auc"]["value"] is None else rows[k]["roc_auc"]["value"] for k in classes}
    lowest = sorted(sorted(classes, key=auc.get)[:len(SERIES)])
    return {k: f"s{lowest.index(k)}" if k in lowest else "faint" for k in classes}


@own_style()
def roc(scored: Scored) -> Chart | None:
    """ROC curves; None where no class has one."""
    return _curves(scored, "roc_auc", scored.curves.roc) if scored.curves.roc else None


@own_style()
def precision_recall(scored: Scored) -> Chart | None:
    """Precision-recall curves; None where no class has one."""
    found = scored.curves.precision_recall
    return _curves(scored, "average_precision", found) if found else None


def _curves(scored: Scored, metric: str, points: dict[int, tuple[np.ndarray, np.ndarray]]) -> Chart:
    is_roc = metric == "roc_auc"
    title, label, x, y = ("ROC curves", "ROC AUC", "1 − specificity", "Sensitivity") if is_roc else (
        "Precision-recall curves", "Average precision", "Recall (sensitivity)", "Precision")
    figure = charts.empty_figure(WIDTH, HEIGHT)
    axes = axes_in(figure, FRAME, (0, 1), (0, 1), (x, y))
    axes.set(xticks=SHARES, yticks=SHARES)
    if is_roc:
        charts.equality(axes)
    looks, texts = looks_of(list(points), scored.rows), {k: with_interval(scored.rows[k][metric]) for k in points}
    for k, (across, up) in points.items():
        how = charts.line_style(looks[k]) | {"gid": charts.hint(f"{scored.names[k]} {texts[k]}"), "clip_on": False}
        if is_roc:
            axes.plot(across, up, **how)
        else:
            axes.step(np.append(0, across), np.append(up[0], up), where="pre", **how)
    small = f"{label} and its 95 % interval" if any(scored.rows[k][metric].get("lower") is not None for k in points) else label
    legend = [(looks[k], scored.names[k], texts[k]) for k in points if looks[k] != "faint"]
    grey = len(points) - len(legend)
    if grey:
        legend.append(("faint", f"{grey} other classes: their metrics stand in the table of classes", ""))
        small += f"; in colour, the {len(SERIES)} classes of lowest ROC AUC"
    if scored.curves.left_out:
        small += f"; {scored.curves.left_out} classes of fewer images are not drawn"
    said = "; ".join(f"{scored.names[k]}: {texts[k]}" for k in list(points)[:len(SERIES)])
    key = "roc" if is_roc else "precision_recall"
    panel = Panel(f"{key}-{scored.split}", title, f"{label} of each class against the rest, {scored.split}. {said}.", BOX, [axes],
                  small, legend)
    return Chart(figure, [panel], scored.heading, scored.names)


# ---- probabilities --------------------------------------------------------------------------------------------------

@own_style()
def reliability(scored: Scored) -> Chart:
    """The reliability diagram, and below it how many images stand behind each point."""
    calibration, lower = scored.curves.calibration, 1.3  # inches
    counts = calibration[0][1][2]
    bins, total, most = len(counts), int(counts.sum()), int(counts.max(initial=1))
    figure = charts.empty_figure(WIDTH, HEIGHT + lower)
    left, bottom, right, top = FRAME
    axes = axes_in(figure, (left, bottom + lower, right, top + lower), (0, 1), (0, 1), ("", "Share that came true"))
    axes.set(xticks=SHARES, yticks=SHARES, xticklabels=[])
    charts.equality(axes)
    for place, (label, (mean, share, images)) in enumerate(calibration):
        known = images > 0
        if place == 0:
            ends = [wilson_interval(round(s * n), int(n)) for s, n in zip(share[known], images[known], strict=True)]
            axes.vlines(mean[known], *np.array(ends).reshape(-1, 2).T, color=SERIES[0], alpha=0.55, linewidth=1)
        axes.plot(mean[known], share[known], **charts.line_style(f"s{place}"), marker="o", markersize=4.5, clip_on=False,
                  gid=charts.hint(label))
    below = axes_in(figure, (left, bottom, right, bottom + 1.0), (0, 1), (0, most * 1.28), (scored.of_what, "Images"))
    below.set(xticks=SHARES, yticks=[0, most], yticklabels=["0", f"{most:,}"])
    below.grid(False)
    filled = np.flatnonzero(counts)
    charts.bars(below, ((filled + 0.5) / bins, np.stack([0 * filled, counts[filled]])), 0.84 / bins, "s0",
                [f"{number / bins:.2f} to {(number + 1) / bins:.2f}: {counts[number]:,} images" for number in filled])
    for number in filled:
        text = f"{counts[number]}" if counts[number] < 10000 else f"{counts[number] / 1000:.0f}k"
        below.text((number + 0.5) / bins, counts[number] + 0.04 * most, text, ha="center", color=INK, fontsize=8)
    errors = {"ece": "expected calibration error", "ece_calibrated": "after temperature"}
    texts = {name: with_interval(scored.entries[name]) for name in errors if name in scored.entries}
    legend = [(f"s{place}", label, texts.get(name, "") if len(scored.names) > 2 else "")
              for place, ((label, _), name) in enumerate(zip(calibration, errors, strict=False))]
    small = f"{scored.curves.of_what}; {total:,} images in {bins} bins. Upright lines: Wilson 95 % intervals"
    small += "; numbers: expected calibration error" if legend[0][2] else ""
    said = "; ".join(f"{errors[name]} {text}" for name, text in texts.items())
    panel = Panel(f"reliability-{scored.split}", "Reliability diagram",
                  f"Share of the images of {scored.split} that are what was predicted, against the predicted probability, in "
                  f"{bins} bins. {said}. Images in each bin, from the lowest probability to the highest: "
                  f"{', '.join(map(str, counts.tolist()))}.", (0, 0, WIDTH, HEIGHT + lower), [axes, below], small,
                  [*legend, ("plain", "perfect calibration", "")])
    return Chart(figure, [panel], scored.heading, scored.names)


@own_style()
def scores(scored: Scored) -> Chart:
    """Of two classes the event's probability by true class, else the highest probability of right and wrong answers."""
    (first, second), is_event = scored.curves.scores, len(scored.names) == 2
    heights = [counts / max(1, counts.sum()) if is_event else counts.astype(float) for _, counts in (first, second)]
    bases = [np.zeros(len(heights[0])) if is_event else heights[1], np.zeros(len(heights[0]))]
    top = max(float(np.max(heights[place] + bases[place])) for place in (0, 1)) or 1
    figure = charts.empty_figure(WIDTH, HEIGHT)
    axes = axes_in(figure, FRAME, (0, 1), (0, top * 1.05),
                   (scored.of_what, "Share of the true class" if is_event else "Images"))
    axes.set_xticks(SHARES)
    bins, legend = len(heights[0]), []
    for place, (name, counts) in enumerate((first, second)):
        filled = np.flatnonzero(counts)
        ends = np.stack([bases[place], bases[place] + heights[place]])[:, filled]
        charts.bars(axes, ((filled + 0.5) / bins, ends), 1 / bins, f"s{place}",
                    [f"{name}, {number / bins:.2f} to {(number + 1) / bins:.2f}: {counts[number]:,} images" for number in filled])
        legend.append((f"box s{place}", name if is_event else f"predicted {name}", f"{counts.sum():,}"))
    panel = Panel(f"scores-{scored.split}", "Score distribution", f"Images of {scored.split}. " + "; ".join(
        f"{name}: {counts.sum():,} images" for name, counts in (first, second)), BOX, [axes],
        f"{scored.curves.of_what}, {bins} bins" + ("; numbers: images" if is_event else ""), legend)
    return Chart(figure, [panel], scored.heading, scored.names)


@own_style()
def spread_of_classes(scored: Scored) -> Chart | None:
    """Of each class the probability that it is given: its own images against all others; None where it says too little."""
    own, others, names = scored.curves.own, scored.curves.others, scored.names
    rows = [k for k in range(len(own)) if own[k] is not None]
    if not rows or len(names) == 2 or len(names) > MOST_ROWS:
        return None
    pitch = 0.46 if len(rows) <= MAX_CLASSES_WITH_SHARES else 0.22  # inches
    labels = shown_names(names, most=MAX_WRAPPED if pitch > 0.3 else MAX_NAME)
    texts = [wrapped(labels[k], 15 if pitch > 0.3 else math.inf) for k in rows]
    left = 0.15 + 11 / 72 * max(em(line) for lines in texts for line in lines)  # on a phone, texts are larger
    height = 0.6 + pitch * len(rows)
    width = max(WIDTH, left + 2.5)
    figure = charts.empty_figure(width, height)
    axes = axes_in(figure, (left, 0.5, width - 0.14, height - 0.06), (0, 1), (len(rows), 0),
                   ("Probability given to the class", ""))
    axes.set_xticks(SHARES)
    axes.set_yticks([])
    for place, lines in enumerate(texts):
        axes.text(-0.07 / (width - 0.14 - left), place + 0.5, "\n".join(lines), color=MUTED, fontsize=9, ha="right", va="center",
                  linespacing=1.2, parse_math=False)
    for quantiles, offset, height_of_box, look in ((own, 0.31, 0.34, "s0"), (others, 0.68, 0.28, "faint")):
        found = [(place + offset, k) for place, k in enumerate(rows) if quantiles[k] is not None]
        if not found:
            continue
        middles, ends = np.array([middle for middle, _ in found]), np.array([quantiles[k] for _, k in found]).T
        axes.hlines(middles, ends[0], ends[4], color=SERIES[0] if look == "s0" else MUTED, linewidth=1.2)
        boxes = axes.barh(middles, ends[3] - ends[1], height_of_box, ends[1], **charts.box_style(look))
        for box, (_, k), begin, end in zip(boxes, found, ends[1], ends[3], strict=True):
            box.set_gid(charts.hint(f"{names[k]}: half of the images between {begin:.2f} and {end:.2f}"))
        reach = height_of_box / 2 + 0.04
        axes.vlines(ends[2], middles - reach, middles + reach, color=INK, linewidth=1.2)
    said = "; ".join(f"{names[k]}: median {own[k][2]:.2f} of its own images"
                     + (f", {others[k][2]:.2f} of the others" if others[k] is not None else "") for k in rows[:12])
    panel = Panel(f"spread-{scored.split}", "Probability of each class", f"{scored.split}. {said}.", (0, 0, width, height),
                  [axes], "Lines: 5 to 95 % of the images; boxes: the middle half; upright: the median",
                  [("box s0", "images of the class", ""), ("box faint", "all other images", "")])
    return Chart(figure, [panel], scored.heading, scored.names)


# ---- confusion matrix -----------------------------------------------------------------------------------------------

@own_style()
def confusion_matrix(split: str, table_or_counts: pd.DataFrame | np.ndarray, names: list[str], heading: str = "") -> Chart:
    """The confusion matrix: rows are true classes, columns predicted ones.

    table_or_counts: a predictions table (columns true_class and predicted_class), or counts (K, K). Colour is the share of
    the row; each cell holds the count and that share, or the count alone where there are many classes. Raises ValueError
    where the counts are not those of these K classes.
    """
    counts = _counts(table_or_counts, names)
    num_classes = len(names)
    is_dense, is_bare = num_classes > MAX_CLASSES_WITH_SHARES, num_classes > MAX_CLASSES_WITH_COUNTS
    labels = shown_names(names, most=MAX_NAME if is_dense else MAX_WRAPPED)
    size = 8 if is_dense else 9.5
    digits = len(str(int(counts.max(initial=0))))
    cell = (max(12 / num_classes, 0.02) if is_bare else max(0.2, (0.62 * digits * size + 5) / 72) if is_dense
            else min(1.1, max(0.58, 3.0 / num_classes)))  # inches
    rows = [wrapped(f"{name} ({images:,})", math.inf if is_dense else 13)
            for name, images in zip(labels, counts.sum(axis=1).tolist(), strict=True)]
    columns, turn = _column_labels(labels, shown_names(names), cell * 72 / size)
    longest = size / 72 * max(em(line) for lines in columns for line in lines)
    deepest = max(map(len, columns)) * 1.15 * size / 72
    head = {0: deepest, 40: longest * math.sin(SLANT) + deepest * math.cos(SLANT), 90: longest}[turn] + 0.12
    beyond = max(0.0, longest * math.cos(SLANT) - 0.4 * cell) if turn == 40 else 0.0
    bar = 0.75 if is_dense else 0.0
    left, side = 0.5 + size / 72 * max(em(line) for lines in rows for line in lines), cell * num_classes
    width, height = left + side + max(beyond, bar, 0.1), head + side + 0.45
    figure = charts.empty_figure(width, height)
    axes = axes_in(figure, (left, 0.1, left + side, 0.1 + side), (0, num_classes), (num_classes, 0))
    axes.set(xticks=[], yticks=[])  # a tick costs more time than a text
    for spine in axes.spines.values():
        spine.set(visible=True, zorder=4)
    _draw_cells(axes, counts, size)
    how = {"color": INK, "fontsize": size, "parse_math": False, "linespacing": 1.1}
    above, gap = {"rotation": turn, "rotation_mode": "anchor" if turn == 40 else "default", "va": "bottom"}, 0.06 / cell
    for k in range(0, num_classes, max(1, math.ceil(size / 72 / cell))):  # of hundreds of classes only some are named
        axes.text(k + (0.4 if turn == 40 else 0.5), -gap, "\n".join(columns[k]), ha="left" if turn == 40 else "center", **above,
                  **how)
        axes.text(-gap, k + 0.5, "\n".join(rows[k]), ha="right", va="center", **how)
    figure.text(left / width, 1 - 0.2 / height, "Predicted class", color=MUTED, fontsize=size)
    figure.text(0.08 / width, (0.1 + side) / height, "True class (images)", color=MUTED, fontsize=size, rotation=90, va="top")
    if bar:
        _draw_bar(figure, (left + side + 0.15, 0.1 + side), min(side, 2.5), size)
    panel = Panel(f"confusion-{split}", "Confusion matrix", _said(split, counts, names), (0, 0, width, height), list(figure.axes),
                  _caption(counts), is_wide=width > MAX_HALF)
    return Chart(figure, [panel], heading, names)


def _column_labels(labels: list[str], short: list[str], width: float) -> tuple[list[list[str]], int]:
    """Labels for columns `width` em wide, in lines: lying where no word is too wide, else turned, by how many degrees."""
    lying = [wrapped(label, width - 0.4) for label in labels]
    if max(em(line) for lines in lying for line in lines) <= width and max(map(len, lying)) <= 4:
        return lying, 0
    if len(labels) > MAX_CLASSES_WITH_SHARES:
        return [[label] for label in short], 90
    turned = [[wrapped(label, most) for most in (16, 20, 25, math.inf)] for label in short]
    return [next(lines for lines in forms if len(lines) <= 2) for forms in turned], 40  # between two columns are two lines


def _draw_cells(axes, counts: np.ndarray, size: float) -> None:
    """Colours, one shape for each shade, lines between cells, and texts."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    num_classes = len(counts)
    shares, texts = row_shares(counts), cell_texts(counts)
    shades = np.where(np.isnan(shares), -1, np.round(shares, 2 if num_classes <= MAX_CLASSES_WITH_COUNTS else 1))
    for shade in np.unique(shades[shades != 0]):
        squares = [Path.unit_rectangle().transformed(_to(column, row)) for row, column in np.argwhere(shades == shade)]
        look = {"facecolor": GRID} if shade < 0 else {"facecolor": SERIES[0], "alpha": CELL_ALPHA * shade}
        axes.add_artist(PathPatch(Path.make_compound_path(*squares), linewidth=0, **look))
    if num_classes <= MAX_CLASSES_WITH_COUNTS:
        inner = np.arange(1, num_classes)
        axes.hlines(inner, 0, num_classes, color=MUTED, alpha=0.25, linewidth=0.6)
        axes.vlines(inner, 0, num_classes, color=MUTED, alpha=0.25, linewidth=0.6)
    for (row, column), share in np.ndenumerate(shares):
        if texts[row][column]:
            ink = charts.STRONG_INK if share >= DARK_FROM else charts.MIDDLE_INK if share >= BRIGHT_FROM else charts.CELL_INK
            axes.text(column + 0.5, row + 0.5, texts[row][column], ha="center", va="center", color=ink, fontsize=size,
                      linespacing=1.25)


def _to(x: float, y: float):
    from matplotlib.transforms import Affine2D

    return Affine2D().translate(x, y)


def _draw_bar(figure, corner: tuple[float, float], height: float, size: float) -> None:
    """Which share a shade means, below a corner (inches): for cells that do not say it."""
    bar = axes_in(figure, (corner[0], corner[1] - height, corner[0] + 0.14, corner[1]), (0, 1), (0, 1))
    parts = np.arange(20) / 20
    shades = [(SERIES[0], CELL_ALPHA * (part + 0.025)) for part in parts]
    bar.bar(0.5, 0.05, 1, parts, color=shades, linewidth=0)
    bar.yaxis.tick_right()
    bar.set(xticks=[], yticks=(0, 0.5, 1))
    bar.set_yticklabels(["0 %", "50 %", "100 %"], color=MUTED, fontsize=size)


def _said(split: str, counts: np.ndarray, names: list[str]) -> str:
    """The matrix in words, as far as it is small."""
    if len(names) > MAX_CLASSES_WITH_SHARES:
        return f"{split}, {len(names)} classes. {_caption(counts)}"
    return f"{split}. " + " ".join(
        f"Of {int(row.sum()):,} images of {name}: " + ", ".join(f"{n:,} predicted {other}" for n, other in zip(row, names, strict=True) if n)
        + "." for name, row in zip(names, counts, strict=True) if row.any())


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


def commonest_confusions(counts: np.ndarray, most: int = 10) -> list[tuple[int, int]]:
    """The pairs (true, predicted) of different classes that most images have, the commonest first."""
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most].tolist()
    return [divmod(cell, len(counts)) for cell in order if wrong.flat[cell] > 0]


def _counts(table_or_counts: pd.DataFrame | np.ndarray, class_names: list[str]) -> np.ndarray:
    num_classes = len(class_names)
    if isinstance(table_or_counts, pd.DataFrame):
        names = pd.Index(list(class_names), dtype=object)
        true, predicted = (names.get_indexer(table_or_counts[column].astype(object))
                           for column in ("true_class", "predicted_class"))
        if min(true.min(initial=0), predicted.min(initial=0)) < 0:
            raise ValueError(f"the table holds other classes than {', '.join(map(repr, class_names))}")
        counts = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
        return counts.reshape(num_classes, num_classes)
    counts = np.asarray(table_or_counts)
    if counts.shape != (num_classes, num_classes) or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"whole counts ({num_classes}, {num_classes}) are needed; got {counts.dtype} {counts.shape}")
    return counts


def _caption(counts: np.ndarray) -> str:
    right, images = int(np.trace(counts)), int(counts.sum())
    if len(counts) <= MAX_CLASSES_WITH_SHARES:
        cells = "Each cell: images, and their share of the true class (row)."
    elif len(counts) <= MAX_CLASSES_WITH_COUNTS:
        cells = "Number: images (blank: none). Colour: share of the true class (row)."
    else:
        cells = "Colour: share of the true class (row)."
    empty = int((counts.sum(axis=1) == 0).sum())
    grey = f" Grey: no images of {'this class' if empty == 1 else f'these {empty} classes'}." if empty else ""
    share = f" ({100 * right / images:.1f} %)" if images else ""
    return f"{cells}{grey} {right:,} of {images:,} images on the diagonal{share}"


def _percent(share: float) -> str:
    """Whole per cent, but neither 0 nor 100 for what is only near it."""
    if np.isnan(share):
        return "–"
    if 0 < share < 0.005:
        return "<1 %"
    return ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"
