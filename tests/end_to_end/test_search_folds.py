"""A search over folds: its best trial is what a final run with --folds comes to, for every kind of task."""

import json

import pandas as pd
import pytest
import torch

import main_regression
from tests.conftest import SMALL, start_process
from tests.end_to_end.test_folds import table  # noqa: F401 - a fixture
from tests.end_to_end.test_search import trials
from util.core.ending import exit_code_of
from util.study import optuna_study

FOLDS = ["--folds", "3", "--patient_col", "patient", "--leakage", "off"]
SEARCH = ["--task", "s", "--optuna_epochs", "2", "--optuna_trials", "2", "--optuna_eval_test"]
BARE = [word for word in SMALL if word not in ("--lr", "1e-3", "--layer_decay", "1", "--nb_classes", "3")]
KINDS = {"classes": ["--label_col", "label"],
         "a probe": ["--label_col", "label", "--adaptation", "lp"],
         "labels": ["--multilabel", "--label_cols", "left", "grave", "--adaptation", "lp", "--select_metric", "f1",
                    "--case", "patient"],
         "numbers": ["--targets", "amount", "--covariates", "left"],
         "a share": ["--label_col", "label", "--dataratio", "0.7", "--covariates", "left"]}


@pytest.fixture
def launch(monkeypatch, tmp_path, capsys, charts_are_not_drawn):
    """launch(WORD, …) -> exit code, out, err, of the program that the words are for."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        import main_finetune

        program = main_regression if "--targets" in words else main_finetune
        code = exit_code_of(program.main, list(map(str, words)))
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def weights_of(launch, tmp_path, csv_file):
    code, _, err = launch(*BARE, "--csv_file", csv_file, "--leakage", "off", "--epochs", 1, "--task", "w")
    assert code == 0, err
    return tmp_path / "output_dir/w/checkpoint-best.pth"


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_best_trial_is_the_mean_of_a_final_runs_folds(launch, table, tmp_path, kind):  # noqa: F811
    """With the trial's seed and epochs: the same metrics to the last bit."""
    if kind == "labels":  # a case is a patient, whose images have one label each way
        rows = pd.read_csv(table)
        rows["left"] = (rows["patient"].str[-1] == "1").astype(int)
        rows.to_csv(tmp_path / "cases.csv", index=False)
    file = tmp_path / "cases.csv" if kind == "labels" else table
    common = [*BARE, "--csv_file", file, *FOLDS, *KINDS[kind], "--finetune", weights_of(launch, tmp_path, table)]
    code, out, err = launch(*common, *SEARCH)
    assert code == 0, err
    metric = {"labels": "f1", "numbers": "r2"}.get(kind, "score")
    assert f"maximize the mean {metric} of 3 folds" in out and "3 folds of 20 to 2" in out
    found, best = trials(tmp_path), json.loads((tmp_path / "output_dir/s/optuna_best.json").read_text())
    assert best["value"] == found["value"].max() and best["folds"] == 3
    seed = optuna_study.number_from("trial", 0, best["trial"])
    code, out, err = launch(*common, "--task", "f", "--seed", seed, "--epochs", 2, "--params",
                            tmp_path / "output_dir/s/optuna_best.json")
    assert code == 0, err
    rows = pd.read_csv(tmp_path / "output_dir/f/folds.csv").set_index(["split", "metric"])
    assert best["value"] == rows.loc[("test_oof", metric), "mean"]
    of_test = json.loads((tmp_path / "output_dir/f/metrics_test.json").read_text())
    name = "roc_auc" if kind != "numbers" else "mae"
    assert of_test[name]["value"] == found.loc[best["trial"], f"test_{name}"]


def test_every_fold_has_its_own_images(launch, table, monkeypatch):  # noqa: F811
    seen = {}

    def look(job, *words):
        fold = job.options.data.fold
        seen.setdefault(fold, []).append({split: set(job.rows(split)["path"]) for split in job.data.splits})
        for name, sets in (("train", job.rows("train")), ("loss", job.samples("train"))):
            assert len(sets) == len(seen[fold][-1]["train"]), name
        return original(job, *words)

    from jobs import search

    original = search.epochs
    monkeypatch.setattr(search, "epochs", look)
    code, out, err = launch(*BARE, "--csv_file", table, *FOLDS, *SEARCH[:-1], "--optuna_pruner", "median")
    assert code == 0, err
    assert list(seen) == [1, 2, 3] and seen[1][0] == seen[1][1]
    whole = seen[1][0]["train"] | seen[1][0]["val"] | seen[1][0]["test_oof"]
    assert set.union(*(one[0]["test_oof"] for one in seen.values())) == whole
    assert sum(len(one[0]["test_oof"]) for one in seen.values()) == len(whole)
    for fold, (first, *_) in seen.items():
        assert first["val"] == seen[fold % 3 + 1][0]["test_oof"]
        assert not first["train"] & (first["val"] | first["test_oof"])


def test_a_trial_is_pruned_between_folds(launch, table, tmp_path, monkeypatch):  # noqa: F811
    import optuna

    monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", lambda self, study, trial: trial.number == 1)
    code, out, err = launch(*BARE, "--csv_file", table, *FOLDS, *SEARCH[:-1], "--optuna_pruner", "median")
    assert code == 0 and "2 trials (1 complete, 1 pruned)" in out, err
    assert list(trials(tmp_path)["state"]) == ["complete", "pruned"]
    runs = sorted(path.name for path in (tmp_path / "output_logs/s").glob("trial_*"))
    assert runs == ["trial_0000_fold_1", "trial_0000_fold_2", "trial_0000_fold_3", "trial_0001_fold_1"]


def test_what_cannot_be_and_what_does_nothing(launch, table, tmp_path):  # noqa: F811
    words = [*BARE, "--csv_file", table, *FOLDS, *SEARCH]
    code, _, err = launch(*words, "--fold", 2)
    assert code == 2 and "--fold 2 is one run of --folds, and a search is by the mean of all" in err
    code, _, err = launch(*words, "--optuna_trials", 1)
    assert code == 0, err
    code, _, err = launch(*BARE, "--csv_file", table, "--patient_col", "patient", "--leakage", "off", *SEARCH,
                          "--optuna_resume")
    assert code == 2 and "folds 3 -> None" in err
    rows = pd.read_csv(table)
    rows[rows["split"] != "test"].to_csv(tmp_path / "no_test.csv", index=False)
    code, out, err = launch(*words, "--csv_file", tmp_path / "no_test.csv", "--task", "n", "--dry_run")
    assert code == 0 and "--optuna_eval_test does nothing: there is no test set beside the folds" in out, err


@pytest.mark.parametrize("adaptation", ["finetune", "lp"])
def test_two_processes_search_like_one(table, tmp_path, adaptation):  # noqa: F811
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        run = start_process(*BARE, "--csv_file", table, *FOLDS, *SEARCH, "--batch_size", 8 // processes, "--epochs", 1,
                            "--adaptation", adaptation, folder=folder, processes=processes)
        assert run.returncode == 0, run.stderr
    one, two = trials(tmp_path / "1"), trials(tmp_path / "2")
    assert list(two["state"]) == ["complete"] * 2 and one["blr"].equals(two["blr"])
    if adaptation == "lp":  # one process trains the heads
        pd.testing.assert_series_equal(one["value"], two["value"])
        pd.testing.assert_series_equal(one["test_roc_auc"], two["test_roc_auc"])


def test_torch_is_seeded_by_the_trial_in_every_fold(launch, table, monkeypatch):  # noqa: F811
    from jobs import search

    seeds, original = [], search.trainer_of
    monkeypatch.setattr(search, "trainer_of", lambda job: seeds.append(torch.initial_seed()) or original(job))
    code, _, err = launch(*BARE, "--csv_file", table, *FOLDS, *SEARCH[:-1])
    assert code == 0 and len(seeds) == 6 and len(set(seeds)) == 2 and len(set(seeds[:3])) == 1, err
