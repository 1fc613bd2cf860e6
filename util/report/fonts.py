"""Fonts for the text of the charts, chosen by its characters, so that a name in any script is drawn and none
is boxes.

matplotlib's own font has no Chinese; it draws a character with the first of a text's families that has it.
Which families those are is chosen for each figure where it is saved (`fit_fonts`), on its own text objects:
no setting of matplotlib changes.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_FONT = "DejaVu Sans"  # comes with matplotlib
# matplotlib before 3.11 knows only the first face of a collection: Debian's Noto Sans CJK by its Japanese
# name
PREFERRED_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC",
    "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Hiragino Sans GB", "Heiti TC",
    "Noto Sans CJK JP", "Source Han Sans", "Arial Unicode MS")
# Stand-ins that claim to hold every character and draw boxes, and colour fonts, which matplotlib cannot draw.
NO_TEXT_FONTS = ("Last Resort", "LastResort", "Adobe Blank", "Unicode BMP Fallback", "Color Emoji")
MAX_NAME = 34  # characters of a name that are shown
_told: list[str] = []  # the one line about a font that is not there


def fonts_for(text: str) -> tuple[list[str], set[str]]:
    """Font families that together draw a text, matplotlib's own first, and the characters that none of them
    has."""
    marks = {mark for mark in text if unicodedata.category(mark) != "Cc"}
    missing = frozenset(marks - _drawn_by(DEFAULT_FONT, marks))
    if not missing:  # nearly always: no other font is opened
        return [DEFAULT_FONT], set()
    fonts, lost = _others_for(missing, _installed())
    if lost and add_new_fonts():
        fonts, lost = _others_for(missing, _installed())
    return [DEFAULT_FONT, *fonts], set(lost)


@functools.lru_cache
def _others_for(missing: frozenset[str], installed: tuple[str, ...]) -> tuple[list[str], frozenset[str]]:
    fonts = []
    for name in installed:
        found = _drawn_by(name, missing) if missing else set()
        fonts += [name] if found else []
        missing -= found
    return fonts, missing


def _installed() -> tuple[str, ...]:
    """The families that may stand in, the preferred ones first."""
    from matplotlib import font_manager

    # matplotlib warns when it is to draw with a family that has no upright face of normal weight.
    names = {entry.name for entry in font_manager.fontManager.ttflist
             if entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")}
    others = sorted(name for name in names if not any(word in name for word in NO_TEXT_FONTS))
    return tuple(dict.fromkeys([*(name for name in PREFERRED_FONTS if name in names), *others]))


@functools.cache
def add_new_fonts() -> bool:
    """Tell matplotlib of fonts that were installed after it last listed the system's (its list lies in a
    cache for good)."""
    from matplotlib import font_manager

    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    new = {entry.fname for entry in font_manager.FontManager().ttflist} - known
    for file in sorted(new):
        font_manager.fontManager.addfont(file)
    return bool(new)


def _drawn_by(family: str, marks: set[str] | frozenset[str]) -> set[str]:
    from matplotlib import font_manager

    file = font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=False)
    font = font_manager.get_font(file)
    return {mark for mark in marks if font.get_char_index(ord(mark))}


def shown_names(names: Iterable[str], kind: str = "class", most: int = MAX_NAME) -> list[str]:
    """The names on one line each, shortened to `most` characters where they can still be told apart; an empty
    one becomes "class 3" (its number in the model's order; kind: that word)."""
    names = [one_line(name) for name in names]
    short = [_shortened(name, most) for name in names]
    shown = short if len(set(short)) == len(set(names)) else names
    return [name or f"{kind} {k}" for k, name in enumerate(shown)]


def _shortened(name: str, most: int) -> str:
    """A name without its middle: whole words at both ends, unless a word is too long for that."""
    if len(name) <= most:
        return name
    begin, last = re.fullmatch(r"(.*?)([^\s_-]*)", name).groups()
    begin = re.match(f"(.{{0,{max(0, most - 1 - len(last))}}}[\\s_-])?", begin)[0].rstrip()
    return f"{begin}…{last}" if begin and last else f"{name[:most - 13].rstrip()}…{name[-12:]}"


def fit_fonts(figure: "Figure", names: Sequence[str] = (), kind: str = "class") -> list[str]:
    """Give each text of a figure the families that draw all of them; once a run, a line where a font is
    missing.

    One of these names that cannot be drawn becomes "class 3", also where it is broken into lines; any other
    character "?".
    """
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    fonts, missing = fonts_for("".join(text.get_text() for text in texts))
    if fonts != [DEFAULT_FONT]:
        for text in texts:
            text.set_family(fonts)
    if not missing:
        return []
    whole, short = shown_names(names, kind, 10**6), shown_names(names, kind)
    lost = [k for k, name in enumerate(whole) if missing & set(name)]
    for text in texts:
        found = text.get_text()
        for k in lost:
            for form in (whole[k], short[k]):
                found = re.sub(r"\s*".join(map(re.escape, "".join(form.split()))), f"{kind} {k}", found)
        text.set_text("".join("?" if mark in missing else mark for mark in found))
    listed = ", ".join(f"{kind} {k} is {short[k]!r}" for k in lost[:10]) + (", …" if len(lost) > 10 else "")
    return missing_line(missing, listed)


def missing_line(missing: set[str], listed: str = "") -> list[str]:
    """The line about characters that no font has, the first time in a process; later, or where there are
    none, nothing."""
    if not missing or _told:
        return []
    east_asian = any(unicodedata.east_asian_width(mark) in "WF" for mark in missing)
    font, package = "one of the Noto fonts", "fonts-noto"
    if east_asian:
        font, package = "Noto Sans CJK", "fonts-noto-cjk"
    _told.append(f"no installed font can draw {len(missing)} characters of the charts' text"
                 + (f" ({listed})" if listed else "")
                 + f": install {font} (Debian and Ubuntu: apt-get install {package}; elsewhere, or without "
                   "root: put its file, from notofonts.github.io, into the user's folder of fonts, such as "
                   "~/.local/share/fonts)")
    return list(_told)


def one_line(text: str) -> str:
    """Without line breaks and control characters; what no XML holds (a file name can) becomes U+FFFD."""
    instead = {"Cc": " ", "Cf": "", "Cs": "\ufffd"}
    plain = "".join(instead.get(unicodedata.category(mark), mark) for mark in str(text))
    return " ".join(re.sub("[\ufffe\uffff]", "\ufffd", plain).split())
