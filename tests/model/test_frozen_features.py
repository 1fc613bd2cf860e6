"""Features and tokens on the disk: found again, whole or not at all."""

import numpy as np
import pytest
import torch

from util.core.errors import RunError
from util.model.frozen_features import stored_features, token_file
from util.parallel.processes import World

ROWS, COLUMNS, TOKENS = 7, 3, (4, 2)


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(ROWS, COLUMNS + 8)).astype(np.float32)


@pytest.fixture
def world(capsys):
    return World(device=torch.device("cpu"))


def pieces(rows):
    return lambda: iter([rows[:5], rows[5:]])


def never():
    raise AssertionError("computed again")


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_both_are_found_again(tmp_path, world, rows):
    path = tmp_path / "f" / "a.npy"
    features, tokens, found = stored_features(path, ROWS, pieces(rows), world, COLUMNS, TOKENS)
    assert not found and tokens.dtype == np.float16 and isinstance(tokens, np.memmap)
    np.testing.assert_array_equal(features, rows[:, :COLUMNS])
    np.testing.assert_allclose(tokens.reshape(ROWS, 8), rows[:, COLUMNS:], rtol=1e-3, atol=1e-4)
    again = stored_features(path, ROWS, never, world, COLUMNS, TOKENS)
    assert again[2]
    np.testing.assert_array_equal(again[1], tokens)
    assert stored_features(path, ROWS, never, world, COLUMNS)[1] is None
    assert left(path.parent) == ["a.npy", "a.tokens.npy"]


@pytest.mark.parametrize("rows_of_file, tokens", [(ROWS + 1, TOKENS), (ROWS, (2, 4))])
def test_others_of_the_same_name_are_computed_again(tmp_path, world, rows, rows_of_file, tokens):
    path = tmp_path / "a.npy"
    stored_features(path, ROWS, pieces(rows), world, COLUMNS, TOKENS)
    calls = []
    stored_features(path, rows_of_file,
                    lambda: calls.append(1) or iter([np.resize(rows, (rows_of_file, 11))]), world, COLUMNS,
                    tokens)
    assert calls


def test_tokens_that_do_not_fit_are_left_out_and_said(tmp_path, world, rows, capsys):
    rows[6, COLUMNS] = 1e6
    features, tokens, _ = stored_features(tmp_path / "a.npy", ROWS, pieces(rows), world, COLUMNS, TOKENS)
    assert tokens is None and len(features) == ROWS and left(tmp_path) == ["a.npy"]
    assert "(some are beyond float16's largest number): no attentive head is tried" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path, world, rows, capsys):
    (tmp_path / "f").write_text("a file")
    features, tokens, _ = stored_features(tmp_path / "f/a.npy", ROWS, pieces(rows), world, COLUMNS, TOKENS)
    assert tokens is None and len(features) == ROWS
    said = capsys.readouterr().out
    assert "tokens can't be kept in" in said and "features can't be kept in" in said


def test_nothing_half_written_is_left(tmp_path, world, rows):
    def fails():
        yield rows[:5]
        raise RunError("an image is gone")

    with pytest.raises(RunError, match="gone"):
        stored_features(tmp_path / "a.npy", ROWS, fails, world, COLUMNS, TOKENS)
    assert left(tmp_path) == []
    # no process has such a number
    (tmp_path / ".a.tokens.npy.4194305.tmp").write_bytes(b"of a start that was killed")
    rows[0, 0] = np.nan
    with pytest.raises(RunError, match="NaN or infinite"):
        stored_features(tmp_path / "a.npy", ROWS, pieces(rows), world, COLUMNS, TOKENS)
    assert left(tmp_path) == []
    assert token_file(tmp_path / "a.npy").name == "a.tokens.npy"
