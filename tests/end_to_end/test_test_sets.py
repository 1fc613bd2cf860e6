"""Several test sets in one run: further internal and external ones, from folders and from a CSV."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from compare import main
from tests.conftest import CLASSES
from util.metrics.predictions import read_predictions


@pytest.fixture(scope="module")
def several(pictures, tmp_path_factory):
    """The usual images, with an internal test set LATER of the same files and an external one OTHER without
    one class."""
    place = tmp_path_factory.mktemp("several") / "data"
    shutil.copytree(pictures, place)
    shutil.copytree(pictures / "val", place / "test_LATER")
    shutil.copytree(pictures / "val", place / "ev_OTHER", ignore=lambda folder, names: [CLASSES[0]])
    return place


def test_one_run_scores_all_of_them(start, several, tmp_path):
    code, out, err = start("--task", "run", "--leakage", "off", data=several)
    assert code == 0, err
    run = tmp_path / "output_dir/run"
    sets = {split: read_predictions(run / f"predictions_{split}.csv")
            for split in ("test", "test_LATER", "test_OTHER")}
    for split, table in sets.items():
        assert set(table["split"]) == {split} and (run / f"metrics_{split}.json").exists()
        assert (run / f"confusion_matrix_{split}.png").exists() and f"\n{split} (" in out
    # the same files were scored on val
    outputs = [name for name in sets["test"] if name.startswith("logit_")]
    val = read_predictions(run / "predictions_val.csv")
    np.testing.assert_array_equal(val[outputs], sets["test_LATER"][outputs])
    lost = pd.read_csv(run / "drop_test_OTHER.csv").set_index("metric")
    assert not (run / "drop_test_LATER.csv").exists()
    metrics = {split: json.loads((run / f"metrics_{split}.json").read_text()) for split in sets}
    for name in ("roc_auc", "accuracy"):
        both = [metrics[split][name]["value"] for split in ("test", "test_OTHER")]
        assert lost["drop"][name] == pytest.approx(both[0] - both[1])
        assert lost["lower"][name] <= lost["drop"][name] <= lost["upper"][name]
    assert lost["drop"]["brier"] == pytest.approx(metrics["test_OTHER"]["brier"]["value"]
                                                  - metrics["test"]["brier"]["value"])
    assert json.loads((run / "run.json").read_text())["data"]["external"] == ["test_OTHER"]
    page = (run / "report.html").read_text()
    places = [page.index(f'id="charts-{split}"') for split in ("test", "test_LATER", "test_OTHER", "val")]
    assert places == sorted(places) and "From test to test_OTHER" in page
    assert "From test to test_LATER" not in page
    for split in ("test_OTHER", "val"):
        assert main([str(run), "--split", split, "--output", str(tmp_path / split)]) == 0
        assert (tmp_path / split / "comparison.csv").exists()
    # complete: nothing is done twice
    code, out, err = start("--task", "run", "--leakage", "off", "--resume", "same", data=several)
    assert code == 0 and "this run is complete" in out and "test_OTHER (" in out, err


def test_folders_beside_the_data_and_a_csv_say_the_same(start, several, tmp_path):
    """--external at an evaluation, and rows ev:OTHER of a CSV."""
    assert start("--task", "run", "--epochs", 1, data=several)[0] == 0
    shutil.copytree(several / "ev_OTHER", tmp_path / "OTHER" / "test")
    plain = tmp_path / "plain"
    shutil.copytree(several, plain, ignore=shutil.ignore_patterns("ev_*", "test_*"))
    best = tmp_path / "output_dir/run/checkpoint-best.pth"
    code, out, err = start("--task", "again", "--eval", "--resume", best, "--external", tmp_path / "OTHER",
                           data=plain)
    assert code == 0 and "from test to test_OTHER" in out, err
    rows = [(path, path.parent.name, {"ev_OTHER": "ev:OTHER", "test_LATER": "test:LATER"}.get(
        path.parts[-3], path.parts[-3])) for path in sorted(several.glob("*/*/*.png"))]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "d.csv", index=False)
    code, out, err = start("--task", "csv", "--eval", "--resume", best, "--csv_file", tmp_path / "d.csv",
                           data=None)
    assert code == 0, err
    outputs = [f"logit_{name}" for name in CLASSES]
    tables = [read_predictions(tmp_path / f"output_dir/{task}/predictions_test_OTHER.csv")
              for task in ("run", "again", "csv")]
    for table in tables[1:]:
        np.testing.assert_allclose(table[outputs], tables[0][outputs], atol=1e-6)
    page = (tmp_path / "output_dir/again/report.html").read_text()
    assert "From test to test_OTHER" in page


def test_a_probe_scores_all_of_them(start, several, tmp_path):
    code, out, err = start("--task", "probe", "--adaptation", "lp", "--leakage", "off", data=several)
    assert code == 0 and "from test to test_OTHER" in out, err
    assert (tmp_path / "output_dir/probe/predictions_test_LATER.csv").exists()


def test_probabilities_are_fitted_anew(start, several, tmp_path):
    """To a set where some labels are others', so that no outputs part its classes."""
    mixed = tmp_path / "MIXED"
    shutil.copytree(several / "train", mixed)
    for number, name in enumerate(CLASSES):
        for path in sorted((several / "train" / name).glob("*.png"))[:5]:
            other = CLASSES[(number + 1) % len(CLASSES)]
            (mixed / name / path.name).rename(mixed / other / f"of_{name}_{path.name}")
    code, out, err = start("--task", "run", "--leakage", "off", "--external", mixed, "--recalibrate", "MIXED",
                           data=several)
    assert code == 0 and "test_MIXED recalibrated on" in out, out
    found = json.loads((tmp_path / "output_dir/run/recalibration_test_MIXED.json").read_text())
    assert set(found["metrics"]) == {"as it is", "intercepts", "slope and intercepts"}
    assert found["fitted"] + found["scored"] == len(list(mixed.glob("*/*.png")))
    assert "Probabilities fitted anew to test_MIXED" in (tmp_path / "output_dir/run/report.html").read_text()
    # asked for once a run is complete, it is still done
    (tmp_path / "output_dir/run/recalibration_test_MIXED.json").unlink()
    code, out, err = start("--task", "run", "--leakage", "off", "--external", mixed, "--recalibrate", "MIXED",
                           "--resume", "same", data=several)
    assert code == 0 and "test_MIXED recalibrated on" in out, err
    assert json.loads((tmp_path / "output_dir/run/recalibration_test_MIXED.json").read_text()) == found
    code, out, err = start("--task", "other", "--recalibrate", "NONE", data=several)
    assert code == 2 and "there is test, test_LATER, test_OTHER" in err


def test_groups_of_a_csv(start, several, tmp_path):
    rows = [(path, path.parent.name, path.parts[-3], f"site {number % 2}", str(20 + 7 * number % 60))
            for split in ("train", "val", "test")
            for number, path in enumerate(sorted(several.glob(f"{split}/*/*.png")))]
    table = pd.DataFrame(rows, columns=["path", "label", "split", "site", "age"])
    table.loc[3, "site"] = ""
    table.to_csv(tmp_path / "d.csv", index=False)
    words = ("--csv_file", tmp_path / "d.csv", "--leakage", "off", "--group_col", "site", "age")
    code, out, err = start("--task", "run", *words, "--group_bins", "age=40,60", data=None)
    assert code == 0 and "test by site" in out and "no gap was tested" in out, err
    assert "1 of " in out and "rows name no site" in out
    run = tmp_path / "output_dir/run"
    groups = pd.read_csv(run / "groups_test.csv")
    predictions = read_predictions(run / "predictions_test.csv")
    assert set(groups["group"]) == {"site 0", "site 1", "below 40", "40 to 60", "60 and above"}
    for (column, name), part in groups.groupby(["column", "group"]):
        own = predictions[predictions[f"group_{column}"] == name]
        values = part.set_index("metric")["value"]
        assert values["n"] == len(own)
        assert values["accuracy"] == pytest.approx((own["true_class"] == own["predicted_class"]).mean())
    gaps = pd.read_csv(run / "gaps_test.csv")
    assert list(gaps[gaps["column"] == "site"]["metric"]) == ["roc_auc", "accuracy", "balanced_accuracy", "f1"]
    assert gaps["p"].isna().all()  # fewer than 20 images a group
    page = (run / "report.html").read_text()
    assert "test by site" in page and "Gaps between groups of age, test" in page and "too few" in page and "too few for a test" in out
    code, out, err = start("--task", "other", *words, data=None)
    assert code == 2 and "--group_bins age=40,60" in err
    # scored by another column: the bands of the checkpoint's are left, and what does nothing is said
    code, out, err = start("--task", "site", "--eval", "--resume", run / "checkpoint-best.pth", "--csv_file",
                           tmp_path / "d.csv", "--group_col", "site", "--external", several, data=None)
    assert code == 0 and set(pd.read_csv(tmp_path / "output_dir/site/groups_test.csv")["column"]) == {"site"}, err
    assert "--external does nothing with --csv_file" in out


def test_patients_in_two_test_sets_are_told(start, pictures, tmp_path):
    shutil.copytree(pictures / "test", tmp_path / "ev_B")
    rows = [(str(path), path.parts[-2], split, f"{split} {path.stem}")
            for split, folder in [*((name, pictures / name) for name in ("train", "val", "test")),
                                  ("ev:B", tmp_path / "ev_B")] for path in sorted(folder.glob("*/*.png"))]
    table = pd.DataFrame(rows, columns=["path", "label", "split", "patient"])
    outside = table.index[table["split"] == "ev:B"]
    table.loc[outside[::2], "split"] = "ev:C"
    outside = table.index[table["split"] == "ev:B"]
    table.loc[outside[:2], "patient"] = list(table.loc[table["split"] == "test", "patient"].unique()[:2])
    # those whose patient nobody knows are no common one
    table.loc[[outside[-1], table.index[table["split"] == "test"][-1]], "patient"] = ""
    table.to_csv(tmp_path / "table.csv", index=False)
    code, out, err = start("--csv_file", tmp_path / "table.csv", "--patient_col", "patient", "--leakage", "off",
                           "--task", "shared", "--epochs", 1, data=None)
    assert code == 0 and "warning: 2 patients are in test and in test_B: the two are no independent samples" in out, err
    page = (tmp_path / "output_dir/shared/report.html").read_text()
    assert "2 patients" in page and "these intervals don't hold" in page
    assert re.search(r"test_B 0\.\d+, test_C 0\.\d+", page) and "<th scope=\"col\">95 % interval</th>" not in page.split("Interval by")[0]
