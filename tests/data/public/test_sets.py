"""The owners' files are understood: labels, patients, variants of a layout; what is missing or wrong is one
line."""

import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.public_fakes import (
    WORKBOOKS,
    fake_folders,
    fake_idrid,
    hidden,
    make,
    put,
    rows_of,
)
from util.core.ending import exit_code_of
from util.core.errors import InputError
from util.data.public import prepare as module
from util.data.public.prepare import prepare
from util.data.public.sets import SETS, read_first_sheet
from util.data.tables import EXTENSIONS


def test_labels_are_the_owners(tmp_path):
    """The class of single images, read off the fakes by hand."""
    expected = {
        "APTOS2019": {"00000000000d.png": "3_severe", "000000000000.png": "0_no_dr"},
        "MESSIDOR2": {"IM000002.JPG": "1_mild", "20051011_40011_0100_PP.png": "0_no_dr"},
        "PAPILA": {"RET002OD.jpg": "0_normal", "RET002OS.jpg": "1_suspect", "RET005OD.jpg": "2_glaucoma",
                   "RET006OS.jpg": "1_suspect"},
        "Retina": {"NL_001.png": "0_normal", "Glaucoma_001.png": "2_glaucoma",
                   "Retina_010.png": "3_retina_disease"},
        "OCTID": {"NORMAL1.jpeg": "0_normal", "DR12.jpeg": "3_dr", "AMRD3.jpeg": "1_amrd",
                  "CSR1.jpeg": "2_csr"},
    }
    for name, pictures in expected.items():
        prepare(name, str(make(name, tmp_path)), str(tmp_path / name))
        labels = {Path(row["path"]).name: row["class"] for row in rows_of(tmp_path / name)}
        assert {picture: labels[picture] for picture in pictures} == pictures


def test_idrid_keeps_its_test_and_draws_val_of_its_training(tmp_path):
    raw = make("IDRID", tmp_path)
    lines = prepare("IDRID", str(raw), str(tmp_path / "out"), shares=(0.2, 0.3))
    rows = rows_of(tmp_path / "out")
    test = {row["source"] for row in rows if "b. Testing Set" in row["source"]}
    assert {row["source"] for row in rows if row["split"] == "test"} == test and len(test) == 12
    # of 12 or 13 a class: 2 or 3
    assert Counter(row["split"] for row in rows) == {"train": 38, "val": 12, "test": 12}
    assert any("test as the owner publishes it" in line for line in lines)
    # the part for segmentation is no part of this
    assert not any("without a label" in line for line in lines)
    grades = {row["source"]: row["class"] for row in rows}  # one name, two images
    assert grades["B. Disease Grading/1. Original Images/a. Training Set/IDRiD_003.jpg"] == "3_severe"
    assert not any("Segmentation" in row["source"] for row in rows)


# ---- variants and what is said -----------------------------------------------------------------------------


def test_variants_of_layouts(tmp_path):
    """Other numbers, other capitals, blanks as %20, flat files; split folders of the owner count."""
    raw = tmp_path / "retina"
    fake_folders(raw, {f"Retina Dataset/{name}": [f"{name[0]}{number}.PNG" for number in range(9)]
                       for name in ("0_cataract", "1_Normal", "3_glaucoma", "4_retina_disease")})
    prepare("Retina", str(raw), str(tmp_path / "out1"))
    raw = tmp_path / "octid"
    fake_folders(raw, {"pictures": [f"{name}{number}.jpeg" for name in ("NORMAL", "AMRD", "CSR", "DR", "MH")
                                    for number in range(9)]})
    prepare("OCTID", str(raw), str(tmp_path / "out2"))
    assert Counter(row["class"] for row in rows_of(tmp_path / "out2")) == dict.fromkeys(
        SETS["OCTID"].classes, 9
    )
    raw = tmp_path / "idrid"
    fake_idrid(raw)
    (raw / "B. Disease Grading").rename(raw / "B.%20Disease%20Grading")
    prepare("IDRID", str(raw), str(tmp_path / "out3"))
    raw = tmp_path / "glaucoma"
    fake_folders(raw, {f"{split}/{name}": [f"{split}{number}.png" for number in range(number)]
                       for split, number in (("Training", 6), ("Validation", 2), ("Test", 3))
                       for name in ("Normal", "Early", "Advanced")})
    prepare("Glaucoma_fundus", str(raw), str(tmp_path / "out4"))
    assert Counter(row["split"] for row in rows_of(tmp_path / "out4")) == {"train": 18, "val": 6, "test": 9}


def test_what_is_left_out_is_counted_and_said(tmp_path):
    raw = make("APTOS2019", tmp_path)
    (raw / "train_images" / "000000000007.png").unlink()
    text = "\n".join(prepare("APTOS2019", str(raw), str(tmp_path / "a")))
    assert "named in train.csv, but not there: 1 (000000000007)" in text
    assert "without a label in train.csv, left out: 4 (ffff00000000.png, " in text
    assert "with a label: 59, of 3662 in the whole set" in text
    text = "\n".join(prepare("MESSIDOR2", str(make("MESSIDOR2", tmp_path)), str(tmp_path / "b")))
    assert "not gradable by messidor_data.csv, left out: 2 (IM000006.jpg, 20051007_40007_0100_PP.png)" in text
    raw = make("Retina", tmp_path)
    put(raw / "dataset" / "figures" / "overview.png")
    text = "\n".join(prepare("Retina", str(raw), str(tmp_path / "c")))
    assert "in no class's folder, left out: 1 (dataset/figures/overview.png)" in text
    assert "patients: not published" in text


def test_extensions_are_those_of_training(tmp_path):
    raw = tmp_path / "raw"
    fake_folders(raw, {f"{name}_x": [f"{number}{extension}" for number in range(2)
                                     for extension in EXTENSIONS] + ["a.dcm"]
                       for name in ("normal", "cataract", "glaucoma", "retina disease")})
    for folder in list(raw.iterdir()):
        folder.rename(folder.with_name(folder.name.removesuffix("_x")))
    prepare("Retina", str(raw), str(tmp_path / "out"))
    assert len(rows_of(tmp_path / "out")) == 4 * 2 * len(EXTENSIONS)


# ---- wrong input -------------------------------------------------------------------------------------------


def remove(raw: Path, name: str) -> None:
    found = sorted(raw.rglob(name))
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.parent.is_dir():
            path.unlink()


@pytest.mark.parametrize(("name", "gone", "message"), [
    ("APTOS2019", "train.csv", "no file train.csv"),
    ("APTOS2019", "train_images", "none of the 60 images that train.csv names"),
    ("MESSIDOR2", "messidor_data.csv", "no file messidor_data.csv"),
    ("MESSIDOR2", "messidor-2.csv", "no file messidor-2.csv .*part a patient's eyes"),
    ("MESSIDOR2", "IMAGES", "none of the 80 images"),
    ("IDRID", "b. IDRiD*", "no file IDRiD_Disease Grading_Testing Labels.csv"),
    ("IDRID", "b. Testing Set", "none of the 12 images"),
    ("PAPILA", "patient_data_os.xlsx", "no file patient_data_os.xlsx"),
    ("PAPILA", "FundusImages", "none of the 66 images"),
    ("Glaucoma_fundus", "early_glaucoma", "no image of 1_early"),
    ("JSIEC", "29.1.Blur*", "no image of 29.1.Blur fundus with suspected PDR"),
    ("Retina", "2_glaucoma", "no image of 2_glaucoma"),
    ("OCTID", "MH", "no image of 4_mh"),
    ("ODIR5K", "ODIR-5K_Training_Annot*", "no file ODIR-5K_Training_Annotations"),
    ("ODIR5K", "ODIR-5K_Training_Images", "none of the 80 images"),
    ("RFMiD", "RFMiD_Testing_Labels.csv", "no file RFMiD_Testing_Labels.csv"),
    ("RFMiD", "Evaluation_Set/Validation", "none of the 50 images"),
])
def test_what_is_missing_is_one_line_that_says_where_to_get_it(name, gone, message, tmp_path, capsys):
    raw = make(name, tmp_path)
    remove(raw, gone)
    assert exit_code_of(module.main, [name, str(raw), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert re.search(message, printed.err) and str(raw) in printed.err and SETS[name].url in printed.err
    assert not (tmp_path / "out").exists() and hidden(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "APTOS2019",
            "train.csv",
            "000000000004,4",
            "000000000004,bad",
            "line 6: diagnosis is 'bad', not a whole number from 0 to 4",
        ),
        ("APTOS2019", "train.csv", "000000000004,4", "000000000004,", "line 6: diagnosis is ''"),
        ("APTOS2019", "train.csv", "000000000004,4", "000000000004,5", "line 6: diagnosis is '5'"),
        ("APTOS2019", "train.csv", "000000000004,4", "000000000004,nan", "line 6: diagnosis is 'nan'"),
        ("APTOS2019", "train.csv", "000000000004,4", "000000000004,1.5", "line 6: diagnosis is '1.5'"),
        (
            "APTOS2019",
            "train.csv",
            "000000000004,",
            "000000000003,",
            "line 6: id_code 000000000003 stands there twice, also on line 5",
        ),
        ("APTOS2019", "train.csv", "diagnosis", "grade", "no column diagnosis"),
        ("MESSIDOR2", "messidor_data.csv", ",,,0", ",,,1", "adjudicated_dr_grade is ''"),
        ("MESSIDOR2", "messidor-2.csv", "IM000004.JPG", "IM000002.JPG", "IM000002.JPG stands there twice"),
        (
            "IDRID",
            "Disease Grading_Training Labels.csv",
            "IDRiD_002,2",
            "IDRiD_001,2",
            "Image name IDRiD_001 stands there twice",
        ),
        ("RFMiD", "RFMiD_Training_Labels.csv", "\n7,0,", "\n7,2,",
         "line 8: Disease_Risk is '2', not a whole number from 0 to 1"),
        ("RFMiD", "RFMiD_Training_Labels.csv", "DR,ARMD", "DR,AMD", "no column ARMD"),
        ("RFMiD", "RFMiD_Training_Labels.csv", "\n8,", "\n7,", "ID 7 stands there twice"),
    ],
)
def test_wrong_labels(name, file, old, new, message, tmp_path):
    raw = make(name, tmp_path)
    path = next(raw.rglob(f"*{file}"))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        prepare(name, str(raw), str(tmp_path / "out"))


def test_messidors_grades_with_either_header(tmp_path):
    raw = make("MESSIDOR2", tmp_path)
    prepare("MESSIDOR2", str(raw), str(tmp_path / "one"))
    path = raw / "messidor_data.csv"
    path.write_text(path.read_text().replace("image_id,adjudicated_dr_grade", "id_code,diagnosis"))
    prepare("MESSIDOR2", str(raw), str(tmp_path / "other"))
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "other")
    path.write_text(path.read_text().replace("diagnosis", "grade"))
    with pytest.raises(InputError, match="no column diagnosis"):
        prepare("MESSIDOR2", str(raw), str(tmp_path / "third"))


def test_whole_numbers_may_be_written_as_floats(tmp_path):
    raw = make("APTOS2019", tmp_path)
    text = (raw / "train.csv").read_text()
    (raw / "train.csv").write_text(re.sub(r",(\d)\n", r",\1.0\n", text), encoding="utf-8-sig")
    prepare("APTOS2019", str(raw), str(tmp_path / "out"))
    assert Counter(row["class"] for row in rows_of(tmp_path
                                                   / "out")) == dict.fromkeys(SETS["APTOS2019"].classes, 12)


def test_two_pictures_for_one_label_and_two_lists(tmp_path):
    raw = make("APTOS2019", tmp_path)
    put(raw / "resized" / "000000000001.jpg")
    with pytest.raises(InputError, match="two images for 000000000001: .*resized.*train_images"):
        prepare("APTOS2019", str(raw), str(tmp_path / "out"))
    shutil.rmtree(raw / "resized")
    put(raw / "backup" / "train.csv", (raw / "train.csv").read_text())  # the same list twice does no harm
    prepare("APTOS2019", str(raw), str(tmp_path / "out"))
    put(raw / "backup" / "train.csv", "id_code,diagnosis\nx,1\n")
    with pytest.raises(InputError, match="two different files could be train.csv"):
        prepare("APTOS2019", str(raw), str(tmp_path / "out2"))


def test_workbooks(tmp_path):
    """Empty cells within and at the end of rows, numbers as they are."""
    rows = read_first_sheet(WORKBOOKS / "patient_data_od.xlsx")
    assert rows[0][:5] == ["", "Age", "Gender", "Diagnosis", "Refractive Defect"] and rows[2] == ["ID", *[""] * (len(rows[0]) - 1)]
    assert rows[3][:5] == ["#002", "50", "0", "0", ""] and rows[4][:6] == [
        "#003",
        "51",
        "1",
        "0",
        "-0.5",
        "0.25",
    ]
    for text in ("no zip", ""):
        with pytest.raises(InputError, match="not a workbook"):
            read_first_sheet(put(tmp_path / "a" / "b.xlsx", text or "PK"))


def test_a_cell_far_from_the_table_is_told(tmp_path):
    from openpyxl import load_workbook

    book = load_workbook(WORKBOOKS / "patient_data_od.xlsx")
    book.worksheets[0].cell(1_048_576, 20, " ")
    book.save(tmp_path / "far.xlsx")
    with pytest.raises(InputError, match="used as far as row 1,048,576, column 20; delete what stands beyond"):
        read_first_sheet(tmp_path / "far.xlsx")


def test_workbooks_need_openpyxl(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match="needs openpyxl, which is not installed: pip install -r requirements-prep"):
        prepare("PAPILA", str(make("PAPILA", tmp_path)), str(tmp_path / "out"))


def test_papila_refuses_what_it_does_not_understand(tmp_path, monkeypatch):
    raw = make("PAPILA", tmp_path)
    good = read_first_sheet(WORKBOOKS / "patient_data_od.xlsx")
    for change, message in ((lambda rows: rows[3].__setitem__(3, "x"), "line 4: Diagnosis is 'x'"),
                            (lambda rows: rows[4].__setitem__(0, "#002"), "patient #002 stands there twice"),
                            (lambda rows: rows[0].__setitem__(3, "Dx"), "no column Diagnosis"),
                            (lambda rows: rows.__delitem__(slice(3, None)), "no patient")):
        changed = [list(row) for row in good]
        change(changed)
        monkeypatch.setattr("util.data.public.sets.read_first_sheet", lambda path, changed=changed: changed)
        with pytest.raises(InputError, match=message):
            prepare("PAPILA", str(raw), str(tmp_path / "out"))


def test_what_archives_of_macos_hold_is_passed_over(tmp_path):
    raw = make("Glaucoma_fundus", tmp_path)
    put(raw / "__MACOSX" / "normal_control" / "1.png", "another")
    prepare("Glaucoma_fundus", str(raw), str(tmp_path / "out"))
    assert len(rows_of(tmp_path / "out")) == 36


def test_a_name_that_is_not_utf8_is_one_line(tmp_path):
    raw = make("Glaucoma_fundus", tmp_path)
    put(raw / "normal_control" / "im\udcff.png", "odd")
    with pytest.raises(InputError, match=r"file name is not valid UTF-8: normal_control/im\\xff.png; rename it"):
        prepare("Glaucoma_fundus", str(raw), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
