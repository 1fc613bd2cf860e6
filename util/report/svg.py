"""Charts as SVG text for an HTML page: made in milliseconds, coloured by the page's style sheet (so they follow its dark mode
and its print), readable aloud by their title and description.

Coordinates are those of the data; `Chart` turns them into the picture's. Classes used by report.css: axis, grid, tick,
label, line, area, bar, dots, rule, note, and s0 … s7 for the colours of a series.
"""

import math
import re
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 330
SERIES = 8  # colours


def clean(text: object) -> str:
    """A text for HTML and for XML: escaped, without the characters that neither may hold (a file name can hold them)."""
    legal = "".join("\ufffd" if mark < " " and mark not in "\t\n\r" or "\ud800" <= mark <= "\udfff" or mark in "\ufffe\uffff"
                    else mark for mark in str(text))
    return escape(legal, quote=True)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (steps of 1, 2 or 5 times a power of ten) within low to high, some `about` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if rough <= factor * power * (1 + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """The ticks with as many decimals as tell them apart; powers of ten for the very small and the very large."""
    if not values:
        return []
    step = min((abs(b - a) for a, b in zip(values, values[1:], strict=False)), default=0) or abs(values[0]) or 1.0
    largest, finest = max(map(abs, values)), math.floor(math.log10(step) + 1e-9)
    if finest < -3 or largest >= 1e6:
        digits = max(0, math.floor(math.log10(largest) + 1e-9) - finest) if largest else 0
        texts = [re.sub(r"(\.\d*?)0*e([+-])0*", lambda found: found[1].rstrip(".") + "e" + found[2].strip("+"),
                        f"{value:#.{digits}e}") if value else "0" for value in values]
    else:
        texts = [f"{value:,.{max(0, -finest)}f}" for value in values]
    return [text.replace("-", "\N{MINUS SIGN}") for text in texts]


def room_around(values: np.ndarray, share: float = 0.05) -> tuple[float, float]:
    """The range of the finite values, widened by a share of it on both sides; around a single value by 1 or its tenth."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    extra = (high - low) * share or max(abs(low) * 0.1, 1e-9 if low else 1.0)
    return low - extra, high + extra


class Chart:
    """One pair of axes; methods add to it, `svg` gives the text.

    x, y: (low, high) of the axes. title and description are what a screen reader reads; key: an id that no other chart of
    the page has.
    """

    def __init__(self, key: str, title: str, description: str, x: tuple[float, float], y: tuple[float, float],
                 labels: tuple[str, str] = ("", ""), size: tuple[int, int] = (WIDTH, HEIGHT), left: int = 50, right: int = 14,
                 top: int = 12, bottom: int | None = None):
        self.key, self.title, self.description, self.x, self.y = key, title, description, x, y
        self.width, self.height = size
        self.left, self.right, self.top = left, right, top
        self.bottom = bottom if bottom is not None else (46 if labels[0] else 26)
        self.labels, self.parts = labels, []

    # ---- places

    def across(self, values):
        return self.left + (np.asarray(values, np.float64) - self.x[0]) / (self.x[1] - self.x[0]) * (
            self.width - self.left - self.right)

    def down(self, values):
        return self.height - self.bottom - (np.asarray(values, np.float64) - self.y[0]) / (self.y[1] - self.y[0]) * (
            self.height - self.top - self.bottom)

    # ---- what is drawn

    def axes(self, x_ticks: Sequence[float] | None = None, y_ticks: Sequence[float] | None = None,
             x_texts: Sequence[str] | None = None, y_texts: Sequence[str] | None = None, grid: bool = True) -> "Chart":
        x_ticks = ticks(*self.x) if x_ticks is None else x_ticks
        y_ticks = ticks(*self.y) if y_ticks is None else y_ticks
        edge, floor = self.width - self.right, self.height - self.bottom
        for place, text in zip(self.down(y_ticks), y_texts or tick_texts(y_ticks), strict=True):
            if grid:
                self.parts.append(f'<path class="grid" d="M{self.left} {place:.1f}H{edge}"/>')
            self._text(self.left - 7, place + 4, text, "tick", "end")
        for place, text in zip(self.across(x_ticks), x_texts or tick_texts(x_ticks), strict=True):
            self.parts.append(f'<path class="grid" d="M{place:.1f} {floor}v4"/>')
            self._text(place, floor + 17, text, "tick", "middle")
        self.parts.append(f'<path class="axis" d="M{self.left} {self.top}V{floor}H{edge}"/>')
        if self.labels[0]:
            self._text((self.left + edge) / 2, self.height - 7, self.labels[0], "label", "middle")
        if self.labels[1]:
            place = (self.top + floor) / 2
            self.parts.append(f'<text class="label" text-anchor="middle" transform="translate(13 {place:.0f}) rotate(-90)">'
                              f"{clean(self.labels[1])}</text>")
        return self

    def line(self, x, y, look: str, name: str = "") -> None:
        """A line through the points; where y is NaN it is broken, and a point between two gaps is a dot."""
        y = np.asarray(y, np.float64)
        places = list(zip(self.across(x).tolist(), self.down(y).tolist(), np.isfinite(y).tolist(), strict=True))
        text, pen_down = [], False
        for number, (across, down, known) in enumerate(places):
            if not known:
                pen_down = False
                continue
            alone = not pen_down and (number + 1 == len(places) or not places[number + 1][2])
            text.append(f"{'L' if pen_down else 'M'}{across:.1f} {down:.1f}{'h0' if alone else ''}")
            pen_down = True
        self._path(f"line {look}", "".join(text), name)

    def steps(self, x, y, look: str, name: str = "") -> None:
        """A staircase: from the left edge to x[0] at the height y[0], then to x[1] at y[1], and so on."""
        across, down = self.across(x).tolist(), self.down(y).tolist()
        text = [f"M{float(self.across(self.x[0])):.1f} {down[0]:.1f}"]
        text += [f"V{height:.1f}H{place:.1f}" for place, height in zip(across, down, strict=True)]
        self._path(f"line {look}", "".join(text), name)

    def area(self, x, low, high, look: str) -> None:
        """The band between two lines."""
        there = [f"{a:.1f} {b:.1f}" for a, b in zip(self.across(x).tolist(), self.down(high).tolist(), strict=True)]
        back = [f"{a:.1f} {b:.1f}" for a, b in zip(self.across(x).tolist(), self.down(low).tolist(), strict=True)][::-1]
        self.parts.append(f'<path class="area {look}" d="M{"L".join(there + back)}Z"/>')

    def bar(self, x0: float, x1: float, y0: float, y1: float, look: str, name: str = "") -> None:
        """A rectangle between two places of each axis; name is shown beside the pointer."""
        (left, right), (low, high) = self.across([x0, x1]).tolist(), self.down([y0, y1]).tolist()
        hint = f"<title>{clean(name)}</title>" if name else ""
        self.parts.append(f'<rect class="bar {look}" x="{min(left, right):.1f}" y="{min(low, high):.1f}" '
                          f'width="{abs(right - left):.1f}" height="{abs(high - low):.1f}">{hint}</rect>')

    def dots(self, x, y, look: str, name: str = "") -> None:
        """Points, all in one path: a line of no length with a round end is a dot."""
        self._path(f"dots {look}", "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(
            self.across(x).tolist(), self.down(y).tolist(), strict=True)), name)

    def rule(self, ends: tuple[float, float, float, float], look: str = "") -> None:
        """A straight line from (x, y) to (x, y)."""
        (left, right), (start, end) = self.across(ends[::2]).tolist(), self.down(ends[1::2]).tolist()
        self.parts.append(f'<path class="rule {look}" d="M{left:.1f} {start:.1f}L{right:.1f} {end:.1f}"/>')

    def note(self, x: float, y: float, text: str, anchor: str = "start", up: float = 5) -> None:
        self._text(float(self.across(x)), float(self.down(y)) - up, text, "note", anchor)

    # ---- the whole

    def svg(self) -> str:
        return (f'<svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}" role="img" '
                f'aria-labelledby="{self.key}-t {self.key}-d"><title id="{self.key}-t">{clean(self.title)}</title>'
                f'<desc id="{self.key}-d">{clean(self.description)}</desc>{"".join(self.parts)}</svg>')

    def _path(self, look: str, text: str, name: str) -> None:
        if text:
            hint = f"<title>{clean(name)}</title>" if name else ""
            self.parts.append(f'<path class="{look}" d="{text}">{hint}</path>' if hint else
                              f'<path class="{look}" d="{text}"/>')

    def _text(self, x: float, y: float, text: str, look: str, anchor: str) -> None:
        if text:
            self.parts.append(f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{clean(text)}</text>')
