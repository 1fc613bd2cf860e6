"""Several labels an image from a CSV: columns of 0 and 1, or one of names; what is missing is not known."""

import numpy as np
import pandas as pd
import pytest

from tests.conftest import picture
from util.core.errors import InputError
from util.data.labels.cells import of_columns, of_names, refuse_constant, written
from util.data.labels.table import counts, read_labels_csv, values_of
from util.data.tables import fingerprint, subset
from util.options.data import DataOptions

NAN = float("nan")


@pytest.fixture
def csv(tmp_path):
    """csv(rows, header) -> the path of a table whose images are there."""
    rng = np.random.default_rng(0)

    def write(header, *rows):
        for number, _ in enumerate(rows):
            picture(rng, 0, 8).save(tmp_path / f"{number}.png")
        lines = [",".join(["path", "split", *header]),
                 *(",".join([f"{number}.png", *row]) for number, row in enumerate(rows))]
        (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
        return str(tmp_path / "d.csv")
    return write


def test_columns_of_0_and_1(csv):
    file = csv(["B", "A"], ["train", "1", "0"], ["train", "0.0", "1.0"], ["val", "", "1"], ["ev:X", "NA", "0"],
               ["test", "1", "?"])
    data, names = read_labels_csv(DataOptions(csv_file=file, label_cols=["B", "A"]))
    assert names == ["B", "A"] and data.class_names == [] and data.external == ("test_X",)
    expected = [[1, 0], [0, 1], [NAN, 1], [NAN, 0], [1, NAN]]
    assert np.array_equal(values_of(data.table, names), expected, equal_nan=True)
    assert list(data.table["label"]) == ["1;0", "0;1", "?;1", "?;0", "1;?"]
    assert counts(data.table, names)["train"] == {"B": [1, 1], "A": [1, 1]}
    notes = "\n".join(data.notes)
    assert "B (val 1, test_X 1), A (test 1)" in notes
    assert "val has images of one kind alone (with or without it) of B, A" in notes and "train has" not in notes
    # another way to write the same is the same data; another value is not
    again, _ = read_labels_csv(DataOptions(csv_file=csv(["B", "A"], ["train", "1.0", "0"], ["train", "0", "1"],
                                                        ["val", "na", "1"], ["ev:X", "", "0"], ["test", "1", ""]),
                                           label_cols=["B", "A"]))
    assert fingerprint(again.table) == fingerprint(data.table)
    again.table.loc[0, "label"] = "1;1"
    assert fingerprint(again.table) != fingerprint(data.table)


def test_a_column_of_names(csv):
    file = csv(["label"], ["train", "glaucoma; AMD"], ["train", "AMD|cataract|"], ["val", ""], ["val", "none"],
               ["test", "unknown"], ["test", "cataract"])
    data, names = read_labels_csv(DataOptions(csv_file=file))
    assert names == ["AMD", "cataract", "glaucoma"]
    assert np.array_equal(values_of(data.table, names),
                          [[1, 0, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0], [NAN] * 3, [0, 1, 0]], equal_nan=True)
    notes = "\n".join(data.notes)
    assert "2 of 6 rows name no label: all labels are 0 there" in notes
    assert "1 of 6 rows say that their labels are not known" in notes


def test_both_ways_say_the_same():
    rng = np.random.default_rng(1)
    values = (rng.random((50, 3)) < 0.4).astype(float)
    values[7] = NAN
    names = ["a", "b", "c"]
    text = pd.Series([";".join(name for name, value in zip(names, row, strict=True) if value == 1) if row[0] == row[0]
                      else "unknown" for row in values])
    columns = pd.DataFrame(np.where(np.isnan(values), "", np.where(values == 1, "1", "0")), columns=names)
    found, of_text, _ = of_names("f.csv", text)
    assert found == names
    assert np.array_equal(of_text, values, equal_nan=True)
    assert np.array_equal(of_columns("f.csv", columns), values, equal_nan=True)
    assert written(values)[7] == "?;?;?"


def test_labels_of_a_checkpoint_come_in_its_order(csv):
    file = csv(["A", "B", "label"], ["test", "1", "0", "A"], ["test", "0", "1", "B"])
    known = ["B", "A"]
    data, names = read_labels_csv(DataOptions(csv_file=file, label_cols=["A", "B"]), ("test",), known)
    assert names == known and values_of(data.table, known).tolist() == [[0, 1], [1, 0]]
    data, names = read_labels_csv(DataOptions(csv_file=file), ("test",), ["C", "B", "A"])
    assert names == ["C", "B", "A"] and values_of(data.table, names).tolist() == [[0, 0, 1], [0, 1, 0]]
    with pytest.raises(InputError, match="it has no A: name the same ones"):
        read_labels_csv(DataOptions(csv_file=file, label_cols=["A", "B"]), ("test",), ["B"])
    with pytest.raises(InputError, match="--label_cols lacks C"):
        read_labels_csv(DataOptions(csv_file=file, label_cols=["A", "B"]), ("test",), ["A", "B", "C"])
    with pytest.raises(InputError, match="it has no A"):
        read_labels_csv(DataOptions(csv_file=file), ("test",), ["B"])


@pytest.mark.parametrize(("header", "row", "asked", "message"), [
    (["A"], ["train", "2"], {"label_cols": ["A"]}, "label A is neither 0 nor 1 in 1 of 1 rows: line 2 '2'"),
    (["A"], ["train", "yes"], {"label_cols": ["A"]}, "line 2 'yes'"),
    (["A"], ["train", "0.5"], {"label_cols": ["A"]}, "line 2 '0.5'"),
    (["A"], ["train", "-1"], {"label_cols": ["A"]}, "line 2 '-1'"),
    (["A"], ["train", "1"], {"label_cols": ["B"]}, r"no column B \(--label_cols\)"),
    (["A"], ["train", "1"], {"label_cols": ["A", "A"]}, "names A twice"),
    (["A"], ["train", "1"], {"label_cols": ["A", "split"]}, "that column is the path, the split or the patient"),
    (["label"], ["train", "a;a"], {}, "names a label twice in one cell: line 2"),
    (["label"], ["train", "a;A"], {}, "writes one value in two ways"),
    (["label"], ["train", ""], {}, "names no label at all"),
])
def test_wrong_tables_are_one_line(csv, header, row, asked, message):
    with pytest.raises(InputError, match=message):
        read_labels_csv(DataOptions(csv_file=csv(header, row), **asked), ("train",))


def test_an_image_with_other_labels_elsewhere(csv, tmp_path):
    file = csv(["A"], ["train", "1"], ["train", "0"])
    text = (tmp_path / "d.csv").read_text().replace("1.png", "0.png")
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(InputError, match="1 images stand there with other labels, the first on lines 2 and 3"):
        read_labels_csv(DataOptions(csv_file=file, label_cols=["A"]), ("train",))


def test_constant_labels():
    refuse_constant(["a"], np.array([[0.0], [1.0]]), "train")
    with pytest.raises(InputError, match="label b is constant in train .0 in all 2 rows that know it"):
        refuse_constant(["a", "b"], np.array([[0, 0], [1, NAN], [1, 0.0]]), "train")
    with pytest.raises(InputError, match="label a is known in no row of train"):
        refuse_constant(["a"], np.full((2, 1), NAN), "train")


def test_a_stratified_share_is_one_of_each_combination(csv):
    rows = [["train", str(number % 2), str(number % 4 // 2)] for number in range(40)]
    data, _ = read_labels_csv(DataOptions(csv_file=csv(["A", "B"], *rows), label_cols=["A", "B"]), ("train",))
    kept = subset(data.table, 0.5, stratified=True, seed=3)
    assert kept["label"].value_counts().to_dict() == dict.fromkeys(["0;0", "0;1", "1;0", "1;1"], 5)
