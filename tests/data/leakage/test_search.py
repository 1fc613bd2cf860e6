"""Planted copies and patients in two splits: each is found as what it is, and what is distinct is not."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from tests.conftest import start_process, write_pictures
from util.core.ending import exit_code_of
from util.core.errors import InputError
from util.data.images.reading_pass import read_images
from util.data.leakage import fingerprints, search
from util.data.leakage.eye_names import pairs_across
from util.data.leakage.fingerprints import Fingerprints
from util.data.leakage.near_duplicates import FINGERPRINT, fingerprint_of, nearest
from util.data.leakage.search import check, name_patients
from util.data.public.demo import draw

RETINAS, SIZE = 120, 192


@pytest.fixture(scope="module")
def retinas():
    return [draw(11, number, SIZE)[0] for number in range(RETINAS)]


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def crop(image: Image.Image, share: float, away: float = 0) -> Image.Image:
    side = image.width * share
    start = (image.width - side) / 2 + away * image.width
    return image.crop(tuple(map(round, (start, start, start + side, start + side))))


def as_camera(image: Image.Image) -> Image.Image:
    """The square on a wide black sensor, as fundus cameras store it."""
    wide = Image.new("RGB", (round(1.5 * image.width), image.height))
    wide.paste(image, (round(0.25 * image.width), 0))
    return wide


COPIES = {
    "JPEG 50": lambda image: recompressed(image, 50),
    "a quarter of the size": lambda image: image.resize((SIZE // 4, SIZE // 4), Image.Resampling.LANCZOS),
    "95 % round the centre": lambda image: crop(image, 0.95),
    "90 % round the centre": lambda image: crop(image, 0.9),
    "mirrored": ImageOps.mirror,
    "mirrored, cropped, JPEG 50": lambda image: recompressed(crop(ImageOps.mirror(image), 0.95), 50),
    "brighter": lambda image: image.point(lambda level: min(255, round(1.2 * level))),
    "with black margins": as_camera,
}


def prints(images) -> np.ndarray:
    return np.array([fingerprint_of(image) for image in images], FINGERPRINT)


@pytest.mark.long
@pytest.mark.parametrize("kind", COPIES)
def test_nearly_all_copies_are_found_whichever_split_has_the_original(retinas, kind):
    """The goal is 95 %. Every tenth image is planted among the others; the most similar one is its own
    original."""
    originals = prints(retinas)
    planted = np.arange(0, RETINAS, 5)
    copies = prints([COPIES[kind](retinas[number]) for number in planted])
    found = nearest(copies, originals)
    back = nearest(originals[planted], copies)
    assert (found.place == planted).mean() >= 0.95 and (back.place == np.arange(len(planted))).mean() >= 0.95
    assert found.mirrored[found.place >= 0].all() == kind.startswith("mirrored")
    assert not found.mirrored[found.place >= 0].any() or kind.startswith("mirrored")


def test_distinct_retinas_are_not_taken_for_copies(retinas):
    every = prints(retinas)
    found = nearest(every[: RETINAS // 2], every[RETINAS // 2:])
    assert (found.place >= 0).mean() < 0.01


def test_what_it_says_it_can_not_see(retinas):
    """If this is found one day, CANNOT_SEE is to be changed."""
    originals = prints(retinas)
    away = nearest(prints([crop(image, 0.9, away=0.05) for image in retinas[:20]]), originals)
    turned = nearest(prints([ImageOps.flip(image) for image in retinas[:20]]), originals)
    assert (away.place < 0).all() and (turned.place < 0).all()
    assert "off the centre" in search.CANNOT_SEE and "upside-down" in search.CANNOT_SEE


def table_of(rows) -> pd.DataFrame:
    paths, splits, *patients = zip(*rows, strict=True)
    return pd.DataFrame({"path": [str(path) for path in paths], "split": splits,
                         "patient": patients[0] if patients else [""] * len(paths)})


@pytest.fixture
def planted(tmp_path, retinas):
    """An image of each kind of finding in train, its copy in val or test; within train, a copy that is no
    leakage."""
    rows = []

    def add(image, split, name, **options):
        image.save(tmp_path / name, **options)
        rows.append((tmp_path / name, split))
    for number in range(12):
        add(retinas[number], "train", f"{number:02d}.png")
    for number in range(20, 30):
        add(retinas[number], "test", f"{number:02d}.png")
    shutil.copy(tmp_path / "00.png", tmp_path / "bytes.png")
    shutil.copy(tmp_path / "05.png", tmp_path / "within.png")
    rows += [(tmp_path / "bytes.png", "val"), (tmp_path / "within.png", "train")]
    add(retinas[1], "val", "pixels.bmp")
    add(retinas[2], "test", "near.jpg", quality=50)
    add(ImageOps.mirror(retinas[3]), "test", "mirror.png")
    add(Image.new("RGB", (64, 64)), "train", "black.png")
    add(Image.new("RGB", (64, 64)), "test", "black.bmp")
    add(Image.new("RGB", (64, 64), (9, 9, 9)), "test", "grey.png")
    return table_of(rows)


def test_every_kind_is_found_as_what_it_is(planted, tmp_path):
    found = check(planted)
    kinds = {tuple(Path(path).name for path in finding["paths"]): (finding["kind"], finding["splits"])
             for finding in found["findings"]}
    assert kinds == {
        ("00.png", "bytes.png"): ("same bytes", ["train", "val"]),
        ("01.png", "pixels.bmp"): ("same pixels", ["train", "val"]),
        ("black.png", "black.bmp"): ("same pixels", ["train", "test"]),
        ("02.png", "near.jpg"): ("near duplicate", ["train", "test"]),
        ("03.png", "mirror.png"): ("near duplicate", ["train", "test"])}
    assert found["counts"] == {"same bytes": 1, "same pixels": 2, "near duplicate": 2, "same patient": 0}
    assert found["within splits"] == 1 and found["checked"] == found["pictures"] == len(planted)
    assert all(
        0.9 < finding["similarity"] <= 1
        for finding in found["findings"]
        if finding["kind"] == "near duplicate"
    )
    search.write(found, tmp_path / "leakage.json")
    assert json.loads((tmp_path / "leakage.json").read_text()) == found
    lines = search.describe(found, "leakage.json")
    assert len(lines) <= 6 and "1 same bytes, 2 same pixels, 2 near duplicates" in lines[0]
    assert "1 copies within a split" in lines[0] and "leakage.json" in lines[-1]


def test_without_decoding_the_same_bytes_are_found_all_the_same(planted):
    found = check(planted, decode=False)
    assert found["counts"] == {"same bytes": 1, "same pixels": 0, "near duplicate": 0, "same patient": 0}
    assert found["cannot see"].startswith("images were not decoded")
    assert "were not decoded" in search.describe(found)[-1]
    assert check(planted, most_compared=5)["counts"] == found["counts"]


def test_files_of_one_length_and_one_end_are_told_apart(tmp_path):
    for number, start in enumerate((b"a", b"b", b"a")):
        (tmp_path / f"{number}.jpg").write_bytes(start + bytes(10_000))
    (tmp_path / "3.jpg").touch()
    (tmp_path / "4.jpg").touch()
    content, unreadable = search._contents([str(tmp_path / f"{number}.jpg") for number in range(6)], 2)
    assert content[0] == content[2] >= 0 and (content[[1, 3, 4, 5]] == -1).all()
    assert list(unreadable) == [str(tmp_path / "5.jpg")]


def test_nothing_shared_is_one_calm_line(retinas, tmp_path):
    rows = []
    for number, split in enumerate(("train", "train", "val", "test")):
        retinas[number].save(tmp_path / f"{number}.png")
        rows.append((tmp_path / f"{number}.png", split, f"p{number}"))
    found = check(table_of(rows))
    assert found["findings"] == [] and search.summary(found) == ""
    (line,) = search.describe(found)
    assert "none seen" in line and "warning" not in line
    assert check(table_of(rows[:2]))["findings"] == []  # one split shares nothing


def test_unreadable_pictures_are_counted(planted, tmp_path):
    (tmp_path / "torn.png").write_bytes((tmp_path / "00.png").read_bytes()[:300])
    rows = [*planted[["path", "split"]].itertuples(index=False), (tmp_path / "torn.png", "val"),
            (tmp_path / "no.png", "val")]
    found = check(table_of(rows))
    assert found["unreadable"] == [str(tmp_path / "torn.png"), str(tmp_path / "no.png")]
    assert found["counts"]["near duplicate"] == 2 and found["checked"] == len(planted)
    assert "2 more can't be read" in search.describe(found)[0]


def test_patients_of_a_column(tmp_path):
    rows = [("a", "train", "p1"), ("b", "train", "p1"), ("c", "test", "p1"), ("d", "train", "p2"),
            ("e", "val", "p2"),
            ("f", "test", "p3"), ("g", "train", ""), ("h", "test", "")]
    found = check(table_of(rows), decode=False)
    assert [(f["patient"], f["splits"], f["counts"]) for f in found["findings"]] == [
        ("p1", ["train", "test"], {"train": 2, "test": 1}), ("p2", ["train", "val"], {"train": 1, "val": 1})]
    assert "same patient: p1 in train (2) and test (1)" in search.describe(found)[1]


def test_patients_of_file_names():
    table = table_of([("x7/p01_L.jpg", "train"), ("x7/p01_R.jpg", "test"), ("x7/other.jpg", "test")])
    named, lines = name_patients(table, r"^(p\d+)_")
    assert list(named["patient"]) == ["p01", "p01", ""] and list(table["patient"]) == [""] * 3
    assert "1 of 3 file names say no patient, such as other.jpg" in lines[0]
    assert check(named, decode=False)["counts"]["same patient"] == 1
    for expression, says in (
        (r"(p\d+", "no regular expression"),
        (r"p\d+", "0 groups"),
        (r"(p)(\d)", "2 groups"),
        (r"(x\d)", "found in none of 3"),
    ):  # the folder's name is not the file's
        with pytest.raises(InputError, match=says):
            name_patients(table, expression)
    assert name_patients(table, r"(x\d)", must_match=False)[1]


def test_fingerprints_are_remembered(planted, tmp_path, monkeypatch):
    known, computed = tmp_path / "out" / "known.npy", []
    compute = fingerprints.fingerprint
    monkeypatch.setattr(fingerprints, "fingerprint", lambda file: computed.append(file.path) or compute(file))
    first = check(planted, Fingerprints(known))
    assert len(computed) == len(planted)
    again = check(planted, Fingerprints(known))
    assert len(computed) == len(planted) and again["findings"] == first["findings"]
    changed = planted["path"][3]
    Image.open(planted["path"][4]).transpose(Image.Transpose.ROTATE_90).save(changed)
    check(planted, Fingerprints(known))
    assert computed[len(planted):] == [changed]
    known.write_bytes(b"no array")
    found = check(planted, Fingerprints(known))
    assert "not usable" in found["notes"][0] and len(computed) == 2 * len(planted) + 1
    assert any("not usable" in line for line in search.describe(found))
    monkeypatch.setattr(Fingerprints, "most", 5)
    read_images([(Fingerprints(known), list(planted["path"][:3]))], 1)  # others stay while there is room
    assert len(np.load(known)) == len(planted)
    shutil.copy(planted["path"][0], tmp_path / "new.png")
    read_images([(Fingerprints(known), [str(tmp_path / "new.png")])], 1)
    assert len(np.load(known)) == 5


def test_command(planted, tmp_path, capsys):
    planted.to_csv(tmp_path / "d.csv", index=False)

    def run(*words):
        code = exit_code_of(search.main, list(map(str, words)))
        return code, *capsys.readouterr()
    code, out, err = run(tmp_path / "d.csv", "--json", tmp_path / "found.json")
    assert code == 0 and "2 near duplicates" in out and "cannot see: crops off the centre" in out, err
    assert len(json.loads((tmp_path / "found.json").read_text())["findings"]) == 5
    code, out, err = run(tmp_path / "d.csv", "--leakage", "stop")
    assert code == 2 and err.startswith("error: --leakage stop: the splits share") and err.count("\n") == 1
    code, _, err = run(tmp_path / "d.csv", "--patient_regex", "(x")
    assert code == 2 and "no regular expression" in err
    unknown = planted.assign(patient=["NA", *planted["patient"][1:]])
    unknown.to_csv(tmp_path / "unknown.csv", index=False)
    code, out, err = run(tmp_path / "unknown.csv", "--patient_col", "patient")
    assert code == 0 and "rows name no patient" in out, (out, err)
    odd = tmp_path / "d\udcff"
    odd.mkdir()
    shutil.copy(tmp_path / "d.csv", odd)
    code, _, err = run(odd / "d.csv")
    assert code == 2 and "not valid UTF-8" in err and err.count("\n") == 1
    code, _, err = run(tmp_path / "none.csv")
    assert code == 2 and "none.csv" in err
    data = write_pictures(tmp_path / "folder", numbers=(2, 2, 2))
    assert run(data)[0] == 0
    shutil.rmtree(data / "train")
    shutil.rmtree(data / "val")
    code, _, err = run(data)
    assert code == 2 and "only test is there" in err


@pytest.mark.long
def test_benchmark_reaches_its_goals_on_a_few(tmp_path):
    from benchmarks import leakage as benchmark

    assert benchmark.main(["--pictures", "40", "--files", "12", "--quick", "--json",
                           str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    goals = [row for row in rows if row.get("goal", "").startswith((">=", "100"))]
    assert len(goals) == 12 and all(min(row["found"], row["found the other way round"]) >= 0.95
                                    for row in goals)
    assert [row["share"] for row in rows if "share" in row] == [0, 0]
    assert len([row for row in rows if "seconds" in row]) == 3


# ---- in a run ----------------------------------------------------------------------------------------------

@pytest.fixture
def leaky(pictures, tmp_path):
    data = Path(shutil.copytree(pictures, tmp_path / "leaky"))
    shutil.copy(data / "train" / "mild" / "01.png", data / "test" / "mild" / "copy.png")
    return data


def test_a_run_warns_and_goes_on(start, leaky, tmp_path):
    code, out, err = start("--task", "w", "--epochs", 1, data=leaky)
    assert code == 0, err
    assert "leakage    warning: the splits share 1 same bytes" in out and "copy.png" in out
    folder = tmp_path / "output_dir/w"
    found = json.loads((folder / "leakage.json").read_text())
    assert found["counts"]["same bytes"] == 1 and found["pictures"] == 88
    assert (tmp_path / "output_dir/.fingerprints.npy").exists()
    written = (folder / "leakage.json").stat().st_mtime_ns
    code, out, err = start("--task", "w", "--epochs", 2, "--resume", "auto", data=leaky)
    assert code == 0 and "looked for when this run began" in out, err
    assert (folder / "leakage.json").stat().st_mtime_ns == written
    code, out, err = start("--task", "w", "--eval", "--resume", "auto", data=leaky)
    assert code == 0 and "leakage" not in out, err
    code, out, err = start("--task", "w", "--epochs", 1, "--leakage", "off", data=leaky)
    assert code == 0 and "leakage    " not in out, err
    assert not (folder / "leakage.json").exists() and (folder / "earlier-1/leakage.earlier.json").exists()


def test_stop_is_one_line_and_exit_code_2(start, leaky, pictures, tmp_path):
    code, out, err = start("--task", "s", "--leakage", "stop", data=leaky)
    assert code == 2 and err.count("\n") == 1 and "epoch 0" not in out
    assert "error: --leakage stop: the splits share 1 same bytes" in err and "leakage.json" in err
    code, out, err = start("--task", "s", "--leakage", "stop", "--epochs", 1)
    assert code == 0 and "none seen between the splits" in out, err
    code, out, err = start("--task", "s", "--leakage", "stop", "--dry_run", "--skip_file_check", data=leaky)
    assert code == 2 and "(" not in err.split("in one split")[1]  # a dry run writes no list


def test_patients_of_names_stand_in_the_predictions(start, tmp_path, pictures):
    code, out, err = start("--task", "p", "--epochs", 1, "--patient_regex", r"^0*(\d+)\.png")
    assert code == 0 and "same patient: 0 in train" in out, err
    table = pd.read_csv(tmp_path / "output_dir/p/predictions_test.csv", dtype=str, keep_default_na=False)
    assert list(table["patient"])[:3] == ["0", "1", "2"]
    code, out, err = start("--task", "p", "--eval", "--resume", "auto")
    assert code == 0, err
    again = pd.read_csv(tmp_path / "output_dir/p/predictions_test.csv", dtype=str, keep_default_na=False)
    assert list(again["patient"]) == list(table["patient"])
    assert start("--task", "q", "--patient_regex", "(none)")[0] == 2


@pytest.mark.long
def test_several_processes_look_once(leaky, tmp_path):
    from tests.conftest import SMALL

    run = start_process(*SMALL, "--data_path", leaky, "--task", "two", "--leakage", "stop", folder=tmp_path,
                        processes=2)
    assert run.returncode != 0 and run.stderr.count("--leakage stop: the splits share") == 1


@pytest.mark.parametrize(("names", "number"), [
    (["train/10_left.jpeg", "val/10_right.jpeg"], 2),
    (["train/p1_OD.png", "test/p1_OS.png", "val/p2_OD.png"], 2),
    (["train/p0001_L.png", "test/p0001_R.png"], 2), (["train/IM0001L.jpg", "val/IM0001R.jpg"], 2),
    (["train/a-OS-1.png", "val/a-OD-1.png", "test/a-OI-1.png"], 3),
    (["train/12left.png", "val/12right.png"], 2),
    (["train/10_left.jpeg", "train/10_right.jpeg"], 0),  # one split
    (["train/10_left.jpeg", "val/11_right.jpeg"], 0), (["train/left.png", "val/right.png"], 0),
    (["train/10_left.jpeg", "val/10_left.jpeg"], 0),  # the same eye: another name for it, or another image
    (["train/color.png", "val/colod.png"], 0), (["train/1.png", "val/2.png"], 0),
    (["train/girl.png", "val/girr.png"], 0),
])
def test_names_that_look_like_the_eyes_of_one_patient(names, number):
    splits = np.array([name.split("/")[0] for name in names])
    found, first = pairs_across(names, splits)
    assert found == number and (first is None) == (number == 0)
    if number:
        assert first[0] in names and first[1] in names and first[0] != first[1]


def test_the_hint_of_eyes_and_that_patients_are_not_known(tmp_path):
    rng = np.random.default_rng(0)
    paths = ["train/1_left.png", "train/2_left.png", "val/1_right.png", "test/3_left.png"]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / path)
    table = pd.DataFrame({"path": [str(tmp_path / path) for path in paths],
                          "split": [path.split("/")[0] for path in paths],
                          "patient": ""})
    lines = search.describe(search.check(table, progress=False))
    assert "none seen between the splits" in lines[0] and "patients not known" in lines[0]
    assert (
        "2 images look by their names as if the other eye were in another split" in lines[1]
        and "1_left" in lines[1]
    )
    lines = search.describe(search.check(table.assign(patient=["a", "b", "a", "c"]), progress=False))
    assert (
        "same patient" in " ".join(lines)
        and "by their names" not in " ".join(lines)
        and "not known" not in lines[0]
    )


def test_two_test_sets_may_share_what_train_has_not(tmp_path):
    """Nothing is learned from a test set: the same image or patient in two of them is no leakage."""
    rng = np.random.default_rng(0)
    names = [("0", "train", "a"), ("1", "test", "b"), ("2", "test_X", "b"), ("3", "test_X", "a")]
    for name, _, _ in names:
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
    table = table_of([(tmp_path / f"{name}.png", split, patient) for name, split, patient in names])
    found = check(table, workers=1, progress=False)
    assert found["counts"] == {"same bytes": 0, "same pixels": 0, "near duplicate": 0, "same patient": 1}
    assert found["findings"][0]["patient"] == "a" and found["findings"][0]["splits"] == ["train", "test_X"]
