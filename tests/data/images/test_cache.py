"""Images decoded once: the same samples, shared, made anew where anything changed, done without where there
is no room."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from util.core.errors import RunError
from util.data.dataset import ImageDataset
from util.data.images import cache as image_cache
from util.data.images import cache_choice
from util.data.images.cache import Kept, KeptSource, default_side, lossless_side, open_cache
from util.data.images.files import ImageSource
from util.data.images.scan import ImageFacts
from util.data.images.transforms import EvalTransform, TrainTransform, eval_settings, train_settings
from util.data.tables import read_folder
from util.options.data import ImageOptions

MEAN, STD = (0.5,) * 3, (0.25,) * 3


@pytest.fixture
def photographs(tmp_path):
    """Six smooth images with grain, of several sizes and formats."""
    rng = np.random.default_rng(0)
    for number in range(6):
        coarse = Image.fromarray(rng.integers(40, 210, (6, 9, 3), dtype=np.uint8))
        size = (900 + 60 * number, 600 + 50 * number)
        fine = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) + rng.normal(
            0, 6, (size[1], size[0], 3)
        )
        path = tmp_path / "photos" / "train" / "ab"[number % 2] / f"{number}.{'jpg' if number < 4 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return read_folder(str(tmp_path / "photos"), ("train",)).table


def cached(table, folder, side, lines=None, decode="scaled"):
    return open_cache(folder, list(table["path"]), Kept(side, decode), 2,
                      (lines if lines is not None else []).append)


def test_the_side_that_pictures_are_kept_at():
    ratio = (3 / 4, 4 / 3)
    # evaluation wants more
    assert lossless_side(224, (0.8, 1.0), ratio) == default_side(224, (0.8, 1.0), ratio) == 392
    assert lossless_side(224, (0.08, 1.0), ratio) == 915  # 224 / sqrt(0.08 * 0.75)
    assert default_side(224, (0.08, 1.0), ratio) == 512


@pytest.mark.parametrize("decode", ["full", "scaled"])
@pytest.mark.parametrize("side", [5000, 200])
def test_the_cache_changes_no_bit(photographs, tmp_path, decode, side):
    """An image that the cache lacks is brought to the same size, to the same numbers, whenever it is read."""
    cache = cached(photographs, tmp_path / "c", side, decode=decode)
    settings = (
        train_settings(64, MEAN, STD, decode, ImageOptions(cache_size=side)),
        eval_settings(64, MEAN, STD, decode, kept=side),
    )
    for transform in (TrainTransform(settings[0]), EvalTransform(settings[1])):
        samples = [ImageDataset(photographs, photographs["target"].to_numpy(), transform, 0, source=source)
                   for source in (None, cache)]
        assert isinstance(cache(samples[0].path(0)), KeptSource)
        assert all(torch.equal(samples[0][3, place][0], samples[1][3, place][0]) for place in range(6))


def grey_levels(one, other):
    return np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean()


@pytest.mark.parametrize("scale", [(0.8, 1.0), (0.08, 1.0)])
def test_pictures_kept_smaller_differ_by_less_than_one_can_see(photographs, tmp_path, scale):
    """Evaluation, and the smallest crops that training can draw, from kept images and from the files
    themselves."""
    cache = cached(photographs, tmp_path / "c", lossless_side(96, scale, (3 / 4, 4 / 3)))
    evaluate = EvalTransform(eval_settings(96, MEAN, STD, "full"))
    for path in photographs["path"]:
        difference = (evaluate(path) - evaluate(cache(path))).abs().mean().item()
        assert difference * STD[0] * 255 <= 2.0
        whole, kept = ImageSource(path).decode(), cache(path).decode()
        share = np.sqrt(scale[0] * 3 / 4)  # of the short side
        crops = []
        for image in (whole, kept):
            edge = share * min(image.size)
            left, top = 0.2 * image.width, 0.1 * image.height
            crops.append(image.resize((96, 96), Image.Resampling.BICUBIC,
                                      box=(left, top, left + edge, top + edge)))
        assert grey_levels(*crops) <= 2.0


def test_a_second_start_finds_it_and_adds_what_is_new(photographs, tmp_path):
    lines, folder = [], tmp_path / "c"
    few = photographs.iloc[:4]
    first = cached(few, folder, 300, lines)
    where = folder / "300-scaled-2-colour-shown"
    assert lines == [f"images     4 decoded once to {where} (short side at most 300, 2 MiB in all)"]
    assert min(first(few["path"][0]).size) == 300 and first(photographs["path"][5]) == photographs["path"][5]
    cached(few, folder, 300, lines)
    assert "4 found decoded" in lines[1]
    all_of_them = cached(photographs, folder, 300, lines)
    assert "2 decoded once" in lines[2] and all_of_them.has.all()
    os.utime(photographs["path"][0])
    cached(photographs, folder, 300, lines)
    assert "1 decoded once" in lines[3]
    cached(few, folder, 200, lines)
    assert "4 decoded once" in lines[4]
    assert not list(folder.glob("*/.*.partial"))


def test_a_damaged_segment_is_made_anew(photographs, tmp_path):
    lines, folder = [], tmp_path / "c" / "300-scaled-2-colour-shown"
    for damage in (lambda pixels, index: pixels.write_bytes(pixels.read_bytes()[:-1]), lambda pixels,
                   index: index.unlink(),
                   lambda pixels, index: index.write_bytes(b"no index"), lambda pixels,
                   index: pixels.unlink()):
        cached(photographs, tmp_path / "c", 300, lines)
        damage(next(folder.glob("*.pixels")), next(folder.glob("*.npy")))
        (folder / ".abc.partial").write_bytes(b"left by a start that was killed")
        cache = cached(photographs, tmp_path / "c", 300, lines)
        assert "6 decoded once" in lines.pop() and cache.has.all() and len(list(folder.glob("*.pixels"))) == 1
        assert not (folder / ".abc.partial").exists()
        assert np.array_equal(cache(photographs["path"][1]).part(),
                              Kept(300, "scaled").pixels(photographs["path"][1]))


def test_segments(photographs, tmp_path, monkeypatch):
    # two of the larger ones, or somewhat more
    monkeypatch.setattr(image_cache, "SEGMENT_BYTES", 2 * 3 * 150 * 216)
    cache = cached(photographs, tmp_path / "c", 150)
    assert len(list((tmp_path / "c").glob("*/*.pixels"))) == 3
    for path in photographs["path"]:
        assert np.array_equal(cache(path).part((3, 4, 50, 60)), Kept(150, "scaled").pixels(path)[4:60, 3:50])


def test_workers_that_are_not_forked_map_the_file_themselves(photographs, tmp_path):
    cache = cached(photographs, tmp_path / "c", 300)
    packed = pickle.dumps(cache)
    assert len(packed) < 5000
    path = photographs["path"][2]
    assert np.array_equal(pickle.loads(packed)(path).part(), cache(path).part())


def test_without_room_pictures_are_read_from_their_files(photographs, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5))
    assert not cached(photographs, tmp_path / "c", 300, lines).has.any()
    assert "GiB are needed and" in lines[0] and "6 of 6 images are decoded whenever they are read" in lines[0]
    monkeypatch.undo()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    cached(photographs.iloc[:2], tmp_path / "c", 300, lines)
    monkeypatch.setattr(image_cache.os, "fsync", full)
    cache = cached(photographs, tmp_path / "c", 300, lines)
    assert "No space left" in lines[2] and "4 of 6 images" in lines[2] and cache.has.sum() == 2
    assert not list((tmp_path / "c").glob("*/.*.partial"))
    (tmp_path / "file").write_text("")
    assert not cached(photographs, tmp_path / "file", 300,
                      lines).has.any() and "directory" in lines[3].lower()


FILLER = """
import sys
from pathlib import Path
from util.data.dataset import ImageDataset
from util.data.images import cache as image_cache
plain = image_cache.kept_pixels
def slow(path, *how):
    print("decoding", flush=True)
    time.sleep(float(sys.argv[3]))
    return plain(path, *how)
import time
image_cache.kept_pixels = slow
image_cache.open_cache(Path(sys.argv[1]), sys.argv[4:], image_cache.Kept(int(sys.argv[2]), "scaled"), 1,
                       lambda line: print(line, flush=True))
"""


def filler(folder, seconds, paths):
    return subprocess.Popen([sys.executable, "-c", FILLER, str(folder), "300", str(seconds), *paths],
                            text=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])


@pytest.mark.long
def test_two_starts_fill_it_once_and_a_killed_one_leaves_nothing_behind(photographs, tmp_path):
    paths = list(photographs["path"])
    first = filler(tmp_path / "c", 60, paths)
    assert first.stdout.readline() == "decoding\n"
    second = filler(tmp_path / "c", 0, paths)
    assert "another start is filling" in second.stdout.readline()
    first.kill()
    first.wait()
    rest = second.communicate(timeout=60)[0].splitlines()
    assert rest.count("decoding") == 6 and "6 decoded once" in rest[-1] and second.returncode == 0
    assert sorted(file.suffix for file in (tmp_path / "c" / "300-scaled-2-colour-shown").iterdir()) == [
        "",
        ".npy",
        ".pixels",
    ]


def test_a_picture_that_is_gone_is_named(photographs, tmp_path):
    with open(photographs["path"][1], "wb") as file:
        file.write(b"no image")
    with pytest.raises(RunError, match="cannot be read any more"):
        cached(photographs[["path"]].iloc[[1, 0]], tmp_path / "c", 300)


def choice(photographs, tmp_path, passes):
    lines = []
    filling = image_cache.Filling(tmp_path / "output_dir" / ".pictures", Kept(200, "scaled"), lines.append)
    worth, said = cache_choice.worth_filling(filling, list(photographs["path"]), passes, 2, ImageFacts(None))
    assert lines == [] and list(tmp_path.glob("output_dir/**/*")) == []  # nothing is left behind
    return worth, said


def test_pictures_are_kept_where_that_saves_time_and_there_is_room(photographs, tmp_path, monkeypatch):
    (tmp_path / "output_dir").mkdir()
    assert choice(photographs, tmp_path, 1) == (False, [])  # read once
    worth, (line,) = choice(photographs, tmp_path, 3)
    assert not worth and "decoded in every epoch: keeping them decoded would save 0." in line
    worth, (line,) = choice(photographs, tmp_path, 100_000)
    assert worth and "kept decoded in" in line and "of 100000 epochs" in line
    monkeypatch.setattr(cache_choice, "free_of", lambda folder: (1000, None))
    worth, (line,) = choice(photographs, tmp_path, 100_000)
    assert not worth and "MiB, more than half of what is free" in line
    monkeypatch.undo()
    monkeypatch.setattr(cache_choice, "_seconds_of_writing", lambda pixels, folder: 10**6)
    worth, (line,) = choice(photographs, tmp_path, 100_000)
    assert not worth and "would take" in line
    monkeypatch.undo()

    def read_only(**arguments):
        raise OSError(30, "Read-only file system")
    monkeypatch.setattr(cache_choice.tempfile, "TemporaryFile", read_only)
    worth, (line,) = choice(photographs, tmp_path, 100_000)
    assert not worth and "(Read-only file system)" in line


def test_what_is_kept_already_is_used_and_bad_files_are_left_to_the_check(photographs, tmp_path):
    folder = tmp_path / "output_dir" / ".pictures"
    cached(photographs, folder, 200)
    filling = image_cache.Filling(folder, Kept(200, "scaled"), print)
    assert cache_choice.worth_filling(filling, list(photographs["path"]), 1, 2, ImageFacts(None)) == (True, [])
    assert cache_choice.worth_filling(filling, list(photographs["path"][:3]), 100, 2, ImageFacts(None)) == (True, [])
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    assert cache_choice.worth_filling(filling, [str(bad)], 100_000, 2, ImageFacts(None)) == (False, [])
