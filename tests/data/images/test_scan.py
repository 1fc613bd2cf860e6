"""util/data/images/scan.py: what the check of all files finds, and how the files of a data set are read
together."""

import os

import numpy as np
import pytest

from tests.data.images.test_files import damaged_files, smooth
from util.data.images.as_shown import Facts
from util.data.images.files import ImageFile
from util.data.images.reading_pass import read_images
from util.data.images.scan import ImageFacts


def test_check_images_finds_exactly_the_bad_ones_in_order(tmp_path, capfd):
    good = []
    for number in range(140):
        good.append(str(tmp_path / f"good{number}.{'jpg' if number % 2 else 'png'}"))
        smooth(40, 40).save(good[-1])
    bad = damaged_files(tmp_path)
    paths = good[:70] + list(bad) + good[70:]
    found = read_images([(ImageFacts(None), paths)], workers=3)
    assert [path for path, _ in found] == list(bad) and all(reason for _, reason in found)
    assert capfd.readouterr().err == ""  # no bar outside a terminal


def decoded(monkeypatch):
    """A list to which every file that is decoded from here on is added."""
    files, plain = [], ImageFile.facts
    monkeypatch.setattr(ImageFile, "facts", lambda file: files.append(file.path) or plain(file))
    return files


def test_only_new_and_changed_files_are_checked_again(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{number}.png") for number in range(5)]
    for path in paths:
        smooth(20, 20).save(path)
    bad = str(tmp_path / "bad.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    known_file = str(tmp_path / "out" / "known.npy")
    assert len(read_images([(ImageFacts(known_file), [*paths, bad])], 2)) == 1
    files = decoded(monkeypatch)
    assert [path for path, _ in read_images([(ImageFacts(known_file), [*paths, bad])], 2)] == [bad]
    assert files == [bad]
    files.clear()
    os.utime(paths[2], ns=(1, 1))
    smooth(20, 20).save(str(tmp_path / "new.png"))
    read_images([(ImageFacts(known_file), [*paths, str(tmp_path / "new.png")])], 2)
    assert sorted(files) == [paths[2], str(tmp_path / "new.png")]
    assert np.load(known_file).dtype == ImageFacts.dtype
    assert os.listdir(tmp_path / "out") == ["known.npy"]
    known = ImageFacts(known_file)
    known.take([str(tmp_path / "absent.png")], [Facts()])
    known.save()
    assert known.lacks([str(tmp_path / "absent too.png")])[0]


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\x01\x00", None],
                         ids=["empty", "junk", "cut", "floats"])
def test_an_unusable_memory_is_said_and_written_anew(tmp_path, content):
    known_file, picture = tmp_path / "known.npy", str(tmp_path / "a.png")
    smooth(20, 20).save(picture)
    if content is None:
        np.save(known_file, np.zeros(3))
    else:
        known_file.write_bytes(content)
    known = ImageFacts(str(known_file))
    assert str(known_file) in known.note
    assert read_images([(known, [picture])], 1) == []
    again = ImageFacts(str(known_file))
    assert again.note == "" and not again.lacks([picture])[0]
