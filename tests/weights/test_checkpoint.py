"""Checkpoints are whole or absent, hold data alone, and say who can go on from them."""

import random

import numpy as np
import pytest
import torch

from util.core import disk
from util.core.errors import InputError, RunError
from util.weights import checkpoint
from util.weights.fitting import load_file

CPU = torch.device("cpu")


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint-last.pth"
    checkpoint.write(path, {"model": {"w": torch.ones(3)}})
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device.*the checkpoint before it stays"):
        checkpoint.write(path, {"model": {"w": torch.zeros(3)}})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["checkpoint-last.pth"]


def test_torn_files_of_dead_processes_are_removed(tmp_path):
    import os

    (tmp_path / ".checkpoint-last.pth.999999999.tmp").write_bytes(b"half")
    mine = tmp_path / f".checkpoint-last.pth.{os.getpid()}.tmp"
    mine.write_bytes(b"being written")
    checkpoint.remove_torn(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]


def test_random_states_survive_the_disk(tmp_path):
    states = checkpoint.random_states(CPU)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    checkpoint.write(tmp_path / "x.pth",
                     {"model": {"w": torch.ones(1)}, "states": checkpoint.plain([states])})
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    checkpoint.set_random_states(load_file(tmp_path / "x.pth")["states"][0], CPU)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


@pytest.mark.parametrize("rest, says", [
    ({}, "was not written by this program"),
    ({"format": 1, "options": {}, "class_names": ["a"]}, "holds the model alone"),
    ({"format": 99, "options": {}, "optimizer": {}}, "newer version"),
])
def test_who_can_go_on_from_it(tmp_path, rest, says):
    checkpoint.write(tmp_path / "x.pth", {"model": {"w": torch.ones(1)}, **rest})
    with pytest.raises(InputError, match=says):
        checkpoint.require_resumable(checkpoint.read(tmp_path / "x.pth"))


@pytest.mark.parametrize("word", ["IMAGENET", "imagenet", "anything", "0.5"])
def test_norm_said_nothing_before_it_had_a_meaning(tmp_path, word):
    settings = {"kind": "eval", "input_size": 32, "resize": 36, "mean": [0.1] * 3, "std": [0.2] * 3,
                "decode": "full"}
    content = {"model": {"w": torch.ones(1)}, "format": 1, "options": {"norm": word}, "class_names": ["a"]}
    checkpoint.write(tmp_path / "x.pth", content | {"transform": {"eval": settings}})
    assert checkpoint.read(tmp_path / "x.pth").rest["options"]["norm"] == "backbone"
    checkpoint.write(tmp_path / "x.pth", content | {"transform": {"eval": settings | {"reduced": "colour"}}})
    if word in ("anything", "0.5"):
        with pytest.raises(InputError, match="'norm'"):
            checkpoint.read(tmp_path / "x.pth")
    else:
        assert checkpoint.read(tmp_path / "x.pth").rest["options"]["norm"] == word


def test_only_data_goes_in():
    assert checkpoint.plain({"a": (1, np.float64(2.5), None), 3: np.int64(4)}) == {
        "a": [1, 2.5, None],
        "3": 4,
    }
    with pytest.raises(TypeError):
        checkpoint.plain({"a": object()})
