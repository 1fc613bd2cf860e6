"""Pictures decoded once: the same samples, shared, made anew where anything changed, done without where there is no room."""

import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from util import image_cache
from util.datasets import ImageDataset, read_folder
from util.errors import RunError
from util.image_cache import kept_side, make_cache
from util.images import ImageSource
from util.transforms import EvalTransform, TrainTransform, eval_settings, train_settings

MEAN, STD = (0.5,) * 3, (0.25,) * 3


@pytest.fixture
def photographs(tmp_path):
    """Six smooth pictures with grain, of several sizes and formats."""
    rng = np.random.default_rng(0)
    for number in range(6):
        coarse = Image.fromarray(rng.integers(40, 210, (6, 9, 3), dtype=np.uint8))
        size = (900 + 60 * number, 600 + 50 * number)
        fine = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) + rng.normal(0, 6, (size[1], size[0], 3))
        path = tmp_path / "photos" / "train" / "ab"[number % 2] / f"{number}.{'jpg' if number < 4 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return read_folder(str(tmp_path / "photos"), ("train",)).table


def cached(table, folder, side, lines=None):
    return make_cache(folder, list(table["path"]), side, 2, (lines if lines is not None else []).append)


def test_kept_side():
    assert kept_side(224, (0.8, 1.0), (3 / 4, 4 / 3)) == 392  # evaluation wants more than the smallest crop
    assert kept_side(224, (0.08, 1.0), (3 / 4, 4 / 3)) == 915  # 224 / sqrt(0.08 * 0.75)


def test_pictures_kept_whole_give_the_same_bits(photographs, tmp_path):
    cache = cached(photographs, tmp_path / "c", 5000)
    train = TrainTransform(train_settings(64, MEAN, STD, "full"))
    samples = [ImageDataset(photographs, photographs["target"].to_numpy(), train, 0, source=source) for source in (None, cache)]
    assert all(torch.equal(samples[0][3, place][0], samples[1][3, place][0]) for place in range(6))


def grey_levels(one, other):
    return np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean()


@pytest.mark.parametrize("scale", [(0.8, 1.0), (0.08, 1.0)])
def test_pictures_kept_smaller_differ_by_less_than_one_can_see(photographs, tmp_path, scale):
    """Evaluation, and the smallest crops that training can draw, from kept pictures and from the files themselves."""
    cache = cached(photographs, tmp_path / "c", kept_side(96, scale, (3 / 4, 4 / 3)))
    evaluate = EvalTransform(eval_settings(96, MEAN, STD, "full"))
    for path in photographs["path"]:
        difference = (evaluate(path) - evaluate(cache(path))).abs().mean().item()
        assert difference * STD[0] * 255 <= 2.0
        whole, kept = ImageSource(path).decode_scaled()[0], cache(path).decode_scaled()[0]
        share = np.sqrt(scale[0] * 3 / 4)  # of the short side
        crops = []
        for image in (whole, kept):
            edge = share * min(image.size)
            left, top = 0.2 * image.width, 0.1 * image.height
            crops.append(image.resize((96, 96), Image.Resampling.BICUBIC, box=(left, top, left + edge, top + edge)))
        assert grey_levels(*crops) <= 2.0


def test_a_second_start_finds_it_and_a_changed_picture_does_not(photographs, tmp_path):
    lines = []
    first = cached(photographs, tmp_path / "c", 300, lines)
    assert "decoded once" in lines[0] and min(first(photographs["path"][0]).size) == 300
    cached(photographs, tmp_path / "c", 300, lines)
    assert "found decoded" in lines[1]
    first.file.write_bytes(first.file.read_bytes()[:-1])  # cut
    cached(photographs, tmp_path / "c", 300, lines)
    os.utime(photographs["path"][0])
    other = cached(photographs, tmp_path / "c", 300, lines)
    assert "decoded once" in lines[2] and "decoded once" in lines[3] and other.file != first.file
    assert not list((tmp_path / "c").glob(".*.partial"))


def test_workers_that_are_not_forked_map_the_file_themselves(photographs, tmp_path):
    cache = cached(photographs, tmp_path / "c", 300)
    packed = pickle.dumps(cache)
    assert len(packed) < 5000
    path = photographs["path"][2]
    assert np.array_equal(pickle.loads(packed)(path).decode_scaled()[0], cache(path).decode_scaled()[0])


def test_without_room_pictures_are_read_from_their_files(photographs, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5))
    assert cached(photographs, tmp_path / "c", 300, lines) is None and "GiB free" in lines[0]
    monkeypatch.undo()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_cache.os, "fsync", full)
    assert cached(photographs, tmp_path / "c", 300, lines) is None and "No space left" in lines[1]
    assert not list((tmp_path / "c").iterdir())


def test_a_picture_that_is_gone_is_named(photographs, tmp_path):
    with open(photographs["path"][1], "wb") as file:
        file.write(b"no picture")
    with pytest.raises(RunError, match="cannot be read any more"):
        cached(photographs[["path"]].iloc[[1, 0]], tmp_path / "c", 300)
