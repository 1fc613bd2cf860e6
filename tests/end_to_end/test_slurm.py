"""examples/slurm/ and compare.py --slurm on a real Slurm: jobs that are asked to end, queued again, and lose nothing."""

import sys
import time
from pathlib import Path

import pytest

from benchmarks.chaos import differences
from tests import slurm
from tests.conftest import ROOT, SMALL, not_installed, start_process

FLAGS = [word for word in SMALL if word not in ("--model", "timm", "--model_arch", "test_vit", "--nb_classes", "3")]
EPOCHS = ["--epochs", "20"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if not slurm.find_programs():
        not_installed("slurm-wlm")
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> Path:
    """The folder of an undisturbed training by two processes, without Slurm."""
    folder = tmp_path_factory.mktemp("whole")
    run = start_process(*SMALL, *EPOCHS, "--data_path", pictures, "--task", "whole", folder=folder, processes=2,
                        OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    return folder / "output_dir/whole"


def interrupt(cluster, job: str, checkpoint: Path) -> None:
    """Send USR1 once there is a checkpoint, as Slurm does before the time limit; wait until the job is queued again."""
    deadline = time.monotonic() + 200
    while not checkpoint.exists():
        assert time.monotonic() < deadline and cluster.facts(job)["JobState"] in ("PENDING", "RUNNING"), cluster.logs()
        time.sleep(0.01)
    cluster.call("scancel", "--signal=USR1", job)
    cluster.wait(job, lambda facts: facts["Restarts"] == "1", 60)


def submit(cluster, folder: Path, script: str, *words, options=(), **variables) -> str:
    return cluster.submit(*options, f"--output={folder}/job.out", f"examples/slurm/{script}", *words, "--output_dir",
                          folder / "output_dir", "--log_dir", folder / "output_logs", folder=ROOT, PYTHON=sys.executable,
                          OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", **variables)


def goes_on(cluster, job: str, run: Path, whole: Path, log: Path) -> None:
    """The job ends well, having begun twice, with the bits of the undisturbed run."""
    facts = cluster.wait(job, lambda facts: facts["JobState"] in ("COMPLETED", "FAILED", "CANCELLED"))
    said = log.read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), said
    assert said.count("stopped by SIGUSR1") == 1 and said.count("resumed at epoch") == 1, said
    assert differences(whole, run) == []


def test_a_job_of_two_tasks_is_queued_again_by_its_code(cluster, pictures, whole, tmp_path):
    job = submit(cluster, tmp_path, "tasks.sh", *SMALL, *EPOCHS, "--data_path", pictures, "--task", "cut",
                 options=("--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1"))
    run = tmp_path / "output_dir/cut"
    interrupt(cluster, job, run / "checkpoint-last.pth")
    goes_on(cluster, job, run, whole, tmp_path / "job.out")
    assert "Exited with exit code 99" in (tmp_path / "job.out").read_text()


@pytest.mark.slow
def test_a_job_of_two_nodes_is_queued_again_by_its_code(cluster, pictures, whole, tmp_path):
    job = submit(cluster, tmp_path, "nodes.sh", *FLAGS, *EPOCHS, options=("--nodes=2", "--gpus-per-node=2",
                 "--cpus-per-task=1"), DATA_PATH=str(pictures), NUM_CLASS="3", TASK="cut", MODEL="timm",
                 MODEL_ARCH="test_vit", FINETUNE="", GPUS="1")
    run = tmp_path / "output_dir/cut"
    interrupt(cluster, job, run / "checkpoint-last.pth")
    goes_on(cluster, job, run, whole, tmp_path / "job.out")
