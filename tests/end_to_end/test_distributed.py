"""Several processes: the same figures, the same training, one line for an error."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SMALL, start_process, weights_of
from util.metrics.classification import classification_metrics
from util.metrics.predictions import read_predictions

EXACT = ["--drop_path", "0", "--smoothing", "0.1", "--epochs", "2", "--aa", "rand-m9-mstd0.5-inc1",
         "--reprob", "0.25"]


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """A checkpoint trained by one process."""
    folder = tmp_path_factory.mktemp("one")
    run = start_process(*SMALL, *EXACT, "--data_path", pictures, "--task", "one", folder=folder,
                        OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    return folder


def test_evaluation_is_the_same_for_1_2_and_3_processes(trained, pictures, tmp_path):
    best = trained / "output_dir/one/checkpoint-best.pth"
    figures, tables = {}, {}
    for processes in (1, 2, 3):
        run = start_process("--eval", "--resume", best, "--data_path", pictures, "--task", f"e{processes}",
                            "--batch_size", 4,
                            "--num_workers", 0, "--device", "cpu", folder=tmp_path, processes=processes,
                            OMP_NUM_THREADS="1")
        assert run.returncode == 0, run.stderr
        folder = tmp_path / f"output_dir/e{processes}"
        tables[processes] = read_predictions(folder / "predictions_test.csv")
        figures[processes] = {name: entry["value"] for name, entry in
                              json.loads((folder / "metrics_test.json").read_text()).items()}
    for processes in (2, 3):
        assert list(tables[processes]["index"]) == list(range(25))
        assert list(tables[processes]["path"]) == list(tables[1]["path"])
        for name, value in figures[1].items():
            tolerance = 1e-5 if name in ("loss", "brier") else 1e-9
            assert figures[processes][name] == pytest.approx(value, abs=tolerance), name

    run = start_process("--eval", "--resume", best, "--data_path", pictures, "--task", "b", "--batch_size",
                        25, "--num_workers", 0, "--device", "cpu", folder=tmp_path, OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    other, _ = classification_metrics(read_predictions(tmp_path / "output_dir/b/predictions_test.csv"))
    assert other["loss"] == pytest.approx(figures[1]["loss"], abs=1e-5)


def test_two_processes_train_like_one(trained, pictures, tmp_path):
    """1 x 8 and 2 x 4 images make the same steps: the same curve to fp32 rounding, also with a short last
    batch."""
    words = [word for word in SMALL if word not in ("--batch_size", "8")]
    run = start_process(*words, *EXACT, "--batch_size", 4, "--data_path", pictures, "--task", "two",
                        folder=tmp_path, processes=2, OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    assert "2 processes" in run.stdout and run.stdout.count("epoch 0 (1/2)") == 1
    one, two = ([json.loads(line) for line in path.read_text().splitlines()]
                for path in (trained / "output_dir/one/log.txt", tmp_path / "output_dir/two/log.txt"))
    for a, b in zip(one, two, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-4)
    a, b = weights_of(trained / "output_dir/one/checkpoint-last.pth"), weights_of(
        tmp_path / "output_dir/two/checkpoint-last.pth")
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-3

    # and goes on with another number of processes
    run = start_process(*words, *EXACT, "--epochs", 3, "--batch_size", 8, "--data_path", pictures, "--task",
                        "two", "--resume", "auto", folder=tmp_path, OMP_NUM_THREADS="1")
    assert run.returncode == 0 and "resumed at epoch 2" in run.stdout, run.stderr
    assert list(pd.read_csv(tmp_path / "output_dir/two/metrics_val.csv")["epoch"]) == [0, 1, 2]


def test_wrong_input_under_torchrun_is_one_line(pictures, tmp_path):
    run = start_process(*SMALL, "--data_path", tmp_path / "nowhere", "--task", "x", folder=tmp_path,
                        processes=2, real=True)
    lines = [line for line in run.stderr.splitlines() if line.startswith("error")]
    assert run.returncode == 1  # torchrun's own; train.sh maps it
    assert len(lines) == 1 and "nowhere" in lines[0]
    assert "main_finetune.py\", line" not in run.stderr  # no traceback of ours beside torchrun's banner


def test_diverged_run_of_two_processes_names_its_files_once(pictures, tmp_path):
    run = start_process(*SMALL, "--lr", 1e30, "--warmup_epochs", 0, "--data_path", pictures, "--task", "x",
                        folder=tmp_path, processes=2)
    lines = [line for line in run.stderr.splitlines() if line.startswith("error")]
    assert run.returncode == 1 and len(lines) == 1 and "the loss is not finite" in lines[0]


def test_probe_under_two_processes(trained, pictures, tmp_path):
    best = trained / "output_dir/one/checkpoint-best.pth"
    run = start_process(*SMALL, "--adaptation", "lp", "--finetune", best, "--data_path", pictures, "--task",
                        "lp", "--lr", 0.05, folder=tmp_path, processes=2)
    assert run.returncode == 0, run.stderr
    before, after = weights_of(best), weights_of(tmp_path / "output_dir/lp/checkpoint-last.pth")
    moved = {name for name in before if not np.array_equal(before[name].numpy(), after[name].numpy())}
    assert moved == {"head.weight", "head.bias"}


def test_open_mpi_variables(pictures, tmp_path):
    run = start_process(*SMALL, "--dist_on_itp", "--data_path", pictures, "--task", "x", folder=tmp_path)
    assert run.returncode == 2 and "Open MPI's variables are not set" in run.stderr
    ompi = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    run = start_process(*SMALL, "--dist_on_itp", "--epochs", 1, "--data_path", pictures, "--task", "x",
                        folder=tmp_path, **ompi)
    assert run.returncode == 0, run.stderr
    assert os.path.exists(tmp_path / "output_dir/x/metrics_test.csv")
