"""Files that strangers made: read as data, or refused in one line; nothing in them is ever run."""

import argparse
import os
import pickle
import random
import struct
import zipfile

import pytest
import torch

from util.core.errors import InputError
from util.weights.fitting import load_file, read_weights


class Mark:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Harmless:
    pass


def refused(path):
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrap", [
    lambda mark: {"model": {"w": torch.ones(2)}, "args": mark},
    lambda mark: mark,
    lambda mark: {"model": {"w": torch.ones(2), "x": [mark]}},
    lambda mark: argparse.Namespace(lr=mark),
])
def test_hostile_files_are_refused_and_run_nothing(tmp_path, wrap):
    mark, path = tmp_path / "mark", tmp_path / "hostile.pth"
    torch.save(wrap(Mark(mark)), path)
    assert "refused, and nothing in it was run" in refused(path)
    path.write_bytes(pickle.dumps(wrap(Mark(mark))))  # a plain pickle, as torch's oldest files begin
    refused(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Mark(mark)))
    assert mark.exists()  # the same object does leave its mark where it is run


def test_unknown_classes_are_named(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "thing": Harmless()}, tmp_path / "x.pth")
    assert "Harmless" in refused(tmp_path / "x.pth")


def test_namespace_of_the_original_scripts_is_read(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 4,
                "args": argparse.Namespace(lr=0.1, model="RETFound_mae")}, tmp_path / "x.pth")
    file = read_weights(tmp_path / "x.pth")
    assert file.arguments == {"lr": 0.1, "model": "RETFound_mae"} and file.rest == {"epoch": 4}


@pytest.mark.parametrize("content, says", [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
    (b"just some text", "damaged"),
    (random.Random(3).randbytes(4096), ""),  # some are damaged pickles, some look like a refused one
    (random.Random(4).randbytes(4096), ""),
])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_what_is_no_weight_file(tmp_path, content, says, name):
    (tmp_path / name).write_bytes(content)
    assert says in refused(tmp_path / name)


def test_cut_files(tmp_path):
    torch.save({f"w{i}": torch.randn(100, 100) for i in range(5)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for share in (0.01, 0.3, 0.9, 0.999):
        (tmp_path / "cut.pth").write_bytes(whole[: int(len(whole) * share)])
        assert "damaged" in refused(tmp_path / "cut.pth")


def test_safetensors_with_a_lying_header(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    assert "no safetensors file" in refused(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "no safetensors file" in refused(tmp_path / "x.safetensors")


def test_places_that_are_no_files(tmp_path):
    assert "is a folder" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "nothing.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "damaged" in refused(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "content, says",
    [
        ([1, 2], "holds a list"),
        ({}, "holds no tensors"),
        ({"model": {}}, "no tensors"),
        ({"a": 1}, "'a' is a int"),
        ({"module.w": torch.ones(1), "w": torch.ones(1)}, "two tensors for w"),
    ],
)
def test_files_without_weights(tmp_path, content, says):
    torch.save(content, tmp_path / "x.pth")
    assert says in refused(tmp_path / "x.pth")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "net.", "backbone.",
                                     "module._orig_mod.",
                                     "_orig_mod.module.", "model.backbone.", "model.net."])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_what_wraps_a_model_is_taken_off_its_names(tmp_path, wrapper, key):
    tensors = {"blocks.0.model.weight": torch.ones(1), "head.bias": torch.zeros(1)}
    content = {wrapper + name: tensor for name, tensor in tensors.items()}
    torch.save({key: content, "epoch": 3} if key else content, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth").tensors.keys() == tensors.keys()


def test_old_format_is_read(tmp_path):
    torch.save({"w": torch.arange(3.0)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load_file(tmp_path / "old.pth")["w"], torch.arange(3.0))
