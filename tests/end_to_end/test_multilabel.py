"""Several labels an image, the whole way: learned, cut and resumed, scored again, predicted, probed, in cases."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from jobs.run_folder import RunFolder
from tests.conftest import SMALL
from tests.label_pictures import LABELS, write_labelled
from util.metrics.multilabel.figures import metric_columns, multilabel_metrics
from util.metrics.predictions import read_predictions

TINY = [word for word in SMALL if word not in ("--nb_classes", "3")]


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    return write_labelled(tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def learn(start, table):
    """learn(*words) runs main_finetune.py on the labels' columns -> (exit code, stdout, stderr)."""

    def run(*words, columns=LABELS, csv=table):
        of_labels = ["--multilabel", *(["--label_cols", *columns] if columns else [])]
        return start(*TINY, "--csv_file", csv, *of_labels, *words, data=None, small=False)
    return run


def test_train_score_again_and_predict(learn, start, tmp_path, table, monkeypatch, capsys):
    code, out, err = learn("--task", "whole", "--epochs", 3, "--patient_col", "patient", "--calibrate",
                           "--class_weights", "balanced", "--group_col", "site", "--class_order", "a", "b")
    assert code == 0, err
    folder = tmp_path / "output_dir/whole"
    assert {path.name for path in folder.iterdir()} >= {
        "checkpoint-best.pth", "checkpoint-last.pth", "log.txt", "metrics_val.csv", "metrics_test.csv",
        "metrics_test.json", "predictions_val.csv", "predictions_test.csv", "roc_val.png", "roc_test.png",
        "groups_test.csv", "gaps_test.csv", "learning_curves.png", "run.json", "report.html"}
    assert "rare (train 13, val 8, test 10)" in out and "bootstrap" not in err
    assert "--class_order does nothing with --multilabel" in out
    content = torch.load(folder / "checkpoint-best.pth", weights_only=True)
    assert content["task"] == "multilabel" and content["class_names"] == LABELS
    assert content["options"]["nb_classes"] == 3 and set(content["best"]["temperatures"]) == set(LABELS)

    # the metrics once more, from the table and what was chosen on val
    found = read_predictions(folder / "predictions_test.csv")
    figures, _ = multilabel_metrics(found, content["best"])
    stored = json.loads((folder / "metrics_test.json").read_text())
    assert {name: stored[name]["value"] for name in figures} == figures
    assert stored["f1"]["method"] == "bootstrap of patients" and stored["roc_auc_red"]["method"] == "DeLong"
    header = (folder / "metrics_test.csv").read_text().split("\n")[0].split(",")
    assert header == list(metric_columns(LABELS))
    # on val the thresholds were chosen: no interval of what depends on them
    val = json.loads((folder / "metrics_val.json").read_text())
    assert val["f1_red"]["lower"] is None and val["roc_auc_red"]["lower"] is not None

    # scored again: all is in the checkpoint; and from the other way to write the labels
    code, out, err = start("--eval", "--resume", folder / "checkpoint-best.pth", "--task", "again", "--device", "cpu",
                           "--num_workers", 0, data=None, small=False)
    assert code == 0, err
    assert (tmp_path / "output_dir/again/predictions_test.csv").read_bytes() == (
        folder / "predictions_test.csv").read_bytes()
    code, out, err = start("--eval", "--resume", folder / "checkpoint-best.pth", "--task", "names", "--device", "cpu",
                           "--num_workers", 0, "--csv_file", table, "--label_col", "tags", data=None, small=False)
    assert code == 0, err
    of_names = read_predictions(tmp_path / "output_dir/names/predictions_test.csv")
    assert np.array_equal(of_names["prob_red"], found["prob_red"]) and not of_names["true_rare"].isna().any()

    # predict.py says the same of the same images
    import predict
    from util.core.ending import exit_code_of

    words = ["--resume", folder / "checkpoint-best.pth", "--input", table, "--output", "out.csv", "--device", "cpu",
             "--num_workers", "0", "--heatmaps", "maps", "--heatmap_of", "rare"]
    assert exit_code_of(predict.main, list(map(str, words))) == 0, capsys.readouterr()
    said = pd.read_csv("out.csv")
    test = said[said["split"] == "test"].reset_index(drop=True)
    assert np.array_equal(test["logit_red"], found["logit_red"])
    temperature, threshold = (content["best"]["temperatures"]["red"],
                              content["best"]["thresholds"]["threshold_red"])
    assert np.allclose(test["prob_red"], 1 / (1 + np.exp(-test["logit_red"] / temperature)))
    assert np.array_equal(test["predicted_red"] == 1, found["prob_red"] >= threshold)
    at = content["best"]["thresholds"]["sensitivity_at_90_specificity_red"]
    assert np.array_equal(test["called_at_90_specificity_red"] == 1, found["prob_red"] >= at)
    assert len(json.loads((tmp_path / "maps/heatmaps.json").read_text())) == 94


def test_a_cut_run_ends_with_the_same_bits(learn, tmp_path, monkeypatch):
    words = ("--mixup", 0.4, "--cutmix", 0.5, "--epochs", 3)
    assert learn("--task", "whole", *words)[0] == 0
    add_scalars = RunFolder.add_scalars

    def die(folder, values, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        add_scalars(folder, values, epoch)

    monkeypatch.setattr(RunFolder, "add_scalars", die)
    assert learn("--task", "cut", *words)[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, out, err = learn("--task", "cut", *words, "--resume", "same")
    assert code == 0 and "resumed at epoch 1" in out, err
    whole, cut = (torch.load(tmp_path / f"output_dir/{task}/checkpoint-last.pth", weights_only=True)["model"]
                  for task in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    code, out, err = learn("--task", "cut", *words, "--resume", "same", columns=LABELS[:2])
    assert code == 2 and "--label_cols" in err


def test_a_probe_has_heads_of_all_labels(learn, start, tmp_path):
    code, out, err = learn("--task", "lp", "--adaptation", "lp", "--epochs", 3, "--label_col", "tags", columns=None)
    assert code == 0, err
    assert "for comparison, k nearest neighbours" in out and "for comparison, logistic regression" in out
    folder = tmp_path / "output_dir/lp"
    heads = pd.read_csv(folder / "probe_heads.csv")
    assert set(heads["reads"]) == {"pooled", "cls_mean", "last4", "attentive"} and heads["chosen"].sum() == 1
    chosen = heads[heads["chosen"] == 1].iloc[0]
    val = json.loads((folder / "metrics_val.json").read_text())
    assert chosen["val_score"] == pytest.approx(val["score"]["value"]) == heads["val_score"].max()
    content = torch.load(folder / "checkpoint-best.pth", weights_only=True)
    assert content["class_names"] == sorted(LABELS)
    head = next(tensor for name, tensor in content["model"].items() if name.endswith("head.weight"))
    assert head.shape[0] == 3
    code, out, err = start("--eval", "--resume", folder / "checkpoint-best.pth", "--task", "again", "--device", "cpu",
                           "--num_workers", 0, data=None, small=False)
    assert code == 0, err
    one, other = (read_predictions(tmp_path / f"output_dir/{task}/predictions_test.csv") for task in ("lp", "again"))
    assert np.allclose(one["logit_red"], other["logit_red"], atol=1e-4)


@pytest.mark.parametrize("pool", ["max", "attention"])
def test_cases_of_several_labels(learn, tmp_path, table, pool):
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    alike = rows[["split", *LABELS]].agg("|".join, axis=1)
    rows["case"] = alike + "_" + (rows.groupby(alike).cumcount() // 2).astype(str)
    rows["path"] = [str(table.parent / path) for path in rows["path"]]
    rows.to_csv(tmp_path / "cases.csv", index=False)
    code, out, err = learn("--task", "c", "--case_col", "case", "--pool", pool, csv=tmp_path / "cases.csv")
    assert code == 0, err
    folder = tmp_path / "output_dir/c"
    test, images = (pd.read_csv(folder / name) for name in ("predictions_test.csv", "images_test.csv"))
    assert len(test) == rows[rows["split"] == "test"]["case"].nunique() < len(images) == 30
    if pool == "max":  # of each label the largest
        assert np.allclose(test.set_index("case")["logit_red"], images.groupby("case", sort=False)["logit_red"].max())
    else:
        mean = (images["logit_red"] * images["weight"]).groupby(images["case"], sort=False).sum()
        assert np.allclose(test.set_index("case")["logit_red"], mean)


def test_probabilities_of_labels_are_fitted_anew(learn, tmp_path, table):
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    rows.loc[rows["split"] == "test", "split"] = ["ev:B", "test"] * 15
    flipped = rows.index[rows["split"] == "ev:B"][::3]  # so that no outputs part the kinds without an error
    rows.loc[flipped, "bright"] = rows.loc[flipped, "bright"].map({"0": "1", "1": "0"})
    file = table.with_name("external.csv")
    rows.to_csv(file, index=False)
    code, out, err = learn("--task", "re", "--epochs", 1, "--recalibrate", "B", csv=file)
    assert code == 0 and "test_B recalibrated on 8 of its images; on the other 7:" in out, err
    folder = tmp_path / "output_dir/re"
    found = json.loads((folder / "recalibration_test_B.json").read_text())
    assert list(found["labels"]) == LABELS and all(f"  {name}" in out.split("recalibrated on")[1] for name in LABELS)
    page = (folder / "report.html").read_text()
    assert "Probabilities fitted anew to test_B: loss of each label" in page and "p against 1" in page


def test_what_does_not_go_together_is_one_line(learn, start, tmp_path, pictures, table):
    assert learn("--task", "one", "--epochs", 1)[0] == 0
    best = tmp_path / "output_dir/one/checkpoint-best.pth"
    calibrated = table.with_name("calibrated.csv")
    calibrated.write_text(table.read_text().replace("red", "calibrated", 1))
    cases = [
        (["--multilabel"], {"data": pictures}, "--multilabel needs a CSV"),
        (["--multilabel", "--csv_file", table, "--label_col", "tags", "--label_cols", "red"], {"data": None},
         "both name the labels"),
        (["--multilabel", "--csv_file", table, "--label_cols", "red", "--balanced_sampling"], {"data": None},
         "--balanced_sampling with --multilabel"),
        (["--multilabel", "--csv_file", table, "--label_cols", "red", "--recalibrate", "B"], {"data": None},
         "--recalibrate B: no such test set; there is test"),
        (["--multilabel", "--csv_file", table, "--label_cols", "red", "--select_metric", "qwk+f1"], {"data": None},
         "--select_metric qwk is not defined with --multilabel"),
        (["--multilabel", "--csv_file", table, "--label_cols", "red", "--nb_classes", "2"], {"data": None},
         "--nb_classes 2, but there are 1 labels"),
        (["--multilabel", "--csv_file", calibrated, "--label_cols", "calibrated"], {"data": None},
         "label calibrated: a metric of it would be called as another one is"),
        (["--eval", "--resume", best, "--data_path", pictures, "--task", "x"], {"data": None},
         "--multilabel needs a CSV"),
    ]
    for words, more, message in cases:
        code, out, err = start(*TINY, *words, small=False, **more)
        assert code == 2 and message in err and err.count("\n") == 1, (words, err)
    # the checkpoint of one class an image is no start for this
    assert start("--task", "plain", "--epochs", 1)[0] == 0
    code, out, err = learn("--task", "plain", "--resume", "auto")
    assert code == 2 and "is a checkpoint of a classification: leave --multilabel out" in err
