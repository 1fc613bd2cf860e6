"""examples/slurm/ and compare.py --slurm on a real Slurm: jobs asked to end are requeued and lose nothing."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.chaos import differences
from tests import slurm
from tests.conftest import ROOT, SMALL, needs_package, not_installed, start_process
from tests.forks import free_port

OF_THE_SCRIPT = ("--model", "timm", "--model_arch", "test_vit", "--nb_classes", "3")
EPOCHS = ["--epochs", "12"]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")


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
    run = start_process(*SMALL, *EPOCHS, "--data_path", pictures, "--task", "whole", folder=folder,
                        processes=2, OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    return folder / "output_dir/whole"


def interrupt(cluster, job: str, checkpoint: Path) -> None:
    """Send USR1 once there is a checkpoint, as before the time limit; return when it is queued again."""
    deadline = time.monotonic() + 300
    while not checkpoint.exists():
        assert time.monotonic() < deadline, (cluster.facts(job), cluster.logs())
        time.sleep(0.02)
    cluster.call("scancel", "--signal=USR1", job)
    facts = cluster.wait(job, lambda facts: facts["Restarts"] == "1" or facts["JobState"] in ENDED)
    assert facts["Restarts"] == "1", (facts["JobState"], facts["ExitCode"])


def submit(cluster, folder: Path, script: str, *words, options=(), **variables) -> str:
    places = ("--output_dir", folder / "output_dir", "--log_dir", folder / "output_logs")
    return cluster.submit(*options, f"--output={folder}/job.out", f"examples/slurm/{script}", *words, *places,
                          folder=ROOT, PYTHON=sys.executable, OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1",
                          # by itself it is made of the job's number, which two clusters of this machine share
                          MASTER_PORT=str(free_port()), **variables)


def goes_on(cluster, job: str, run: Path, whole: Path, log: Path) -> None:
    """The job ends well, having begun twice, with the bits of the undisturbed run."""
    facts = cluster.wait(job, lambda facts: facts["JobState"] in ENDED)
    said = log.read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), said
    assert said.count("stopped by SIGUSR1") == 1 and said.count("resumed at epoch") == 1, said
    assert differences(whole, run) == []


@pytest.mark.slow
def test_a_job_of_two_tasks_is_queued_again_by_its_code(cluster, pictures, whole, tmp_path):
    job = submit(cluster, tmp_path, "tasks.sh", *SMALL, *EPOCHS, "--data_path", pictures, "--task", "cut",
                 options=("--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1"))
    run = tmp_path / "output_dir/cut"
    interrupt(cluster, job, run / "checkpoint-last.pth")
    goes_on(cluster, job, run, whole, tmp_path / "job.out")
    assert "Exited with exit code 99" in (tmp_path / "job.out").read_text()


@pytest.mark.slow
def test_a_job_of_two_nodes_is_queued_again_by_its_code(cluster, pictures, whole, tmp_path):
    words = [word for word in SMALL if word not in OF_THE_SCRIPT]
    job = submit(cluster, tmp_path, "nodes.sh", *words, *EPOCHS,
                 options=("--nodes=2", "--gpus-per-node=2", "--cpus-per-task=1"), DATA_PATH=str(pictures),
                 NUM_CLASS="3", TASK="cut", MODEL="timm", MODEL_ARCH="test_vit", FINETUNE="", GPUS="1")
    run = tmp_path / "output_dir/cut"
    interrupt(cluster, job, run / "checkpoint-last.pth")
    goes_on(cluster, job, run, whole, tmp_path / "job.out")


GRID = """\
name: study
flags:
  data_path: {images}
{flags}
backbones: [vit: {{model: timm, model_arch: test_vit}}]
seeds: [0, 1]
"""


def begin_study(cluster, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "compare.py"), "--run", "grid.yaml", "--draws", "200", "--slurm",
         "time=60", "cpus_per_task=1"], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=cluster.environment | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_a_study_is_jobs_that_are_queued_again(cluster, pictures, tmp_path):
    needs_package("submitit")
    # as many epochs as outlast the second launch on a busy machine
    flags = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {"--epochs": "40"}
    lines = "\n".join(f"  {name.removeprefix('--')}: {value}" for name, value in flags.items()
                      if "model" not in name)
    (tmp_path / "grid.yaml").write_text(GRID.format(images=pictures, flags=lines))
    runs = [tmp_path / f"output_dir/study/vit_finetune_ratio1_seed{seed}" for seed in (0, 1)]
    first = begin_study(cluster, tmp_path)
    said = first.stdout.readline() + first.stdout.readline()
    jobs = re.search(r"2 runs submitted, 0 are in the queue already; jobs: (\d+) (\d+);", said).groups()
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130 and f"to end them: scancel {jobs[0]} {jobs[1]}" in err, err
    second = begin_study(cluster, tmp_path)  # while they wait or run
    interrupt(cluster, jobs[0], runs[0] / "checkpoint-last.pth")
    out, err = second.communicate(timeout=400)
    assert second.returncode == 0, (out, err, cluster.logs())
    assert f"0 runs submitted, 2 are in the queue already; jobs: {jobs[0]} {jobs[1]};" in out
    assert cluster.facts(jobs[0])["Restarts"] == "1" and cluster.facts(jobs[1])["Restarts"] == "0"
    log = (runs[0] / f"slurm/{jobs[0]}_0_log.out").read_text()
    assert log.count("stopped by SIGUSR1") == 1 and log.count("resumed at epoch") == 1, log
    for run in runs:
        epochs = [json.loads(line)["epoch"] for line in (run / "log.txt").read_text().splitlines()]
        assert epochs == list(range(40)) and not list(run.glob("earlier-*"))
    assert (tmp_path / "output_dir/study/comparison.csv").exists()
    assert "jobs: 0 running, 0 pending, 2 ended" in out
