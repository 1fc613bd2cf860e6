"""A CSV of numbers: every mistake is one line with column and line, missing cells stay missing."""

import numpy as np
import pytest

from util.core.errors import InputError
from util.data.covariates import Covariate
from util.data.regression import parse_transforms, read_regression_csv
from util.options.data import DataOptions


@pytest.fixture
def csv(tmp_path):
    """csv(rows…) writes them below the header path,split,patient,age,tc,ldl and returns the path."""
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"x")

    def write(*rows, header="path,split,patient,age,tc,ldl"):
        path = tmp_path / "data.csv"
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return str(path)

    return write


def read(csv_file, targets, **asked):
    return read_regression_csv(DataOptions(csv_file=csv_file, targets=targets, **asked))


ROWS = ("0.png,train,p0,50,5.1,3", "1.png,Train,p1,60,4.2,", "2.png,iv,p2,NA,6,2.5", "3.png,EV,p0,44,5.5,nan")


def test_rows_splits_and_missing_cells(csv, tmp_path):
    data = read(csv(*ROWS), ["tc", "ldl"], patient_col="patient", covariates=["age"])
    table = data.table
    assert list(table["split"]) == ["train", "train", "val",
                                    "test"] and list(table["path"])[0] == str(tmp_path / "0.png")
    assert table["true_tc"].tolist() == [5.1, 4.2, 6.0, 5.5] and list(table["covariate_age"]) == [
        "50",
        "60",
        "NA",
        "44",
    ]
    assert np.isnan(table["true_ldl"]).tolist() == [False, True, False, True]
    text = " ".join(data.notes)
    assert "ldl is missing in some rows (train 1 of 2, test 1 of 1)" in text and "age is missing" in text


@pytest.mark.parametrize("word", ["NA", "n/a", "nan", "NULL", "None", "unknown", "unk", "Missing", "?", "-"])
def test_one_set_of_words_means_missing_in_every_column(csv, word):
    rows = [f"0.png,train,{word},{word},{word},1", "1.png,train,p1,50,2,1", "2.png,train,p2,60,3,2",
            "3.png,val,p3,55,4,1", "4.png,test,p4,52,2,3"]
    data = read(csv(*rows), ["tc", "ldl"], patient_col="patient", covariates=["age"])
    assert (
        np.isnan(data.table["true_tc"]).tolist() == [True, False, False, False, False]
        and data.table["patient"][0] == ""
    )
    age = Covariate.learn("age", list(data.table["covariate_age"][:3]))
    assert (age.is_category, age.mean) == (False, 55.0) and np.isnan(age.encode([word, "50"])).tolist() == [
        True,
        False,
    ]
    text = " ".join(data.notes)
    assert all(f"{name} is missing in some rows (train 1 of 3)" in text for name in ("tc", "age"))
    assert "1 of 5 rows name no patient" in text


def test_dropna_counts(csv):
    data = read(csv(*ROWS, "4.png,test,p9,1,1,1"), ["tc", "ldl"], dropna=True)
    assert len(data.table) == 3 and "--dropna left out 2 of 5 rows" in data.notes[0]
    with pytest.raises(InputError, match="no row with split test after --dropna"):
        read(csv(*ROWS), ["tc", "ldl"], dropna=True)


WRONG = {
    "absent column": (ROWS, {"targets": ["tc", "hdl"]}, r"line 1: no column hdl \(--targets\); there is"),
    "absent covariate": (ROWS, {"covariates": ["sex"]}, r"no column sex \(--covariates\)"),
    "text": (("0.png,train,p,1,high,1", *ROWS[1:]), {}, "column tc has text in 1 of 4 rows: line 2 'high'"),
    "decimal comma": (('0.png,train,p,1,"5,1",1', *ROWS[1:]), {}, "write decimals with a point"),
    "infinite": (("0.png,train,p,1,inf,1", *ROWS[1:]), {}, "column tc is infinite in 1 rows: line 2 'inf'"),
    "no val": ((ROWS[0], ROWS[3]), {}, "no row with split val; there is EV, train"),
    "unknown split": (("0.png,holdout,p,1,1,1", *ROWS[1:]), {}, "line 2 holdout"),
    "absent file": (("9.png,train,p,1,1,1", *ROWS[1:]), {}, "1 of 4 files are not there: line 2"),
    "two splits": (
        (*ROWS, "0.png,test,p,1,1,1"),
        {},
        "1 images stand there in two splits, the first on lines 2 and 6",
    ),
    "logarithm": (
        ("0.png,train,p,1,0,1", *ROWS[1:]),
        {"target_transform": ["log"]},
        "tc is not above 0 in 1 rows: line 2 0",
    ),
    "twice": (ROWS, {"targets": ["tc", "tc"]}, "--targets names tc twice"),
    "two roles": (ROWS, {"covariates": ["tc"]}, "--covariates tc: already a target"),
    "path as target": (ROWS, {"targets": ["path"]}, "that column is the path"),
}


@pytest.mark.parametrize("rows, words, says", WRONG.values(), ids=WRONG)
def test_mistakes_name_column_and_line(csv, rows, words, says):
    with pytest.raises(InputError, match=says) as caught:
        read(csv(*rows), **{"targets": ["tc"], **words})
    assert "\n" not in str(caught.value)


def test_only_the_first_five_of_many_are_listed(csv):
    with pytest.raises(InputError, match="text in 7 of 7 rows: line 2 'x'; .* and more") as caught:
        read(csv(*(f"{n}.png,train,p,1,x,1" for n in range(7))), ["tc"])
    assert str(caught.value).count("'x'") == 5


def test_transforms():
    assert (
        parse_transforms(["log"], ["a", "b"]) == ["log", "log"]
        and parse_transforms(["none", "log"], ["a", "b"])[1] == "log"
    )
    with pytest.raises(InputError, match="each of the 3"):
        parse_transforms(["log", "none"], ["a", "b", "c"])


@pytest.mark.parametrize(("values", "extreme"), [
    ([22.1, 23.5, 24.0, 25.2, -999, -999], "-999 in 2 rows, far from all others (22.1 to 25.2)"),
    ([22.1, 23.5, 24.0, 25.2, 9999, 9999, 9999], "9999 in 3 rows"),
    ([22.1, 23.5, 24.0, 25.2, 0, 0], "0 in 2 rows"),
    ([22.1, 23.5, 24.0, 25.2, -999], None),  # once: an outlier, as there are
    ([0, 0, 0, 0.1, 0.3, 0.9, 2.5], None),  # zeros beside small numbers
    ([0, 1, 0, 1, 1, 1], None), ([3, 3, 3, 3], None),
])
@pytest.mark.parametrize("role", ["target", "covariate"])
def test_one_value_far_from_all_others_is_warned_of(tmp_path, values, extreme, role):
    rows = [f"{number}.png,{split},{value},{number % 3}" for number, value in enumerate(values)
            for split in ("train",)]
    rows += ["v.png,val,23,1", "t.png,test,24,2"] if max(values) > 5 else ["v.png,val,0,1", "t.png,test,0,2"]
    file = tmp_path / "x.csv"
    file.write_text("path,split,length,other\n" + "\n".join(rows) + "\n")
    for row in rows:
        (tmp_path / row.split(",")[0]).touch()
    targets, covariates = (["length"], ["other"]) if role == "target" else (["other"], ["length"])
    notes = [note for note in read(str(file), targets, covariates=covariates).notes if "far from" in note]
    assert len(notes) == (extreme is not None) and (not notes or f"warning: length is {extreme}" in notes[0])


def test_python_alone_reads_1_000(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("path,split,length\n0.png,train,1_000\n1.png,val,3\n2.png,test,4\n")
    with pytest.raises(InputError, match="column length has text in 1 of 3 rows: line 2 '1_000'"):
        read(str(file), ["length"])
