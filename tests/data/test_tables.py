"""util/data/tables.py: folders and CSVs become one table, what is wrong is named."""
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from util.core.errors import InputError
from util.data.image_endings import EXTENSIONS, NOT_READ
from util.data.images.files import FORMATS, ImageSource
from util.data.images.scan import ImageFacts
from util.data.tables import (
    SPLITS,
    Data,
    check_classes,
    check_files,
    counts,
    fingerprint,
    match_classes,
    patient_counts,
    read_csv,
    read_folder,
    subset,
)
from util.data.unlabelled import read_unlabelled
from util.options.data import DataOptions


def picture(path, shade=0):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.new("RGB", (12, 10), (shade % 256, 90, 200)).save(path)


def make_folder(root, classes=("healthy", "mild", "severe"), each=3):
    for split in SPLITS:
        for target, name in enumerate(classes):
            for number in range(each):
                picture(f"{root}/{split}/{name}/{split}{number}.png", 40 * target + number)
    return str(root)


def read(csv_file, splits=SPLITS, **columns):
    return read_csv(DataOptions(csv_file=csv_file, **columns), splits)


def refused(call, *words):
    """The message of the InputError: one line, with all these words in it."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


# Folders


def test_a_folder_is_read_in_the_order_of_imagefolder(tmp_path):
    root = make_folder(tmp_path, ("10", "2", "Zebra", "ape"))
    for name in ("b/1.PNG", "b-c/0.png", "b/a/7.png", "B.Png", "a.JPEG", "_.jpg", "ä.tif", "x.tiff", "y.bmp",
                 "z.webp"):
        picture(f"{root}/train/2/{name}")
    data = read_folder(root)
    for split in SPLITS:
        theirs = ImageFolder(os.path.join(root, split))
        rows = data.table[data.table["split"] == split]
        assert list(zip(rows["path"], rows["target"], strict=True)) == theirs.samples
        assert data.class_names == theirs.classes
    assert list(data.table["index"]) == list(range(len(data.table))) and data.table["index"].dtype == np.int64
    assert list(data.table.columns) == ["index", "path", "label", "target", "split", "patient"]
    assert data.table["target"].dtype == np.int64 and set(data.table["patient"]) == {""}
    assert list(data.table["split"].unique()) == list(SPLITS)
    assert data.notes == []


def test_paths_are_as_the_user_types_them_and_splits_can_be_chosen(tmp_path, monkeypatch):
    make_folder(tmp_path / "eyes")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree("eyes/train")
    table = read_folder("./eyes/", splits=("test",)).table
    assert table["path"][0] == "./eyes/test/healthy/test0.png" and set(table["split"]) == {"test"}


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path):
    root = make_folder(tmp_path)
    rows = len(read_folder(root).table)
    for name in (".DS_Store", "._train0.png", "notes.txt", ".ipynb_checkpoints/train0.png"):
        os.makedirs(os.path.dirname(f"{root}/train/mild/{name}"), exist_ok=True)
        shutil.copy(f"{root}/train/mild/train0.png", f"{root}/train/mild/{name}")
    picture(f"{root}/train/.ipynb_checkpoints/a.png")
    picture(f"{root}/train/loose.png")
    data = read_folder(root)
    assert len(data.table) == rows and data.class_names == ["healthy", "mild", "severe"]
    assert len(data.notes) == 1 and "left out 4 files" in data.notes[0] and "notes.txt" in data.notes[0]


def test_every_ending_of_the_formats_that_are_read_is_taken_and_other_images_are_counted(tmp_path):
    Image.init()
    endings = {ending for ending, kind in Image.EXTENSION.items() if kind in FORMATS}
    assert endings == set(EXTENSIONS) and not set(EXTENSIONS) & set(NOT_READ)
    root = make_folder(tmp_path)
    for ending in endings - {".pfm"}:  # floats
        Image.new("RGB", (12, 10), (9, 90, 200)).save(
            f"{root}/train/mild/same{ending.upper()}", format=Image.EXTENSION[ending]
        )
    data = check_files(read_folder(root), "stop", progress=False)
    assert len(data.table) == 27 + len(endings) - 1 and data.notes == []
    for name in ("a.dcm", "b.DCM", "c.nii.gz", "._d.dcm"):
        shutil.copy(f"{root}/train/mild/train0.png", f"{root}/train/mild/{name}")
    warning, rest = read_folder(root).notes
    assert warning.startswith("warning: left out 3 files of kinds that are not read (2 .dcm, 1 .nii.gz): "
                              "convert them to PNG")
    assert rest.startswith("left out 1 files that are hidden") and "._d.dcm" in rest
    assert read_unlabelled(f"{root}/train/mild").notes == [warning, rest]


def test_a_class_of_other_images_alone_is_refused_with_their_kind(tmp_path):
    root = make_folder(tmp_path)
    for number in range(3):
        os.rename(f"{root}/train/mild/train{number}.png", f"{root}/train/mild/train{number}.dcm")
    refused(lambda: read_folder(root), "no image", "left out 3 files of kinds that are not read (3 .dcm)")
    refused(lambda: read_unlabelled(f"{root}/train/mild"), "no image", "3 .dcm")


def test_the_first_frame_of_an_animated_gif_is_read(tmp_path):
    frames = [Image.new("RGB", (12, 10), shade) for shade in ((250, 0, 0), (0, 0, 250))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    pixels = np.array(ImageSource(f"{tmp_path}/a.gif").decode())
    assert pixels.shape == (10, 12, 3) and (pixels == (250, 0, 0)).all()


def test_a_link_to_a_folder_above_does_not_go_round(tmp_path):
    root = make_folder(tmp_path / "a")
    rows = len(read_folder(root).table)
    os.symlink(f"{root}/train/mild", f"{root}/train/mild/again")
    make_folder(tmp_path / "b")
    os.symlink(f"{tmp_path}/b/train/mild", f"{root}/train/mild/more")
    assert len(read_folder(root).table) == rows + 3


def test_missing_folders_are_named(tmp_path):
    refused(lambda: read_folder(str(tmp_path / "nowhere")), "--data_path", "nowhere", "not there")
    picture(f"{tmp_path}/file/a.png")
    refused(lambda: read_folder(str(tmp_path / "file" / "a.png")), "not a folder")
    root = make_folder(tmp_path / "data")
    os.rename(f"{root}/val", f"{root}/validation")
    refused(lambda: read_folder(root), "no folder val", "test, train, validation")
    os.makedirs(f"{root}/val")
    refused(lambda: read_folder(root), os.path.join(root, "val"), "no class folder")


def test_classes_that_differ_or_are_empty_are_named(tmp_path):
    root = make_folder(tmp_path)
    os.rename(f"{root}/val/mild", f"{root}/val/Mild")
    message = refused(
        lambda: read_folder(root), "differ", "train lacks Mild", "val lacks mild", "test lacks Mild"
    )
    assert "severe" not in message
    os.rename(f"{root}/val/Mild", f"{root}/val/mild")
    for split in ("test", "train"):
        shutil.rmtree(f"{root}/{split}/severe")
        os.makedirs(f"{root}/{split}/severe/below")
        refused(lambda: read_folder(root), "no image", os.path.join(split, "severe"))


def test_a_file_name_that_no_text_holds_is_refused(tmp_path):
    root = make_folder(tmp_path)
    os.rename(f"{root}/train/mild/train0.png", os.fsencode(f"{root}/train/mild/train") + b"\xff.png")
    refused(lambda: read_folder(root), "UTF-8", "train\\xff.png")


# CSV


def make_csv(folder, text, pictures=True, encoding="utf-8"):
    """A CSV of path,label,split… rows, and the images that it names in its first column."""
    path = str(folder / "eyes.csv")
    with open(path, "w", encoding=encoding, newline="") as stream:
        stream.write(text)
    for row in text.splitlines()[1:] if pictures else []:
        name = row.split(",")[0].split(";")[0].split("\t")[0].strip().strip('"')
        if name:
            picture(os.path.join(folder, name))
    return path


FOUR = "path,label,split\na.png,cat,train\nb/b.png,dog,train\nc.png,dog,val\nd.png,cat,test\n"


def test_a_csv_becomes_the_same_table(tmp_path):
    data = read(make_csv(tmp_path, FOUR))
    expected = pd.DataFrame(
        {
            "index": np.arange(4, dtype=np.int64),
            "path": [str(tmp_path / name) for name in ("a.png", "b/b.png", "c.png", "d.png")],
            "label": ["cat", "dog", "dog", "cat"],
            "target": np.array([0, 1, 1, 0], dtype=np.int64),
            "split": ["train", "train", "val", "test"],
            "patient": [""] * 4,
        }
    )
    pd.testing.assert_frame_equal(data.table, expected)
    assert data.class_names == ["cat", "dog"]
    assert data.notes == ["val has no image of cat", "test has no image of dog"]


def test_columns_splits_and_patients_by_other_names(tmp_path):
    rows = ["eye, File ,grade,part,who", "L, a.png ,1, Train,p1", "R,b.png,0,TRAIN,", "L,c.png,1,iv ,p3"]
    rows += ["L,d.png,0,EV,p4"]
    names = {"path_col": "File", "label_col": "grade", "split_col": "part", "patient_col": "who"}
    csv_file = make_csv(tmp_path, "\n".join(rows), pictures=False)
    for name in "abcd":
        picture(str(tmp_path / f"{name}.png"))
    table = read(csv_file, **names).table
    assert list(table["split"]) == ["train", "train", "val", "test"]
    assert list(table["patient"]) == ["p1", "", "p3", "p4"] and list(table["target"]) == [1, 0, 1, 0]
    assert table["path"][0] == str(tmp_path / "a.png")
    only = read(csv_file, ("test",), **names)
    assert list(only.table["path"]) == [str(tmp_path / "d.png")] and list(only.table["index"]) == [0]


def test_paths_start_at_the_csv_or_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(str(tmp_path / "elsewhere" / "x.png"))
    text = FOUR.replace("c.png", str(tmp_path / "elsewhere" / "x.png"))
    make_csv(tmp_path, text)
    assert list(read("eyes.csv").table["path"])[1:3] == ["b/b.png", str(tmp_path / "elsewhere" / "x.png")]


def test_labels_are_names_and_whole_numbers_are_put_in_order(tmp_path):
    text = "path,label,split\n" + "".join(
        f"{split}{label}.png,{label},{split}\n" for split in SPLITS for label in ("10", "02", "-1", "00", "3")
    )
    data = read(make_csv(tmp_path, text))
    assert data.class_names == ["-1", "00", "02", "3",
                                "10"] and "numbers that their names begin with" in data.notes[0]
    data = read(make_csv(tmp_path, text.replace(",3,", ",nan,").replace("val3", "valn")))
    assert data.class_names == sorted(["10", "02", "-1", "00", "nan"])
    refused(lambda: read(make_csv(tmp_path, text.replace(",3,train", ",2.0,train"))), "02 and 2.0",
            "column label")


def test_splits_that_are_not_there_or_unknown(tmp_path):
    refused(lambda: read(make_csv(tmp_path, FOUR.replace("val", "test"))), "no row with split val",
            "test, train")
    text = FOUR.replace("c.png,dog,val", "c.png,dog,valid")
    refused(lambda: read(make_csv(tmp_path, text)), "column split", "iv", "1 rows", "line 4 valid")


def test_classes_that_train_does_not_have(tmp_path):
    csv_file = make_csv(tmp_path, FOUR.replace("d.png,cat", "d.png,bird"))
    refused(lambda: read(csv_file), "test", "train has not", "bird")


# Checks


def test_the_number_of_classes(tmp_path):
    data = read_folder(make_folder(tmp_path))
    assert check_classes(data, 3, explicit=True) is data
    refused(
        lambda: check_classes(data, 5, explicit=True),
        "found 3 classes (healthy, mild, severe)",
        "--nb_classes 3",
    )
    assert "3 classes" in check_classes(data, 8, explicit=False).notes[-1] and data.notes == []
    one = Data(data.table, ["mild"], [])
    refused(lambda: check_classes(one, 1, explicit=True), "at least 2", "mild")


def test_classes_are_matched_to_a_checkpoint_by_name(tmp_path):
    data = read_folder(make_folder(tmp_path), splits=("val", "test"))
    names = ["severe", "moderate", "healthy", "mild"]
    matched = match_classes(data, names)
    assert [names[target] for target in matched.table["target"]] == list(data.table["label"])
    assert matched.class_names == names and matched.table["target"].dtype == np.int64
    assert "checkpoint's order" in matched.notes[0]
    assert matched.notes[1:] == ["val has no image of moderate", "test has no image of moderate"]
    assert list(data.table["target"][:3]) == [0, 0, 0]  # what was read is left as it was
    assert match_classes(data, data.class_names).notes == []
    refused(
        lambda: match_classes(data, ["healthy", "severe", "Mild"]), "no class mild", "healthy, severe, Mild"
    )


def test_bad_files_stop_the_run_or_are_skipped(tmp_path):
    root = make_folder(tmp_path / "data")
    data = read_folder(root)
    assert check_files(data, "stop").table is data.table
    cut, empty = f"{root}/train/mild/train1.png", f"{root}/val/severe/val2.png"
    os.truncate(cut, os.path.getsize(cut) - 25)
    open(empty, "wb").close()
    known, skipped = ImageFacts(tmp_path / "out" / "known.npy"), str(tmp_path / "out" / "skipped.csv")
    refused(lambda: check_files(data, "stop", known), "2 of 27", cut, empty, "empty file",
            "--bad_images skip")
    kept = check_files(data, "skip", known, skipped)
    gone = data.table["path"].isin([cut, empty])
    assert gone.sum() == 2 and list(kept.table["index"]) == list(data.table["index"][~gone])
    assert list(kept.table.index) == list(range(25))
    assert "left out 2 of 27" in kept.notes[-1] and skipped in kept.notes[-1]
    written = pd.read_csv(skipped)
    assert list(written["path"]) == [cut, empty] and list(written.columns) == ["path", "reason"]


def test_skipping_must_leave_train_its_classes_and_each_split_a_picture(tmp_path):
    root = make_folder(tmp_path, each=1)
    data = read_folder(root)
    open(f"{root}/val/mild/val0.png", "wb").close()
    assert "no readable image of mild in val" in check_files(data, "skip").notes
    open(f"{root}/train/mild/train0.png", "wb").close()
    refused(lambda: check_files(data, "skip"), "mild", "train", "train0.png")
    shutil.rmtree(root)
    root = make_folder(tmp_path, each=1)
    for name in data.class_names:
        open(f"{root}/test/{name}/test0.png", "wb").close()
    refused(lambda: check_files(data, "skip"), "in test")


# The table


def large_table():
    rng = np.random.default_rng(0)
    target = rng.choice(3, 1000, p=[0.9, 0.097, 0.003])
    return pd.DataFrame(
        {
            "index": np.arange(1000),
            "target": target,
            "label": np.array(["a", "b", "c"])[target],
            "split": np.where(np.arange(1000) % 5 == 0, "val", "train"),
        }
    )


@pytest.mark.parametrize("stratified", [False, True])
def test_subsets_are_nested_repeatable_and_ordered(stratified):
    table = large_table()
    before = None
    for ratio in (0.0001, 0.01, 0.1, 0.5, 1.0):
        part = subset(table, ratio, stratified, seed=7)
        pd.testing.assert_frame_equal(part, subset(table, ratio, stratified, seed=7))
        assert list(part["index"]) == sorted(part["index"]) and list(part.index) == list(range(len(part)))
        assert (part["split"] == "val").sum() == 200
        train = set(part["index"][part["split"] == "train"])
        if stratified:
            for target, total in table[table["split"] == "train"].groupby("target").size().items():
                kept = ((part["target"] == target) & (part["split"] == "train")).sum()
                assert kept == max(1, round(ratio * total))
        else:
            assert len(train) == max(1, round(ratio * 800))
        assert before is None or before < train
        before = train
    assert not subset(table, 0.1, stratified, 7).equals(subset(table, 0.1, stratified, 8))


def test_a_share_is_above_0_and_at_most_1():
    for ratio in (0, -1, 1.2, float("nan")):
        refused(lambda ratio=ratio: subset(large_table(), ratio, False, 0), "--dataratio")


def test_counts_are_a_class_and_a_split(tmp_path):
    root = make_folder(tmp_path)
    picture(f"{root}/test/severe/more.png")
    data = read_folder(root)
    table = counts(data.table, ["severe", "moderate", *data.class_names[:2]])
    assert list(table.index) == ["severe", "moderate", "healthy",
                                 "mild"] and list(table.columns) == list(SPLITS)
    assert table.to_numpy().tolist() == [[3, 3, 4], [0, 0, 0], [3, 3, 3], [3, 3, 3]]


def test_the_fingerprint_follows_the_data_and_not_their_place(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "a" / "eyes")
    first = fingerprint(read_folder(root).table)
    shutil.copytree(root, tmp_path / "b")
    assert fingerprint(read_folder(str(tmp_path / "b")).table) == first and len(first) == 64
    monkeypatch.chdir(tmp_path / "b")
    table = read_folder("./").table
    assert fingerprint(table) == first and fingerprint(table[::-1]) == first
    assert fingerprint(table[1:]) != first
    assert fingerprint(table.assign(label="x")) != first and fingerprint(table.assign(split="train")) != first
    with open("train/mild/train0.png", "ab") as stream:
        stream.write(b"0")
    assert fingerprint(table) != first


def test_patients_are_counted_a_class_and_split():
    table = pd.DataFrame({"split": ["train", "train", "train", "val", "test"], "target": [0, 1, 1, 0, 1],
                          "patient": ["a", "a", "b", "c", ""]})
    assert patient_counts(table, ["x", "y"]) == {"train": {"x": 1, "y": 2, "": 2}, "val": {"x": 1, "": 1}}
    assert patient_counts(table[4:], ["x", "y"]) == {}


def test_patients_that_nobody_knows_stand_alone(tmp_path):
    names = ["p1", "NA", "unknown", "nan", "?", "p1", "", "-", "None"]
    text = "path,label,split,who\n" + "".join(f"{n}.png,{'ab'[n % 2]},{split},{name}\n"
                                              for n, name in enumerate(names)
                                              for split in ("train",))
    text += "".join(f"{split}{label}.png,{label},{split},q\n" for split in ("val", "test") for label in "ab")
    data = read(make_csv(tmp_path, text), patient_col="who")
    assert list(data.table["patient"][:9]) == ["p1", "", "", "", "", "p1", "", "", ""]
    assert "7 of 13 rows name no patient in column who: each counts for itself" in data.notes[0]


@pytest.mark.parametrize(("one", "other", "what"),
                         [("P1", "p1", "value"), ("101", "101.0", "number"), ("7", "007", "number")])
@pytest.mark.parametrize("column", ["who", "label"])
def test_two_spellings_of_a_patient_or_class_are_refused(tmp_path, one, other, what, column):
    rows = [{"path": f"{split}{n}.png", "label": label, "split": split, "who": f"x{n}"}
            for split in SPLITS for n, label in enumerate("ab")]
    rows[0][column], rows[1][column] = one, other
    text = "path,label,split,who\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    with pytest.raises(InputError, match=f"column {column} writes one {what} in two ways: .* and .*; use "
                                         "one"):
        read(make_csv(tmp_path, text), patient_col="who")


def test_an_ending_that_the_paths_lack(tmp_path):
    text = "path,label,split\n" + "".join(f"{split}{label},{label},{split}\n" for split in SPLITS
                                          for label in "ab")
    file = make_csv(tmp_path, text, pictures=False)
    for split in SPLITS:
        for label in "ab":
            (tmp_path / f"{split}{label}.png").touch()
    with pytest.raises(InputError, match="traina.png is there: --path_suffix .png adds the ending"):
        read(file)
    assert list(read(file, path_suffix=".png").table["path"])[0] == str(tmp_path / "traina.png")
    assert list(read_unlabelled(file, path_suffix=".png").table["path"])[0] == str(tmp_path / "traina.png")
