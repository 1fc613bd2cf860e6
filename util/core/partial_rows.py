"""Rows of numbers that take long to compute, kept on the disk piece by piece: where a launch was killed, the
next one takes them from there.

FILE.partial holds the rows as they are, little-endian float32, one after the other. FILE.partial.index says
in its first line what they depend on, and in a line a piece how many rows it has, how wide they are, and a
digest of their bytes. A piece counts once its line is whole and its digest is right, so that neither a cut
piece nor a damaged one is taken.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from util.core.disk import append_whole, writing
from util.core.errors import InputError
from util.core.run_files import write_whole
from util.core.run_lock import try_lock

FORMAT = 1
NUMBERS = np.dtype("<f4")


class PartialRows:
    """The rows of one output file on their way; one process writes them.

    output: the file that will be made of them; depends_on: plain values by name, all that the rows depend on.
    Rows of other values are thrown away by `open`, which says so.
    """

    def __init__(self, output: str | os.PathLike, depends_on: dict) -> None:
        output = Path(output)
        self.data, self.index = (output.with_name(output.name + end)
                                 for end in (".partial", ".partial.index"))
        self.depends_on = json.loads(json.dumps(depends_on))  # as it is read back: tuples are lists
        self.rows = self.width = 0
        self._marks: dict[str, int] = {}
        self._lock: BinaryIO | None = None

    def open(self) -> str:
        """Find out what an earlier launch left -> a line about it, or ''.

        InputError where another launch is writing the same output, RunError where the files can't be
        written.
        """
        with writing(self.data, again="start again"):
            # held as long as rows are added; the system frees it
            self._lock = open(self.data, "ab")  # noqa: SIM115
            # lockf's would be lost where append_whole closes the file
            if not try_lock(self._lock, fcntl.flock):
                raise InputError(f"another start is writing {self.data}: wait for its end, or name another "
                                 "--output")
            found = self._read_index()
            before = found[0].get("depends_on") if found and found[0].get("format") == FORMAT else None
            if before != self.depends_on:
                self.data.write_bytes(b"")
                write_whole(self.index, _line({"format": FORMAT, "depends_on": self.depends_on}).decode())
                return self._why_anew(before) if found else ""
            kept = self._check(found[1:])
            with open(self.data, "ab") as file:
                file.truncate(self.rows * self.width * NUMBERS.itemsize)
            write_whole(self.index, b"".join(map(_line, [found[0], *kept])).decode())
        dropped = " (what stood behind them was cut or damaged)" if len(kept) < len(found) - 1 else ""
        return f"{self.rows:,} are there from an earlier start ({self.data}){dropped}" if self.rows else ""

    def _read_index(self) -> list[dict]:
        """The whole lines of the index; [] where there is none."""
        if not self.index.exists():
            return []
        found = []
        with contextlib.suppress(ValueError, TypeError):  # up to the first line that is none of ours
            # every line ends in \n: one without was cut
            for line in self.index.read_bytes().split(b"\n")[:-1]:
                found.append(dict(json.loads(line)))
        return found or [{}]

    def _check(self, lines: list[dict]) -> list[dict]:
        """Those of the index's lines whose rows are there, up to the first that is not right."""
        kept = []
        with open(self.data, "rb") as file:
            for line in lines:
                if "mark" in line:
                    self._marks[line["mark"]] = line["count"]
                    kept.append(line)
                    continue
                content = file.read(line["rows"] * line["width"] * NUMBERS.itemsize)
                if _digest(content) != line["digest"] or self.width not in (0, line["width"]):
                    break
                self.rows, self.width = self.rows + line["rows"], line["width"]
                kept.append(line)
        return kept

    def _why_anew(self, before: dict | None) -> str:
        differing = [] if before is None else [name for name in sorted({*before, *self.depends_on})
                                               if before.get(name) != self.depends_on.get(name)]
        why = f"of other {', '.join(differing)}" if differing else "not readable"
        return f"{self.data} of an earlier start is {why}: begun anew"

    def append(self, values: np.ndarray) -> None:
        """Add rows (n, W) and flush them to the disk. RunError where it is full."""
        content = np.ascontiguousarray(values, NUMBERS).tobytes()
        with writing(self.data, again="start again"):
            append_whole(self.data, content)
            append_whole(self.index, _line({"rows": len(values), "width": values.shape[1],
                                            "digest": _digest(content)}))
        self.rows, self.width = self.rows + len(values), values.shape[1]

    def mark(self, name: str, count: int) -> None:
        """Write down how far something else has come; `marked` reads it, also in a later launch."""
        with writing(self.data, again="start again"):
            append_whole(self.index, _line({"mark": name, "count": count}))
        self._marks[name] = count

    def marked(self, name: str) -> int:
        return self._marks.get(name, 0)

    def values(self) -> np.ndarray:
        """All rows so far, (N, W) float32, mapped from the disk."""
        if not self.rows:
            return np.empty((0, self.width), NUMBERS)
        return np.memmap(self.data, NUMBERS, "r", shape=(self.rows, self.width))

    def remove(self) -> None:
        """Delete both files, once the output is written. The index first: rows without it count for
        nothing."""
        with writing(self.data, again="start again"):
            self.index.unlink(missing_ok=True)
            self.data.unlink(missing_ok=True)
            self._lock.close()


def _line(content: dict) -> bytes:
    return (json.dumps(content) + "\n").encode()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
