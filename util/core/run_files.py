"""The text files of a run: rows of metrics, the log, tables of predictions; written whole, cut where a run
resumes."""

import csv
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from util.core.disk import replacing
from util.core.errors import InputError

Columns = Sequence[str]
PIECE = 200  # rows of a table of predictions that a thread writes at a time: some 2 ms


def write_predictions(table: pd.DataFrame, path: str | os.PathLike,
                      rest: Callable[[float], object] | None = None) -> None:
    """Write the table as CSV (UTF-8), whole or not at all; floats get as many digits as reading them back
    needs. rest: called between pieces with the seconds that a thread should rest, so that it takes a tenth of
    the interpreter's time."""
    size, pieces = len(table) if rest is None else PIECE, []
    for start in range(0, max(1, len(table)), max(1, size)):
        began = time.perf_counter()
        # Text is always quoted: minimal quoting forgets the carriage return, which file names may hold.
        pieces.append(table[start:start + size].to_csv(index=False, header=start == 0, lineterminator="\n",
                                                       quoting=csv.QUOTE_NONNUMERIC))
        if rest is not None:
            rest(9 * (time.perf_counter() - began))
    write_whole(path, "".join(pieces))


def append_metrics_row(path: str | os.PathLike, metrics: dict[str, float], columns: Columns,
                       epoch: int | None = None) -> None:
    """Add one evaluation to a metrics CSV, metrics under the names of `columns` (val_loss is the metric
    loss); a new file gets that header first. epoch None leaves its cell empty.

    A last line without its line end (a run that died while writing) is dropped, and so is an earlier row of
    the same epoch (one that died after writing). InputError where the file has another header.
    """
    values = [epoch if column == "epoch" else metrics[column.removeprefix("val_")] for column in columns]
    cells = ["" if value is None else str(int(value)) if isinstance(value, int | np.integer)
             else repr(float(value)) for value in values]
    lines = _metrics_lines(path, columns) or [_line(columns)]
    lines = lines[:1] + [line for line in lines[1:] if cells[0] == "" or line.split(",")[0] != cells[0]]
    write_whole(path, "".join([*lines, _line(cells)]))


def _line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def write_metrics_json(path: str | os.PathLike, metrics: Mapping[str, float | dict]) -> None:
    """Write {metric: {"value", "lower", "upper", …}}, whole or not at all; NaN becomes null.

    metrics: values, whose bounds are null, or entries of util/metrics/intervals.py.
    """
    def entry(value: float | dict) -> dict:
        parts = value if isinstance(value, dict) else {"value": value, "lower": None, "upper": None}
        return {name: None if isinstance(part, float) and math.isnan(part) else part
                for name, part in parts.items()}

    figures = {name: entry(value) for name, value in metrics.items()}
    write_whole(path, json.dumps(figures, indent=2, allow_nan=False) + "\n")


def read_metrics_json(path: str | os.PathLike) -> dict[str, dict]:
    """What write_metrics_json wrote, null as NaN in value, lower and upper. InputError for another file."""
    entries = {}
    for name, entry in read_object(path).items():
        if not isinstance(entry, dict) or "value" not in entry:
            raise InputError(f"{path}: {name} has no value; this program writes "
                             '{"value", "lower", "upper"}')
        try:
            entries[name] = entry | {part: math.nan if entry.get(part) is None else float(entry[part])
                                     for part in ("value", "lower", "upper")}
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {name} is no number ({error})") from error
    return entries


def read_object(path: str | os.PathLike, *needed: str) -> dict:
    """A JSON file of a run, such as run.json. InputError where it is not there, was cut, or is no object with
    the objects `needed`."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): the run was cut, or the file is damaged") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object: an object is expected, as this program writes it")
    for name in needed:
        if not isinstance(content.get(name), dict):
            raise InputError(f"{path} holds no {name}: it is not this program's")
    return content


def read_log(path: str | os.PathLike) -> tuple[list[dict], int]:
    """The epochs of log.txt, by number, and how many lines are none; ([], 0) where there is no file."""
    rows, bad = [], 0
    for line in _text_of(path).split("\n"):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            row = line
        epoch = row.get("epoch") if isinstance(row, dict) else None
        is_epoch = isinstance(epoch, int | float) and math.isfinite(epoch)
        rows += [row] if is_epoch else []
        bad += row is not None and not is_epoch
    return sorted(rows, key=lambda row: row["epoch"]), bad


def cut_rows_after(path: str | os.PathLike, epoch: int, columns: Columns) -> None:
    """Drop the rows of a metrics CSV that are past an epoch, so that a resumed run writes each epoch once.

    Rows without an epoch stay, a line without its line end goes. A missing file is fine. Raises InputError
    for another header or a row that doesn't fit it.
    """
    def stays(line: str, number: int) -> bool:
        cells = line.rstrip("\r\n").split(",")  # numbers alone, so no cell is quoted
        try:
            if len(cells) != len(columns):
                raise ValueError(f"{len(cells)} cells for {len(columns)} columns")
            return cells[0] == "" or float(cells[0]) <= epoch
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; mend or remove that line") from error

    lines = _metrics_lines(path, columns)
    kept = lines[:1] + [line for number, line in enumerate(lines[1:], 2) if stays(line, number)]
    _rewrite_if_changed(path, kept)


def cut_log_after(path: str | os.PathLike, epoch: int) -> None:
    """The same for log.txt, one JSON object with "epoch" a line; a last line that is cut short goes.

    Lines without an epoch stay. A missing file is fine. Raises InputError for a line in the middle that is no
    JSON object.
    """
    def stays(line: str, number: int) -> bool:
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), (int, float, type(None))):
                raise ValueError("no JSON object with a number as its epoch")
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; mend or remove that line") from error
        return entry.get("epoch") is None or entry["epoch"] <= epoch

    lines = _whole_lines(_text_of(path))
    _rewrite_if_changed(path, [line for number, line in enumerate(lines, 1) if stays(line, number)])


def has_columns(path: str | os.PathLike, columns: Columns) -> bool:
    """Whether a metrics CSV has this header, so that a row can be added; also where there is no file, or one
    that was cut inside its header."""
    text, header = _text_of(path), _line(columns).rstrip("\n")
    lines = _whole_lines(text)
    return lines[0].rstrip("\r\n") == header if lines else header.startswith(text)


def _metrics_lines(path: str | os.PathLike, columns: Columns) -> list[str]:
    """Header and rows with their line ends; [] for a file that is missing, empty, or cut short inside its
    header."""
    if not has_columns(path, columns):
        raise InputError(f"{path}: has other columns than this program writes ({_line(columns).strip()}); "
                         "move that file away or choose another --task")
    return _whole_lines(_text_of(path))


def _text_of(path: str | os.PathLike) -> str:
    if not Path(path).exists():
        return ""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read()


def _whole_lines(text: str) -> list[str]:
    """The lines that have their line end: every line is written with it, so one without was cut short."""
    return [line + "\n" for line in text.split("\n")[:-1]]  # splitlines would also cut at U+2028 and others


def _rewrite_if_changed(path: str | os.PathLike, lines: list[str]) -> None:
    text = "".join(lines)
    if text != _text_of(path):
        write_whole(path, text)


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Write to a temporary name, then rename, so that nobody ever reads half a file."""
    # surrogateescape: file names on Linux are bytes, and those that are not UTF-8 must survive too
    with (replacing(path) as temporary,
          open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file):
        file.write(text)
