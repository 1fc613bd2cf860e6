"""A chart is drawn once, by matplotlib, and saved twice: as a PNG file and as SVG inside the report's page.

Its colours are those of the page in light mode; in the SVG each becomes the page's variable of that colour
(templates/report.css), so that charts follow dark mode and print. Text stays text. Heading and legend are
HTML on the page; the PNG has them above and below the axes.

matplotlib takes most of a second to import, so it is imported where a chart is drawn. Figures are made as
objects, without pyplot (no window), and in matplotlib's default style whatever the user's settings are.
"""

import contextlib
import io
import math
import os
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np

from util.core.disk import replacing
from util.metrics.table import BY_NAME
from util.report.fonts import fit_fonts, one_line, shown_names

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # left, bottom, right, top in inches
DPI = 150
INK, MUTED, GRID, PANEL = "#18212c", "#566373", "#e8ecf1", "#fffffe"
SERIES = ("#1f5fae", "#c05a00", "#1a7f5a", "#a8327d", "#7a5a12", "#0b7f9e", "#6446b5", "#b3261e")
CELL_INK, MIDDLE_INK, STRONG_INK = "#000002", "#000003", "#fffffd"  # on the cells of a confusion matrix
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PANEL: "--panel", CELL_INK: "--cell-ink",
             MIDDLE_INK: "--middle-ink", STRONG_INK: "--strong-ink",
             **{colour: f"--s{number}" for number, colour in enumerate(SERIES)}}
WIDTH, HEIGHT = 5.2, 4.0  # inches of one pair of axes with its labels
# How matplotlib draws a line or a rectangle of each look.
LINES: dict[str, dict[str, Any]] = {
    "faint": {"color": MUTED, "alpha": 0.35, "linewidth": 0.8},
    "plain": {"color": MUTED, "linewidth": 1.2, "linestyle": "--"},
    **{f"s{number}": {"color": colour, "linewidth": 1.6, "zorder": 3,
                      "linestyle": (0, (5, 2.2)) if number > 3 else "-"}
       for number, colour in enumerate(SERIES)}}
BOXES: dict[str, dict[str, Any]] = {
    "faint": {"facecolor": MUTED, "alpha": 0.3},
    **{f"s{number}": {"facecolor": colour, "alpha": 0.55} for number, colour in enumerate(SERIES)}}
SHARES = (0, 0.2, 0.4, 0.6, 0.8, 1)
LEARNING_RATE = "lr"
MAX_WORD = 26  # characters
NARROW = "fijlrtI.,:;|!'()[] -"
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass
class Panel:
    """A figure of the page: axes, the part of the drawing that they fill, and the words around them.

    key: an id that no other panel of the page has. description: what a screen reader reads after the title.
    small: below the title. legend: [(look, name, number)]; looks are s0 … s7, faint and plain, after "box " a
    rectangle.
    """

    key: str
    title: str
    description: str
    box: Box
    axes: "list[Axes]"
    small: str = ""
    legend: list[tuple[str, str, str]] = field(default_factory=list)
    is_wide: bool = False  # over the whole width of the page
    svg: str = ""


@dataclass
class Chart:
    """A drawing and its panels. heading, note, legend: what the PNG has beside the panels' words; names: of
    the classes or targets (kind), for fonts."""

    figure: "Figure"
    panels: list[Panel]
    heading: str = ""
    names: list[str] = field(default_factory=list)
    kind: str = "class"
    note: str = ""
    legend: list[tuple[str, str, str]] = field(default_factory=list)


def titled(name: str) -> str:
    """What a panel of a metric is called, or one of the learning rate."""
    row = BY_NAME.get(name)
    return "Learning rate" if name == LEARNING_RATE else row.title if row else name


# ---- what is drawn -----------------------------------------------------------------------------------------

@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """matplotlib's default style, for the time of a drawing, with text as text in an SVG."""
    from matplotlib import rc_context, style

    with style.context("default"), rc_context({"svg.fonttype": "none"}):
        yield


def empty_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def axes_in(figure: "Figure", box: Box, x: tuple[float, float], y: tuple[float, float],
            labels: tuple[str, str] = ("", "")) -> "Axes":
    """Axes whose frame is `box`, with the limits x and y and the look of all charts here."""
    left, bottom, right, top = np.array(box) / np.tile(figure.get_size_inches(), 2)
    axes = figure.add_axes((left, bottom, right - left, top - bottom), xlim=x, ylim=y, axisbelow=True)
    axes.set_xlabel(labels[0], color=INK, fontsize=9.5, parse_math=False)
    axes.set_ylabel(labels[1], color=INK, fontsize=9.5, parse_math=False)
    axes.yaxis.set_label_coords(-0.45 / (box[2] - box[0]), 0.5)
    axes.tick_params(length=0, pad=5, colors=MUTED, labelsize=9)
    axes.ticklabel_format(scilimits=(-2, 5), useOffset=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set(color=MUTED, alpha=0.6)
    axes.yaxis.offsetText.set(color=MUTED, fontsize=8)
    axes.xaxis.offsetText.set(color=MUTED, fontsize=8)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    return axes


def hint(text: str) -> str:
    """An artist's gid whose text the page shows beside the pointer."""
    return "hint:" + NOT_XML.sub("\ufffd", text)


def bars(axes: "Axes", middles: np.ndarray, ends: np.ndarray, width: float, look: str,
         hints: list[str]) -> None:
    """Upright bars, each with a hint. ends: the lower and upper ones (2, N)."""
    drawn = axes.bar(middles, ends[1] - ends[0], width, ends[0], **BOXES[look])
    for bar, text in zip(drawn, hints, strict=True):
        bar.set_gid(hint(text))


def equality(axes: "Axes", low: float = 0, high: float = 1) -> None:
    """The broken line where both axes are equal."""
    axes.plot((low, high), (low, high), color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))


def write_lines(axes: "Axes", place: tuple[float, float], lines: list[str], size: float,
                **how: object) -> None:
    """A text of several lines at a place of the axes, each a text of its own: so the page's font can't
    misalign them."""
    from matplotlib.transforms import ScaledTranslation

    angle, last = math.radians(how.get("rotation", 0)), len(lines) - 1
    for number, line in enumerate(lines):
        up = 1.2 * size / 72 * (last - number if how["va"] == "bottom" else last / 2 - number)
        shift = ScaledTranslation(-math.sin(angle) * up, math.cos(angle) * up, axes.figure.dpi_scale_trans)
        axes.text(*place, line, transform=axes.transData + shift, fontsize=size, parse_math=False, **how)


def wrapped(name: str, width: float) -> list[str]:
    """A name in lines of about `width` em, broken after spaces, underscores and hyphens (and between Chinese
    characters), never inside a word; a word of more than MAX_WORD characters is shortened."""
    lines = [""]
    for part in re.findall(r"[^\s_\-\u2e80-\u9fff]*[\s_\-\u2e80-\u9fff]?", name):
        part = part if len(part) <= MAX_WORD else f"{part[:MAX_WORD - 11]}…{part[-10:]}"
        if lines[-1] and em((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines if line.strip()] or [name]


def em(text: str) -> float:
    """About how wide a text is, in units of its font size: a Chinese character fills the square."""
    return sum(1.0 if unicodedata.east_asian_width(mark) in "WF" else 0.36 if mark in NARROW
               else 0.74 if mark.isupper() or mark in "mw@%" else 0.61 for mark in text)


# ---- the page ----------------------------------------------------------------------------------------------

@own_style()
def draw_svgs(chart: Chart) -> None:
    """Put the SVG text of each panel into `panel.svg`. Called before `save_png`, which may replace
    characters."""
    for panel in chart.panels:
        for axes in chart.figure.axes:
            axes.set_visible(axes in panel.axes)
        panel.svg = _svg(chart.figure, panel)
    for axes in chart.figure.axes:
        axes.set_visible(True)


def _svg(figure: "Figure", panel: Panel) -> str:
    """matplotlib's SVG of a panel, without what a page does not need; its ids are made of the panel's key."""
    from matplotlib import rc_context
    from matplotlib.transforms import Bbox

    raw = io.BytesIO()
    with rc_context({"svg.hashsalt": panel.key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has other fonts
        figure.savefig(raw, format="svg", bbox_inches=Bbox.from_extents(panel.box), transparent=True,
                       metadata={"Date": None})
    body = re.sub("(?s)^.*</style>\\s*</defs>", "", raw.getvalue().decode())
    used = set(re.findall(r"(?:url\(|href=\")#(\w+)", body))
    body = re.sub("<[^>]*>", lambda found: _tag(found[0], used), re.sub(r"\s*\n\s*", "", body))
    body = re.sub(r'<path d="[^"]*"(?: clip-path="[^"]*")? style="fill:none"/>|<g/>', "", body)
    for _ in range(3):
        body = re.sub(r"<g>(<text[^>]*>[^<]*</text>|<path[^>]*/>)?</g>", r"\1", body)
    width, height = panel.box[2] - panel.box[0], panel.box[3] - panel.box[1]
    words = [escape(NOT_XML.sub("\ufffd", text)) for text in (panel.title, panel.description)]
    return (f'<svg viewBox="0 0 {72 * width:.1f} {72 * height:.1f}" width="{96 * width:.0f}" '
            f'height="{96 * height:.0f}" role="img" aria-labelledby="{panel.key}-title {panel.key}-desc">'
            f'<title id="{panel.key}-title">{words[0]}</title>'
            f'<desc id="{panel.key}-desc">{words[1]}</desc>{body}')


def _tag(tag: str, used: set[str]) -> str:
    """A tag of matplotlib's SVG: numbers rounded, colours as variables, hints as titles, ids in use."""
    tag = re.sub(r"""^<g id=(["'])hint:(.*)\1>$""", r"<g><title>\2</title>", tag)
    tag = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag.replace("xlink:href", "href"))
    tag = re.sub(r' (d|x|y|width|height|transform)="[^"]*"', lambda found: re.sub(
        r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), found[0]), tag)
    tag = re.sub(r"font-family: [^;]*;? ?", "", tag)
    tag = re.sub(r"font-size: ([\d.]+)px", r"font-size:calc(\1px*var(--text,1))", tag)
    tag = re.sub("(?<=: )#[0-9a-f]{6}", lambda found: f"var({VARIABLES[found[0]]})", tag)
    return re.sub(r"(?<=[;:MLCQz]) ", "", tag) if tag.startswith(("<path", "<text", "<use")) else tag


# ---- files -------------------------------------------------------------------------------------------------

@own_style()
def save_png(chart: Chart, path: str | os.PathLike) -> list[str]:
    """Write the whole chart with its words as a PNG, whole or not at all; lines for the user about fonts."""
    added, box = _words(chart)
    notes = save_figure(chart.figure, path, box, (chart.names, chart.kind))
    for artist in added:
        artist.remove()
    return notes


def _words(chart: Chart) -> "tuple[list[Artist], Box]":
    """Draw the headings above the panels, legend and notes below -> (what was added, the box of the
    whole)."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    figure, (wide, high), added = chart.figure, chart.figure.get_size_inches(), []
    left, bottom, right, top = (side([panel.box[k] for panel in chart.panels])
                                for k, side in enumerate((min, min, max, max)))

    def write(x: float, y: float, text: str, size: float, colour: str = INK, ha: str = "left") -> None:
        added.append(figure.text(x / wide, y / high, one_line(text), fontsize=size, color=colour, ha=ha,
                                 parse_math=False))

    for panel in chart.panels:
        write(panel.box[0] + 0.1, panel.box[3] + 0.08, panel.title, 10)
    top += 0.3
    for line in reversed(textwrap.wrap(chart.heading, int((right - left) / (0.6 * 9 / 72)))):
        top += 0.18
        write(left + 0.1, top - 0.13, line, 9, MUTED)
    short = dict(zip(chart.names, shown_names(chart.names, chart.kind), strict=True))
    for look, name, number in chart.panels[0].legend + chart.legend:
        bottom -= 0.19
        x, y = (left + 0.1) / wide, bottom / high
        mark = (Rectangle((x, y), 0.28 / wide, 0.1 / high, **BOXES[look.removeprefix("box ")])
                if look.startswith("box ") else
                Line2D((x, x + 0.28 / wide), (y + 0.045 / high,) * 2, **LINES[look]))
        mark.set_transform(figure.transFigure)
        added.append(figure.add_artist(mark))
        write(left + 0.48, bottom, short.get(name, name), 8.5)
        write(min(right - 0.1, left + 5.1), bottom, number, 8.5, ha="right")
    small = ". ".join(dict.fromkeys(filter(None, [*(panel.small for panel in chart.panels), chart.note])))
    bottom -= 0.05
    for line in textwrap.wrap(small.replace(" %", "\u00a0%"), int((right - left) / (0.56 * 8 / 72))):
        bottom -= 0.17
        write(left + 0.1, bottom, line, 8, MUTED)
    return added, (left - 0.05, bottom - 0.12, right + 0.05, top + 0.1)


def save_figure(figure: "Figure", path: str | os.PathLike, box: Box | str = "tight",
                names: tuple[Sequence[str], str] = ((), "")) -> list[str]:
    """Write to a temporary name, then rename, so that nobody ever reads half an image. box: what is kept.

    Every chart passes here, and gets the fonts that its text needs (names and their kind: see `fit_fonts`); a
    line where there are none, once a run.
    """
    from matplotlib.transforms import Bbox

    notes = fit_fonts(figure, *names)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", pil_kwargs={"compress_level": 3},
                       pad_inches=0.12, bbox_inches=box if isinstance(box, str) else Bbox.from_extents(box))
    return notes
