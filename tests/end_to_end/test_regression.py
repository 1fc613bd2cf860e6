"""A regression from a CSV: learned, resumed, scored again, probed, under one process and two."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from jobs.run_folder import RunFolder
from tests.conftest import start_process
from util.data.public.demo import make_demo
from util.metrics.predictions import read_predictions
from util.metrics.regression import regression_metrics
from util.metrics.target_scale import TargetScale

SMALL = ["--model", "test_vit", "--input_size", "32", "--batch_size", "8", "--accum_iter", "1", "--epochs",
         "2", "--lr", "1e-3",
         "--layer_decay", "1", "--num_workers", "0", "--aa", "none", "--reprob", "0", "--device", "cpu",
         "--precision", "fp32",
         "--targets", "lesion_area", "brightness", "--head_embed_dim", "16"]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """60 demo images of 48 pixels and their CSV, with missing cells."""
    folder = make_demo(tmp_path_factory.mktemp("drawn") / "demo", pictures=60, size=48, workers=1)
    table = pd.read_csv(folder / "demo.csv", dtype=str, keep_default_na=False)
    table.loc[::7, "brightness"] = ""
    table.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


@pytest.fixture
def predict(tmp_path, monkeypatch, capsys, demo):
    """predict(*words) runs main_regression.py in this process -> (exit code, stdout, stderr)."""
    import main_regression
    from util.core.ending import exit_code_of

    monkeypatch.chdir(tmp_path)

    def run(*words, csv=demo, small=True):
        argv = [*(SMALL if small else []), *(["--csv_file", str(csv)] if csv else []), *map(str, words)]
        capsys.readouterr()
        code = exit_code_of(main_regression.main, argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_train_resume_and_score_again(predict, tmp_path):
    words = ("--covariates", "eye", "grade", "--patient_col", "patient", "--target_transform", "none", "log")
    code, out, err = predict("--task", "whole", "--epochs", 4, *words)
    assert code == 0, err
    folder = tmp_path / "output_dir/whole"
    assert {path.name for path in folder.iterdir()} >= {
        "checkpoint-best.pth", "checkpoint-last.pth", "log.txt", "metrics_val.csv", "metrics_test.csv",
        "metrics_test.json",
        "predictions_val.csv", "predictions_test.csv", "agreement_test_lesion_area.png",
        "agreement_val_brightness.png",
        "learning_curves.png", "run.json"}
    assert (
        "brightness is missing in some rows" in out
        and "covariate eye: one of L, R" in out
        and "of the logarithm" in out
    )
    content = torch.load(folder / "checkpoint-best.pth", weights_only=True)
    assert content["task"] == "regression" and content["covariates"][0]["levels"] == ["L", "R"]

    # the figures once more, from the table in the CSV's units
    scale = TargetScale.from_plain(content["targets"])
    table = read_predictions(folder / "predictions_test.csv")
    figures, _ = regression_metrics(table, scale, 1.0)
    stored = json.loads((folder / "metrics_test.json").read_text())
    assert {name: entry["value"] for name, entry in stored.items()} == figures
    assert table["true_brightness"].max() > 60 and 60 < table["pred_brightness"].median() < 110

    # cut after two epochs and resumed: the same bits
    monkey = predict("--task", "cut", "--epochs", 4, *words, "--resume", "same", "--dry_run")
    assert monkey[0] == 0 and "nothing was trained" in monkey[1]
    first = (folder / "predictions_test.csv").read_bytes()
    code, out, err = predict("--eval", "--resume", folder / "checkpoint-best.pth", "--task", "again",
                             "--device", "cpu", "--batch_size", 8, small=False)
    assert code == 0, err
    assert (tmp_path / "output_dir/again/predictions_test.csv").read_bytes() == first


def test_cut_run_ends_with_the_same_bits(predict, tmp_path, monkeypatch):
    assert predict("--task", "whole", "--epochs", 3)[0] == 0
    add_scalars = RunFolder.add_scalars

    def die(folder, values, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        add_scalars(folder, values, epoch)

    monkeypatch.setattr(RunFolder, "add_scalars", die)
    assert predict("--task", "cut", "--epochs", 3)[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, out, err = predict("--task", "cut", "--epochs", 3, "--resume", "same")
    assert code == 0 and "resumed at epoch 1" in out, err
    whole, cut = (torch.load(tmp_path / f"output_dir/{task}/checkpoint-last.pth", weights_only=True)["model"]
                  for task in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_frozen_backbone_trains_on_stored_features(predict, tmp_path):
    code, out, err = predict("--task", "lp", "--adaptation", "lp", "--epochs", 3, "--hflip", 0)
    assert code == 0, err
    assert (
        "60 images computed, 0 found stored" in out
        and "these do nothing: --aa, --hflip, --reprob" in out.replace("--hflip, --aa", "--aa, --hflip")
    )
    first = (tmp_path / "output_dir/lp/predictions_test.csv").read_bytes()
    code, out, err = predict("--task", "lp2", "--adaptation", "lp", "--epochs", 3)
    assert code == 0 and "0 images computed, 60 found stored" in out, err
    assert (tmp_path / "output_dir/lp2/predictions_test.csv").read_bytes() == first
    # the checkpoint is like any other: the whole model on the images gives what the head gave on the features
    code, out, err = predict("--eval", "--resume", tmp_path / "output_dir/lp/checkpoint-best.pth", "--task",
                             "eval", "--batch_size", 8, "--device", "cpu", small=False)
    assert code == 0, err
    one, two = (read_predictions(tmp_path / f"output_dir/{task}/predictions_test.csv")
                for task in ("lp", "eval"))
    assert np.allclose(one["pred_brightness"], two["pred_brightness"], atol=1e-3)
    # more epochs go on from the end, with the moments that it had
    code, out, err = predict("--task", "lp", "--adaptation", "lp", "--epochs", 5, "--resume", "auto")
    assert code == 0 and "resumed at epoch 3" in out, err


def test_mistakes(predict, tmp_path, demo, monkeypatch):
    def wrong(result, *says):
        code, out, err = result
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (out, err)
        for words in says:
            assert words in err

    wrong(predict(csv=None), "--csv_file is not given")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    wrong(
        predict("--targets", "brightness", "--device", "cpu", "--num_workers", 0, small=False),
        "RETFound_dinov2_meh.pth is not on this disk",
        "--finetune",
        "is only the default: another model does as well",
    )
    wrong(predict("--targets", "hdl"), "no column hdl (--targets)")
    wrong(predict("--head_num_heads", 3), "--head_num_heads 3 does not divide")
    wrong(predict("--target_transform", "log"), "lesion_area is not above 0")
    wrong(predict("--params", tmp_path / "none.json"), "can't be read")
    (tmp_path / "odd.json").write_text('{"params": {"colour": 1}}')
    wrong(predict("--params", tmp_path / "odd.json"), "unknown settings colour")
    wrong(predict("--pretrained", "--finetune", "x.pth"), "pass one of the two")
    wrong(predict("--model", "RETFound_mae", "--pretrained"), "RETFound_mae_natureCFP")
    wrong(predict("--model", "efficientnet_b0", "--model_arch", "resnet18"), "pass one of the two")
    table = pd.read_csv(demo, dtype=str, keep_default_na=False)
    table.loc[table["split"] == "train", "brightness"] = "80"
    table["path"] = [str(demo.parent / path) for path in table["path"]]
    table.to_csv(tmp_path / "constant.csv", index=False)
    wrong(predict(csv=tmp_path / "constant.csv"), "target brightness is constant in train (80")
    assert predict("--task", "r", "--epochs", 1)[0] == 0
    best = tmp_path / "output_dir/r/checkpoint-best.pth"
    wrong(predict("--eval", "--resume", best, "--targets", "disc_x"), "predicts lesion_area brightness")
    import main_finetune
    from util.core.errors import InputError

    with pytest.raises(InputError, match="is a checkpoint of a regression"):
        main_finetune.main(["--eval", "--resume", str(best), "--data_path", str(tmp_path), "--device", "cpu"])


def test_flags_of_a_classification_are_named(predict):
    code, out, _ = predict("--mixup", 0.8, "--smoothing", 0.1, "--data_path", "x", "--epochs", 1,
                           "--optuna_pruner", "median")
    assert code == 0
    assert (
        "accepted for compatibility, no effect: --data_path (the images are those of --csv_file); --smoothing"
        in out
    )
    assert "without --optuna_trials these do nothing: --optuna_pruner" in out


def test_a_regression_starts_from_a_classification_and_back(predict, start, tmp_path, pictures):
    assert start("--task", "c", "--epochs", 1)[0] == 0
    code, out, err = predict("--task", "r", "--epochs", 1, "--finetune",
                             tmp_path / "output_dir/c/checkpoint-best.pth")
    assert code == 0 and "not needed: head 2" in out, err
    code, out, err = start("--task", "c2", "--epochs", 1, "--finetune",
                           tmp_path / "output_dir/r/checkpoint-best.pth")
    assert code == 0 and "not needed: regression head" in out, err


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_and_the_chinese_name(demo, tmp_path, real):
    run = start_process(*SMALL, "--batch_size", 4, "--drop_path", 0, "--head_dropout", 0, "--csv_file", demo,
                        "--task", "two", folder=tmp_path, processes=2,
                        program="多卡微调RETFound应用于回归任务.py", OMP_NUM_THREADS="1", real=real)
    assert run.returncode == 0, run.stderr
    run = start_process(*SMALL, "--drop_path", 0, "--head_dropout", 0, "--csv_file", demo, "--task", "one",
                        folder=tmp_path, program="main_regression.py", OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    losses = [[json.loads(line)["train_loss"]
               for line in (tmp_path / f"output_dir/{task}/log.txt").read_text().splitlines()]
              for task in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_drawn_numbers_are_learned(tmp_path):
    """R² of at least 0.8 of each: small crops would spoil the sizes, so crops take 80 % and more."""
    folder = make_demo(tmp_path / "demo", pictures=1000, size=128)
    run = start_process("--model", "test_resnet", "--input_size", 128, "--csv_file", folder / "demo.csv",
                        "--batch_size", 16,
                        "--accum_iter", 1, "--targets", "lesion_area", "brightness", "disc_x", "--lr", 2e-3,
                        "--epochs", 14,
                        "--warmup_epochs", 1, "--layer_decay", 1, "--drop_path", 0, "--aa", "none",
                        "--reprob", 0, "--hflip", 0,
                        "--task", "demo", "--device", "cpu", folder=tmp_path, program="main_regression.py",
                        timeout=900)
    assert run.returncode == 0, run.stderr
    figures = json.loads((tmp_path / "output_dir/demo/metrics_test.json").read_text())
    for name in ("lesion_area", "brightness", "disc_x"):
        assert figures[f"r2_{name}"]["value"] >= 0.8, figures


def test_an_external_set_and_groups_of_a_regression(predict, demo, tmp_path):
    table = pd.read_csv(demo)
    table["path"] = [str((demo.parent / path).resolve()) for path in table["path"]]
    tests = table.index[table["split"] == "test"]
    table.loc[tests[::2], "split"] = "ev:OTHER"
    table["site"] = ["A", "B"] * (len(table) // 2) + ["A"] * (len(table) % 2)
    table.to_csv(tmp_path / "d.csv", index=False)
    code, out, err = predict("--task", "r", "--epochs", 1, "--group_col", "site", csv=tmp_path / "d.csv")
    assert code == 0 and "from test to test_OTHER" in out and "test_OTHER by site" in out, err
    lost = pd.read_csv(tmp_path / "output_dir/r/drop_test_OTHER.csv").set_index("metric")["drop"]
    metrics = [json.loads((tmp_path / f"output_dir/r/metrics_{split}.json").read_text())["mae"]["value"]
               for split in ("test", "test_OTHER")]
    assert lost["mae"] == pytest.approx(metrics[1] - metrics[0])  # less is better
    groups = pd.read_csv(tmp_path / "output_dir/r/groups_test.csv")
    assert set(groups["group"]) <= {"A", "B"} and {"r2", "mae", "n"} <= set(groups["metric"])
    gaps = pd.read_csv(tmp_path / "output_dir/r/gaps_test.csv")  # its columns also where there is one group
    assert len(gaps) == 2 * (groups["group"].nunique() - 1) and {"first", "p_holm"} <= set(gaps)
    page = (tmp_path / "output_dir/r/report.html").read_text()
    assert "From test to test_OTHER" in page and "test by site" in page
