"""A search for a classification: what it proposes, that its best trial is what a final run comes to, killed
and started again, under two processes; and the name and flags of the script that its users know."""

import json
import os
import re
import signal
import time

import pandas as pd
import pytest
import torch

from tests.conftest import SMALL, start_process
from tests.end_to_end.test_search import begin, running_epoch, trials
from util.options.training import SPACES
from util.study import optuna_study

SPACE = list(SPACES["main_finetune.py"])
WITHOUT_LR = [word for word in SMALL if word not in ("--lr", "1e-3", "--layer_decay", "1")]
SEARCH = ["--task", "s", "--optuna_epochs", "2"]


@pytest.fixture
def weights(start, tmp_path):
    """A backbone that all trials and the final run begin with."""
    assert start("--task", "w", "--epochs", 1)[0] == 0
    return tmp_path / "output_dir/w/checkpoint-best.pth"


def best_of(folder, task="s"):
    return json.loads((folder / f"output_dir/{task}/optuna_best.json").read_text())


@pytest.mark.parametrize("adaptation", ["finetune", "lp"])
def test_the_best_trial_is_what_a_final_run_comes_to(start, weights, tmp_path, adaptation):
    """With the trial's seed and epochs: the same metrics to the last bit."""
    common = [*WITHOUT_LR, "--finetune", weights, "--adaptation", adaptation]
    code, out, err = start(*common, *SEARCH, "--optuna_trials", 3, "--optuna_eval_test", small=False)
    assert code == 0, err
    assert "3 trials of 2 epochs in total, maximize score on val" in out and out.count("\ntrial ") == 3
    frozen = "layer_decay and drop_path are not proposed: the backbone is frozen"
    assert (frozen in out) == (adaptation == "lp") and "blr x 8 x accum_iter / 256" in out
    table, best = trials(tmp_path), best_of(tmp_path)
    assert set(table) & set(SPACE) <= set(SPACE) - ({"layer_decay", "drop_path"} if adaptation == "lp"
                                                    else set())
    assert best["value"] == table["value"].max() and best["metric"] == "score"
    seed = optuna_study.number_from("trial", 0, best["trial"])
    code, out, err = start(*common, "--task", "f", "--seed", seed, "--params",
                           tmp_path / "output_dir/s/optuna_best.json", small=False)
    assert code == 0 and "settings of" in out, err
    options = torch.load(tmp_path / "output_dir/f/checkpoint-best.pth", weights_only=True)["options"]
    assert {name: options[name] for name in best["params"]} == best["params"] and options["lr"] is None
    row = table.loc[best["trial"]]
    val, test = (json.loads((tmp_path / f"output_dir/f/metrics_{split}.json").read_text())["score"]["value"]
                 for split in ("val", "test"))
    assert val == best["value"] and test == row["test_score"]
    assert "found by a search" in (tmp_path / "output_dir/f/report.html").read_text()
    # a second start adds what is missing; the settings of another job's study are not mixed with it
    code, out, _ = start(*common, *SEARCH, "--optuna_trials", 4, "--optuna_resume", small=False)
    assert code == 0 and out.count("\ntrial ") == 1 and "4 trials (4 complete)" in out
    code, _, err = start(*common, *SEARCH, "--optuna_trials", 4, "--optuna_resume", "--select_metric", "auc",
                         small=False)
    assert code == 2 and "metric score -> roc_auc" in err and err.count("\n") == 1
    code, _, err = start(*common, *SEARCH, "--optuna_trials", 4, "--optuna_resume", "--resize", "squash",
                         "--smoothing", 0.05, small=False)  # the second is proposed, whatever is typed
    assert code == 2 and "(--resize crop -> squash)" in err and err.count("\n") == 1
    code, _, err = start(*common, *SEARCH, "--optuna_trials", 4, "--optuna_resume", "--finetune", "", small=False)
    other_crops = "; --crop_scale " in err  # fine-tuning from random weights has its own
    assert code == 2 and re.search(r"\(weights \w+ -> None[;)]", err) and err.count("\n") == 1, err
    assert other_crops == (adaptation == "finetune")


def test_typed_values_settings_and_metrics(start, tmp_path):
    code, out, err = start(*SEARCH, "--optuna_trials", 2, "--select_metric", "auc+f1", "--model_arch",
                           "test_resnet", "--optuna_epochs", 1, "--balanced_sampling", "--dry_run")
    assert code == 0 and "maximize roc_auc+f1 on val" in out and "no trial was begun" in out, err
    assert "its own values instead of --balanced_sampling, --layer_decay, --lr" in out
    code, out, err = start(*SEARCH, "--optuna_trials", 1, "--optuna_epochs", 1, "--select_metric", "auc+f1",
                           "--model_arch", "dla46_c")
    assert code == 0 and "drop_path is not proposed: dla46_c has no stochastic depth" in out, err
    table = trials(tmp_path)
    assert "drop_path" not in table and table["value"].between(0, 1).all()
    code, out, _ = start(*SEARCH, "--task", "m", "--optuna_trials", 1, "--optuna_epochs", 1,
                         "--optuna_direction", "minimize")
    assert code == 0 and "the search minimizes the loss on val" in out
    assert best_of(tmp_path, "m")["metric"] == "loss"
    for words, says in ((["--select_metric", "loss", "--optuna_direction", "maximize"], "contradicts it"),
                        (["--dataratio", "0.5,1"], "name one share"),
                        (["--min_lr", "1e-4"], "above 1.5625e-05, the lowest learning rate")):
        code, _, err = start("--task", "x", "--optuna_trials", 1, *words)
        assert code == 2 and says in err and err.count("\n") == 1, err


def test_every_trial_has_its_own_settings_and_the_same_weights(start, monkeypatch):
    """--lr and --balanced_sampling are typed, and the search's values take their place."""
    from jobs import search

    seen, epochs = [], search.epochs

    def look(job, trainer, first):
        body = {name: tensor.clone() for name, tensor in job.model.state_dict().items()
                if not name.startswith("head.")}
        seen.append((job, body, trainer.plan.step_size, trainer.loss.class_weights, trainer.loss.smoothing))
        return epochs(job, trainer, first)

    monkeypatch.setattr(search, "epochs", look)
    code, _, err = start(*SEARCH, "--optuna_trials", 6, "--optuna_epochs", 1, "--optuna_sampler", "random",
                         "--balanced_sampling")
    assert code == 0, err
    assert all(torch.equal(body[name], seen[0][1][name]) for _, body, *_ in seen for name in body)
    for job, _, step, class_weights, smoothing in seen:
        options = job.options
        assert step == 8 * options.training.accum_iter and smoothing == options.mixing.smoothing
        assert job.schedule.peak == options.training.blr * step / 256
        assert (class_weights is not None) == (options.mixing.class_weights == "balanced")
        assert not (options.mixing.balanced_sampling and class_weights is not None)
    assert len({job.options.mixing.class_weights for job, *_ in seen}) == 2


@pytest.mark.parametrize("adaptation", ["finetune", "lp"])
def test_a_search_over_cases(start, weights, tmp_path, pictures, adaptation):
    """Images in pairs, judged together by an attention: a trial is worth what its run would be."""
    rows = [(path, path.parts[-2], path.parts[-3], f"{'_'.join(path.parts[-3:-1])}_{int(path.stem) // 2}")
            for path in sorted(pictures.rglob("*.png"))]
    pd.DataFrame(rows, columns=["path", "label", "split", "case"]).to_csv(tmp_path / "c.csv", index=False)
    words = (*WITHOUT_LR, "--csv_file", "c.csv", "--case_col", "case", "--pool", "attention", "--adaptation",
             adaptation, "--finetune", weights)
    code, out, err = start(*words, *SEARCH, "--optuna_trials", 1, data=None, small=False)
    images = 8 if adaptation == "lp" else 16  # of one case, at most
    assert code == 0 and f"blr x {images} x accum_iter / 256" in out, err
    if adaptation == "lp":
        seed = optuna_study.number_from("trial", 0, 0)
        code, _, err = start(*words, "--task", "f", "--seed", seed, "--params",
                             "output_dir/s/optuna_best.json", data=None, small=False)
        figures = json.loads((tmp_path / "output_dir/f/metrics_val.json").read_text())
        assert code == 0 and figures["score"]["value"] == best_of(tmp_path)["value"], err


def test_settings_that_a_file_holds(start, tmp_path):
    def take(params, *words):
        (tmp_path / "p.json").write_text(json.dumps({"params": params}))
        return start("--dry_run", "--params", "p.json", *words)

    code, out, _ = take({"blr": 1e-3, "class_weights": "none", "balanced_sampling": True, "accum_iter": 2})
    assert code == 0 and "class_weights none, balanced_sampling on, accum_iter 2" in out
    assert "typed values win over p.json: blr" in out  # --lr is typed
    code, out, _ = take({"balanced_sampling": True}, "--class_weights", "balanced")
    assert code == 0 and "typed values win over p.json: balanced_sampling" in out
    for params in ({"class_weights": True}, {"class_weights": "often"}, {"balanced_sampling": 1},
                   {"balanced_sampling": "yes"}, {"smoothing": 1.5}, {"head_depth": 2}):
        code, _, err = take(params)
        assert code == 2 and "p.json" in err and err.count("\n") == 1, params


def test_the_name_that_users_type_and_its_flags(start, pictures, tmp_path):
    """A column partition with the classes, rows without one, and that script's words for two flags."""
    rows = [(path, path.parent.name, path.parent.parent.name) for path in sorted(pictures.rglob("*.png"))]
    table = pd.DataFrame(rows, columns=["path", "partition", "split"])
    table.loc[[0, 5, 60], "partition"] = ""
    table.to_csv(tmp_path / "d.csv", index=False)
    words = ["--csv_file", "d.csv", "--task", "t", "--epochs", 1]
    run = start_process(*SMALL, *words, "--ignore_unlabeled", "--use_class_weights", folder=tmp_path,
                        program="微调RETFound 多卡分类任务.py")
    assert run.returncode == 0 and f"left out 3 of {len(table)} rows" in run.stdout, run.stderr
    assert "found by a search" not in (tmp_path / "output_dir/t/report.html").read_text()
    options = torch.load(tmp_path / "output_dir/t/checkpoint-best.pth", weights_only=True)["options"]
    assert (options["label_col"], options["class_weights"], options["balanced_sampling"]) == (
        "partition", "balanced", False)
    # under the other name the column is label, and a checkpoint knows its own
    code, out, err = start("--eval", "--resume", "output_dir/t/checkpoint-best.pth", "--task", "e", "--device",
                           "cpu", data=None, small=False)
    assert code == 0 and "left out 3" in out, err
    code, _, err = start(*words, data=None)
    assert code == 2 and "no column label (--label_col)" in err
    code, _, err = start(*words, "--label_col", "partition", data=None)
    assert code == 2 and "is empty in 3 rows: line 2, 7, 62; --ignore_unlabeled leaves such rows out" in err
    code, _, err = start(*words, "--label_col", "partition", "--ignore_unlabeled", "--use_weighted_sampler",
                         "--dry_run", data=None)
    assert code == 0, err
    code, _, err = start(*words, "--use_weighted_sampler", "--use_class_weights", data=None)
    assert code == 2 and "both even out the classes" in err


def test_kill_9_in_a_trial_loses_and_doubles_nothing(pictures, tmp_path):
    place = f"sqlite:///{tmp_path}/o.db"
    words = [*WITHOUT_LR, "--task", "k", "--optuna_epochs", 6, "--data_path", pictures, "--optuna_trials", 2,
             "--optuna_storage", place, "--optuna_resume"]
    process = begin(tmp_path, *words, program="main_finetune.py")
    running_epoch(optuna_study.open_storage(place), "k", enough=0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    run = start_process(*words, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "was left running" in run.stdout and "2 trials (2 complete)" in run.stdout
    table = trials(tmp_path, "k")
    killed, done = table[table["state"] == "fail"], table[table["state"] == "complete"]
    assert len(killed) == 1 and len(done) == 2 and list(done["blr"]).count(killed["blr"].iloc[0]) == 1


def test_a_signal_ends_it_and_the_next_start_goes_on(pictures, tmp_path):
    words = [*WITHOUT_LR, "--task", "k", "--optuna_epochs", 6, "--data_path", pictures, "--optuna_trials", 2,
             "--optuna_resume"]
    process = begin(tmp_path, *words, program="main_finetune.py")
    deadline = time.monotonic() + 200
    while not (tmp_path / "output_logs/k/trial_0000").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, 1, 2) and "Traceback" not in err
    run = start_process(*words, folder=tmp_path)
    assert run.returncode == 0 and "2 trials (2 complete)" in run.stdout, run.stderr


@pytest.mark.parametrize("adaptation", ["finetune", "lp"])
def test_two_processes_search_like_one(pictures, tmp_path, adaptation):
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        run = start_process(*WITHOUT_LR, *SEARCH, "--data_path", pictures, "--optuna_trials", 2, "--batch_size",
                            8 // processes, "--adaptation", adaptation, folder=folder, processes=processes)
        assert run.returncode == 0, run.stderr
    one, two = trials(tmp_path / "1"), trials(tmp_path / "2")
    columns = [name for name in SPACE if name in one]
    assert len(columns) >= 6 - 1 and one[columns].equals(two[columns])
    assert list(two["state"]) == ["complete"] * 2
    if adaptation == "lp":  # one process trains the heads
        pd.testing.assert_series_equal(one["value"], two["value"])
