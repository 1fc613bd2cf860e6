"""The linear probe from the command line: a checkpoint like any other, features found again, nothing lost by
a second start."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import weights_of
from util.metrics.predictions import read_predictions

PROBE = ("--adaptation", "lp", "--epochs", 5, "--task", "p")


def test_probe_leaves_a_checkpoint_like_any_other(start, tmp_path):
    code, out, err = start(*PROBE)
    assert code == 0, err
    folder = tmp_path / "output_dir/p"
    assert "with and without normalised features)" in out and "trained for 5 epochs in" in out
    for name in ("k nearest neighbours", "logistic regression"):
        assert f"for comparison, {name}: val AUC" in out
    heads = pd.read_csv(folder / "probe_heads.csv")
    chosen = heads[heads["chosen"] == 1]
    assert len(chosen) == 1 and chosen["val_score"].item() == heads["val_score"].max()
    # --lr 1e-3 is one of the seven
    assert len(heads[["learning_rate", "weight_decay", "normalised"]].drop_duplicates()) == 42
    stored = torch.load(folder / "checkpoint-best.pth", weights_only=True)
    assert stored["best"]["score"] == pytest.approx(chosen["val_score"].item(), abs=1e-9)
    assert json.loads((folder / "metrics_val.json").read_text())["score"]["value"] == stored["best"]["score"]
    log = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert [row["epoch"] for row in log] == list(range(5)) and all(row["val_loss"] > 0 for row in log)
    assert log[stored["epoch"]]["val_loss"] == pytest.approx(stored["best"]["figures"]["loss"], abs=1e-5)
    classic = pd.read_csv(folder / "probe_classic.csv")
    assert list(classic["split"]) == ["val", "test"] * 2 and classic["accuracy"].between(0, 1).all()
    assert (folder / "learning_curves.png").exists() and (folder / "confusion_matrix_test.png").exists()

    scored = read_predictions(folder / "predictions_test.csv")
    code, out, err = start("--task", "p", "--eval", "--resume", "auto")
    assert code == 0, err
    again = read_predictions(folder / "predictions_test.csv")
    logits = [name for name in scored if name.startswith("logit_")]
    np.testing.assert_allclose(again[logits], scored[logits], rtol=1e-4, atol=1e-4)


def test_a_second_probe_computes_no_features(start, tmp_path):
    assert "87 images computed, 0 found" in start(*PROBE)[1]
    first = (tmp_path / "output_dir/p/predictions_test.csv").read_bytes()
    code, out, err = start(*PROBE)
    assert code == 0 and "0 images computed, 87 found" in out and "held an earlier run" in out
    assert (tmp_path / "output_dir/p/predictions_test.csv").read_bytes() == first
    assert (tmp_path / "output_dir/p/earlier-1/probe_heads.csv").exists()
    # another seed starts other random weights
    code, out, err = start("--task", "q", "--adaptation", "lp", "--seed", 1)
    assert "87 images computed" in out


def test_a_complete_probe_is_not_run_again(start, tmp_path):
    assert start(*PROBE)[0] == 0
    code, out, err = start(*PROBE, "--resume", "same")
    assert code == 0 and "this run is complete" in out and "probe      " not in out
    code, out, err = start("--adaptation", "lp", "--epochs", 7, "--task", "p", "--resume", "auto")
    assert code == 0 and "trained for 7 epochs in" in out and "0 images computed" in out
    # cut before the test split was scored: done again, to the same bits
    first = (tmp_path / "output_dir/p/predictions_test.csv").read_bytes()
    (tmp_path / "output_dir/p/metrics_test.csv").unlink()
    code, out, err = start("--adaptation", "lp", "--epochs", 7, "--task", "p", "--resume", "same")
    assert code == 0 and (tmp_path / "output_dir/p/predictions_test.csv").read_bytes() == first
    code, out, err = start("--epochs", 9, "--task", "p", "--resume", "auto", "--adaptation", "finetune")
    assert code == 2 and "was trained with other parameters" in err


def test_a_fine_tuned_run_is_no_probe_to_go_on_with(start):
    assert start("--task", "p", "--epochs", 1)[0] == 0
    code, out, err = start(*PROBE, "--resume", "auto")
    assert code == 2 and "is no probe's" in err and "complete" not in out


def test_random_views(start, tmp_path):
    views = (*PROBE, "--lp_views", 3, "--hflip", 0.5)
    code, out, err = start(*views)
    assert code == 0, err
    assert f"{3 * 43 + 44} images computed" in out and "do nothing" not in out
    code, out, err = start(*views, "--seed", 0)
    assert "0 images computed" in out
    code, out, err = start(*PROBE, "--hflip", 0.5, "--mixup", 0.5)
    assert "with --adaptation lp these do nothing: --mixup, --hflip" in out.replace(
        "--mixup, --aa", "--mixup"
    )
    code, out, err = start("--epochs", 1, "--lp_views", 2)
    assert "--lp_views does nothing without --adaptation lp" in out


def test_a_model_of_two_classifiers_is_probed_through_its_backbone(start, tmp_path):
    code, out, err = start(*PROBE, "--epochs", 1, "--model_arch", "deit_tiny_distilled_patch16_224")
    assert code == 0, err
    assert "has no single linear classifier" in out and "features   " not in out
    weights = weights_of(tmp_path / "output_dir/p/checkpoint-best.pth")
    assert weights["head.weight"].abs().sum() > 0


def test_from_a_trained_backbone_the_probe_is_good(start, tmp_path):
    assert start("--task", "full", "--epochs", 8, "--lr", 3e-3, "--drop_path", 0)[0] == 0
    best = tmp_path / "output_dir/full/checkpoint-best.pth"
    code, out, err = start(*PROBE, "--epochs", 20, "--finetune", best)
    assert code == 0, err
    full, probe = (json.loads((tmp_path
                               / f"output_dir/{task}/metrics_val.json").read_text())["score"]["value"]
                   for task in ("full", "p"))
    assert probe > full - 0.1
    before, after = weights_of(best), weights_of(tmp_path / "output_dir/p/checkpoint-best.pth")
    changed = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert {"head.weight", "head.bias"} <= changed <= {"head.weight", "head.bias", "head.query"}
    assert before.keys() <= after.keys()
