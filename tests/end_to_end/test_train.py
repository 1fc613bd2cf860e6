"""The documented job, on small images: what is written, what is read again, what is the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from sklearn.metrics import f1_score, roc_auc_score

from jobs.run_folder import RunFolder
from tests.conftest import ROOT, SMALL, start_process, weights_of, write_pictures
from util.metrics.classification import classification_metrics
from util.metrics.predictions import read_predictions
from util.weights import checkpoint


def test_train_then_eval(start, tmp_path):
    code, out, err = start("--task", "a", "--epochs", 3)
    assert code == 0, err
    folder = tmp_path / "output_dir" / "a"
    assert {path.name for path in folder.iterdir()} >= {
        "checkpoint-best.pth", "checkpoint-last.pth", "log.txt", "metrics_val.csv", "metrics_test.csv",
        "metrics_test.json", "predictions_val.csv", "predictions_test.csv", "confusion_matrix_test.png",
        "learning_curves.png", "run.json"}
    assert "3 classes; train 43, val 19, test 25" in out
    assert "NONE: training starts from random weights" in out
    assert "no cuda device" not in out and "3 epochs of 6 steps" in out
    assert list((tmp_path / "output_logs" / "a").glob("events.out.tfevents.*"))

    rows = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert all(np.isfinite(row["train_loss"]) for row in rows)
    best = max(rows, key=lambda row: row["val_score"])["epoch"]
    test = pd.read_csv(folder / "metrics_test.csv")
    assert list(test["epoch"]) == [best] and len(pd.read_csv(folder / "metrics_val.csv")) == 3

    table = read_predictions(folder / "predictions_test.csv")
    assert list(table.columns) == ["index", "path", "patient", "split", "true_class", "predicted_class",
                                   *(f"{kind}_{name}" for kind in ("prob", "logit") for name in
                                     ("healthy", "mild", "severe"))]
    assert len(table) == 25 and set(table["split"]) == {"test"}
    truth = table["true_class"].map({"healthy": 0, "mild": 1, "severe": 2})
    scores = table[["prob_healthy", "prob_mild", "prob_severe"]].to_numpy()
    assert test["roc_auc"][0] == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr"), abs=1e-12)
    assert test["f1"][0] == pytest.approx(f1_score(truth, scores.argmax(1), average="macro", zero_division=0),
                                          abs=1e-12)

    # the checkpoint says all that a reader needs, and timm loads it as it is
    content = torch.load(folder / "checkpoint-best.pth", weights_only=True)
    assert content["class_names"] == ["healthy", "mild", "severe"] and content["epoch"] == best
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    timm.models.load_checkpoint(model, str(folder / "checkpoint-best.pth"))
    assert torch.equal(model.head.weight, content["model"]["head.weight"])

    first = (folder / "predictions_test.csv").read_bytes()
    code, out, err = start("--task", "a", "--eval", "--resume", folder / "checkpoint-best.pth")
    assert code == 0, err
    assert (folder / "predictions_test.csv").read_bytes() == first
    assert len(pd.read_csv(folder / "metrics_test.csv")) == 2


def test_learns_and_every_adaptation_moves_what_it_should(start, tmp_path):
    code, _, err = start("--task", "full", "--epochs", 8, "--lr", 3e-3, "--drop_path", 0)
    assert code == 0, err
    table = read_predictions(tmp_path / "output_dir/full/predictions_test.csv")
    assert classification_metrics(table)[0]["roc_auc"] > 0.9

    best = tmp_path / "output_dir/full/checkpoint-best.pth"
    code, out, err = start("--task", "probe", "--adaptation", "lp", "--finetune", best, "--lr", 0.1)
    assert code == 0, err
    assert "195 of them trained" in out and "not needed: head 2" in out
    before, after = weights_of(best), weights_of(tmp_path / "output_dir/probe/checkpoint-best.pth")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_same_seed_same_weights_other_seed_other(start, tmp_path):
    augmented = ("--epochs", 1, "--aa", "rand-m9-mstd0.5-inc1", "--reprob", 0.25, "--mixup", 0.8, "--cutmix",
                 1)
    for task, more in (("one", ()), ("two", ("--num_workers", 2)), ("three", ("--seed", 1))):
        assert start("--task", task, *augmented, *more)[0] == 0
    one, two, three = (weights_of(tmp_path / f"output_dir/{t}/checkpoint-last.pth")
                       for t in ("one", "two", "three"))
    assert all(torch.equal(one[name], two[name]) for name in one)  # workers change nothing
    assert not torch.equal(one["head.weight"], three["head.weight"])


@pytest.mark.parametrize("cut_after", [0, 1, 2])
def test_cut_run_ends_with_the_same_bits(start, tmp_path, monkeypatch, cut_after):
    options = ("--epochs", 4, "--mixup", 0.4, "--aa", "rand-m9-mstd0.5-inc1", "--clip_grad", 1,
               "--accum_iter", 2)
    assert start("--task", "whole", *options)[0] == 0
    add_scalars = RunFolder.add_scalars

    def die(folder, values, epoch):
        if epoch == cut_after + 1:  # the epoch after: its log row is written, its checkpoint is not
            raise KeyboardInterrupt
        add_scalars(folder, values, epoch)

    monkeypatch.setattr(RunFolder, "add_scalars", die)
    code, _, err = start("--task", "cut", *options)
    assert code == 130 and "goes on with --resume auto" in err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, out, err = start("--task", "cut", *options, "--resume", "same")
    assert code == 0, err
    assert f"resumed at epoch {cut_after + 1}" in out
    whole, cut = (torch.load(tmp_path / f"output_dir/{task}/checkpoint-last.pth", weights_only=True)
                  for task in ("whole", "cut"))
    assert all(torch.equal(whole["model"][name], cut["model"][name]) for name in whole["model"])
    moments = zip(whole["optimizer"]["state"].values(), cut["optimizer"]["state"].values(), strict=True)
    assert all(torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]) for a, b in moments)
    for name in ("predictions_test.csv", "metrics_val.csv", "metrics_test.csv"):
        assert (tmp_path / f"output_dir/cut/{name}").read_bytes() == (
            tmp_path / f"output_dir/whole/{name}"
        ).read_bytes()
    rows = [json.loads(line)["epoch"] for line in (tmp_path
                                                   / "output_dir/cut/log.txt").read_text().splitlines()]
    assert rows == [0, 1, 2, 3]


def test_an_epochs_rows_stand_there_before_its_checkpoint(start, tmp_path, monkeypatch):
    folder, found, write = tmp_path / "output_dir/t", [], checkpoint.write

    def look(path, content):
        found.append((path.name, content["epoch"], len((folder / "log.txt").read_text().splitlines()),
                      len(pd.read_csv(folder / "metrics_val.csv")), (folder / "predictions_val.csv").exists()))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write", look)
    assert start("--task", "t", "--epochs", 3)[0] == 0
    assert [row for row in found if row[0] == checkpoint.LAST] == [
        (checkpoint.LAST, epoch, epoch + 1, epoch + 1, True) for epoch in range(3)]


def test_killed_for_real_then_resumed(pictures, tmp_path):
    words = [*SMALL, "--data_path", str(pictures), "--task", "k", "--epochs", "40", "--resume", "auto"]
    process = subprocess.Popen([sys.executable, str(ROOT / "main_finetune.py"), *words], cwd=tmp_path,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = tmp_path / "output_dir/k/log.txt"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= 3):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    run = start_process(*words[:-2], "--epochs", "6", "--resume", "auto", folder=tmp_path)
    # the run may have gone on for some epochs before the kill arrived: then there is nothing left of 6
    assert run.returncode == 0, run.stderr
    assert "resumed at epoch" in run.stdout and "--epochs 40 -> 6" in run.stdout
    epochs = [json.loads(line)["epoch"] for line in log.read_text().splitlines()]
    assert epochs == list(range(len(epochs))) and len(epochs) >= 4


def test_second_start_of_a_finished_run(start, tmp_path):
    assert start("--task", "r", "--resume", "same")[0] == 0
    before = (tmp_path / "output_dir/r/metrics_test.csv").read_bytes()
    code, out, _ = start("--task", "r", "--resume", "same")
    assert code == 0 and "this run is complete" in out
    assert (tmp_path / "output_dir/r/metrics_test.csv").read_bytes() == before
    code, _, err = start("--task", "r", "--resume", "same", "--weight_decay", 0.1)
    assert code == 2
    assert "other options (--weight_decay 0.05 -> 0.1): name this one otherwise with --task" in err
    code, out, _ = start("--task", "r", "--epochs", 3, "--resume", "auto", "--weight_decay", 0.1)
    assert code == 0 and "the command line wins" in out and "resumed at epoch 2" in out


def test_the_same_start_in_other_words_goes_on(start, tmp_path):
    # dla46_c has no stochastic depth
    for words in (("--model_arch", "test_vit"), ("--model_arch", "dla46_c")):
        assert start("--task", words[1], "--epochs", 1, *words)[0] == 0
        code, out, err = start("--task", words[1], "--epochs", 1, "--model_arch", f"timm/{words[1]}",
                               "--resume", "same")
        assert code == 0 and "this run is complete" in out and "AUC" in out, err


def test_other_pictures_are_noticed(start, tmp_path, pictures):
    data = shutil.copytree(pictures, tmp_path / "copy")
    assert start("--task", "r", data=data)[0] == 0
    shutil.copy(data / "train" / "mild" / "00.png", data / "train" / "mild" / "new.png")
    code, _, err = start("--task", "r", "--resume", "same", data=data)
    assert code == 2 and "have changed since" in err and "--resume auto" in err
    facts = json.loads((tmp_path / "output_dir/r/run.json").read_text())
    code, out, _ = start("--task", "r", "--resume", "auto", "--epochs", 3, data=data)
    assert code == 0 and "warning: the images" in out
    again = json.loads((tmp_path / "output_dir/r/run.json").read_text())
    assert again["started"] == facts["started"] and [line["epoch"] for line in again["resumed"]] == [2]
    assert again["data"]["fingerprint"] != facts["data"]["fingerprint"]


def test_an_epoch_of_one_step_learns(start, tmp_path):
    assert start("--task", "one", "--epochs", 1, "--batch_size", 64)[0] == 0
    (row,) = [json.loads(line) for line in (tmp_path / "output_dir/one/log.txt").read_text().splitlines()]
    assert row["lr"] > 1e-4


def test_best_epoch_kept_in_memory_after_a_resume(start, tmp_path):
    assert start("--task", "m", "--epochs", 1)[0] == 0
    (tmp_path / "output_dir/m/checkpoint-best.pth").unlink()
    code, out, err = start("--task", "m", "--epochs", 1, "--resume", "auto", "--no_savemodel", "--lr", 1e-3)
    assert code == 0, err
    assert not (tmp_path / "output_dir/m/checkpoint-best.pth").exists()


def test_flags_are_called_idle_by_what_the_checkpoint_says(start, tmp_path):
    assert start("--task", "i", "--epochs", 1, "--dataratio", 0.5)[0] == 0
    code, out, _ = start("--task", "i", "--epochs", 2, "--resume", "auto", "--stratified")
    assert code == 0 and "--stratified does nothing" not in out
    code, out, _ = start("--task", "i", "--eval", "--resume", "auto", "--batch_size", 5)
    assert code == 0 and "--batch_size 8 -> 5" not in out and "with --eval these do nothing" in out


def test_new_run_of_the_same_task_puts_the_old_one_aside(start, tmp_path):
    assert start("--task", "p")[0] == 0
    old = (tmp_path / "output_dir/p/checkpoint-best.pth").read_bytes()
    code, out, _ = start("--task", "p", "--seed", 3)
    assert code == 0 and "earlier-1" in out
    assert (tmp_path / "output_dir/p/earlier-1/checkpoint-best.pth").read_bytes() == old
    assert len((tmp_path / "output_dir/p/log.txt").read_text().splitlines()) == 2


def test_stored_options_come_back(start, tmp_path):
    assert start("--task", "s", "--smoothing", 0.2)[0] == 0
    best = tmp_path / "output_dir/s/checkpoint-best.pth"
    assert torch.load(best, weights_only=True)["options"]["smoothing"] == 0.2
    first = (tmp_path / "output_dir/s/predictions_test.csv").read_bytes()
    # nothing about the model is typed: the checkpoint says it
    code, out, err = start("--eval", "--resume", best, "--task", "again", "--batch_size", 8, "--device",
                           "cpu", small=False)
    assert code == 0, err
    assert "test_vit" in out
    assert (tmp_path / "output_dir/again/predictions_test.csv").read_bytes() == first


def test_csv_is_the_same_as_the_folder(start, tmp_path, pictures):
    rows = [
        {
            "path": os.path.relpath(path, tmp_path),
            "label": path.parent.name,
            "split": path.parent.parent.name,
            "patient": path.stem,
        }
        for path in sorted(
            pictures.rglob("*.png"), key=lambda p: (["train", "val", "test"].index(p.parts[-3]), p)
        )
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "data.csv", index=False)
    assert start("--task", "folder", "--epochs", 1)[0] == 0
    code, _, err = start("--task", "csv", "--epochs", 1, "--csv_file", tmp_path / "data.csv", "--patient_col",
                         "patient", data=None)
    assert code == 0, err
    from_folder, from_csv = (read_predictions(tmp_path / f"output_dir/{t}/predictions_test.csv")
                             for t in ("folder", "csv"))
    assert np.array_equal(from_folder.filter(like="logit_"), from_csv.filter(like="logit_"))
    assert from_csv["patient"][3] == "03" and from_folder["patient"][3] == ""


def test_dry_run_says_all_and_writes_nothing(start, tmp_path):
    code, out, err = start("--task", "d", "--dry_run")
    assert code == 0, err
    for word in ("test_vit", "healthy", "train     15", "precision", "learning rate 0.001", "6 steps",
                 "activations",
                 "optimizer state", "nothing was trained"):
        assert word in out
    assert not (tmp_path / "output_dir" / "d").exists() and not (tmp_path / "output_logs").exists()


def test_options_that_change_the_loss_act(start, tmp_path):
    """Each flag changes what is learned; a flag that does nothing would leave the same weights."""
    changes = {"plain": (), "smoothing": ("--smoothing", 0), "mixup": ("--mixup", 0.8),
               "cutmix": ("--cutmix", 1.0),
               "minmax": ("--cutmix_minmax", 0.2, 0.8), "class_weights": ("--class_weights", "balanced"),
               "clip": ("--clip_grad", 0.01), "accum": ("--accum_iter", 2), "warmup": ("--warmup_epochs", 0),
               "decay": ("--weight_decay", 0.5), "layers": ("--layer_decay", 0.5),
               "min_lr": ("--min_lr", 9e-4),
               "drop": ("--drop_path", 0.2), "hflip": ("--hflip", 0), "vflip": ("--vflip", 1),
               "crop": ("--crop_scale", 0.9, 1),
               "ratio": ("--crop_ratio", 0.2, 5), "reprob": ("--reprob", 1),
               "aa": ("--aa", "rand-m9-mstd0.5-inc1"),
               "jitter": ("--color_jitter", 0.4), "dataratio": ("--dataratio", 0.5),
               "precision": ("--precision", "bf16"),
               "start": ("--start_epoch", 1), "batch": ("--batch_size", 7),
               "balanced": ("--balanced_sampling",)}
    found = {}
    for name, words in changes.items():
        code, _, err = start("--task", name, "--epochs", 2, "--class_weights", "none", *words)
        assert code == 0, (name, err)
        found[name] = weights_of(tmp_path
                                 / f"output_dir/{name}/checkpoint-last.pth")["blocks.0.mlp.fc1.weight"]
    same = [name for name in changes if name != "plain" and torch.equal(found[name], found["plain"])]
    assert not same


def test_balanced_sampling_acts_on_a_probe_and_excludes_class_weights(start, tmp_path):
    losses = []
    for task, words in (("plain", ()), ("balanced", ("--balanced_sampling",))):
        code, _, err = start("--task", task, "--adaptation", "lp", *words)
        assert code == 0, err
        losses.append((tmp_path / f"output_dir/{task}/probe_heads.csv").read_text())
    assert losses[0] != losses[1]
    code, _, err = start("--use_weighted_sampler", "--use_class_weights")
    assert code == 2 and "both even out the classes" in err and err.count("\n") == 1
    assert all(name in err for name in ("--balanced_sampling", "--use_weighted_sampler", "--class_weights",
                                        "--use_class_weights"))


def test_set_smaller_than_a_batch_trains(start, tmp_path):
    data = write_pictures(tmp_path / "few", numbers=(1, 1, 1))
    code, out, err = start("--task", "few", "--batch_size", 64, "--accum_iter", 4, "--mixup", 0.5, data=data)
    assert code == 0, err
    assert "2 epochs of 1 steps" in out


def test_diverged_run_stops_before_the_step_and_names_the_files(start, tmp_path):
    code, _, err = start("--task", "nan", "--lr", 1e30, "--warmup_epochs", 0, "--epochs", 3)
    assert code == 1
    assert "the loss is not finite at epoch" in err and ".png" in err and "lower --lr" in err
    assert err.count("\n") == 1


def test_ratio_list_runs_one_after_the_other(start, tmp_path):
    code, out, err = start("--task", "many", "--dataratio", "0.3,1", "--stratified", "--epochs", 1)
    assert code == 0, err
    assert "train 12, val 19" in out and "train 43, val 19" in out
    assert (tmp_path / "output_dir/many_ratio0.3/metrics_test.csv").exists()
    assert (tmp_path / "output_dir/many_ratio1/metrics_test.csv").exists()


def test_no_savemodel(start, tmp_path):
    code, _, err = start("--task", "n", "--no_savemodel")
    assert code == 0, err
    assert not list((tmp_path / "output_dir/n").glob("*.pth"))
    assert (tmp_path / "output_dir/n/metrics_test.csv").exists()


@pytest.mark.parametrize(
    ("adaptation", "kept"), [("finetune", "the last epoch"), ("lp", "the head of the least loss")]
)
def test_a_metric_that_is_undefined_on_val_is_said_at_the_first_epoch(start, tmp_path, adaptation, kept):
    """val of one class has no AUC: every epoch would be the best one."""
    data = write_pictures(tmp_path / "data", numbers=(4, 2, 4), classes=("healthy", "ill"))
    for path in (data / "val" / "ill").iterdir():
        path.rename(data / "val" / "healthy" / f"not_{path.name}")
    rows = [f"{split}/{name}/{path.name},{name},{split}" for split in ("train", "val", "test")
            for name in ("healthy", "ill")
            for path in sorted((data / split / name).iterdir())]
    (data / "table.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    words = ("--csv_file", data / "table.csv", "--select_metric", "auc", "--nb_classes", 2, "--adaptation",
             adaptation)
    code, out, err = start("--task", "x", *words, data=None)
    assert code == 0, err
    assert out.count("warning: --select_metric roc_auc is undefined on val, so nothing can be chosen by it "
                     f"and {kept}") == 1
    code, out, err = start("--task", "y", *words[:2], "--select_metric", "loss", *words[4:], data=None)
    assert code == 0 and "is undefined on val, so" not in out, err
