"""A CSV file -> the columns that are asked for, as text, and complaints that name the line of the file.

Read with python's csv module: it keeps every cell as it is written ("01" stays "01") and knows the line of
each row, and a million rows take it a few seconds.
"""
import csv
import errno
import itertools
import os
import re
import stat

import pandas as pd

from util.core.errors import InputError, one_line

MOST_REPEATED = 10_000  # different texts of a column that are kept once each
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


def read_columns(csv_file, columns, flags=None, ragged=False, optional=(), exact=None):
    """CSV -> ([the cells of a column] for each of `columns`, blanks trimmed; the line of each row; the
    separator).

    columns: their names, or a function from all names of the header to those that are wanted.
    Separated by comma, semicolon or tab, whichever splits the header into most names, or as a first line
    `sep=;` says; UTF-8, or UTF-16 with its mark.
    Blank rows are passed over. flags: {column: the flag that names it}, for the message about one that is not
    there.
    exact: a column whose blanks are kept (names of files: see `file_names`). ragged: rows may lack empty
    cells at their end, or have more of them, as spreadsheets save them. optional: those of `columns` that may
    be absent; all their cells are "" then.
    Raises InputError: no file, not text, no or a repeated column, an uneven row, no row.
    """
    line = 1
    try:
        _require_file(csv_file)
        with open(csv_file, "rb") as stream:
            encoding = "utf-16" if stream.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with open(csv_file, newline="", encoding=encoding) as stream:
            header = stream.readline()
            if "\0" in header:
                raise _holds_nul(csv_file, line)
            declared = re.fullmatch(r'"?sep=(.)"?', header.rstrip("\r\n"))  # Excel's own first line
            above = 1 if declared else 0  # lines before the header
            separator = declared[1] if declared else max(SEPARATORS, key=lambda mark: _names_in(header, mark))
            stream.seek(0)
            if declared:
                stream.readline()
            reader = csv.reader(stream, delimiter=separator, strict=True)
            names = [name.strip() for name in next(reader, [])]
            columns = columns(names) if callable(columns) else columns
            present = [column for column in columns if column in names or column not in optional]
            picks = _positions(csv_file, names, present, flags or {})
            cells, lines = [[] for _ in present], []
            # one object for equal texts: labels and splits are repeated a million times
            known = [{} for _ in present]
            line = reader.line_num + 1 + above  # where the next row begins: a quoted cell may hold line ends
            for row in reader:
                if "\0" in "".join(row):
                    raise _holds_nul(csv_file, line)
                if ragged and not any(row[len(names):]):
                    row = row[:len(names)] + [""] * (len(names) - len(row))
                if not any(row):
                    pass
                elif len(row) == len(names):
                    for name, column, pick, same in zip(present, cells, picks, known, strict=True):
                        text = row[pick] if name == exact else row[pick].strip()
                        column.append(same.setdefault(text, text)
                                      if len(same) < MOST_REPEATED else same.get(text, text))
                    lines.append(line)
                else:
                    raise InputError(
                        f"{csv_file}, line {line}: {len(row)} columns where the header has {len(names)}; "
                        "a name that holds the separator needs quotes"
                    )
                line = reader.line_num + 1 + above
    except UnicodeError:
        raise InputError(f"{csv_file}, line {_undecodable_line(csv_file)}: not UTF-8; save it as CSV "
                         "UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{csv_file}, line {line}: {error}; mend the quotes of that row or of those above "
                         "it") from None
    except OSError as error:
        raise InputError(f"--csv_file {csv_file}: {error.strerror.lower()}") from None
    if not lines:
        raise InputError(f"{csv_file}: no row below the header")
    if len(present) < len(columns):
        read = dict(zip(present, cells, strict=True))
        cells = [read.get(column) or [""] * len(lines) for column in columns]
    return cells, lines, separator


def _names_in(header, separator):
    try:
        return len(next(csv.reader([header], delimiter=separator), []))
    except csv.Error:
        return 0  # one name of more letters than csv takes: not this separator


def _require_file(csv_file):
    """OSError for a pipe, which would wait for its writer, and for a device, which may never end."""
    status = os.stat(csv_file)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # `open` says it of a folder
        raise OSError(errno.EINVAL, "a pipe, socket or device, no file: write it to a file first")


def _holds_nul(csv_file, line):
    return InputError(f"{csv_file}, line {line}: holds NUL bytes, as UTF-16 without its mark or a damaged "
                      "file does; save it as CSV UTF-8")


def _undecodable_line(csv_file):
    with open(csv_file, "rb") as stream:
        for line, text in enumerate(stream, 1):
            if "\ufffd" in text.decode("utf-8", "replace"):
                return line
    return "?"


def _positions(csv_file, names, columns, flags):
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
    return [names.index(column) for column in columns]


def refuse_empty(csv_file, column, cells, lines):
    """InputError when a cell of the column holds nothing."""
    if "" in cells:
        empty = [line for line, cell in zip(lines, cells, strict=True) if not cell]
        raise InputError(f"{csv_file}: column {column} is empty in {len(empty)} rows: line {some(empty)}")


def refuse_unknown(csv_file, column, cells, lines, known):
    """InputError when a cell, in lower case, is none of `known`."""
    unknown = {cell for cell in set(cells) if cell.lower() not in known}
    if unknown:
        wrong = [f"line {line} {cell}" for line, cell in zip(lines, cells, strict=True) if cell in unknown]
        raise InputError(
            f"{csv_file}: column {column} takes {some(known)}; other values in {len(wrong)} rows: "
            f"{some(wrong)}"
        )


# What stands for a missing value, in any case: in every column but that of classes, where "none" is a grade.
MISSING = {"", "na", "n/a", "nan", "null", "none", "unknown", "unk", "missing", "?", "-"}


def is_missing(cell):
    return cell.lower() in MISSING


def refuse_two_spellings(csv_file, column, cells):
    """InputError for "1" beside "1.0" or "01", "P1" beside "p1": one class, or one patient, would count as
    two."""
    spellings = {}
    for cell in sorted(set(cells)):
        key = float(cell) if re.fullmatch(r"[+-]?\d+(\.0*)?", cell) else cell.casefold()
        spellings.setdefault(key, []).append(cell)
    twice = [(key, " and ".join(found)) for key, found in spellings.items() if len(found) > 1]
    if twice:
        what = "number" if isinstance(twice[0][0], float) else "value"
        raise InputError(f"{csv_file}: column {column} writes one {what} in two ways: "
                         f"{some([text for _, text in twice])}; use one")


def patients_of(csv_file, column, cells):
    """A column of patients with "" where none is known, and a line about those. InputError for one in two
    spellings."""
    patients = ["" if is_missing(cell) else cell for cell in cells]
    refuse_two_spellings(csv_file, column, [patient for patient in patients if patient])
    lacking = patients.count("")
    return patients, [f"{csv_file}: {lacking:,} of {len(cells):,} rows name no patient in column {column}: "
                      "each counts for itself"] if lacking else []


def refuse_repeated(csv_file, paths, lines, columns):
    """InputError for an image that stands there twice: in two splits it would be tested on what it taught.

    columns: {what the message says when the image's rows differ in it: cells}.
    """
    # normpath takes microseconds a path, and few paths need it
    plain = [os.path.normpath(path) if "./" in path or "//" in path else path for path in paths]
    pictures = joined(os.path.abspath(os.path.dirname(csv_file)), plain)
    again = pd.Series(pictures).duplicated(keep=False)
    rows_of = {}
    for row in again.index[again]:
        rows_of.setdefault(pictures[row], []).append(row)
    for what, cells in [*columns.items(), ("twice", lines)]:
        wrong = [rows for rows in rows_of.values() if len({cells[row] for row in rows}) > 1]
        if wrong:
            first = " and ".join(str(lines[row]) for row in wrong[0])
            raise InputError(
                f"{csv_file}: {len(wrong)} images stand there {what}, the first on lines {first} "
                f"({paths[wrong[0][0]]}); keep one row an image"
            )


def refuse_absent(csv_file, paths, lines):
    """InputError when files are not there. A folder is listed once: quicker than to look a million files
    up."""
    rows_of, absent, hint = {}, [], ""
    for row, path in enumerate(paths):
        rows_of.setdefault(path[: path.rfind("/") + 1], []).append(row)  # with its last slash: "" is not "/"
    for folder, rows in rows_of.items():
        names = _file_names(folder or ".")  # of one folder at a time: a million names take 100 MB
        lacking = [row for row in rows if paths[row][len(folder):] not in names]
        if lacking and not hint:
            hint = _hint(paths[lacking[0]][len(folder):], names)
        absent += lacking
    absent = [f"line {lines[row]} {_shown(paths[row])}" for row in sorted(absent)]
    if absent:
        slashes = ", folders are parted by /" if any("\\" in text for text in absent[:5]) else ""
        raise InputError(f"{csv_file}: {len(absent)} of {len(paths)} files are not there: {some(absent)}; "
                         f"relative paths start at the CSV's folder{slashes}{hint}")


def _shown(path):
    """A path in quotes where blanks stand at an end of it or of a folder's name."""
    return repr(path) if any(part != part.strip() for part in path.split("/")) else path


def _hint(name, names):
    """What may have been meant by the name of a file that is not there."""
    if len(endings := {other[len(name):] for other in names if other.startswith(f"{name}.")}) == 1:
        ending = endings.pop()
        return f"; {name}{ending} is there: --path_suffix {ending} adds the ending"
    other = next((other for other in names if other.casefold() == name.casefold()
                  or os.path.splitext(other)[0] == os.path.splitext(name)[0]), None)
    return f"; {other} is there" if other else ""


def _file_names(folder):
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()  # no such folder: its files are reported as absent, with their lines


def joined(folder, paths):
    """os.path.join of a folder and each path, in a fraction of the time where no path is absolute."""
    if any(map(os.path.isabs, paths)):
        return [os.path.join(folder, path) for path in paths]
    folder = os.path.join(folder, "")
    return [folder + path for path in paths]


def located(csv_file, paths):
    """Paths of a table that says where files are: from its folder, else from the working directory or a
    folder above the table, wherever the first one is (predictions_test.csv has the paths that were typed when
    the run was started)."""
    home = os.path.dirname(os.path.abspath(csv_file))
    above = [home]
    while os.path.dirname(above[-1]) != above[-1]:
        above.append(os.path.dirname(above[-1]))
    for folder in (os.path.dirname(csv_file), "", *above[1:]):
        if os.path.isfile(os.path.join(folder, paths[0])):
            return joined(folder, paths) if folder else list(paths)
    return joined(os.path.dirname(csv_file), paths)


def file_names(csv_file, cells, suffix=""):
    """Names of files as their cells say: without the blanks around them, unless the file's name has them;
    with an ending that the table leaves out."""
    home = os.path.dirname(csv_file)
    return [(cell if cell == (plain := cell.strip())
             or os.path.isfile(os.path.join(home, cell + suffix)) else plain)
            + (suffix if plain else "") for cell in cells]


def some(names, most=5):
    """The first names in one line, and how many more there are."""
    names = list(names)
    listed = ", ".join(one_line(str(name)) for name in itertools.islice(names, most))
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")
