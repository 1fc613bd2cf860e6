"""The first sheet of an .xlsx workbook as rows of text, read with the standard library.

One public data set keeps its labels in such workbooks; a package for that alone would have to be installed by
everybody. The format is ECMA-376 part 1 (SpreadsheetML): a zip of XML files, texts shared in one of them,
cells named "B7".
"""

import re
import zipfile
from pathlib import PurePosixPath
from xml.etree import ElementTree

from util.core.errors import InputError

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_LINK = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


def read_first_sheet(path) -> list[list[str]]:
    """A workbook -> its first sheet's rows from row 1, each as long as its last filled cell; empty cells are
    "".

    Numbers stay as the file writes them ("0", "1.5"), formulas give the value that was stored with them.
    Raises InputError for a file that is no such workbook.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            texts = _shared_texts(archive)
            sheet = ElementTree.fromstring(archive.read(_first_sheet(archive)))
        return _rows(sheet, texts)
    except (OSError, zipfile.BadZipFile, KeyError, IndexError, ValueError, ElementTree.ParseError) as error:
        raise InputError(f"{path}: not a workbook that can be read ({error}); save it as .xlsx") from error


def _shared_texts(archive) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    return [_text(item) for item in ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))]


def _first_sheet(archive) -> str:
    """The first sheet's place in the archive: workbook.xml gives the order, a second file says where each one
    lies."""
    workbook = ElementTree.fromstring(archive.read("xl/workbook.xml"))
    key = workbook.find(f"{_MAIN}sheets")[0].get(_LINK)
    places = {link.get("Id"): link.get("Target")
              for link in ElementTree.fromstring(archive.read("xl/_rels/workbook.xml.rels"))}
    return str(PurePosixPath("xl") / places[key]).removeprefix("/")


def _rows(sheet, texts: list[str]) -> list[list[str]]:
    rows = []
    for row in sheet.iter(f"{_MAIN}row"):
        number = int(row.get("r", len(rows) + 1))
        rows += [[] for _ in range(number - len(rows))]
        for cell in row:
            column = _column(cell.get("r")) if cell.get("r") else len(rows[-1])
            rows[-1] += [""] * (column + 1 - len(rows[-1]))
            rows[-1][column] = _value(cell, texts)
    return rows


def _column(name: str) -> int:
    """ "A7" -> 0, "AB3" -> 27."""
    column = 0
    for letter in re.match(r"[A-Z]+", name)[0]:
        column = 26 * column + ord(letter) - ord("A") + 1
    return column - 1


def _value(cell, texts: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return _text(cell)
    value = cell.findtext(f"{_MAIN}v") or ""
    return texts[int(value)] if cell.get("t") == "s" and value else value


def _text(element) -> str:
    """All runs of a text; what is read out above it (phonetic hints) is left out."""
    phonetic = {run for hint in element.iter(f"{_MAIN}rPh") for run in hint.iter(f"{_MAIN}t")}
    return "".join(run.text or "" for run in element.iter(f"{_MAIN}t") if run not in phonetic)
