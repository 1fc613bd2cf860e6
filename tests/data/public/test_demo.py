"""The drawn images: the same every time, true to their facts, and laid out as the main job reads them."""

import csv
import errno
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from tests.conftest import ROOT
from util.core.ending import exit_code_of
from util.core.errors import InputError
from util.data.public import demo as demo_data

SIZE = 96


def pixels(image):
    return np.asarray(image, np.float64)


def field_offsets(size):
    """x and y of every pixel in field radii, computed here a second time."""
    axis = (np.arange(size) - (size - 1) / 2) / (demo_data.FIELD_RADIUS * size)
    return np.meshgrid(axis, axis)


def files_of(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")
            if path.is_file()}


def table_of(folder):
    with open(folder / "demo.csv", newline="") as table:
        return list(csv.DictReader(table))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return demo_data.make_demo(tmp_path_factory.mktemp("demo") / "pictures", pictures=60, size=48, seed=3,
                               workers=1)


def test_same_seed_and_index_give_the_same_bytes_in_any_order():
    first = [demo_data.draw(5, index, SIZE) for index in (7, 8)]
    again = [demo_data.draw(5, index, SIZE) for index in (8, 7)][::-1]
    for (image, facts), (image_again, facts_again) in zip(first, again, strict=True):
        assert image.tobytes() == image_again.tobytes() and facts == facts_again
    assert first[0][0].tobytes() != first[1][0].tobytes()
    assert first[0][0].tobytes() != demo_data.draw(6, 7, SIZE)[0].tobytes()


def test_picture_is_a_round_bright_field_on_black():
    for index in range(6):
        picture = pixels(demo_data.draw(0, index, SIZE)[0])
        assert picture.shape == (SIZE, SIZE, 3)
        radius = np.hypot(*field_offsets(SIZE))
        assert picture[radius > 1.05].max() == 0
        assert picture[radius < 0.9].mean(axis=-1).min() > 10
        red, green, blue = picture[radius < 0.9].mean(axis=0)
        assert red > green > blue


def test_number_of_lesions_makes_the_grade():
    for grade, (fewest, most) in enumerate(demo_data.LESIONS_PER_GRADE):
        counts = {demo_data.plan(1, index, grade).facts()["lesion_count"] for index in range(60)}
        assert counts == set(range(fewest, most + 1))
    ranges = demo_data.LESIONS_PER_GRADE
    assert all(below[1] + 1 == above[0] for below, above in zip(ranges[:-1], ranges[1:], strict=True))


def test_lesion_area_and_count_are_what_the_picture_shows():
    size = 256
    for index in (2, 3, 4):
        drawn = demo_data.plan(0, index, grade=4)
        green = pixels(demo_data.render(drawn, 0, index, size))[..., 1]
        healthy = pixels(demo_data.render(replace(drawn, lesions=()), 0, index, size))[..., 1]
        changed = np.abs(green - healthy) > 0.4 * healthy + 1  # about half of what a lesion's middle changes
        field = math.pi * (demo_data.FIELD_RADIUS * size) ** 2
        assert 100 * changed.sum() / field == pytest.approx(drawn.facts()["lesion_area"], rel=0.15)
        assert spots(changed) == drawn.facts()["lesion_count"]


def spots(mask):
    """Connected regions of a boolean mask: every pixel takes the least label around it until nothing
    changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.where(np.pad(mask, 1), np.pad(labels, 1), mask.size + 1)
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        spread = np.where(mask, around.min(axis=(2, 3)), 0)
        if np.array_equal(spread, labels):
            return len(np.unique(labels)) - 1
        labels = spread


def test_lesion_area_formula_is_the_integral_over_the_outline():
    lesion = demo_data.plan(0, 0, grade=4).lesions[0]
    angle = np.linspace(0, 2 * np.pi, 20000, endpoint=False)
    outline = lesion.radius * (1 + lesion.depth * np.cos(lesion.lobes * angle + lesion.phase))
    assert lesion.area() == pytest.approx(np.mean(outline**2 / 2) * 2 * np.pi, rel=1e-6)


def test_lesions_are_apart_off_the_disc_and_inside_the_evaluation_crop():
    for index in range(40):
        drawn = demo_data.plan(2, index, grade=4)
        for number, lesion in enumerate(drawn.lesions):
            assert 0.03 <= lesion.radius <= 0.07
            widest = lesion.radius * (1 + lesion.depth)
            assert (math.hypot(lesion.x, lesion.y) + widest) * demo_data.FIELD_RADIUS < 0.875 / 2
            assert math.hypot(lesion.x - drawn.disc_x, lesion.y - drawn.disc_y) > drawn.disc_radius + widest
            for other in drawn.lesions[number + 1 :]:
                gap = math.hypot(lesion.x - other.x, lesion.y - other.y)
                assert gap > widest + other.radius * (1 + other.depth)


def test_disc_is_bright_where_the_facts_say_and_on_the_nasal_side():
    x, y = field_offsets(SIZE)
    for index in range(8):
        image, facts = demo_data.draw(4, index, SIZE, grade=0)
        assert (facts["disc_x"] > 0) == (index % 2 == 0)  # right eyes first
        blue = pixels(image)[..., 2] / (pixels(image)[..., 0] + 1)
        from_disc = np.hypot(x - facts["disc_x"] / 100,
                             y - facts["disc_y"] / 100) / (facts["disc_radius"] / 100)
        rim = (from_disc > 0.6) & (from_disc < 0.85)
        outside = (from_disc > 1.3) & (from_disc < 1.8) & (np.hypot(x, y) < 0.9)
        assert np.median(blue[rim]) > 1.3 * np.median(blue[outside])


def test_vessels_widen_and_the_field_brightens_with_the_facts():
    drawn = demo_data.plan(0, 0, grade=0)
    covered = []
    for width in (0.025, 0.05):
        masks = demo_data._vessel_masks(np.random.default_rng(1), replace(drawn, vessel_width=width), 192)
        covered.append(sum(mask.sum() for mask in masks))
    assert covered[1] > 1.5 * covered[0]
    drawn = [demo_data.plan(0, index, grade=0) for index in range(30)]
    levels = [pixels(demo_data.render(one, 0, index, 64).convert("L")).mean()
              for index, one in enumerate(drawn)]
    assert np.corrcoef(levels, [one.brightness for one in drawn])[0, 1] > 0.95


def test_wrong_requests_for_a_picture_are_refused():
    with pytest.raises(ValueError, match="grade 5"):
        demo_data.draw(0, 0, SIZE, grade=5)
    with pytest.raises(ValueError, match="size 16"):
        demo_data.draw(0, 0, 16)


def test_folder_is_read_by_image_folder_with_classes_in_grade_order(demo):
    counts = Counter()
    for split in ("train", "val", "test"):
        pictures = ImageFolder(demo / split)
        assert tuple(pictures.classes) == demo_data.GRADE_NAMES
        assert len(set(Counter(pictures.targets).values())) == 1  # balanced
        assert pictures[0][0].size == (48, 48)
        counts[split] = len(pictures)
    assert sum(counts.values()) == 60 and counts["train"] > counts["test"] >= 10 and counts["val"] >= 10


def test_table_names_every_picture_with_its_facts(demo):
    rows = table_of(demo)
    assert list(rows[0]) == ["path", "label", "split", "patient", "eye", *demo_data.FACT_NAMES]
    assert {row["path"] for row in rows} == {path.relative_to(demo).as_posix()
                                             for path in demo.rglob("*.jpg")}
    for index, row in enumerate(rows):
        split, label, name = row["path"].split("/")
        assert (split, label) == (row["split"], row["label"]) and name == f"{row['patient']}_{row['eye']}.jpg"
        facts = demo_data.draw(3, index, 48)[1]
        assert {fact: float(row[fact]) for fact in demo_data.FACT_NAMES} == facts
        assert label == demo_data.GRADE_NAMES[facts["grade"]]


def test_no_patient_is_in_two_splits_and_each_has_two_eyes(demo):
    splits, eyes = {}, {}
    for row in table_of(demo):
        splits.setdefault(row["patient"], set()).add(row["split"])
        eyes.setdefault(row["patient"], []).append(row["eye"])
    assert len(splits) == 30 and all(len(split) == 1 for split in splits.values())
    assert all(sorted(pair) == ["L", "R"] for pair in eyes.values())


def test_second_call_touches_nothing_and_other_settings_draw_anew(tmp_path, capsys):
    folder = demo_data.make_demo(tmp_path / "demo", pictures=30, size=32)
    before = files_of(folder)
    demo_data.make_demo(folder, pictures=30, size=32)
    assert files_of(folder) == before
    assert "already drawn" in capsys.readouterr().out
    demo_data.make_demo(folder, pictures=40, size=32, seed=1)
    assert len(table_of(folder)) == 40 and len(files_of(folder)) == 42
    assert all(files_of(folder)[name] != before[name] for name in before if name in files_of(folder))


def test_interrupted_folder_is_completed_with_the_same_bytes(tmp_path, monkeypatch):
    whole = demo_data.make_demo(tmp_path / "whole", pictures=30, size=32)
    drawn, draw = [], demo_data.draw

    def draw_until_cut(seed, index, size):
        if len(drawn) == 12:
            raise KeyboardInterrupt
        drawn.append(index)
        return draw(seed, index, size)

    # its table must not vouch for the next ones
    demo_data.make_demo(tmp_path / "cut", pictures=30, size=32, seed=9)
    monkeypatch.setattr(demo_data, "draw", draw_until_cut)
    with pytest.raises(KeyboardInterrupt):
        demo_data.make_demo(tmp_path / "cut", pictures=30, size=32)
    assert not (tmp_path / "cut" / "demo.csv").exists()
    before = files_of(tmp_path / "cut")
    monkeypatch.setattr(demo_data, "draw", draw)
    demo_data.make_demo(tmp_path / "cut", pictures=30, size=32)
    assert {name: (whole / name).read_bytes() for name in files_of(whole)} == {
        name: (tmp_path / "cut" / name).read_bytes() for name in files_of(tmp_path / "cut")
    }
    assert {name: files_of(tmp_path / "cut")[name] for name in before} == before  # the first 12 were kept


def test_a_lost_picture_is_drawn_again(tmp_path):
    folder = demo_data.make_demo(tmp_path / "demo", pictures=30, size=32)
    lost = folder / table_of(folder)[4]["path"]
    content = lost.read_bytes()
    lost.unlink()
    demo_data.make_demo(folder, pictures=30, size=32)
    assert lost.read_bytes() == content


def test_several_processes_draw_the_same_files(tmp_path):
    one = demo_data.make_demo(tmp_path / "one", pictures=30, size=32, workers=1)
    two = demo_data.make_demo(tmp_path / "two", pictures=30, size=32, workers=2)
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files_of(one))


def test_script_without_a_main_guard_falls_back_to_one_process(tmp_path):
    """Spawned processes cannot import a program that came from a pipe."""
    program = f"from util.data.public.demo import make_demo; make_demo({str(tmp_path / 'demo')!r}, 30, 32, workers=2)"
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-"], input=program, env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0 and "30 of 30 drawn" in done.stdout
    assert len(table_of(tmp_path / "demo")) == 30


def test_full_disk_is_a_failed_run_and_not_wrong_input(tmp_path, monkeypatch, capsys):
    def fail(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(demo_data, "write_whole", fail)
    assert exit_code_of(demo_data.main, [str(tmp_path / "demo"), "--pictures", "30", "--size", "32"]) == 1
    message = capsys.readouterr().err
    assert "No space left" in message and message.count("\n") == 1


def test_foreign_files_are_never_touched(tmp_path):
    (tmp_path / "train" / "0_no").mkdir(parents=True)
    mine = tmp_path / "train" / "0_no" / "p0000_R.jpg"
    mine.write_bytes(b"mine")
    with pytest.raises(InputError, match="other files"):
        demo_data.make_demo(tmp_path, pictures=30, size=32)
    assert mine.read_bytes() == b"mine"
    folder = demo_data.make_demo(tmp_path / "demo", pictures=30, size=32)
    (folder / "train" / "0_no" / "note.txt").write_text("mine")
    demo_data.make_demo(folder, pictures=30, size=32, seed=1)
    assert (folder / "train" / "0_no" / "note.txt").read_text() == "mine"
    (folder / "demo.json").write_text("{")
    with pytest.raises(InputError, match="demo.json"):
        demo_data.make_demo(folder, pictures=30, size=32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pictures", "31"], "--pictures 31"),
        (["--pictures", "10"], "--pictures 10"),
        (["--size", "8"], "--size 8"),
        (["--seed", "-1"], "seed 0 or more"),
        (["--size", "large"], "--size"),
    ],
)
def test_command_refuses_wrong_settings_with_exit_code_2(tmp_path, capsys, arguments, message):
    assert exit_code_of(demo_data.main, [str(tmp_path / "demo"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_command_fills_a_folder(tmp_path):
    demo_data.main([str(tmp_path / "demo"), "--pictures", "30", "--size", "32", "--seed", "2"])
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["seed"] == 2
    assert len(table_of(tmp_path / "demo")) == 30
