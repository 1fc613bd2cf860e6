"""A run's figures come with intervals, the best epoch by the figure asked for, and calibrated where that is
asked for."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from util.metrics.calibration import softmax


def entries_of(folder, split="test"):
    return json.loads((folder / f"metrics_{split}.json").read_text())


def test_calibrated_run_and_its_evaluation_agree(start, tmp_path):
    code, out, err = start("--task", "a", "--calibrate", "--select_metric", "auc+f1", "--epochs", "3",
                           "--seed", "3")
    assert code == 0, err
    folder = tmp_path / "output_dir" / "a"
    entries, of_val = entries_of(folder), entries_of(folder, "val")
    rows = pd.read_csv(folder / "metrics_val.csv")
    assert (rows["selection"] == (rows["roc_auc"] + rows["f1"]) / 2).all()
    best = int(rows["selection"].idxmax())
    stored = torch.load(folder / "checkpoint-best.pth", weights_only=True)
    assert stored["epoch"] == best and stored["best"]["score"] == rows["selection"][best]
    assert of_val["selection"] == {"value": rows["selection"][best], "lower": None, "upper": None,
                                   "method": None,
                                   "metric": "roc_auc+f1"}
    assert f"best epoch {best} (val roc_auc+f1 {rows['selection'][best]:.4f})" in out
    for name in ("roc_auc", "accuracy", "f1", "kappa", "qwk", "loss", "score", "sensitivity_mild"):
        for found in (entries, of_val):
            assert (
                found[name]["lower"] is None
                or found[name]["lower"] <= found[name]["value"] <= found[name]["upper"]
            ), name
    assert entries["roc_auc"]["method"] == "DeLong" and entries["accuracy"]["method"] == "Wilson"
    assert entries["score"]["resamples"] == 2000 and entries["score"]["seed"] == 3
    assert "2,000 resamples of images, seed 3" in out
    # one temperature, of val, for test; the table keeps the raw probabilities
    temperature = stored["best"]["temperature"]
    assert entries["temperature"]["value"] == of_val["temperature"]["value"] == temperature
    assert f"calibrated on val (temperature {temperature:.3f})" in out
    table = pd.read_csv(folder / "predictions_test.csv")
    logits = table[[name for name in table if name.startswith("logit_")]].to_numpy()
    np.testing.assert_allclose(table[[name for name in table if name.startswith("prob_")]], softmax(logits),
                               atol=1e-12)
    true = table["true_class"].map({"healthy": 0, "mild": 1, "severe": 2}).to_numpy()
    chance = softmax(logits / temperature)[np.arange(len(true)), true]
    assert entries["loss_calibrated"]["value"] == pytest.approx(-np.log(chance).mean(), abs=1e-6)
    assert of_val["loss_calibrated"]["value"] <= of_val["loss"]["value"] + 1e-9
    # the checkpoint alone gives the same
    code, _, err = start("--task", "b", "--eval", "--resume", folder / "checkpoint-best.pth")
    assert code == 0, err
    again = entries_of(tmp_path / "output_dir" / "b")
    assert {name: entry for name, entry in again.items() if name != "selection"} == {
        name: entry for name, entry in entries.items() if name != "selection"}


def test_of_losses_the_least_is_best(start, tmp_path):
    code, out, err = start("--task", "a", "--select_metric", "loss", "--epochs", "4", "--lr", "2e-2")
    assert code == 0, err
    rows = pd.read_csv(tmp_path / "output_dir/a/metrics_val.csv")
    best = int(rows["val_loss"].idxmin())
    assert f"best epoch {best} (val loss {-rows['val_loss'][best]:.4f})" in out
    assert entries_of(tmp_path / "output_dir/a", "val")["loss"]["value"] == rows["val_loss"][best]


def test_a_probe_is_chosen_and_calibrated_alike(start, tmp_path):
    code, out, err = start("--task", "lp", "--adaptation", "lp", "--calibrate", "--select_metric", "qwk")
    assert code == 0, err
    entries, heads = entries_of(tmp_path / "output_dir/lp",
                                "val"), pd.read_csv(tmp_path / "output_dir/lp/probe_heads.csv")
    assert entries["qwk"]["value"] == pytest.approx(heads["val_qwk"].max(), abs=1e-9)
    assert entries["qwk"]["method"] == "bootstrap of images" and "temperature" in entries_of(
        tmp_path / "output_dir/lp"
    )


@pytest.mark.parametrize(("metric", "message"),
                         [("r2", "'r2' is none of score, auc"), ("f1+f1", "twice"), ("", "none of")])
def test_an_unknown_figure_is_one_line(start, metric, message):
    code, out, err = start("--select_metric", metric)
    assert code == 2 and len(err.splitlines()) == 1 and message in err


def test_flags_of_training_do_nothing_in_an_evaluation(start, tmp_path):
    start("--task", "a", "--epochs", "1")
    code, out, _ = start("--task", "b", "--eval", "--resume", tmp_path / "output_dir/a/checkpoint-best.pth",
                         "--calibrate", "--select_metric", "f1")
    assert (
        code == 0
        and "--select_metric, --calibrate" in out.split("with --eval these do nothing:")[1].splitlines()[0]
    )
