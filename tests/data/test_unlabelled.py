"""Images without labels: found at any depth, in a CSV's order, and told apart from everything else."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from tests.conftest import picture
from util.core.errors import InputError, RunError
from util.data.unlabelled import class_answers, read_unlabelled, with_answers


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.PNG", "deep/er/c.tif", "deep/d.jpg", ".hidden.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(rng, 0).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("x")
    return tmp_path / "pictures"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_folder_at_any_depth(folder):
    data = read_unlabelled(str(folder))
    assert [path.removeprefix(f"{folder}/") for path in data.table["path"]] == [
        "a.PNG",
        "b.png",
        "deep/d.jpg",
        "deep/er/c.tif",
    ]
    assert set(data.table["split"]) == {"input"} and list(data.table["index"]) == [0, 1, 2, 3]
    assert len(data.notes) == 1 and "left out 2 files" in data.notes[0] and "notes.txt" in data.notes[0]


def test_a_csv_keeps_its_order_and_columns(folder, tmp_path):
    source = write(
        tmp_path / "list.csv",
        "id;image;age;grade\n007;pictures/b.png;61;NA\n008;pictures/a.PNG;;2\n007;pictures/b.png;61;3\n",
    )
    data = read_unlabelled(source, "image", ("grade",))
    assert list(data.table["path"]) == [str(tmp_path / "pictures" / name)
                                        for name in ("b.png", "a.PNG", "b.png")]
    assert list(data.table["covariate_grade"]) == ["NA", "2", "3"]
    assert "separated by semicolon" in data.notes[0] and "grade is missing in 1 of 3 rows" in data.notes[1]
    answers = pd.DataFrame({"predicted_class": ["x", "y"], "prob_x": [0.7, 0.2]})
    data.table = data.table.iloc[[0, 2]]  # as after --bad_images skip
    table, lines = with_answers(data, answers)
    assert list(table.columns) == ["path", "image", "grade", "id", "age", "predicted_class", "prob_x"]
    assert list(table["id"]) == ["007", "007"] and list(table["grade"]) == ["NA", "3"] and not lines


def test_columns_of_an_earlier_output_are_renamed(folder, tmp_path):
    source = write(tmp_path / "list.csv",
                   "path,predicted_class,input_predicted_class\npictures/b.png,old,older\n")
    table, lines = with_answers(read_unlabelled(source), pd.DataFrame({"predicted_class": ["new"]}))
    assert table.iloc[0].to_dict() == {"path": str(tmp_path / "pictures/b.png"),
                                       "input_predicted_class_": "old",
                                       "input_predicted_class": "older", "predicted_class": "new"}
    assert len(lines) == 1 and lines[0].endswith("predicted_class is now input_predicted_class_")


@pytest.mark.parametrize("text, covariates, says", [
    ("path\nnothing.png\n", (), "line 2 .*nothing.png"),
    ("picture\na.png\n", (), "no column path .--path_col.; there is picture"),
    ("path\npictures/b.png\n", ("eye",), "no column eye .a covariate of this model."),
    ("path,path\npictures/b.png,x\n", (), "both named path"),
    ("path,x\n,1\n", (), "column path is empty in 1 rows: line 2"),
    ("path\n", (), "no row below the header"),
])
def test_a_wrong_csv(folder, tmp_path, text, covariates, says):
    with pytest.raises(InputError, match=says):
        read_unlabelled(write(tmp_path / "list.csv", text), "path", covariates)


def test_a_wrong_input(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("x")
    for source, covariates, says in (
        (tmp_path / "empty", (), "no image .*left out 1 files"),
        (tmp_path / "none", (), "not there"),
        (folder / "b.png", (), "is an image: name its folder"),
        (folder, ("eye", "age"), "reads eye, age beside each image: pass a CSV"),
    ):
        with pytest.raises(InputError, match=says):
            read_unlabelled(str(source), "path", covariates)


def test_probabilities_are_scipys_at_a_temperature():
    logits = np.random.default_rng(1).normal(scale=4, size=(50, 3)).astype(np.float32)
    paths = pd.Series([f"{n}.png" for n in range(50)])
    for temperature in (None, 2.5):
        table = class_answers(paths, logits, ["a", "b", "c"], temperature)
        expected = softmax(logits.astype(np.float64) / (temperature or 1), axis=1)
        assert np.allclose(table[["prob_a", "prob_b", "prob_c"]], expected, rtol=1e-12)
        assert np.array_equal(table[["logit_a", "logit_b", "logit_c"]], logits.astype(np.float64))
        assert list(table["predicted_class"]) == [list("abc")[k] for k in logits.argmax(axis=1)]


def test_thresholds_are_of_the_second_class_before_the_temperature():
    # probabilities .73, .55, .27; at temperature 4 .56, .51, .44
    logits = np.array([[0.0, 1.0], [0.0, 0.2], [0.0, -1.0]])
    table = class_answers(
        pd.Series(["x"] * 3),
        logits,
        ["no", "yes"],
        4.0,
        {"sensitivity_at_90_specificity": 0.6, "specificity_at_95_sensitivity": 0.25},
    )
    assert list(table["called_at_90_specificity"]) == [1, 0, 0] and list(
        table["called_at_95_sensitivity"]
    ) == [1, 1, 1]
    assert table["prob_yes"].round(2).tolist() == [0.56, 0.51, 0.44]


def test_outputs_that_are_no_numbers():
    with pytest.raises(RunError, match="b.png"):
        class_answers(pd.Series(["a.png", "b.png"]), np.array([[0, 1], [np.nan, 1]]), ["x", "y"])
