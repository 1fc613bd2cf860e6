"""--folds the whole way: dealt, run, resumed fold by fold, put together, predicted by all models."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, recall_score, roc_auc_score

import predict
from benchmarks.chaos import differences
from tests.conftest import CLASSES
from tests.drawn_volumes import write_volumes
from util.core.ending import exit_code_of
from util.metrics.predictions import read_predictions

QUICK = ("--leakage", "off", "--epochs", 1)


@pytest.fixture(scope="module")
def table(tmp_path_factory, pictures):
    """A CSV of the pictures: a patient has two images, of one class."""
    rows = []
    for path in sorted(pictures.glob("*/*/*.png")):
        split, name = path.parts[-3:-1]
        rows.append((str(path), name, split, f"{split[:2]}{name}{int(path.stem) // 2}", int(path.stem) % 2,
                     int(name == "severe"), CLASSES.index(name) + int(path.stem) / 50))
    file = tmp_path_factory.mktemp("folds") / "table.csv"
    columns = ["path", "label", "split", "patient", "left", "grave", "amount"]
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    return file


def oof(folder, split="test_oof"):
    return read_predictions(folder / f"predictions_{split}.csv")


def entries(folder, split="test_oof"):
    return json.loads((folder / f"metrics_{split}.json").read_text())


def predicted(folder, given, *more):
    words = ["--resume", *(str(folder / f"fold_{n}/checkpoint-best.pth") for n in (1, 2, 3)), "--input", str(given),
             "--output", "p.csv", "--num_workers", "0", "--device", "cpu", *more]
    return exit_code_of(predict.main, words)


def test_every_image_is_scored_once_by_a_model_that_did_not_see_it(start, table, tmp_path, capsys):
    words = ["--csv_file", table, "--patient_col", "patient", "--folds", 3, "--task", "F", *QUICK]
    code, out, err = start(*words, data=None)
    assert code == 0, err
    folder, rows = tmp_path / "output_dir/F", pd.read_csv(table)
    found = oof(folder)
    assert sorted(found["path"]) == sorted(rows.loc[rows["split"] != "test", "path"])
    assert found.groupby("patient")["fold"].nunique().max() == 1
    for fold in (1, 2, 3):
        own = oof(folder / f"fold_{fold}")
        val = oof(folder / f"fold_{fold}", "val")
        assert set(own["path"]) == set(found.loc[found["fold"] == str(fold), "path"])
        assert set(val["path"]) == set(oof(folder / f"fold_{fold % 3 + 1}")["path"])
        logits = [f"logit_{name}" for name in CLASSES]
        np.testing.assert_array_equal(found[found["fold"] == str(fold)][logits], own[logits])
    stored = entries(folder)
    probabilities = found[[f"prob_{name}" for name in CLASSES]].to_numpy()
    expected = roc_auc_score(found["true_class"], probabilities, multi_class="ovr", labels=list(CLASSES))
    assert stored["roc_auc"]["value"] == pytest.approx(expected)
    assert stored["accuracy"]["widened"] == pytest.approx(2 ** 0.5)
    # the mean of the models on the test set, as predict.py has it
    mean = oof(folder, "test")
    of_models = [oof(folder / f"fold_{fold}", "test")["prob_mild"] for fold in (1, 2, 3)]
    np.testing.assert_allclose(mean["prob_mild"], np.mean(of_models, axis=0))
    given = tmp_path / "given.csv"
    rows[rows["split"] == "test"][["path"]].to_csv(given, index=False)
    assert predicted(folder, given) == 0, capsys.readouterr().err
    said = pd.read_csv("p.csv").set_index("path")["prob_mild"]
    np.testing.assert_allclose(said[mean["path"]], mean["prob_mild"], atol=1e-6)
    np.testing.assert_allclose(pd.read_csv("p.csv").set_index("path")["sd_mild"][mean["path"]],
                               np.std(of_models, axis=0, ddof=1), atol=1e-6)
    listed = pd.read_csv(folder / "folds.csv").set_index(["split", "metric"])
    assert listed.loc[("test", "accuracy"), "fold_2"] == entries(folder / "fold_2", "test")["accuracy"]["value"]
    assert (folder / "report.html").stat().st_size > 10_000

    # a second launch goes on where the first was cut; the same to the bit
    shutil.copytree(folder, tmp_path / "whole")
    shutil.rmtree(folder / "fold_2")
    (folder / "predictions_test_oof.csv").unlink()
    code, out, err = start(*words, data=None)
    assert code == 0 and out.count("this run is complete") == 2, err
    for name in ("predictions_test_oof.csv", "predictions_test.csv", "metrics_test_oof.json", "folds.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert differences(folder / "fold_2", tmp_path / "whole/fold_2") == []
    assert not list(folder.glob("earlier-*"))

    # one alone says that others are not there; other options are no part of it
    shutil.rmtree(folder / "fold_1")
    code, out, err = start(*words, "--fold", 3, data=None)
    assert code == 0 and "folds      1 of 3 are not complete" in out, err
    code, out, err = start("--csv_file", table, "--eval", "--resume", folder / "fold_3/checkpoint-best.pth", "--task",
                           "again", data=None, small=False)
    assert code == 0, err
    np.testing.assert_array_equal(oof(tmp_path / "output_dir/again", "test")["prob_mild"],
                                  oof(folder / "fold_3", "test")["prob_mild"])
    code, out, err = start(*words, "--datasets_seed", 1, "--fold", 2, data=None)
    assert code == 2 and "--datasets_seed 2026 -> 1" in err and err.count("\n") == 1


def test_two_classes_decide_by_each_folds_own_threshold_and_temperature(start, table, tmp_path):
    rows = pd.read_csv(table)
    rows.loc[(rows["split"] == "test") & (rows["left"] == 1), "split"] = "ev:far"
    rows["side"] = np.where(rows.index % 2, "left", "right")
    rows.to_csv(tmp_path / "far.csv", index=False)
    code, out, err = start("--csv_file", tmp_path / "far.csv", "--label_col", "grave", "--patient_col", "patient",
                           "--group_col", "side", "--folds", 3, "--task", "T", "--nb_classes", 2, "--calibrate", *QUICK,
                           "--recalibrate", "far", data=None)
    assert code == 0, err
    # what is asked for of test sets is there of the folds' table and of the models' mean, too
    of_groups = pd.read_csv(tmp_path / "output_dir/T/groups_test_oof.csv").set_index(["group", "metric"])
    part = oof(tmp_path / "output_dir/T").query("group_side == 'left'")
    assert of_groups.loc[("left", "roc_auc"), "value"] == pytest.approx(
        roc_auc_score(part["true_class"], part["prob_1"]))
    together = out.split("test_oof: out of fold")[1]
    assert "test_oof by side" in together and together.count("recalib") == 1
    lost = pd.read_csv(tmp_path / "output_dir/T/drop_test_far.csv").set_index("metric").loc["roc_auc"]
    of_mean = [entries(tmp_path / "output_dir/T", name)["roc_auc"]["value"] for name in ("test", "test_far")]
    assert lost["drop"] == pytest.approx(of_mean[0] - of_mean[1])
    assert set(pd.read_csv(tmp_path / "output_dir/T/groups_test.csv")["group"]) == {"left", "right"}
    folder = tmp_path / "output_dir/T"
    from util.metrics.calibration import fit_temperature
    from util.metrics.weighted import Images, operating_thresholds

    found, called, losses = oof(folder), [], []
    for fold in (1, 2, 3):
        val, own = (Images.of(oof(folder / f"fold_{fold}", split)) for split in ("val", "test_oof"))
        threshold = operating_thresholds(val)["sensitivity_at_90_specificity"]
        called += list((own.probabilities[:, 1] >= threshold)[own.true == 1])
        scaled = own.logits / fit_temperature(val.logits, val.true)
        losses += list(np.logaddexp(*scaled.T) - scaled[np.arange(len(own.true)), own.true])
    stored = entries(folder)
    assert stored["sensitivity_at_90_specificity"]["value"] == pytest.approx(np.mean(called))
    assert stored["loss_calibrated"]["value"] == pytest.approx(np.mean(losses))
    assert stored["roc_auc"]["value"] == pytest.approx(roc_auc_score(found["true_class"], found["prob_1"]))


def test_several_labels(start, table, tmp_path, capsys):
    code, out, err = start("--csv_file", table, "--multilabel", "--label_cols", "left", "grave", "--patient_col",
                           "patient", "--folds", 3, "--task", "M", "--nb_classes", 2, *QUICK, data=None)
    assert code == 0, err
    folder = tmp_path / "output_dir/M"
    from util.metrics.multilabel.predictions import decide

    true, called = [], []
    for fold in (1, 2, 3):
        val, own = oof(folder / f"fold_{fold}", "val"), oof(folder / f"fold_{fold}")
        called += list(own["prob_grave"] >= decide(val, False)["thresholds"]["threshold_grave"])
        true += list(own["true_grave"] == 1)
    stored = entries(folder)
    assert stored["sensitivity_grave"]["value"] == pytest.approx(recall_score(true, called))
    assert stored["roc_auc_grave"]["value"] == pytest.approx(
        roc_auc_score(oof(folder)["true_grave"], oof(folder)["prob_grave"]))
    ours = f1_score(true, called, average="macro")
    assert stored["f1_grave"]["value"] in (pytest.approx(ours), pytest.approx(f1_score(true, called)))
    given = tmp_path / "given.csv"
    pd.read_csv(table).query("split == 'test'")[["path"]].to_csv(given, index=False)
    assert predicted(folder, given) == 0, capsys.readouterr().err
    said, mean = pd.read_csv("p.csv").set_index("path"), oof(folder, "test")
    np.testing.assert_allclose(said["prob_grave"][mean["path"]], mean["prob_grave"], atol=1e-6)


def test_cases_stay_in_one_fold(start, tmp_path, capsys):
    volumes = write_volumes(tmp_path / "volumes", {"train": 10, "test": 4}, sections=3)  # no val at all
    code, out, err = start("--csv_file", volumes, "--nb_classes", 2, "--case_col", "volume", "--folds", 3, "--task",
                           "C", *QUICK, data=None)
    assert code == 0, err
    folder = tmp_path / "output_dir/C"
    found, images = oof(folder), read_predictions(folder / "images_test_oof.csv")
    assert len(found) == 10 and images.groupby("case")["fold"].nunique().max() == 1 and len(images) == 30
    assert predicted(folder, volumes) == 0, capsys.readouterr().err
    assert len(pd.read_csv("p.csv")) == 14 and len(pd.read_csv("p.images.csv")) == 42


def test_regression(table, tmp_path, monkeypatch, capsys, charts_are_not_drawn):
    import main_regression
    from tests.conftest import SMALL

    monkeypatch.chdir(tmp_path)
    small = [word for word in SMALL if word not in ("--nb_classes", "3")]
    words = [*small, "--csv_file", table, "--targets", "amount", "--patient_col", "patient", "--folds", 3, "--task",
             "R", *QUICK]
    assert exit_code_of(main_regression.main, list(map(str, words))) == 0, capsys.readouterr().err
    folder = tmp_path / "output_dir/R"
    found = oof(folder)
    assert len(found) == 62
    before = (folder / "metrics_test_oof.json").read_bytes()
    assert exit_code_of(main_regression.main, [*map(str, words), "--fold", "1"]) == 0, capsys.readouterr().err
    assert (folder / "metrics_test_oof.json").read_bytes() == before
    error = np.abs(found["pred_amount"] - found["true_amount"]).mean()
    assert entries(folder)["mae_amount"]["value"] == pytest.approx(error)
    given = tmp_path / "given.csv"
    pd.read_csv(table).query("split == 'test'")[["path"]].to_csv(given, index=False)
    assert predicted(folder, given) == 0, capsys.readouterr().err
    mean = oof(folder, "test")
    said = pd.read_csv("p.csv").set_index("path")["pred_amount"]
    np.testing.assert_allclose(said[mean["path"]], mean["pred_amount"], rtol=1e-4)


def test_one_line_for_what_cannot_be(start, table, tmp_path, capsys):
    words = ["--csv_file", table, "--task", "bad", *QUICK]
    for more, line in (
            (["--folds", 2], "out of range"),
            (["--folds", 50, "--patient_col", "patient"], "--folds 50: train and val have 32 patients"),
            (["--folds", 63], "--folds 63: train and val have 62 images"),
            (["--folds", 3, "--fold", 4], "--fold 4 of --folds 3"),
            (["--folds", 3, "--resume", "x.pth"], "--folds trains several models")):
        code, _, err = start(*words, *more, data=None)
        assert code == 2 and line in err and err.count("\n") in (1, 2), err
    rare = pd.read_csv(table)
    rare.loc[rare.index[rare["split"] == "train"][0], "label"] = "rare"
    rare.to_csv(tmp_path / "rare.csv", index=False)
    code, _, err = start("--csv_file", tmp_path / "rare.csv", "--folds", 3, "--nb_classes", 4, "--task", "rare",
                         *QUICK, data=None)
    assert code == 2 and "1 images of train and val have class rare, and the training images of fold" in err
    assert start(*words, "--folds", 3, data=None)[0] == 0
    folds = [str(tmp_path / f"output_dir/bad/fold_{n}/checkpoint-best.pth") for n in (1, 2)]
    assert start(*words[:2], "--task", "two", "--label_col", "grave", "--nb_classes", 2, *QUICK, data=None)[0] == 0
    other = str(tmp_path / "output_dir/two/checkpoint-best.pth")
    use = ["--input", str(table), "--output", "p.csv", "--device", "cpu", "--num_workers", "0", "--resume"]
    for more, line in (([folds[0], folds[0]], "twice"),
                       ([*folds, other], "differ in their names (healthy mild severe; 0 1)"),
                       ([*folds, "--heatmaps"], "--heatmaps shows where one model looked")):
        capsys.readouterr()
        assert exit_code_of(predict.main, [*use, *more]) == 2
        err = capsys.readouterr().err
        assert line in err and err.count("\n") == 1, err
