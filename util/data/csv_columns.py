"""A CSV file -> the columns that are asked for, as text, and complaints that name the line of the file.

Read with python's csv module: it keeps every cell as it is written ("01" stays "01") and knows the line of
each row, and a million rows take it a few seconds. A column is a Series of text whose index is the lines.
"""
import csv
import errno
import io
import itertools
import os
import re
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from util.core.errors import InputError, one_line
from util.data import splits as split_names

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


def read_columns(
    csv_file: str | os.PathLike,
    columns: Sequence[str] | Callable[[list[str]], Sequence[str]],
    flags: dict[str, str] | None = None,
    ragged: bool = False,
    optional: Collection[str] = (),
    exact: str | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """CSV -> (the cells of `columns` as text, blanks trimmed, a row a row of the file, with its line as the
    index; a line about the separator, where it is no comma).

    columns: their names, or a function from all names of the header to those that are wanted. Separated by
    comma, semicolon or tab, whichever splits the header into most names, or as a first line `sep=;` says;
    UTF-8, or UTF-16 with its mark. Blank rows are passed over. flags: {column: the flag that names it}, for
    the message about one that is not there. exact: a column whose blanks are kept (names of files: see
    `file_names`). ragged: rows may lack empty cells at their end, or have more of them, as spreadsheets save
    them. optional: those of `columns` that may be absent; all their cells are "" then. Raises InputError: no
    file, not text, no or a repeated column, an uneven row, no row.
    """
    text = _text_of(csv_file)
    declared = re.match(r'"?sep=(.)"?(\r\n?|\n|$)', text)  # Excel's own first line
    line = above = 1 if declared else 0  # lines before the header
    stream = io.StringIO(text[declared.end():] if declared else text, newline="")
    rows, lines = [], []
    try:
        header = stream.readline()
        separator = declared[1] if declared else max(SEPARATORS, key=lambda mark: _names_by(mark, header))
        stream.seek(0)
        reader = csv.reader(stream, delimiter=separator, strict=True)
        names = [name.strip() for name in next(reader, [])]
        columns = columns(names) if callable(columns) else columns
        places = _places(csv_file, names, [one for one in columns if one in names or one not in optional],
                         flags or {})
        line = reader.line_num + above
        for row in reader:
            if ragged and not any(row[len(names):]):
                row = row[:len(names)] + [""] * (len(names) - len(row))
            if any(row):
                if len(row) != len(names):
                    raise InputError(f"{csv_file}, line {line + 1}: {len(row)} columns where the header has "
                                     f"{len(names)}; a name that holds the separator needs quotes")
                # one object for equal texts: labels and splits are repeated a million times
                rows.append([row[place] if name == exact else sys.intern(row[place].strip())
                             for name, place in places.items()])
                lines.append(line + 1)
            line = reader.line_num + above  # before the next row: a quoted cell may hold line ends
    except csv.Error as error:
        raise InputError(f"{csv_file}, line {line + 1}: {error}; mend the quotes of that row or of those "
                         "above it") from None
    if not lines:
        raise InputError(f"{csv_file}: no row below the header")
    table = pd.DataFrame(rows, lines, list(places), dtype=object).reindex(columns=columns, fill_value="")
    return table, [] if separator == "," else [
        f"{csv_file}: columns are separated by {SEPARATORS.get(separator, separator)}"]


def _names_by(mark: str, header: str) -> int:
    """Into how many names a separator splits a header."""
    try:
        return len(next(csv.reader([header], delimiter=mark), []))
    except csv.Error:  # one name longer than the module takes
        return 1


def _text_of(csv_file: str | os.PathLike) -> str:
    """What stands in a file, InputError where it is no text. A pipe would wait for its writer, and a device
    may never end."""
    require_utf8([os.path.abspath(csv_file)])  # whose folder stands before the paths
    try:
        mode = os.stat(csv_file).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading says it of a folder
            raise OSError(errno.EINVAL, "a pipe, socket or device, no file: write it to a file first")
        content = Path(csv_file).read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{csv_file}, line {line}: not UTF-8; save it as CSV UTF-8") from None
    except OSError as error:
        raise InputError(f"--csv_file {csv_file}: {error.strerror.lower()}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{csv_file}, line {line}: holds NUL bytes, as UTF-16 without its mark or a damaged "
                         "file does; save it as CSV UTF-8")
    return text


def _places(csv_file: str | os.PathLike, names: list[str], columns: Sequence[str],
            flags: dict[str, str]) -> dict[str, int]:
    """Where each of the columns stands among the names of the header."""
    if not any(names):
        raise InputError(f"{csv_file}: empty; its first line must name the columns, among them "
                         f"{some(columns)}")
    for column in columns:
        if column not in names:
            there = some([name for name in names if name], 20)
            flag = f" ({flags[column]})" if column in flags else ""
            raise InputError(f"{csv_file}, line 1: no column {column}{flag}; there is {there}")
        if names.count(column) > 1:
            where = [str(number) for number, name in enumerate(names, 1) if name == column]
            raise InputError(f"{csv_file}, line 1: columns {' and '.join(where)} are both named {column}; "
                             "rename one")
    return {column: names.index(column) for column in columns}


def refuse_empty(csv_file: str, cells: pd.Series, remedy: str = "") -> None:
    """InputError when a cell of the column holds nothing."""
    empty = cells.index[cells == ""]
    if len(empty):
        raise InputError(f"{csv_file}: column {cells.name} is empty in {len(empty)} rows: line "
                         f"{some(empty)}{remedy}")


def refuse_unknown(csv_file: str, cells: pd.Series, known: Collection[str]) -> None:
    """InputError when a cell, in lower case, is none of `known`."""
    _refuse_words(csv_file, cells, cells.str.lower().isin(list(known)), known)


def _refuse_words(csv_file: str, cells: pd.Series, is_known: pd.Series, known: Collection[str]) -> None:
    unknown = cells[~is_known]
    if len(unknown):
        wrong = [f"line {line} {cell}" for line, cell in unknown.items()]
        raise InputError(f"{csv_file}: column {cells.name} takes {some(known, 7)}; other values in "
                         f"{len(wrong)} rows: {some(wrong)}")


def splits_of(csv_file: str, cells: pd.Series) -> pd.Series:
    """The splits that a column's cells mean (util/data/splits.py). InputError for other words."""
    found = {cell: split_names.split_of(cell) for cell in set(cells)}
    _refuse_words(csv_file, cells, cells.map(found).notna(), split_names.KNOWN)
    return cells.map(found)


UNLABELLED = ("", "na", "nan", "null")  # a label that --ignore_unlabeled takes for none, in any case
# What stands for a missing value, in any case: in every column but that of classes, where "none" is a grade.
MISSING = {"", "na", "n/a", "nan", "null", "none", "unknown", "unk", "missing", "?", "-"}


def is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def extreme_values(name: str, values: np.ndarray) -> list[str]:
    """A warning for one value, several times, that lies further from all others than they do from each other:
    -999, 9999."""
    values = values[np.isfinite(values)]
    lines = []
    for value in (values.min(), values.max()) if len(values) else ():
        others = values[values != value]
        if (count := np.count_nonzero(values == value)) < 2 or len(np.unique(others)) < 3:
            continue
        if np.abs(others - value).min() > np.ptp(others):
            lines.append(f"warning: {name} is {value:g} in {count:,} rows, far from all others "
                         f"({others.min():g} to {others.max():g}): if that stands for a missing value, leave "
                         "these cells empty")
    return lines


def missing_values(name: str, absent: pd.Series, splits: pd.Series, kind: str) -> list[str]:
    """A note where a column lacks values, by split. kind: what it is, and what is done about it."""
    if not absent.any():
        return []
    by_split = ", ".join(f"{split} {count:,} of {(splits == split).sum():,}"
                         for split, count in splits[absent].value_counts().items())
    return [f"{name} is missing in some rows ({by_split}): a missing {kind}"]


def refuse_two_spellings(csv_file: str, cells: pd.Series) -> None:
    """InputError for "1" beside "1.0" or "01", "P1" beside "p1": one class, or one patient, would count as
    two."""
    spellings = {}
    for cell in sorted(set(cells)):
        key = float(cell) if re.fullmatch(r"[+-]?\d+(\.0*)?", cell) else cell.casefold()
        spellings.setdefault(key, []).append(cell)
    twice = {key: " and ".join(found) for key, found in spellings.items() if len(found) > 1}
    if twice:
        what = "number" if isinstance(next(iter(twice)), float) else "value"
        raise InputError(f"{csv_file}: column {cells.name} writes one {what} in two ways: "
                         f"{some(twice.values())}; use one")


def patients_of(csv_file: str, cells: pd.Series) -> tuple[pd.Series, list[str]]:
    """A column of patients with "" where none is known, and a line about those. InputError for one in two
    spellings."""
    patients = cells.mask(cells.map(is_missing), "")
    refuse_two_spellings(csv_file, patients[patients != ""])
    lacking = (patients == "").sum()
    return patients, [f"{csv_file}: {lacking:,} of {len(cells):,} rows name no patient in column "
                      f"{cells.name}: each counts for itself"] if lacking else []


def refuse_repeated(csv_file: str, paths: pd.Series, columns: dict[str, pd.Series]) -> None:
    """InputError for an image that stands there twice: in two splits it would be tested on what it taught.

    columns: {what the message says when the image's rows differ in it: cells}.
    """
    # normpath takes microseconds a path, and few paths need it
    plain = [os.path.normpath(path) if "./" in path or "//" in path else path for path in paths]
    pictures = pd.Series(joined(os.path.abspath(os.path.dirname(csv_file)), plain), paths.index)
    again = pictures[pictures.duplicated(keep=False)]
    for what, cells in [*columns.items(), ("twice", paths.index.to_series())]:
        different = cells[again.index].groupby(again, sort=False).nunique() > 1
        if different.any():
            lines = again.index[again == different.idxmax()]
            raise InputError(f"{csv_file}: {different.sum()} images stand there {what}, the first on lines "
                             f"{' and '.join(map(str, lines))} ({paths[lines[0]]}); keep one row an image")


def refuse_absent(csv_file: str, paths: pd.Series) -> None:
    """InputError when files are not there. A folder is listed once: quicker than to look a million files
    up."""
    absent, hint = {}, ""
    folders = paths.map(lambda path: path[:path.rfind("/") + 1])  # with its last slash: "" is not "/"
    for folder, inside in paths.groupby(folders, sort=False):
        names = _file_names(folder or ".")  # of one folder at a time: a million names take 100 MB
        lacking = {line: path for line, path in inside.items() if path[len(folder):] not in names}
        if lacking and not hint:
            hint = _hint(next(iter(lacking.values()))[len(folder):], names)
        absent |= lacking
    if absent:
        shown = [f"line {line} {_shown(path)}" for line, path in sorted(absent.items())]
        slashes = ", folders are parted by /" if any("\\" in text for text in shown[:5]) else ""
        raise InputError(f"{csv_file}: {len(absent)} of {len(paths)} files are not there: {some(shown)}; "
                         f"relative paths start at the CSV's folder{slashes}{hint}")


def _shown(path: str) -> str:
    """A path in quotes where blanks stand at an end of it or of a folder's name."""
    return repr(path) if any(part != part.strip() for part in path.split("/")) else path


def _hint(name: str, names: Collection[str]) -> str:
    """What may have been meant by the name of a file that is not there."""
    if len(endings := {other[len(name):] for other in names if other.startswith(f"{name}.")}) == 1:
        ending = endings.pop()
        return f"; {name}{ending} is there: --path_suffix {ending} adds the ending"
    other = next((other for other in names
                  if other.casefold() == name.casefold()
                  or os.path.splitext(other)[0] == os.path.splitext(name)[0]), None)
    return f"; {other} is there" if other else ""


def _file_names(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()  # no such folder: its files are reported as absent, with their lines


def joined(folder: str | os.PathLike, paths: Iterable[str]) -> list[str]:
    """os.path.join of a folder and each path, in a fraction of the time where no path is absolute."""
    paths = list(paths)
    if any(map(os.path.isabs, paths)):
        return [os.path.join(folder, path) for path in paths]
    folder = os.path.join(folder, "")
    return [folder + path for path in paths]


def located(csv_file: str, paths: Sequence[str]) -> list[str]:
    """Paths of a table that says where files are: from its folder, else from the working directory or a
    folder above the table, wherever the first one is (predictions_test.csv has the paths that were typed at
    the run's launch)."""
    first, home = paths[0], os.path.dirname(csv_file)
    places = (home, "", *Path(os.path.abspath(csv_file)).parents[1:])
    place = next((place for place in places if os.path.isfile(os.path.join(place, first))), home)
    return joined(place, paths)


def file_names(csv_file: str, cells: pd.Series, suffix: str = "") -> pd.Series:
    """Names of files as their cells say: without the blanks around them, unless the file's name has them;
    with an ending that the table leaves out."""
    home = os.path.dirname(csv_file)

    def name_of(cell: str) -> str:
        plain = cell.strip()
        if cell != plain and os.path.isfile(os.path.join(home, cell + suffix)):
            plain = cell
        return plain and plain + suffix
    return cells.map(name_of)


def names_in_paths(paths: Sequence[str], expression: str, what: str, must_match: bool = True,
                   with_folder: bool = False) -> tuple[list[str], list[str]]:
    """What a regular expression with one group finds in each file's name, "" where it finds nothing, and a
    line about those.

    what: patient or case, of --patient_regex or --case_regex. with_folder: where a name says nothing, its
    folder and name are searched, FOLDER/NAME. Raises InputError where the expression is none, has another
    number of groups, or (with must_match) is found in no name.
    """
    flag = f"--{what}_regex"
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InputError(f"{flag} {expression}: no regular expression ({error}); such as "
                         f"'({what[0]}\\d+)_'") from error
    if pattern.groups != 1:
        raise InputError(f"{flag} {expression}: has {pattern.groups} groups, and one says the {what}: put it "
                         "into (), and other brackets as (?:)")
    names = [os.path.basename(path) for path in paths]
    found = [pattern.search(name) for name in names]
    if with_folder:
        found = [match or pattern.search("/".join(path.split(os.sep)[-2:]))
                 for match, path in zip(found, paths, strict=True)]
    said = [(match[1] or "") if match else "" for match in found]
    lacking = [name for name, text in zip(names, said, strict=True) if not text]
    if len(lacking) == len(names) and must_match:
        raise InputError(f"{flag} {expression}: found in none of {len(names):,} file names, such as "
                         f"{names[0]}: correct it, or leave it out")
    return said, [f"{flag}: {len(lacking):,} of {len(names):,} file names say no {what}, such as "
                  f"{lacking[0]}"] if lacking else []


def require_utf8(paths: Iterable[str]) -> None:
    """InputError for a name that no text file can hold."""
    try:
        "".join(paths).encode()
    except UnicodeEncodeError:
        wrong = next(path for path in paths if any("\ud800" <= letter <= "\udfff" for letter in path))
        name = os.fsencode(wrong).decode("utf-8", "backslashreplace")
        raise InputError(f"file name is not valid UTF-8: {name}; rename it") from None


def some(names: Iterable[object], most: int = 5) -> str:
    """The first names in one line, and how many more there are."""
    names = list(names)
    listed = ", ".join(one_line(str(name)) for name in itertools.islice(names, most))
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- a CSV with an image a row, and its split --------------------------------------------------------------

def read_images_csv(csv_file: str, path_col: str, split_col: str, patient_col: str | None,
                    others: dict[str, str],
                    path_suffix: str = "") -> tuple[pd.DataFrame, pd.Series, list[str]]:
    """-> (the cells as of `read_columns`, in the column of paths the files' names; the split of each row;
    notes). others: {column: the flag that names it}. Raises InputError."""
    flags = {path_col: "--path_col", split_col: "--split_col", patient_col: "--patient_col"} | others
    columns = [column for column in flags if column is not None]
    cells, notes = read_columns(csv_file, columns, flags, exact=path_col)
    cells[path_col] = file_names(csv_file, cells[path_col], path_suffix)
    for column in (path_col, split_col):
        refuse_empty(csv_file, cells[column])
    return cells, splits_of(csv_file, cells[split_col]), notes


def require_splits(csv_file: str, written: pd.Series, found: pd.Series, splits: Sequence[str],
                   after: str = "") -> None:
    """InputError where no row is left of one of `splits`. written: the column as it is; found: the splits of
    the rows that are left, after what."""
    there = set(map(split_names.plain, set(found)))
    absent = [split for split in splits if split not in there]
    if absent:
        raise InputError(f"{csv_file}: no row with {written.name} {some(absent)}{after}; there is "
                         f"{some(sorted(set(written)))}")
