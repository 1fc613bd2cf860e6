"""Public data sets become split folders: whole ones, with a split that is the pictures' and the seed's
alone."""

import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest

from tests.public_fakes import FAKES, fake_folders, files_of, hidden, make, papila_patients, put, rows_of
from util.core.ending import exit_code_of
from util.core.errors import InputError
from util.data.labels.table import read_labels_csv, values_of
from util.data.public import prepare as module
from util.data.public.prepare import draw_split, prepare
from util.data.public.sets import SETS
from util.data.tables import read_csv, read_folder
from util.options.data import DataOptions

SPLITS = ("train", "val", "test")


ONE, SEVERAL = ([name for name, public_set in SETS.items() if public_set.several is several]
                for several in (False, True))


@pytest.mark.parametrize("name", SEVERAL)
def test_published_files_with_several_labels_become_a_table(name, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    expected, labels = FAKES[name](raw), list(SETS[name].classes)
    lines = prepare(name, str(raw), str(out))
    rows = rows_of(out)
    assert len(rows) == expected == len(files_of(out)) - 1 and f"{expected} images" in lines[0]
    asked = DataOptions(csv_file=str(out / "split_list.csv"), label_cols=labels,
                        patient_col="patient" if SETS[name].patients else None)
    data, names = read_labels_csv(asked)
    assert names == labels and len(data.table) == expected
    for row in rows:
        assert row["path"].split("/")[0] == row["split"] and row["path"].count("/") == 1
        assert (out / row["path"]).read_bytes() == (raw / row["source"]).read_bytes()
    assert not values_of(data.table, labels)[:, 0].all()
    # it is the list of the same split for somebody else
    prepare(name, str(raw), str(tmp_path / "again"), split_list=str(out / "split_list.csv"))
    assert rows_of(tmp_path / "again") == rows


def test_labels_of_a_patient_are_those_of_both_eyes(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    FAKES["ODIR5K"](raw)
    lines = "\n".join(prepare("ODIR5K", str(raw), str(tmp_path / "out"), seed=3))
    assert "both eyes have them" in lines and "left out: 1 (900_left.jpg)" in lines
    by_patient = defaultdict(list)
    for row in rows_of(tmp_path / "out"):
        by_patient[row["patient"]].append(row)
    assert len(by_patient) == 40
    for patient, (one, other) in by_patient.items():
        assert {one["source"].split("/")[-1], other["source"].split("/")[-1]} == {f"{patient}_left.jpg",
                                                                                  f"{patient}_right.jpg"}
        assert one["split"] == other["split"]
        labels = [name for name in SETS["ODIR5K"].classes if one[name] == "1"]
        number = int(patient)
        assert labels == (["D", "H"] if number % 16 == 5 else [SETS["ODIR5K"].classes[number % 8]])
        assert [one[name] for name in SETS["ODIR5K"].classes] == [other[name] for name in SETS["ODIR5K"].classes]
    # drawn by the rarest label that a patient has: each is in every split
    for split in SPLITS:
        for name in SETS["ODIR5K"].classes:
            assert any(row["split"] == split and row[name] == "1" for row in rows_of(tmp_path / "out"))


def test_rfmid_keeps_its_owners_parts_in_either_layout(tmp_path):
    raw, other = tmp_path / "raw", tmp_path / "other"
    raw.mkdir()
    FAKES["RFMiD"](raw)
    prepare("RFMiD", str(raw), str(tmp_path / "one"))
    for letter, word, part, file in (("a", "Training", "Training_Set/Training", "Training"),
                                     ("b", "Validation", "Evaluation_Set/Validation", "Validation"),
                                     ("c", "Testing", "Test_Set/Test", "Testing")):
        images, truths = other / "1. Original Images" / f"{letter}. {word} Set", other / "2. Groundtruths"
        truths.mkdir(parents=True, exist_ok=True)
        shutil.copytree(raw / part, images)
        shutil.copy(raw / part / ".." / f"RFMiD_{file}_Labels.csv", truths / f"{letter}. RFMiD_{file}_Labels.csv")
    prepare("RFMiD", str(other), str(tmp_path / "two"))
    one, two = ([{**row, "source": ""} for row in rows_of(tmp_path / name)] for name in ("one", "two"))
    assert one == two
    assert Counter(row["split"] for row in one) == {"train": 100, "val": 50, "test": 50}


@pytest.mark.parametrize("name", ONE)
def test_published_files_become_split_folders(name, tmp_path):
    assert set(FAKES) == set(SETS)
    raw = tmp_path / "raw"
    raw.mkdir()
    expected, out = FAKES[name](raw), tmp_path / "deep" / "out"
    lines = prepare(name, str(raw), str(out))
    rows = rows_of(out)
    assert len(rows) == expected == len(files_of(out)) - 1
    assert f"{expected} images" in lines[0]
    # what training reads, as a folder and as a CSV: the same classes in the order of the table
    folder = read_folder(str(out))
    table = read_csv(DataOptions(csv_file=str(out / "split_list.csv"), label_col="class",
                                 patient_col="patient"))
    assert (
        tuple(folder.class_names)
        == tuple(table.class_names)
        == SETS[name].classes
        == tuple(sorted(SETS[name].classes))
    )
    assert len(folder.table) == len(table.table) == expected
    assert sorted(folder.table["path"]) == sorted(table.table["path"])
    for row in rows:
        assert row["path"].split("/")[:2] == [row["split"], row["class"]]
        assert (out / row["path"]).read_bytes() == (raw / row["source"]).read_bytes()
    assert hidden(out.parent) == [] and hidden(out) == []
    # patients, where they are known, are never parted
    splits = defaultdict(set)
    for row in rows:
        splits[row["patient"]].add(row["split"])
    known = {patient for patient in splits if patient}
    assert bool(known) == bool(SETS[name].patients)
    assert all(len(splits[patient]) == 1 for patient in known)


@pytest.mark.parametrize("name", ["APTOS2019", "MESSIDOR2", "PAPILA", "JSIEC"])
def test_shares_are_kept_in_every_class(name, tmp_path):
    prepare(name, str(make(name, tmp_path)), str(tmp_path / "out"), shares=(0.15, 0.3))
    rows = rows_of(tmp_path / "out")
    whole = Counter(row["class"] for row in rows)
    for split, share in (("val", 0.15), ("test", 0.3)):
        part = Counter(row["class"] for row in rows if row["split"] == split)
        for label, count in whole.items():  # a patient is two images, and a class of a few gives one at least
            assert abs(part[label] - share * count) <= 3, (split, label)
            assert part[label] > 0


# ---- the split ---------------------------------------------------------------------------------------------


def test_split_is_the_pictures_and_the_seeds_alone(tmp_path):
    """Neither where the files lie nor the order in which a disk lists them; another seed is another split."""
    raw = make("APTOS2019", tmp_path)
    other = tmp_path / "elsewhere" / "Z" / "unpacked"
    other.parent.mkdir(parents=True)
    shutil.copytree(raw, other)
    (other / "train_images").rename(other / "TRAIN_IMAGES")
    prepare("APTOS2019", str(raw), str(tmp_path / "a"), seed=3)
    prepare("APTOS2019", str(other.parent), str(tmp_path / "b"), seed=3)
    prepare("APTOS2019", str(raw), str(tmp_path / "c"), seed=4)
    a, b, c = ({row["path"]: row["sha256"] for row in rows_of(tmp_path / name)} for name in "abc")
    assert a == b and a != c


def items_of(groups: list[tuple[str, list[str]]]) -> pd.DataFrame:
    """[(patient, [the class of each of the patient's images])] -> items."""
    rows = [(label, patient, "", f"{patient}-{number}")
            for patient, labels in groups for number, label in enumerate(labels)]
    return pd.DataFrame(rows, columns=["label", "patient", "split", "sha256"])


def test_order_of_the_pictures_does_not_matter():
    items = items_of([(f"p{number}", ["0_a", "1_b"][:1 + number % 2]) for number in range(40)])
    forth = dict(zip(items["sha256"], draw_split(items, ("0_a", "1_b"), 0.2, 0.3, 1), strict=True))
    items = items[::-1].reset_index(drop=True)
    assert forth == dict(zip(items["sha256"], draw_split(items, ("0_a", "1_b"), 0.2, 0.3, 1), strict=True))


def test_a_patient_counts_as_the_worse_eye():
    """Ten patients with one severe eye: they are stratified as severe, whatever the other eye is."""
    mild, severe = (
        [(f"m{n}", ["0_a", "0_a"]) for n in range(20)],
        [(f"s{n}", ["0_a", "1_b"]) for n in range(10)],
    )
    splits = draw_split(items := items_of(mild + severe), ("0_a", "1_b"), 0.1, 0.3, 0)
    count = Counter(zip(items["label"], splits, strict=True))
    assert count["1_b", "test"] == 3 and count["1_b", "val"] == 1 and count["1_b", "train"] == 6
    assert count["0_a", "test"] == 2 * 6 + 3 and count["0_a", "val"] == 2 * 2 + 1


def test_equal_pictures_and_chains_of_them_stay_together():
    """a's second image is b's first, b's second is c's first: three patients, one group."""
    items = items_of([("a", ["x", "x"]), ("b", ["x", "x"]), ("c", ["x", "x"]),
                      *((f"p{number}", ["x"]) for number in range(12))])
    items["sha256"] = items["sha256"].replace({"a-1": "b-0", "b-1": "c-0"})
    for seed in range(25):
        splits = list(draw_split(items, ("x",), 0.2, 0.3, seed))
        assert len(set(splits[:6])) == 1
        assert Counter(splits[6:])["test"] + (splits[0] == "test") == 4  # 13 groups, not 18 images


def test_equal_pictures_are_said(tmp_path):
    raw = make("APTOS2019", tmp_path)
    shutil.copy(raw / "train_images" / "000000000001.png", raw / "train_images" / "000000000002.png")
    lines = prepare("APTOS2019", str(raw), str(tmp_path / "out"))
    assert "  note: equal to another image in every byte: 1; under two labels: 1" in lines
    same = [row for row in rows_of(tmp_path / "out") if row["source"].endswith(("0001.png", "0002.png"))]
    assert len({row["split"] for row in same}) == 1


def test_a_published_split_that_shares_a_picture_is_kept_and_said(tmp_path):
    raw = make("IDRID", tmp_path)
    pictures = raw / "B. Disease Grading" / "1. Original Images"
    shutil.copy(pictures / "a. Training Set" / "IDRiD_009.jpg", pictures / "b. Testing Set" / "IDRiD_004.jpg")
    lines = prepare("IDRID", str(raw), str(tmp_path / "out"))
    assert any(line.startswith("  WARNING: images in two splits, as given: 1;") for line in lines)
    assert sum(row["split"] == "test" for row in rows_of(tmp_path / "out")) == 12


# ---- split lists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_a_split_list_makes_the_same_folders(name, tmp_path):
    raw = make(name, tmp_path)
    prepare(name, str(raw), str(tmp_path / "first"), seed=7)
    prepare(name, str(raw), str(tmp_path / "again"), split_list=str(tmp_path / "first" / "split_list.csv"))
    assert files_of(tmp_path / "again") == files_of(tmp_path / "first")
    # the folder itself says the same as its list
    prepare(name, str(raw), str(tmp_path / "folder"), split_list=str(tmp_path / "first"))
    assert files_of(tmp_path / "folder") == files_of(tmp_path / "first")


def test_a_colleagues_list_of_names(tmp_path):
    """path and split alone, other endings, other folders, other words for the splits, other class names; what
    differs is counted and said."""
    raw = make("Retina", tmp_path)
    names = [f"{word}_{number:03d}" for word in ("NL", "cataract", "Glaucoma", "Retina")
             for number in range(1, 10)]
    splits = ["iv" if name.endswith("1") else "EV" if name.endswith("2") else "train" for name in names]
    rows = [f"their/{split}/{name}.jpg,{split},aname" for name, split in zip(names, splits, strict=True)]
    listed = put(tmp_path / "lists" / "theirs.csv",
                 "\n".join(["path,split,class", *rows, "gone_1.png,test,aname"]) + "\n")
    lines = prepare("Retina", str(raw), str(tmp_path / "out"), split_list=str(listed))
    got = {Path(row["path"]).stem: row["split"] for row in rows_of(tmp_path / "out")}
    assert got == {name: {"iv": "val", "EV": "test"}.get(split, split)
                   for name, split in zip(names, splits, strict=True)}
    assert f"  note: named in {listed}, but not in RAW_DIR: 1 (gone_1.png)" in lines
    assert any(f"not named in {listed}, left out: 4 (" in line for line in lines)


def test_a_given_split_that_parts_patients_is_taken_and_said(tmp_path):
    raw = make("PAPILA", tmp_path)
    names = [f"RET{number:03d}{eye}.jpg" for number in papila_patients() for eye in ("OD", "OS")]
    rows = [f"{name},{SPLITS[number % 3]}" for number, name in enumerate(names)]
    listed = put(tmp_path / "lists" / "list.csv", "path,split\n" + "\n".join(rows))
    lines = prepare("PAPILA", str(raw), str(tmp_path / "out"), split_list=str(listed))
    assert any("WARNING: patients in two splits, as given: "
               f"{len(papila_patients())};" in line for line in lines)


def test_names_that_two_pictures_have_are_told_apart_or_refused(tmp_path):
    raw = make("IDRID", tmp_path)
    listed = put(tmp_path / "lists" / "list.csv",
                 "path,split\ntest/x/IDRiD_001.jpg,test\ntrain/x/IDRiD_001.jpg,val\n")
    # the published test tells them apart
    prepare("IDRID", str(raw), str(tmp_path / "out"), split_list=str(listed))
    got = {row["split"]: row["source"] for row in rows_of(tmp_path / "out")}
    assert "b. Testing Set" in got["test"] and "a. Training Set" in got["val"]
    raw = make("Glaucoma_fundus", tmp_path)
    listed = put(tmp_path / "lists" / "list2.csv", "path,split\n1.png,test\n")
    with pytest.raises(InputError, match=r"1\.png could be .*advanced_glaucoma/1\.png"):
        prepare("Glaucoma_fundus", str(raw), str(tmp_path / "out2"), split_list=str(listed))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\nNL_001.png,holdout\n", "column split takes train, val, test"),
        ("path,split\nNL_001.png,train\nNL_001.png,test\n", "NL_001.png is in train and in test"),
        (
            "path,split,class\nNL_001.png,train,1_cataract\n",
            "has class 1_cataract, by the owner's labels it is 0_normal",
        ),
        ("path,split\nother_1.png,train\n", "none of its 1 images is among the 40"),
        ("name,split\nNL_001.png,train\n", r"no column path \(--split_list\)"),
        ("path,split\n,train\n", "column path is empty"),
    ],
)
def test_wrong_lists(text, message, tmp_path):
    raw = make("Retina", tmp_path)
    listed = put(tmp_path / "lists" / "list.csv", text)
    with pytest.raises(InputError, match=message):
        prepare("Retina", str(raw), str(tmp_path / "out"), split_list=str(listed))
    assert not (tmp_path / "out").exists() and hidden(tmp_path) == []


def test_a_list_is_missing_or_an_empty_folder(tmp_path):
    raw = make("Retina", tmp_path)
    (tmp_path / "lists").mkdir()
    for place, message in ((tmp_path / "lists", "no images in"), (tmp_path / "gone.csv", "no such file")):
        with pytest.raises(InputError, match=message):
            prepare("Retina", str(raw), str(tmp_path / "out"), split_list=str(place))


# ---- the folders -------------------------------------------------------------------------------------------

def test_links(tmp_path):
    raw = make("Retina", tmp_path)
    assert module.main(["Retina", str(raw), str(tmp_path / "out"), "--link"]) == 0
    pictures = list((tmp_path / "out").rglob("*.png"))
    assert len(pictures) == 40 and all(path.is_symlink() and path.resolve().is_relative_to(raw)
                                       for path in pictures)
    assert len(read_folder(str(tmp_path / "out")).table) == 40


def test_names_that_collide_in_a_class_stay_apart(tmp_path):
    raw = tmp_path / "raw"
    fake_folders(raw, {f"{place}/{name}": [f"{number}.png" for number in range(5)]
                       for place in ("one", "two")
                       for name in ("normal_control", "early_glaucoma", "advanced_glaucoma")})
    prepare("Glaucoma_fundus", str(raw), str(tmp_path / "out"), split_list=str(put(
        tmp_path / "lists" / "l.csv", "path,split\n" + "".join(
            f"{path.relative_to(raw)},train\n" for path in sorted(raw.rglob("*.png"))))))
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 30 == len({row["path"] for row in rows}) == len(files_of(tmp_path / "out")) - 1
    assert all((tmp_path / "out" / row["path"]).read_bytes() == (raw / row["source"]).read_bytes()
               for row in rows)


def test_a_second_run_says_complete_or_refuses(tmp_path):
    raw, out = str(make("Retina", tmp_path)), tmp_path / "out"
    out.mkdir()  # an empty folder is taken
    prepare("Retina", raw, str(out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert any("was complete already" in line for line in prepare("Retina", raw, str(out)))
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(InputError, match="holds another split"):
        prepare("Retina", raw, str(out), seed=1)
    lost = next(out.rglob("*.png"))
    lost.write_bytes(b"")
    with pytest.raises(InputError, match="1 of 40 images are missing or cut short"):
        prepare("Retina", raw, str(out))
    (tmp_path / "other").mkdir()
    put(tmp_path / "other" / "a" / "notes.txt", "mine")
    with pytest.raises(InputError, match="not empty and not made by this command"):
        prepare("Retina", raw, str(tmp_path / "other"))
    assert (tmp_path / "other" / "a" / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="is a file"):
        prepare("Retina", raw, str(put(tmp_path / "x" / "file.txt", "text")))


@pytest.mark.parametrize(("error", "code", "message"), [
    (KeyboardInterrupt(), 130, "interrupted: nothing was made"),
    (OSError(28, "No space left on device"), 1, "failed: .*No space left on device; nothing was left"),
    (PermissionError(13, "Permission denied"), 2, "no right to write"),
])
def test_an_end_in_the_middle_leaves_nothing(error, code, message, tmp_path, monkeypatch, capsys):
    raw, copied = make("Retina", tmp_path), []
    real = shutil.copyfile

    def copyfile(source, destination):
        if len(copied) == 7:
            raise error
        copied.append(destination)
        return real(source, destination)

    monkeypatch.setattr(module.shutil, "copyfile", copyfile)
    assert exit_code_of(module.main, ["Retina", str(raw), str(tmp_path / "out")]) == code
    assert re.search(message, capsys.readouterr().err)
    assert len(copied) == 7 and [path.name for path in tmp_path.iterdir()] == [raw.name]
    monkeypatch.undo()
    prepare("Retina", str(raw), str(tmp_path / "out"))
    assert len(rows_of(tmp_path / "out")) == 40


# ---- wrong input -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("words", "message"), [
    (["--val", "0"], "both above 0, together below 1"),
    (["--val", "0.5", "--test", "0.5"], "both above 0, together below 1"),
    (["--val", "nan"], "both above 0, together below 1"),
    (["--val", "0.05", "--test", "0.94"], "class 0_normal has 10 images to share out, too few"),
    (["--seed", "-1"], "--seed -1"),
    (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
    (["--split_lst", "x"], "did you mean --split_list?"),
    (["--link", "--copy"], "not allowed with argument"),
])
def test_wrong_shares_and_seeds(words, message, tmp_path, capsys):
    raw = make("Retina", tmp_path)
    code = exit_code_of(module.main, ["Retina", str(raw), str(tmp_path / "out"), *words])
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1


def test_an_unknown_set_is_told_the_known_ones(capsys):
    assert exit_code_of(module.main, ["Aptos", "raw", "out"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(name in error for name in SETS)


def test_wrong_folders(tmp_path):
    raw = make("Retina", tmp_path)
    for raw_dir, out, message in (
        (raw, raw / "out", "one lies in the other"),
        (raw, tmp_path, "one lies in the other"),
        (tmp_path / "gone", tmp_path / "out", "is not there: it must hold"),
        (raw / "README.md", tmp_path / "out", "is not a folder"),
    ):
        with pytest.raises(InputError, match=message):
            prepare("Retina", str(raw_dir), str(out))
