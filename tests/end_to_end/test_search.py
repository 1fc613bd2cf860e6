"""A search for real: alone, under two processes, killed and started again, with trials that fail, on
PostgreSQL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch

from tests.conftest import ROOT, needs_package, not_installed, start_process
from tests.end_to_end.test_regression import SMALL, demo, predict  # noqa: F401 (fixtures)
from util.study import optuna_study

SEARCH = ["--task", "s", "--optuna_epochs", "2"]


def trials(folder, task="s"):
    return pd.read_csv(folder / f"output_dir/{task}/optuna_trials.csv")


def test_a_search_and_its_final_run(predict, tmp_path):  # noqa: F811
    kept = ("--image_cache", "kept")
    code, out, err = predict(*SEARCH, *kept, "--optuna_trials", 3, "--optuna_eval_test")
    assert code == 0, err
    assert "3 trials of 2 epochs in total, maximize r2 on val" in out and out.count("\ntrial ") == 3
    assert "images     60 decoded once" in out
    folder = tmp_path / "output_dir/s"
    best = json.loads((folder / "optuna_best.json").read_text())
    table = trials(tmp_path)
    assert best["value"] == table["value"].max() and best["trial"] == table["value"].idxmax()
    assert table["test_r2"].notna().all() and best["metric"] == "r2" and best["epochs"] == 2
    assert {path.name for path in (tmp_path / "output_logs/s").iterdir()} == {
        "trial_0000",
        "trial_0001",
        "trial_0002",
    }
    assert (folder / "optuna_history.png").exists()
    # a second start without --optuna_resume is refused, with it there is nothing to do
    code, _, err = predict(*SEARCH, "--optuna_trials", 3)
    assert code == 2 and "--optuna_resume" in err and err.count("\n") == 1
    code, out, _ = predict(*SEARCH, *kept, "--optuna_trials", 3, "--optuna_resume", "--optuna_eval_test")
    assert (
        code == 0
        and out.count("\ntrial ") == 0
        and "3 trials (3 complete)" in out
        and "60 found decoded" in out
    )
    # the final run takes the settings back, but for what is typed
    code, out, err = predict("--task", "final", "--params", folder / "optuna_best.json", "--epochs", 1,
                             "--lr", 1e-4)
    assert code == 0, err
    options = torch.load(tmp_path / "output_dir/final/checkpoint-best.pth", weights_only=True)["options"]
    assert options["lr"] == 1e-4 and options["head_depth"] == best["params"]["head_depth"]
    assert options["huber_beta"] == best["params"]["huber_beta"] and "typed values win" in out


def test_every_trial_starts_from_the_same_weights(predict, tmp_path, monkeypatch):  # noqa: F811
    from jobs import search

    starts = []

    def look(job, trainer, first):
        starts.append((job.model.backbone.patch_embed.proj.weight.clone(), job.options.run.seed,
                       job.schedule.peak,
                       job.options.training.lr, len(job.model.regression_head.layers),
                       job.options.head.head_depth))
        return epochs(job, trainer, first)

    epochs = search.epochs
    monkeypatch.setattr(search, "epochs", look)
    assert predict(*SEARCH, "--optuna_trials", 3, "--optuna_epochs", 1)[0] == 0
    assert all(torch.equal(weights, starts[0][0])
               for weights, *_ in starts) and len({seed for _, seed, *_ in starts}) == 3
    for _, _, peak, lr, layers, depth in starts:
        assert peak == lr and layers == depth  # the rate is absolute, whatever the batch


def test_frozen_backbone(predict, tmp_path):  # noqa: F811
    code, out, err = predict(*SEARCH, "--optuna_trials", 2, "--adaptation", "lp")
    assert code == 0, err
    assert "layer_decay and drop_path are not proposed: the backbone is frozen" in out
    assert "drop_path" not in trials(tmp_path) and out.count("\nfeatures ") == 1


def test_failed_trials_are_marked_and_the_search_goes_on(predict, tmp_path, monkeypatch):  # noqa: F811
    from jobs import search
    from util.core.errors import RunError

    trainer_of, calls = search.trainer_of, []

    def fail_twice(job):
        calls.append(job)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        if len(calls) == 2:
            raise RunError("the loss is not finite at epoch 0", everywhere=True)
        return trainer_of(job)

    monkeypatch.setattr(search, "trainer_of", fail_twice)
    code, out, err = predict(*SEARCH, "--optuna_trials", 3)
    assert code == 0, err
    table = trials(tmp_path)
    assert list(table["state"]) == ["fail", "fail",
                                    "complete"] and "memory is full at --batch_size 8" in table["reason"][0]
    assert "not finite" in table["reason"][1] and "3 trials (1 complete, 2 fail)" in out

    monkeypatch.setattr(search, "trainer_of", lambda job: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    code, out, err = predict("--task", "all", "--optuna_epochs", 2, "--optuna_trials", 2)
    assert code == 1 and "no trial came to an end by itself" in err and err.count("\n") == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_a_trial_whose_outputs_are_no_numbers_fails_alone(demo, tmp_path, processes):  # noqa: F811
    """The first trial's outputs on val are made NaN, in every process; the search goes on with the next."""
    (tmp_path / "spoilt.py").write_text(
        "import sys\n"
        "import main_regression\n"
        "from jobs import train\n"
        "from util.core.ending import exit_code_of\n"
        "calls, outputs = [], train.outputs\n"
        "def spoil(*words):\n"
        "    calls.append(1)\n"
        "    return outputs(*words) * (float('nan') if len(calls) == 1 else 1)\n"
        "train.outputs = spoil\n"
        "sys.exit(exit_code_of(main_regression.main))\n")
    run = start_process(*SMALL, *SEARCH, "--csv_file", demo, "--optuna_trials", 2, folder=tmp_path,
                        processes=processes, program=tmp_path / "spoilt.py", OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    table = trials(tmp_path)
    assert list(table["state"]) == ["fail", "complete"] and "NaN or infinite" in table["reason"][0]


def test_direction_and_metric(predict, tmp_path):  # noqa: F811
    code, out, _ = predict(*SEARCH, "--optuna_trials", 1, "--optuna_direction", "minimize")
    assert code == 0 and "the search minimizes the loss on val" in out
    assert json.loads((tmp_path / "output_dir/s/optuna_best.json").read_text())["metric"] == "loss"
    code, out, _ = predict("--task", "m", "--optuna_epochs", 1, "--optuna_trials", 1, "--optuna_metric",
                           "mae", "--optuna_n_jobs", 4)
    assert code == 0 and "minimize mae on val" in out and "--optuna_n_jobs 4 has no effect" in out
    code, _, err = predict("--optuna_trials", 1, "--optuna_metric", "mae", "--optuna_direction", "maximize")
    assert code == 2 and "contradicts" in err


def test_a_model_without_stochastic_depth(predict, tmp_path):  # noqa: F811
    code, out, err = predict(*SEARCH, "--optuna_trials", 1, "--optuna_epochs", 1, "--model", "dla46_c")
    assert code == 0, err
    assert "drop_path is not proposed: dla46_c has no stochastic depth" in out and "drop_path" not in trials(
        tmp_path
    )


def test_two_processes_search_like_one(demo, tmp_path):  # noqa: F811
    words = [*SMALL, *SEARCH, "--csv_file", demo, "--optuna_trials", 3]
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        run = start_process(*words, "--batch_size", 8 // processes, folder=folder, processes=processes,
                            program="main_regression.py", OMP_NUM_THREADS="1")
        assert run.returncode == 0, run.stderr
    one, two = trials(tmp_path / "1"), trials(tmp_path / "2")
    columns = ["lr", "weight_decay", "layer_decay", "drop_path", "head_dropout", "head_depth",
               "head_num_heads", "huber_beta"]
    assert one[columns].equals(two[columns]) and list(two["state"]) == ["complete"] * 3


def begin(folder, *words, program="main_regression.py"):
    return subprocess.Popen([sys.executable, str(ROOT / program), *map(str, words)], cwd=folder,
                            text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def running_epoch(storage, name, enough):
    """Wait until the study has `enough` finished trials and another that has reported an epoch."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        try:
            found = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
        except (KeyError, FileNotFoundError):
            found = []
        done = sum(trial.state.is_finished() for trial in found)
        if done >= enough and any(not trial.state.is_finished() and trial.intermediate_values
                                  for trial in found):
            return
        time.sleep(0.05)
    raise AssertionError("the search did not get so far")


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_kill_9_in_a_trial_loses_and_doubles_nothing(demo, tmp_path, kind):  # noqa: F811
    place = f"sqlite:///{tmp_path}/o.db" if kind == "sqlite" else str(tmp_path / "journal.log")
    words = [*SMALL, "--task", "k", "--optuna_epochs", "12", "--csv_file", demo, "--optuna_trials", 3,
             "--optuna_storage",
             place, "--optuna_resume"]
    process = begin(tmp_path, *words)
    running_epoch(optuna_study.open_storage(place), "k", enough=1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    run = start_process(*words, folder=tmp_path, program="main_regression.py")
    assert run.returncode == 0, run.stderr
    assert (
        "was left running by a process that is gone" in run.stdout and "3 trials (3 complete)" in run.stdout
    )
    table = trials(tmp_path, "k")
    killed = table[table["state"] == "fail"]
    assert list(table["state"]).count("complete") == 3 and len(killed) == 1 and len(table) == 4
    again = table[(table["state"] == "complete") & (table["lr"] == killed["lr"].iloc[0])]
    assert len(again) == 1  # its parameters were run once


@pytest.fixture
def postgres():
    """A PostgreSQL server of its own on a local port -> its URL. .ci/run installs the server."""
    binaries = sorted(str(path.parent) for path in Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        not_installed("PostgreSQL")
    needs_package("psycopg")
    # no folder of pytest's: those are closed to the user that the server runs as
    data, port = Path(tempfile.mkdtemp(prefix="postgres-")), 20000 + os.getpid() % 20000
    as_other = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_other:
        shutil.chown(data, "postgres", "postgres")

    def control(program, *words):
        subprocess.run([*as_other, f"{binaries[-1]}/{program}", "-D", str(data), *words], check=True, cwd="/",
                       timeout=120, stdout=subprocess.DEVNULL)

    control("initdb", "-U", "optuna", "--auth=trust")
    control(
        "pg_ctl",
        "-w",
        "-l",
        str(data / "log"),
        "-o",
        f"-p {port} -k {data} -c listen_addresses=127.0.0.1",
        "start",
    )
    yield f"postgresql://optuna@127.0.0.1:{port}/postgres"
    control("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(data)


@pytest.mark.slow
def test_two_groups_of_processes_on_one_postgresql_study(demo, tmp_path, postgres):  # noqa: F811
    words = [*SMALL, "--task", "p", "--optuna_epochs", "3", "--csv_file", demo, "--optuna_trials", 5,
             "--optuna_storage",
             postgres, "--optuna_study_name", "both", "--optuna_resume"]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    processes = [begin(folder, *words) for folder in folders]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    tables = [trials(folder, "p") for folder in folders]
    assert tables[0]["trial"].equals(tables[1]["trial"]) and list(tables[0]["state"]).count("complete") == 5
    best = [json.loads((folder / "output_dir/p/optuna_best.json").read_text()) for folder in folders]
    assert best[0] == best[1]
