"""report.html of runs that lack something: what is said at its top, and what is left out of it."""

import json
import shutil

import pandas as pd
import pytest

from tests.report.pages import page_of
from tests.run_folders import classification_run, regression_run
from util.core.errors import InputError
from util.report.__main__ import main as report_main
from util.report.page import write_report

pytestmark = pytest.mark.usefixtures("no_drawing")

# ---- warnings ----------------------------------------------------------------------------------------------

def test_warnings_stand_at_the_top(tmp_path):
    names = ["a", "b", "c"]
    folder = classification_run(tmp_path / "run", names,
                                weights={"name": "w", "used": 3, "expected": 9, "text": "lacks <x>"})
    facts = json.loads((folder / "run.json").read_text())
    facts["data"]["images"]["train"]["c"] = 0
    (folder / "run.json").write_text(json.dumps(facts))
    finding = {"kind": "same bytes", "splits": ["train", "test"], "similarity": None}
    (folder / "leakage.json").write_text(json.dumps({
        "pictures": 90, "checked": 88, "seconds": 1, "unreadable": [], "cannot see": "nothing",
        "findings": [finding | {"paths": [f"x{k}", f"y{k}"]} for k in range(7)]
        + [{"kind": "same patient", "patient": "p1", "counts": {"train": 2, "test": 1},
            "splits": ["train", "test"]}],
        "counts": {"same bytes": 7, "same patient": 1, "near duplicate": 0}}))
    (folder / "skipped_images.csv").write_text(
        "path,reason\n" + "".join(f"bad{k}.jpg,cut short\n" for k in range(6))
    )
    stored = json.loads((folder / "metrics_test.json").read_text())
    stored["kappa"]["undefined"] = 12
    (folder / "metrics_test.json").write_text(json.dumps(stored))
    page, _ = page_of(folder)
    top = page.text[
        page.text.index("Before these metrics") : page.text.index(
            "Metrics of test", page.text.index("Before these")
        )
    ]
    for part in (
        "in two splits, 7 times",
        "x3 and y3",
        "and 3 more",
        "patient p1: train 2, test 1",
        "Only 3 of the 9 tensors",
        "train has no image of 1 of the 3 classes (c)",
        "6 images could not be read",
        "bad3.jpg: cut short",
        "and 2 more",
        "a note <b>",
        "test: kappa in 12 of 2000",
    ):
        assert part in top, part
    assert "x4 and" not in top and "nearly the same" not in top
    assert "88 of 90 images" in page.text


def test_no_warning_where_there_is_nothing_to_warn_of(tmp_path):
    page, _ = page_of(regression_run(tmp_path / "run", ["age"]))
    assert not page.all("aside")


# ---- what is missing ---------------------------------------------------------------------------------------

def test_an_older_run_without_intervals(tmp_path):
    folder = classification_run(tmp_path / "run", ["a", "b"], intervals=False)
    page, lines = page_of(folder)
    assert "no interval" in page.text and "have no intervals" in page.text and len(lines) == 1


def test_predictions_alone_are_enough(tmp_path):
    folder = classification_run(tmp_path / "run", ["a", "b", "c"], splits=("test",))
    for name in ("run.json", "log.txt", "metrics_test.json", "metrics_test.csv"):
        (folder / name).unlink()
    page, lines = page_of(folder)
    said = "\n".join(lines)
    assert (
        "run.json is not there" in said
        and "metrics_test.json is not there" in said
        and "no val split" in said
    )
    assert "Most confident mistakes" in page.text and "run.json is not there" in page.text
    assert "Learning curves" not in page.text and "Train it again" not in page.text
    table = pd.read_csv(folder / "predictions_test.csv")
    assert f"{(table.true_class == table.predicted_class).mean():.3f}" in page.text


def test_figures_alone_are_enough_and_so_is_val(tmp_path, drawing):
    folder = classification_run(tmp_path / "run", ["a", "b"], splits=("val",))
    page, _ = page_of(folder)
    assert "Metrics of val" in page.text and (folder / "roc_val.png").exists()
    (folder / "predictions_val.csv").unlink()
    page, lines = page_of(folder)
    assert any("predictions_val.csv is not there" in line for line in lines) and "Charts of" not in page.text


def test_damaged_files_are_said(tmp_path):
    folder = classification_run(tmp_path / "run", ["a", "b"])
    (folder / "run.json").write_text("{cut")
    (folder / "leakage.json").write_text("[]")
    (folder / "metrics_val.json").write_text('{"accuracy": 3, "f1": {"value": "x"}, "kappa": {"value": NaN}}')
    (folder / "predictions_val.csv").write_text("a,b\n1,2\n")
    with open(folder / "log.txt", "a") as file:
        file.write('{"epoch": 3, "tra')
    page, lines = page_of(folder)
    said = "\n".join(lines)
    for part in (
        "run.json is no JSON",
        "leakage.json holds no JSON object",
        "predictions_val.csv",
        "log.txt: 1 line",
    ):
        assert part in said and part in page.text, part


def test_pictures_that_moved_away_are_counted(tmp_path):
    folder = classification_run(tmp_path / "run", ["a", "b", "c"])
    shutil.rmtree(folder / "pictures")
    page, lines = page_of(folder)
    assert not page.all("img") and any("of test cannot be shown as thumbnails" in line for line in lines)
    assert "not there" in page.text


def test_relative_paths_are_found_above_the_run(tmp_path, monkeypatch):
    folder = classification_run(tmp_path / "output_dir/run", ["a", "b", "c"])
    (folder / "pictures").rename(tmp_path / "data")
    for split in ("val", "test"):
        path = folder / f"predictions_{split}.csv"
        path.write_text(path.read_text().replace(str(folder / "pictures"), "data"))
    monkeypatch.chdir("/")
    page, lines = page_of(folder)
    assert page.all("img") and len(lines) == 1


def test_no_mistake_and_an_absent_class(tmp_path):
    folder = classification_run(tmp_path / "run", ["a", "b", "c"])
    path = folder / "predictions_test.csv"
    rows = path.read_text().splitlines()
    kept = [row for row in rows[1:] if row.split(",")[4] == '"a"' and row.split(",")[5] == '"a"']
    path.write_text("\n".join([rows[0], *kept]) + "\n")
    page, _ = page_of(folder)
    assert "No image of test is predicted wrong." in page.text and "undefined" in page.text
    assert "test has no image of 2 of the 3 classes (b, c)" in page.text


def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys):
    from util.core.ending import exit_code_of

    classification_run(tmp_path / "run", ["a", "b"], number=8)
    (tmp_path / "empty").mkdir()
    assert exit_code_of(report_main, [str(tmp_path / "empty"), str(tmp_path / "run"),
                                      str(tmp_path / "none")]) == 2
    captured = capsys.readouterr()
    assert (
        captured.err.count("\n") == 1 and "holds neither" in captured.err and "is no folder" in captured.err
    )
    assert (tmp_path / "run/report.html").exists() and "run/report.html" in captured.out
    with pytest.raises(InputError):
        write_report(tmp_path / "empty")
