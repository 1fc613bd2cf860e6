"""util/data/images/reading_pass.py: a launch opens each file once and decodes it as rarely as is right; the
next one not at all; what comes out is what each reader finds alone."""

import threading
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFile

import jobs.train
from jobs.data import fundus_sheet
from tests.data.images.test_files import write_tiff
from tests.drawn_fields import draw_field, draw_scan
from util.core.errors import RunError
from util.data.images import files, reading_pass
from util.data.images.as_shown import Reading
from util.data.images.cache import Filling, Kept, open_cache
from util.data.images.files import ImageSource
from util.data.images.fundus_fields import Fields
from util.data.images.reading_pass import read_images
from util.data.images.scan import ImageFacts
from util.data.leakage.fingerprints import Fingerprints
from util.data.leakage.near_duplicates import fingerprint

SIDE = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train, val and test of two classes: photographs with a field as JPEG, PNG and TIFF."""
    place, number = tmp_path_factory.mktemp("once"), 0
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (place / split / name).mkdir(parents=True)
            for ending in ("jpg", "jpg", "png", "tif"):
                Image.fromarray(draw_field(number,
                                           "plain")[0]).save(place / split / name / f"{number}.{ending}")
                number += 1
    return place


@pytest.fixture
def count(monkeypatch):
    """Files that were opened and decoded from here on, by name: Counter of each."""
    opened, decoded, lock = Counter(), Counter(), threading.Lock()
    plain_content, plain_decode, plain_load = (
        files._content,
        files.simplejpeg.decode_jpeg,
        ImageFile.ImageFile.load,
    )
    now = threading.local()  # which file a thread has opened

    def content(path):
        now.path = path
        with lock:
            opened[path] += 1
        return plain_content(path)

    def decode(*arguments, **options):
        with lock:
            decoded[now.path] += 1
        return plain_decode(*arguments, **options)

    def load(image):
        with lock:
            # empty once it is loaded
            decoded[getattr(now, "path", "what the test draws")] += bool(image.tile)
        return plain_load(image)
    monkeypatch.setattr(files, "_content", content)
    monkeypatch.setattr(files.simplejpeg, "decode_jpeg", decode)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    return opened, decoded


@pytest.mark.parametrize("crop", ["off", "auto"])
def test_a_launch_reads_every_file_once_and_the_next_one_none(folder, start, count, monkeypatch, crop):
    """With the check, the cache, the fingerprints and (auto) the fields, until the first epoch would
    begin."""
    monkeypatch.setattr(jobs.train, "_train", lambda job: None)
    monkeypatch.setattr(fundus_sheet, "report", lambda *arguments: [])  # a sheet of 24 images, for people
    opened, decoded = count
    words = ("--nb_classes", 2, "--image_cache", "cache", "--cache_size", SIDE, "--fundus_crop", crop,
             "--epochs", 1)
    code, out, err = start(*words, "--task", "one", data=folder)
    assert code == 0, err
    assert "24 decoded once" in out and "(24 images, " in out
    paths = [str(path) for path in folder.glob("*/*/*.*")]
    assert opened == dict.fromkeys(paths, 1)
    twice = {path for path in paths if decoded[path] == 2}
    assert set(decoded) == set(paths) and set(decoded.values()) <= {1, 2}
    # a JPEG's field is looked for at a scale of its own, where that isn't the cache's
    assert 0 < len(twice) < 12 and {path[-4:] for path in twice} == {".jpg"} if crop == "auto" else not twice
    opened.clear()
    code, out, err = start(*words, "--task", "two", data=folder)
    assert code == 0 and "24 found decoded" in out and "(24 images, " in out, err
    assert not opened
    code, out, err = start(*words[:-2], "--epochs", 1, "--task", "three", "--leakage", "off", "--cache_size",
                           150, data=folder)
    assert code == 0 and "24 decoded once" in out and opened == dict.fromkeys(paths, 1), err


def test_what_the_readers_find_is_what_each_finds_alone(folder, tmp_path):
    paths = sorted(str(path) for path in folder.glob("train/*/*"))
    Image.fromarray(draw_scan(1)).save(tmp_path / "scan.jpg")
    Image.new("RGB", (700, 600), (3, 3, 3)).save(tmp_path / "flat.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(draw_field(90, "plain")[0][:, :600]).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(draw_field(91, "plain")[0]).convert("L").save(tmp_path / "grey.png")
    paths += [str(tmp_path / name) for name in ("scan.jpg", "flat.jpg", "turned.jpg", "grey.png")]
    for shown in (True, False):
        fields, prints, facts = Fields(None, shown), Fingerprints(None), ImageFacts(None)
        kept = Kept(SIDE, "scaled", Reading(shown=shown), "auto", fields=fields)
        filling = Filling(tmp_path / f"c{shown}", kept, print)
        assert read_images([(fields, paths), (filling, paths), (prints, paths), (facts, paths)], 2) == []
        cache = open_cache(tmp_path / f"c{shown}", paths, kept, 1, print, fill=False)
        alone = ImageFacts(None)
        read_images([(alone, paths)], 1)
        assert np.array_equal(facts.of(paths), alone.of(paths)) and len(facts.of(paths)) == len(paths)
        for path, found, entry in zip(paths, prints.of(paths), facts.of(paths), strict=True):
            assert fields(path) == Fields(None, shown)(path)
            assert np.array_equal(cache(path).part(),
                                  Kept(SIDE, "scaled", Reading(shown=shown), "auto").pixels(path))
            plain = fingerprint(path)
            assert np.abs(plain["thumbnail"].astype(int) - found["thumbnail"]).mean() <= 1
            assert path != paths[-3] or np.array_equal(plain, found)  # the flat one is compared by equality
            assert (entry["width"], entry["height"]) == ImageSource(path).size


def test_deep_files_are_added_once_the_range_of_all_is_known(tmp_path, count):
    opened, _ = count
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    for number in range(3):
        write_tiff(tmp_path / f"deep{number}.tif", ramp >> (2 * number), 1)
        Image.fromarray(draw_field(number, "plain")[0]).save(tmp_path / f"{number}.png")
    paths = sorted(str(path) for path in tmp_path.glob("*.*"))
    filling, lines = Filling(tmp_path / "c", Kept(SIDE, "scaled"), print, final=False), []
    assert read_images([(filling, paths), (ImageFacts(None), paths)], 1) == []
    assert (filling.count, filling.left) == (3, 3) and opened == dict.fromkeys(paths, 1)
    settled = Kept(SIDE, "scaled", Reading(bits=12))
    cache = open_cache(tmp_path / "c", paths, settled, 1, lines.append, filled=filling)
    assert opened == {path: 2 if path.endswith("tif") else 1 for path in paths} and cache.has.all()
    assert "6 decoded once" in lines[0] and lines[0].endswith(
        "; 3 of more than 8 bits were read again, over the range of all"
    )
    for path in paths:
        assert np.array_equal(cache(path).part(), settled.pixels(path))
    # of 12 bits: over its own 10 it would be white
    assert cache(str(tmp_path / "deep1.tif")).part().max() == 64


def test_an_interrupted_pass_keeps_what_was_learnt(folder, tmp_path, monkeypatch, count):
    """The first group is taken, then Ctrl-C: of a million files the rest has not even begun."""
    monkeypatch.setattr(reading_pass, "GROUP", 2)
    paths = sorted(str(path) for path in folder.glob("*/*/*"))
    plain, opened = Fingerprints.take, count[0]

    def interrupted(self, *arguments):
        plain(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Fingerprints, "take", interrupted)

    def readers():
        fields = Fields(tmp_path / "fields.npy")
        filling = Filling(tmp_path / "c", Kept(SIDE, "scaled", fundus_crop="auto", fields=fields), print)
        memories = fields, filling, ImageFacts(tmp_path / "facts.npy"), Fingerprints(tmp_path / "prints.npy")
        return [(reader, paths) for reader in memories]
    with pytest.raises(KeyboardInterrupt):
        read_images(readers(), 1)
    assert len(opened) <= 2 * (reading_pass.IN_FLIGHT + 1)
    assert all(list(reader.lacks(paths)) == [False] * 2 + [True] * 22
               for reader, _ in readers()[:1] + readers()[2:])
    assert sum(readers()[1][0].lacks(paths)) == 22
    monkeypatch.undo()
    read_images(readers(), 1)
    assert not any(reader.lacks(paths).any() for reader, _ in readers())


def test_bad_files_reach_no_reader(folder, tmp_path):
    good = sorted(str(path) for path in folder.glob("test/a/*"))
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(next(path for path in folder.glob("test/a/*.jpg")).read_bytes()[:-2000])
    paths = [good[0], str(cut), *good[1:], str(tmp_path / "absent.png")]
    prints, facts, filling = (
        Fingerprints(None),
        ImageFacts(None),
        Filling(tmp_path / "c", Kept(SIDE, "scaled"), print),
    )
    bad = read_images([(filling, paths), (prints, paths), (facts, paths)], 2)
    assert [path for path, _ in bad] == [str(cut), paths[-1]] and "truncated" in bad[0][1]
    assert len(facts.of(paths)) == filling.count == 4 and (prints.of(paths)["width"] > 0).sum() == 4
    with pytest.raises(RunError, match="cut.jpg"):
        open_cache(tmp_path / "c", paths, Kept(SIDE, "scaled"), 1, print)
