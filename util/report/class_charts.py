"""The charts of a classification's split: curves, calibration, scores, confusion matrix."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from util.metrics.bootstrap import wilson_interval
from util.metrics.curves import Curves
from util.metrics.predictions import CLASS_COLUMNS, class_numbers
from util.metrics.table import BY_NAME
from util.metrics.weighted import confusion_matrix as count_confusions
from util.report import charts
from util.report.charts import HEIGHT, INK, MUTED, SERIES, SHARES, WIDTH, Chart, Panel, axes_in, own_style
from util.report.fonts import MAX_NAME, shown_names
from util.report.metric_tables import with_interval

MAX_CLASSES_WITH_SHARES = 12  # beyond, a cell is too small for two lines that can be read
MAX_CLASSES_WITH_COUNTS = 60  # beyond, it is too small for one
MAX_WRAPPED = 70  # characters of a name that has several lines
MOST_ROWS = 40  # classes in one chart of their probabilities, which then still fits a printed page
# A cell's text turns white on the light page, or black on the dark one, where its colour asks for it
# (contrast 4.5).
DARK_FROM, BRIGHT_FROM, CELL_ALPHA = 0.92, 0.68, 0.92
SLANT = math.radians(40)
BOX, FRAME = (0, 0, WIDTH, HEIGHT), (0.62, 0.48, WIDTH - 0.14, HEIGHT - 0.1)
MAX_HALF = 5.7  # inches of a confusion matrix in half of the page's width


@dataclass
class Scored:
    """What the charts of a split show. counts: (K, K), true by predicted; rows: of each class its metrics;
    entries: of the whole split; what: class, or label of several an image, whose curves then are those of
    all labels together."""

    split: str
    heading: str
    names: list[str]
    curves: Curves
    counts: np.ndarray
    rows: list[dict[str, dict]]
    entries: dict[str, dict]
    unit: str = "images"
    what: str = "class"

    @property
    def is_event(self) -> bool:
        """Whether probabilities are those of something that is there or not, and not those of an answer."""
        return len(self.names) == 2 or self.what != "class"

    @property
    def plural(self) -> str:
        return "classes" if self.what == "class" else f"{self.what}s"

    @property
    def counted(self) -> str:
        """What is counted where those of all labels stand together."""
        return self.unit if self.what == "class" else "answers"

    @property
    def of_what(self) -> str:
        """Whose probability, for an axis."""
        is_pair = len(self.names) == 2 and self.what == "class"
        text = f"Probability of {shown_names(self.names)[1]}" if is_pair else self.curves.of_what
        return text if len(text) < 60 else "Predicted probability"


# ---- curves ------------------------------------------------------------------------------------------------

def looks_of(classes: list[int], rows: list[dict[str, dict]]) -> dict[int, str]:
    """A colour for each class; of more than there are colours, for those of the lowest ROC AUC, and grey for
    the rest."""
    values = {k: rows[k]["roc_auc"]["value"] for k in classes}
    lowest = sorted(sorted(classes, key=lambda k: (values[k] is None, values[k] or 0))[:len(SERIES)])
    return {k: f"s{lowest.index(k)}" if k in lowest else "faint" for k in classes}


def roc(scored: Scored) -> Chart | None:
    """ROC curves; None where no class has one."""
    return _curves(scored, "roc_auc", scored.curves.roc, ("ROC curves", "1 − specificity", "Sensitivity"))


def precision_recall(scored: Scored) -> Chart | None:
    """Precision-recall curves; None where no class has one."""
    return _curves(scored, "average_precision", scored.curves.precision_recall,
                   ("Precision-recall curves", "Recall (sensitivity)", "Precision"))


@own_style()
def _curves(scored: Scored, metric: str, points: dict[int, tuple[np.ndarray, np.ndarray]],
            words: tuple[str, str, str]) -> Chart | None:
    """words: the title, and what the axes say."""
    if not points:
        return None
    (title, *labels), label, is_roc = words, BY_NAME[metric].label, metric == "roc_auc"
    figure = charts.empty_figure(WIDTH, HEIGHT)
    axes = axes_in(figure, FRAME, (0, 1), (0, 1), tuple(labels))
    axes.set(xticks=SHARES, yticks=SHARES)
    looks = looks_of(list(points), scored.rows)
    texts = {k: with_interval(scored.rows[k][metric]) for k in points}
    if is_roc:
        charts.equality(axes)
    for k, (across, up) in points.items():
        if not is_roc:
            across, up = np.append(0, across), np.append(up[0], up)
        axes.plot(across, up, **charts.LINES[looks[k]], clip_on=False,
                  drawstyle="default" if is_roc else "steps-pre",
                  gid=charts.hint(f"{scored.names[k]} {texts[k]}"))
    has_bounds = any(scored.rows[k][metric].get("lower") is not None for k in points)
    legend = [(looks[k], scored.names[k], texts[k]) for k in points if looks[k] != "faint"]
    grey = len(points) - len(legend)
    if grey:
        legend.append(("faint", f"{grey} other {scored.plural}: their metrics stand in the table of "
                       f"{scored.plural}", ""))
    small = ((True, f"{label} and its 95 % interval" if has_bounds else label),
             (grey, f"in colour, the {len(SERIES)} {scored.plural} of lowest ROC AUC"),
             (scored.curves.left_out,
              f"{scored.curves.left_out} {scored.plural} of fewer {scored.unit} are not drawn"))
    said = "; ".join(f"{scored.names[k]}: {texts[k]}" for k in list(points)[:len(SERIES)])
    panel = Panel(f"{'roc' if is_roc else 'precision_recall'}-{scored.split}", title,
                  f"{label} of each {scored.what} against the rest, {scored.split}. {said}.", BOX, [axes],
                  "; ".join(text for is_so, text in small if is_so), legend)
    return Chart(figure, [panel], scored.heading, scored.names)


# ---- probabilities -----------------------------------------------------------------------------------------

@own_style()
def reliability(scored: Scored) -> Chart:
    """The reliability diagram, and below it how many images stand behind each point."""
    calibration, lower, (left, bottom, right, top) = scored.curves.calibration, 1.3, FRAME
    _, (mean, share, counts) = calibration[0]
    bins, most, filled = len(counts), int(counts.max(initial=1)), np.flatnonzero(counts)
    figure = charts.empty_figure(WIDTH, HEIGHT + lower)
    axes = axes_in(figure, (left, bottom + lower, right, top + lower), (0, 1), (0, 1),
                   ("", "Share that came true"))
    axes.set(xticks=SHARES, yticks=SHARES, xticklabels=[])
    charts.equality(axes)
    ends = [wilson_interval(round(share[k] * counts[k]), int(counts[k])) for k in filled]
    axes.vlines(mean[filled], *np.array(ends).reshape(-1, 2).T, color=SERIES[0], alpha=0.55, linewidth=1)
    for place, (label, (mean, share, images)) in enumerate(calibration):
        axes.plot(mean[images > 0], share[images > 0], **charts.LINES[f"s{place}"], marker="o",
                  markersize=4.5, clip_on=False, gid=charts.hint(label))
    below = axes_in(figure, (left, bottom, right, bottom + 1.0), (0, 1), (0, most * 1.28),
                    (scored.of_what, scored.counted.capitalize()))
    below.set(xticks=SHARES, yticks=[0, most], yticklabels=["0", f"{most:,}"])
    below.grid(False)
    charts.bars(below, (filled + 0.5) / bins, np.stack([0 * filled, counts[filled]]), 0.84 / bins, "s0",
                [f"{k / bins:.2f} to {(k + 1) / bins:.2f}: {counts[k]:,} {scored.counted}" for k in filled])
    for k in filled:
        text = f"{counts[k]}" if counts[k] < 10000 else f"{counts[k] / 1000:.0f}k"
        below.text((k + 0.5) / bins, counts[k] + 0.04 * most, text, ha="center", color=INK, fontsize=8)
    errors = {"ece": "expected calibration error", "ece_calibrated": "after temperature"}
    texts = {name: with_interval(scored.entries[name]) for name in errors if name in scored.entries}
    legend = [(f"s{place}", label, texts.get(name, "") if not scored.is_event else "")
              for place, ((label, _), name) in enumerate(zip(calibration, errors, strict=False))]
    small = (f"{scored.curves.of_what}; {counts.sum():,} {scored.counted} in {bins} bins. Upright lines: "
             "Wilson 95 % intervals" + ("; numbers: expected calibration error" if legend[0][2] else ""))
    said = "; ".join(f"{errors[name]} {text}" for name, text in texts.items())
    said = (f"Share of the {scored.counted} of {scored.split} that are what was predicted, against the "
            f"predicted probability, in {bins} bins. {said}. {scored.counted.capitalize()} in each bin, from "
            f"the lowest probability to the highest: {', '.join(map(str, counts.tolist()))}.")
    panel = Panel(f"reliability-{scored.split}", "Reliability diagram", said, (0, 0, WIDTH, HEIGHT + lower),
                  [axes, below], small, [*legend, ("plain", "perfect calibration", "")])
    return Chart(figure, [panel], scored.heading, scored.names)


@own_style()
def scores(scored: Scored) -> Chart:
    """Of two classes the event's probability by true class, else the highest probability of right and wrong
    answers."""
    unit, found, is_event = scored.counted, scored.curves.scores, scored.is_event
    heights = [counts / max(1, counts.sum()) if is_event else counts.astype(float) for _, counts in found]
    bases = [np.zeros(len(heights[0])) if is_event else heights[1], np.zeros(len(heights[0]))]
    tops, bins = [base + height for base, height in zip(bases, heights, strict=True)], len(heights[0])
    figure = charts.empty_figure(WIDTH, HEIGHT)
    upwards = "Share of its kind" if scored.what != "class" else "Share of the true class"
    axes = axes_in(figure, FRAME, (0, 1), (0, 1.05 * max(map(np.max, tops)) or 1),
                   (scored.of_what, upwards if is_event else unit.capitalize()))
    axes.set_xticks(SHARES)
    axes.locator_params(axis="y", nbins=6)
    for place, (name, counts) in enumerate(found):
        filled = np.flatnonzero(counts)
        hints = [f"{name}, {k / bins:.2f} to {(k + 1) / bins:.2f}: {counts[k]:,} {scored.counted}"
                 for k in filled]
        ends = np.stack([bases[place], tops[place]])[:, filled]
        charts.bars(axes, (filled + 0.5) / bins, ends, 1 / bins, f"s{place}", hints)
    legend = [(f"box s{place}", name if is_event else f"predicted {name}", f"{counts.sum():,}")
              for place, (name, counts) in enumerate(found)]
    said = "; ".join(f"{name}: {counts.sum():,} {unit}" for name, counts in found)
    small = f"{scored.curves.of_what}, {bins} bins" + (f"; numbers: {unit}" if is_event else "")
    panel = Panel(f"scores-{scored.split}", "Score distribution",
                  f"{unit.capitalize()} of {scored.split}. {said}.", BOX, [axes], small, legend)
    return Chart(figure, [panel], scored.heading, scored.names)


@own_style()
def spread_of_classes(scored: Scored) -> Chart | None:
    """Of each class the probability that it is given: its own images against all others; None where it says
    too little."""
    names, own, others = scored.names, scored.curves.own, scored.curves.others
    rows = [k for k, quantiles in enumerate(own) if quantiles is not None]
    if not rows or (len(names) == 2 and scored.what == "class") or len(names) > MOST_ROWS:
        return None
    is_dense = len(rows) > MAX_CLASSES_WITH_SHARES
    labels = shown_names(names, most=MAX_NAME if is_dense else MAX_WRAPPED)
    texts = [charts.wrapped(labels[k], math.inf if is_dense else 15) for k in rows]
    left = 0.15 + 11 / 72 * max(charts.em(line) for lines in texts for line in lines)  # larger on a phone
    width, height = max(WIDTH, left + 2.5), 0.6 + (0.22 if is_dense else 0.46) * len(rows)
    figure = charts.empty_figure(width, height)
    axes = axes_in(figure, (left, 0.5, width - 0.14, height - 0.06), (0, 1), (len(rows), 0),
                   (f"Probability given to the {scored.what}", ""))
    for look, offset, quantiles in (("s0", 0.3, own), ("faint", 0.68, others)):
        found = [(place, k) for place, k in enumerate(rows) if quantiles[k] is not None]
        middles = np.array([place + offset for place, _ in found])
        least, low, median, high, most = np.array([quantiles[k] for _, k in found]).reshape(-1, 5).T
        axes.hlines(middles, least, most, color=SERIES[0] if look == "s0" else MUTED, linewidth=1.2)
        boxes = axes.barh(middles, high - low, 0.3, low, **charts.BOXES[look])
        axes.vlines(median, middles - 0.19, middles + 0.19, color=INK, linewidth=1.2)
        for box, (_, k), begin, end in zip(boxes, found, low, high, strict=True):
            box.set_gid(charts.hint(f"{names[k]}: half of the {scored.unit} between {begin:.2f} and "
                                    f"{end:.2f}"))
    for place, lines in enumerate(texts):
        charts.write_lines(axes, (-0.07 / (width - 0.14 - left), place + 0.5), lines, 9, color=MUTED,
                           ha="right", va="center")
    axes.set(xticks=SHARES, yticks=[])
    said = "; ".join(f"{names[k]}: median {own[k][2]:.2f} of its own {scored.unit}"
                     + (f", {others[k][2]:.2f} of the others" if others[k] is not None else "")
                     for k in rows[:12])
    panel = Panel(f"spread-{scored.split}", f"Probability of each {scored.what}", f"{scored.split}. {said}.",
                  (0, 0, width, height), [axes],
                  f"Lines: 5 to 95 % of the {scored.unit}; boxes: the middle half; upright: the median",
                  [("box s0", f"{scored.unit} of the {scored.what}", ""),
                   ("box faint", f"all other {scored.unit}", "")])
    return Chart(figure, [panel], scored.heading, names)


# ---- confusion matrix --------------------------------------------------------------------------------------

@own_style()
def confusion_matrix(split: str, table_or_counts: pd.DataFrame | np.ndarray, names: list[str],
                     heading: str = "", unit: str = "images") -> Chart:
    """The confusion matrix: rows are true classes, columns predicted ones.

    table_or_counts: a predictions table (columns true_class and predicted_class), or counts (K, K). Colour is
    the share of the row; each cell holds the count and that share, or the count alone where there are many
    classes. Raises ValueError where the counts are not those of these K classes, InputError where the table
    is not.
    """
    counts, num_classes = _counts(table_or_counts, names), len(names)
    is_dense, is_bare = num_classes > MAX_CLASSES_WITH_SHARES, num_classes > MAX_CLASSES_WITH_COUNTS
    labels, size = shown_names(names, most=MAX_NAME if is_dense else MAX_WRAPPED), 8 if is_dense else 9.5
    cell = min(1.1, max(0.58, 3.0 / num_classes))  # inches
    if is_dense:
        cell = max(0.2, (0.62 * len(str(counts.max())) * size + 5) / 72)
    if is_bare:
        cell = max(12 / num_classes, 0.02)
    rows = [charts.wrapped(f"{name} ({images:,})", math.inf if is_dense else 13)
            for name, images in zip(labels, counts.sum(axis=1), strict=True)]
    columns, turn = _column_labels(labels, shown_names(names), cell * 72 / size)
    longest = max(charts.em(line) for lines in columns for line in lines) * size / 72
    deepest = max(map(len, columns)) * size / 63
    head = {0: deepest, 40: longest * math.sin(SLANT) + deepest * math.cos(SLANT), 90: longest}[turn] + 0.12
    beyond = 0.75 if is_dense else longest * math.cos(SLANT) - 0.4 * cell if turn == 40 else 0
    left = 0.5 + size / 72 * max(charts.em(line) for lines in rows for line in lines)
    side = cell * num_classes
    width, height = left + side + max(beyond, 0.1), head + side + 0.45
    figure = charts.empty_figure(width, height)
    axes = axes_in(figure, (left, 0.1, left + side, 0.1 + side), (0, num_classes), (num_classes, 0))
    axes.set(xticks=[], yticks=[])  # a tick costs more time than a text
    axes.spines[:].set(visible=True, zorder=4)
    _draw_cells(axes, counts, size)
    gap = 0.06 / cell
    for k in range(0, num_classes, max(1, math.ceil(size / 72 / cell))):  # of hundreds, only some are named
        charts.write_lines(axes, (k + (0.4 if turn == 40 else 0.5), -gap), columns[k], size, color=INK,
                           rotation=turn, va="bottom", ha="left" if turn == 40 else "center",
                           rotation_mode="anchor" if turn == 40 else "default")
        charts.write_lines(axes, (-gap, k + 0.5), rows[k], size, color=INK, ha="right", va="center")
    how = {"color": MUTED, "fontsize": size}
    figure.text(left / width, 1 - 0.2 / height, "Predicted class", **how)
    figure.text(0.08 / width, (0.1 + side) / height, f"True class ({unit})", rotation=90, va="top", **how)
    if is_dense:  # which share a shade means, for cells that do not say it
        edge, top, parts = left + side + 0.15, 0.1 + side, np.arange(20) / 20
        bar = axes_in(figure, (edge, top - min(side, 2.5), edge + 0.14, top), (0, 1), (0, 1))
        shades = [(SERIES[0], CELL_ALPHA * (part + 0.025)) for part in parts]
        bar.bar(0.5, 0.05, 1, parts, color=shades, linewidth=0)
        bar.yaxis.tick_right()
        bar.set(xticks=[], yticks=(0, 0.5, 1), yticklabels=["0 %", "50 %", "100 %"])
    caption = said = _caption(counts, unit)
    if not is_dense:
        cells = [", ".join(f"{n:,} predicted {names[k]}" for k, n in enumerate(row) if n) for row in counts]
        said = " ".join(f"Of {row.sum():,} {unit} of {name}: {text}."
                        for name, row, text in zip(names, counts, cells, strict=True) if text)
    panel = Panel(f"confusion-{split}", "Confusion matrix", f"{split}, {num_classes} classes. {said}",
                  (0, 0, width, height), list(figure.axes), caption, is_wide=width > MAX_HALF)
    return Chart(figure, [panel], heading, names)


def _column_labels(labels: list[str], short: list[str], width: float) -> tuple[list[list[str]], int]:
    """Labels for columns `width` em wide, in lines: lying where no word is too wide, else turned, by how many
    degrees."""
    lying = [charts.wrapped(label, width - 0.4) for label in labels]
    if max(charts.em(line) for lines in lying for line in lines) <= width and max(map(len, lying)) <= 4:
        return lying, 0
    if len(labels) > MAX_CLASSES_WITH_SHARES:
        return [[label] for label in short], 90
    turned = [[charts.wrapped(label, most) for most in (16, 20, 25, math.inf)] for label in short]
    return [next(lines for lines in forms if len(lines) <= 2) for forms in turned], 40  # more would overlap


def _draw_cells(axes: "charts.Axes", counts: np.ndarray, size: float) -> None:
    """Colours, one shape for each shade, lines between cells, and texts."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    shares, texts, is_bare = row_shares(counts), cell_texts(counts), len(counts) > MAX_CLASSES_WITH_COUNTS
    shades = np.where(np.isnan(shares), -1, np.round(shares, 1 if is_bare else 2))
    square = Path.unit_rectangle()
    for shade in np.unique(shades[shades != 0]):
        places = np.argwhere(shades == shade)[:, ::-1]
        squares = [Path(square.vertices + place, square.codes) for place in places]
        colour, alpha = (SERIES[0], CELL_ALPHA * shade) if shade > 0 else (charts.GRID, 1)
        axes.add_artist(PathPatch(Path.make_compound_path(*squares), linewidth=0, facecolor=colour,
                                  alpha=alpha))
    if not is_bare:
        for draw in (axes.hlines, axes.vlines):
            draw(np.arange(1, len(counts)), 0, len(counts), color=MUTED, alpha=0.25, linewidth=0.6)
    for (row, column), share in np.ndenumerate(shares):
        if texts[row][column]:
            ink = charts.MIDDLE_INK if share >= BRIGHT_FROM else charts.CELL_INK
            ink = charts.STRONG_INK if share >= DARK_FROM else ink
            charts.write_lines(axes, (column + 0.5, row + 0.5), texts[row][column].split("\n"), size,
                               ha="center", va="center", color=ink)


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Each count as a share of its row, that is of the images of that true class: (K, K); NaN in an empty
    row."""
    images = confusion.sum(axis=1, keepdims=True)
    return np.divide(confusion, images, out=np.full(confusion.shape, np.nan), where=images > 0)


def cell_texts(confusion: np.ndarray) -> list[list[str]]:
    """What stands in the cells of a (K, K) confusion matrix: count and row share; with many classes counts
    above 0."""
    if len(confusion) > MAX_CLASSES_WITH_SHARES:
        is_bare = len(confusion) > MAX_CLASSES_WITH_COUNTS
        return [[str(count) if count and not is_bare else "" for count in row] for row in confusion]
    return [[f"{count}\n{_percent(share)}" for count, share in zip(counts, shares, strict=True)]
            for counts, shares in zip(confusion, row_shares(confusion), strict=True)]


def commonest_confusions(counts: np.ndarray, most: int = 10) -> list[tuple[int, int]]:
    """The pairs (true, predicted) of different classes that most images have, the commonest first."""
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most].tolist()
    return [divmod(cell, len(counts)) for cell in order if wrong.flat[cell] > 0]


def _counts(table_or_counts: pd.DataFrame | np.ndarray, names: list[str]) -> np.ndarray:
    if isinstance(table_or_counts, pd.DataFrame):
        true, predicted = (class_numbers(table_or_counts, column, names) for column in CLASS_COLUMNS)
        return count_confusions(true, predicted, len(names))
    if table_or_counts.shape != (len(names),) * 2 or not np.issubdtype(table_or_counts.dtype, np.integer):
        raise ValueError(f"whole counts ({len(names)}, {len(names)}) are needed; got {table_or_counts.dtype} "
                         f"{table_or_counts.shape}")
    return table_or_counts


def _caption(counts: np.ndarray, unit: str) -> str:
    right, number, empty = int(np.trace(counts)), int(counts.sum()), int((counts.sum(axis=1) == 0).sum())
    cells = f"Each cell: {unit}, and their share of the true class (row)."
    if len(counts) > MAX_CLASSES_WITH_SHARES:
        cells = f"Number: {unit} (blank: none). Colour: share of the true class (row)."
    if len(counts) > MAX_CLASSES_WITH_COUNTS:
        cells = "Colour: share of the true class (row)."
    which = "this class" if empty == 1 else f"these {empty} classes"
    grey = f" Grey: no {unit} of {which}." if empty else ""
    share = f" ({100 * right / number:.1f} %)" if number else ""
    return f"{cells}{grey} {right:,} of {number:,} {unit} on the diagonal{share}"


def _percent(share: float) -> str:
    """Whole per cent, but neither 0 nor 100 for what is only near it."""
    if np.isnan(share):
        return "–"
    if 0 < share < 0.005:
        return "<1 %"
    return ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"
