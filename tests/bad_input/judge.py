"""What a case's end is held to: one line, the right exit code, no trace of hostile content, no image lost in
silence."""

import os
import re
from pathlib import Path

import pandas as pd

from tests.bad_input.place import Ended, Place, started, started_for_real
from tests.bad_input.table import ACCEPTED, CODES, FAILED, REFUSED, SKIPPED, Case

NOBODY = 65534
SPLIT_COUNTS = re.compile(r"(?:train|val|test) ([\d,]+)")


def run_case(case: Case, place: Place, real: bool = False) -> Ended:
    """Make the case in its place and start its program there."""
    here = os.getcwd()
    os.chdir(place.folder)
    try:
        words = case.make(place)
        drops_rights = place.as_nobody and os.geteuid() == 0  # root may read everything
        if drops_rights:
            os.seteuid(NOBODY)
        try:
            if real:
                return started_for_real(case.program, words, place.folder, dict(case.environment))
            return started(case.program, words, dict(case.environment))
        finally:
            if drops_rights:
                os.seteuid(0)
    finally:
        os.chdir(here)


def judge(case: Case, place: Place, ended: Ended) -> None:
    """AssertionError unless the program did what the case's row says."""
    everything = ended.out + ended.err
    assert "Traceback" not in everything, everything[-3000:]
    assert "hidden_password" not in everything
    for mark in place.marks:
        assert not mark.exists(), f"content of the file was run: {mark}"
    assert ended.code == CODES[case.row.outcome], (ended.code, everything[-3000:])
    if case.row.outcome in (REFUSED, FAILED):
        line = [text for text in ended.err.split("\n") if text]
        assert len(line) == 1 and line[0].startswith("error: "), ended.err[-3000:]
        assert line[0].isprintable(), repr(line[0])
        said = line[0]
        assert len(said) < 2500, "too long to be read"
    else:
        said = everything
        assert "error" not in ended.err.lower(), ended.err[-3000:]
    if case.row.outcome == REFUSED:
        assert "epoch 0 (" not in ended.out
    assert case.row.pattern.search(said), (case.row.says, said[-3000:])
    for words in case.names:
        assert words in said, (words, said[-3000:])
    if case.row.outcome in (SKIPPED, ACCEPTED):
        _count(case, place)


def _count(case: Case, place: Place) -> None:
    """As many predictions as files that are not listed as skipped."""
    if place.skipped:
        lists = [*place.folder.glob("output_dir/*/skipped_images.csv"), *place.folder.glob("*.skipped.csv")]
        listed = list(pd.read_csv(lists[0])["path"]) if lists else []
        assert len(listed) == len(place.skipped), (listed, place.skipped)
        for end in place.skipped:
            assert any(path.endswith(end) for path in listed), (end, listed)
    if place.pictures is not None:
        tables = [*place.folder.glob("output_dir/*/predictions_test.csv"), *place.folder.glob("out.csv")]
        assert tables, "no predictions were written"
        assert len(pd.read_csv(tables[0])) == place.pictures, tables[0]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
