"""A chart is drawn once by matplotlib and saved twice: as a PNG file in the run's folder and as SVG inside the report's page.

Its colours are those of the page in light mode. In the SVG each of them becomes the page's variable of that colour
(templates/report.css), so that charts follow dark mode and print; text stays text, in the page's font. What stands around
the axes (heading, legend) is HTML on the page; in the PNG it is drawn above and below the axes.

matplotlib takes most of a second to import, so it is imported where a chart is drawn. Figures are made as objects, without
pyplot (no window, no display), and in matplotlib's own default style whatever the user's settings are.
"""

import contextlib
import io
import os
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from util.metrics.table import BY_NAME
from util.report.fonts import fit_fonts, shown_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK, MUTED, GRID, PANEL = "#18212c", "#566373", "#e8ecf1", "#fffffe"
SERIES = ("#1f5fae", "#c05a00", "#1a7f5a", "#a8327d", "#7a5a12", "#0b7f9e", "#6446b5", "#b3261e")
CELL_INK, MIDDLE_INK, STRONG_INK = "#000002", "#000003", "#fffffd"  # on the cells of a confusion matrix
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PANEL: "--panel", CELL_INK: "--cell-ink",
             MIDDLE_INK: "--middle-ink", STRONG_INK: "--strong-ink",
             **{colour: f"--s{number}" for number, colour in enumerate(SERIES)}}
DASHES = (0, (5, 2.2))  # of the colours from the fifth on
WIDTH, HEIGHT = 5.2, 4.0  # inches of one pair of axes with its labels
SHARES = (0, 0.2, 0.4, 0.6, 0.8, 1)
LEARNING_RATE = "lr"
MAX_WORD = 26  # characters
NARROW = "fijlrtI.,:;|!'()[] -"
HINT = "hint:"  # an id that begins so holds what the page shows beside the pointer
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass
class Panel:
    """A figure of the page: axes, the part of the drawing that they fill, and the words around them.

    key: an id that no other panel of the page has. box: left, bottom, right, top in inches. description: what a screen
    reader reads after the title. small: below the title. legend: [(look, name, number or '')]; looks are s0 … s7, faint and
    plain, after "box " a rectangle.
    """

    key: str
    title: str
    description: str
    box: tuple[float, float, float, float]
    axes: "list[Axes]"
    small: str = ""
    legend: list[tuple[str, str, str]] = field(default_factory=list)
    is_wide: bool = False  # over the whole width of the page
    svg: str = ""


@dataclass
class Chart:
    """A drawing and its panels. heading, note, legend: what stands around it in the PNG, beside the panels' words; names:
    of the classes or targets (kind), for fonts."""

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


# ---- what is drawn --------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """matplotlib's default style, for the time of a drawing, with text as text in an SVG."""
    from matplotlib import rc_context, rcParams, style

    if rcParams["svg.fonttype"] == "none":  # we are inside already, and entering takes its time
        yield
        return
    with style.context("default"), rc_context({"svg.fonttype": "none"}):
        yield


def empty_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def axes_in(figure: "Figure", box: tuple[float, float, float, float], x: tuple[float, float], y: tuple[float, float],
            labels: tuple[str, str] = ("", "")) -> "Axes":
    """Axes whose frame is `box` (inches), with the limits x and y and the look of all charts here."""
    width, height = figure.get_size_inches()
    left, bottom, right, top = box
    axes = figure.add_axes((left / width, bottom / height, (right - left) / width, (top - bottom) / height))
    axes.set(xlim=x, ylim=y)
    axes.set_xlabel(labels[0], color=INK, fontsize=9.5, parse_math=False)
    axes.set_ylabel(labels[1], color=INK, fontsize=9.5, parse_math=False)
    axes.yaxis.set_label_coords(-0.45 / (right - left), 0.5)
    axes.tick_params(length=0, pad=5, colors=MUTED, labelsize=9)
    axes.ticklabel_format(scilimits=(-2, 5), useOffset=False)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=MUTED, alpha=0.6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.offsetText.set(color=MUTED, fontsize=8)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def line_style(look: str) -> dict[str, object]:
    """How matplotlib draws a line of that look."""
    if look == "faint":
        return {"color": MUTED, "alpha": 0.35, "linewidth": 0.8}
    if look == "plain":
        return {"color": MUTED, "linewidth": 1.2, "linestyle": "--"}
    number = int(look[1:])
    return {"color": SERIES[number], "linewidth": 1.6, "linestyle": DASHES if number > 3 else "-", "zorder": 3}


def box_style(look: str) -> dict[str, object]:
    return {"facecolor": MUTED, "alpha": 0.3} if look == "faint" else {"facecolor": SERIES[int(look[1:])], "alpha": 0.55}


def hint(text: str) -> str:
    """An artist's gid whose text the page shows beside the pointer."""
    return HINT + NOT_XML.sub("\ufffd", text)


def bars(axes: "Axes", places: tuple[np.ndarray, np.ndarray], width: float, look: str, hints: list[str]) -> None:
    """Upright bars, each with a hint. places: their middles, and their lower and upper ends (2, N)."""
    middles, (low, high) = places
    for bar, text in zip(axes.bar(middles, high - low, width, low, **box_style(look)), hints, strict=True):
        bar.set_gid(hint(text))


def equality(axes: "Axes", low: float = 0, high: float = 1) -> None:
    """The broken line where both axes are equal."""
    axes.plot((low, high), (low, high), color=MUTED, linewidth=0.9, linestyle=(0, (4, 4)))


def dots(axes: "Axes", x: np.ndarray, y: np.ndarray, size: float, alpha: float) -> None:
    """Points as one path of short lines with round ends: a tenth of the SVG text of as many circles."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    points = np.repeat(np.stack([x, y], axis=1), 2, axis=0)
    points[1::2, 0] += 1e-4 * np.diff(axes.get_xlim())  # Agg draws no line without a length
    outline = Outline(points, np.tile([Outline.MOVETO, Outline.LINETO], len(x)))
    outline.should_simplify = False
    axes.add_artist(PathPatch(outline, fill=False, edgecolor=SERIES[0], linewidth=size, capstyle="round", alpha=alpha,
                             snap=False))


def wrapped(name: str, width: float) -> list[str]:
    """A name in lines of about `width` em, broken after spaces, underscores and hyphens (and between Chinese characters),
    never inside a word; a word of more than MAX_WORD characters is shortened."""
    lines = [""]
    for part in re.findall(r"[^\s_\-\u2e80-\u9fff]*[\s_\-\u2e80-\u9fff]?", name):
        part = part if len(part) <= MAX_WORD else f"{part[:MAX_WORD - 11]}…{part[-10:]}"
        if lines[-1] and em((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines if line.strip()] or [name]


def em(text: str) -> float:
    """About how wide a text is, in units of its font size: a Chinese character fills the square."""
    return sum(1.0 if unicodedata.east_asian_width(mark) in "WF" else 0.36 if mark in NARROW else 0.74 if mark.isupper()
               or mark in "mw@%" else 0.61 for mark in text)


# ---- the page -------------------------------------------------------------------------------------------------------

@own_style()
def draw_svgs(chart: Chart) -> None:
    """Put the SVG text of each panel into `panel.svg`. Called before `save_png`, which may replace characters."""
    for panel in chart.panels:
        for axes in chart.figure.axes:
            axes.set_visible(axes in panel.axes)
        panel.svg = _svg(chart.figure, panel)
    for axes in chart.figure.axes:
        axes.set_visible(True)


def _svg(figure: "Figure", panel: Panel) -> str:
    """The panel's SVG, without what a page does not need and with ids that begin with the panel's key."""
    from matplotlib import rc_context
    from matplotlib.transforms import Bbox

    raw = io.BytesIO()
    with rc_context({"svg.hashsalt": panel.key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has other fonts
        figure.savefig(raw, format="svg", bbox_inches=Bbox.from_extents(panel.box), transparent=True,
                       metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(raw.getvalue())
    named, numbers = {}, count()
    for found in re.findall(r"(?:url\(|href=\")#(\w+)", raw.getvalue().decode()):
        if found not in named:
            named[found] = f"{panel.key}-{next(numbers)}"
    _shorten(root, named)
    _, _, width, height = root.get("viewBox").split()
    words = []
    for tag, text in (("title", panel.title), ("desc", panel.description)):
        element = ElementTree.Element(tag, id=f"{panel.key}-{tag}")
        element.text = NOT_XML.sub("\ufffd", text)
        words.append(element)
    root[:] = words + list(root)
    root.attrib = {"viewBox": f"0 0 {_rounded(width)} {_rounded(height)}", "width": f"{float(width) * 4 / 3:.0f}",
                   "height": f"{float(height) * 4 / 3:.0f}", "role": "img",
                   "aria-labelledby": " ".join(element.get("id") for element in words)}
    return ElementTree.tostring(root, encoding="unicode")


def _shorten(root: ElementTree.Element, named: dict[str, str]) -> None:
    """Rewrite matplotlib's SVG for the page in place: see the module."""
    for parent in reversed(list(root.iter())):  # children before what holds them
        parent.tag, parent.tail, kept = parent.tag.rpartition("}")[2], None, []
        for element in parent:
            own_id, style = element.attrib.pop("id", ""), element.get("style", "")
            if own_id in named:
                element.set("id", named[own_id])
            elif own_id.startswith(HINT):
                element.insert(0, ElementTree.Element("title"))
                element[0].text = own_id.removeprefix(HINT)
            is_group = element.tag in ("g", "defs")
            is_outline = element.tag == "path" and style == "fill:none" and "id" not in element.attrib
            if is_outline or element.tag in ("metadata", "style") or (is_group and not len(element)):
                continue
            plain = is_group and not element.attrib and element[0].tag != "title" and element.tag == "g"
            kept += element if plain else [element]
        parent[:] = _grouped(kept)
        if len(parent):
            parent.text = None
        _rewrite(parent, named)


def _grouped(elements: list[ElementTree.Element]) -> list[ElementTree.Element]:
    """The same, where neighbours of one style get it from a group around them."""
    found = []
    for style, run in groupby(elements, lambda element: element.get("style")):
        run = list(run)
        if style and len(run) > 1 and "opacity" not in style:
            for element in run:
                del element.attrib["style"]
            group = ElementTree.Element("g", style=style)
            group[:] = run
            run = [group]
        found += run
    return found


def _rewrite(element: ElementTree.Element, named: dict[str, str]) -> None:
    """The attributes of one element: numbers rounded, colours as variables, references to the new ids."""
    for key, value in list(element.attrib.items()):
        del element.attrib[key]
        if key == "style":
            value = re.sub(r"font-family: [^;]*;? ?", "", value)
            value = re.sub(r"font-size: ([\d.]+)px", r"font-size: calc(\1px * var(--text, 1))", value)
            value = re.sub("#[0-9a-f]{6}", lambda found: f"var({VARIABLES[found[0]]})", value)
            value = value.replace(": ", ":").replace("; ", ";")
        elif key.endswith("href") or key == "clip-path":
            value = re.sub(r"#(\w+)", lambda found: f"#{named[found[1]]}", value)
        elif key != "id":
            value = re.sub(r"-?\d+\.\d+(?:e-?\d+)?", lambda found: _rounded(found[0]), value)
            value = re.sub(r"\s*([A-Za-z])\s*", r"\1", value.strip()) if key == "d" else value
        if not value.startswith("rotate(-0 "):
            element.set(key.rpartition("}")[2], value)


def _rounded(text: str) -> str:
    return f"{float(text):.1f}".removesuffix(".0")


# ---- files ----------------------------------------------------------------------------------------------------------

@own_style()
def save_png(chart: Chart, path: str | os.PathLike) -> list[str]:
    """Write the whole chart with its words as a PNG, whole or not at all; lines for the user about fonts."""
    added, box = _words(chart)
    notes = save_figure(chart.figure, path, box, (chart.names, chart.kind))
    for artist in added:
        artist.remove()
    return notes


def _words(chart: Chart) -> tuple[list, tuple[float, float, float, float]]:
    """Draw titles above the panels, legend and notes below -> (what was added, the box of the whole in inches)."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    figure, (wide, high) = chart.figure, chart.figure.get_size_inches()
    left, bottom, right, top = (side([panel.box[k] for panel in chart.panels])
                                for k, side in enumerate((min, min, max, max)))
    added, is_single, edge = [], len(chart.panels) == 1, left + 0.1

    def write(place: tuple[float, float], text: str, size: float, colour: str = INK, ha: str = "left") -> None:
        added.append(figure.text(place[0] / wide, place[1] / high, text, fontsize=size, color=colour, ha=ha, parse_math=False))

    for panel in chart.panels:
        write((panel.box[0] + 0.1, panel.box[3] + (0.34 if is_single else 0.08)), panel.title, 12 if is_single else 9.5)
    top += 0.6 if is_single else 0.3
    heading = textwrap.wrap(chart.heading, int((right - left) / (0.6 * 9 / 72)))
    for number, line in enumerate(heading if is_single else heading[::-1]):
        write((edge, top - 0.48 - 0.17 * number if is_single else top + 0.08 + 0.17 * number), line, 9, MUTED)
    top += 0 if is_single or not heading else 0.12 + 0.17 * len(heading)
    bottom -= 0.17 * max(0, len(heading) - 1) if is_single else 0
    short = dict(zip(chart.names, shown_names(chart.names, chart.kind), strict=True))
    for look, name, number in chart.panels[0].legend + chart.legend:
        bottom -= 0.19
        mark = (Rectangle((edge / wide, bottom / high), 0.28 / wide, 0.1 / high, **box_style(look.removeprefix("box ")))
                if look.startswith("box ") else
                Line2D((edge / wide, (edge + 0.28) / wide), ((bottom + 0.045) / high,) * 2, **line_style(look)))
        mark.set_transform(figure.transFigure)
        added.append(figure.add_artist(mark))
        write((edge + 0.38, bottom), short.get(name, name), 8.5)
        write((min(right - 0.1, edge + 5), bottom), number, 8.5, ha="right")
    small = ". ".join(dict.fromkeys(filter(None, [*(panel.small for panel in chart.panels), chart.note])))
    bottom -= 0.05
    for line in textwrap.wrap(small.replace(" %", "\u00a0%"), int((right - left) / (0.56 * 8 / 72))):
        bottom -= 0.17
        write((edge, bottom), line, 8, MUTED)
    return added, (left - 0.05, bottom - 0.12, right + 0.05, top)


def save_figure(figure: "Figure", path: str | os.PathLike, box: tuple[float, float, float, float] | str = "tight",
                names: tuple[list[str], str] = ((), "")) -> list[str]:
    """Write to a temporary name, then rename, so that nobody ever reads half an image. box: what is kept, in inches.

    Every chart passes here, and gets the fonts that its text needs; a line where there are none, once a run.
    """
    from matplotlib.transforms import Bbox

    path = Path(path)
    notes = fit_fonts(figure, *names)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", pil_kwargs={"compress_level": 3}, pad_inches=0.12,
                       bbox_inches=box if isinstance(box, str) else Bbox.from_extents(box))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return notes
