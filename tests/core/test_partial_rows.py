"""Rows that a killed start left are taken as far as they are whole, and never where they are of something
else."""

import json

import numpy as np
import pytest

from util.core.errors import InputError, RunError
from util.core.partial_rows import PartialRows

ROWS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
KEY = {"checkpoint": "abc", "transform": {"mean": (0.5, 0.5)}}


@pytest.fixture
def written(tmp_path):
    """Two pieces, of 4 and 3 rows, as a start leaves them that is killed then."""
    partial = PartialRows(tmp_path / "p.csv", KEY)
    assert partial.open() == "" and partial.values().shape == (0, 0)
    partial.append(ROWS[:4])
    partial.mark("maps", 2)
    partial.append(ROWS[4:])
    partial._lock.close()
    return partial


def again(tmp_path, key=KEY):
    partial = PartialRows(tmp_path / "p.csv", key)
    return partial, partial.open()


def test_all_is_there_again(written, tmp_path):
    partial, line = again(tmp_path)
    assert (
        "7 are there from an earlier start" in line
        and partial.marked("maps") == 2
        and partial.marked("other") == 0
    )
    assert np.array_equal(partial.values(), ROWS)
    partial.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spoil", ["cut index", "cut data", "no data", "changed data",
                                   "data without its line"])
def test_what_is_cut_or_damaged_is_computed_again(written, tmp_path, spoil):
    data, index = written.data, written.index
    content, lines = data.read_bytes(), index.read_bytes()
    left = 4
    if spoil == "cut index":
        index.write_bytes(lines[:-5])
    elif spoil == "cut data":
        data.write_bytes(content[:-5])
    elif spoil == "no data":
        data.unlink()
        left = 0
    elif spoil == "changed data":
        data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        data.write_bytes(content + b"half a piece")
        left = 7
    partial, line = again(tmp_path)
    assert partial.rows == left and np.array_equal(partial.values(),
                                                   ROWS[:left].reshape(left, -1) if left else
                                                   np.empty((0, 0), np.float32))
    assert ("was cut or damaged" in line) == (spoil in ("cut data", "changed data"))
    partial.append(ROWS[left:])
    partial._lock.close()
    assert np.array_equal(again(tmp_path)[0].values(), ROWS)


def test_rows_of_other_weights_are_not_taken(written, tmp_path):
    partial, line = again(tmp_path, KEY | {"checkpoint": "other"})
    assert partial.rows == 0 and "is of other checkpoint: begun anew" in line


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"no json\n", b"[1]\n"])
def test_an_index_that_is_none(written, tmp_path, content):
    written.index.write_bytes(content)
    partial, line = again(tmp_path)
    assert partial.rows == 0 and "is not readable: begun anew" in line
    assert json.loads(partial.index.read_text())["depends_on"]["checkpoint"] == "abc"


def test_two_starts_on_one_output(written, tmp_path):
    first, _ = again(tmp_path)
    with pytest.raises(InputError, match="another start is writing"):
        again(tmp_path)
    first.remove()
    assert again(tmp_path)[1] == ""


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    with pytest.raises(RunError, match="can't be written"):
        PartialRows(tmp_path / "gone" / "p.csv", KEY).open()
