"""train.sh with several processes: killed ones come back, mistakes are not repeated, exit codes are the
program's own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, SMALL

JOB = [*SMALL, "--epochs", "12"]


def begin(folder, data, *words, processes=2):
    """`GPUS=2 sh train.sh` on the CPU, in a process group of its own."""
    environment = os.environ | {"PYTHON": sys.executable, "GPUS": str(processes), "DATA_PATH": str(data),
                                "NUM_CLASS": "3", "TASK": "r",
                                "MODEL": "timm", "MODEL_ARCH": "test_vit", "FINETUNE": "",
                                "OMP_NUM_THREADS": "1",
                                "MASTER_PORT": str(20000 + os.getpid() % 10000)}
    return subprocess.Popen(["sh", str(ROOT / "train.sh"), *map(str, words)], cwd=folder, env=environment,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def workers(launcher):
    """The processes that torchrun started, by the launcher that took the script's place."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher.pid and "main_finetune.py" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue  # ended while it was looked at
    return sorted(found)


def epochs_logged(folder):
    log = folder / "output_dir/r/log.txt"
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_for(condition, process, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the workers in Linux's /proc")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_killed_twice_comes_back_twice(tmp_path, pictures, processes):
    process = begin(tmp_path, pictures, *JOB, "--epochs", 60, processes=processes)
    try:
        for goal, victim in ((2, processes - 1), (5, 0)):
            wait_for(lambda goal=goal: epochs_logged(tmp_path) >= goal and len(workers(process)) == processes,
                     process)
            os.kill(workers(process)[victim], signal.SIGKILL)
        out, err = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    assert out.count("resumed at epoch") >= 1 and "best epoch" in out
    epochs = [json.loads(line)["epoch"]
              for line in (tmp_path / "output_dir/r/log.txt").read_text().splitlines()]
    assert epochs == list(range(60))


@pytest.mark.parametrize("number, processes", [(signal.SIGTERM, 1), (signal.SIGUSR1, 2)])
def test_asked_to_end_it_writes_a_checkpoint_and_ends_with_99(tmp_path, pictures, number, processes):
    process = begin(tmp_path, pictures, *JOB, "--epochs", 500, processes=processes)
    try:
        wait_for(lambda: epochs_logged(tmp_path) >= 1, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 99 and "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("stopped by ")]
    assert len(lines) == 1 and lines[0].startswith(f"stopped by {signal.Signals(number).name}: epoch ")
    assert "in the last checkpoint" in lines[0]
    epochs, last = (
        epochs_logged(tmp_path),
        torch.load(tmp_path / "output_dir/r/checkpoint-last.pth", weights_only=True),
    )
    assert last["progress"]["epoch"] == epochs and last["epoch"] == epochs - 1


def test_a_program_that_always_dies_is_started_four_times(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import os, sys; print(*sys.argv[1:], flush=True); os.kill(os.getpid(), 9)")
    run = subprocess.run([sys.executable, ROOT / "util/core/restarting.py", "3", program, "--flag", "a b"],
                         capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and run.stdout == 4 * "--flag a b\n"
    assert run.stderr.count("goes on from its last checkpoint") == 3
    assert run.stderr.splitlines()[-1].startswith("error: the program was ended by SIGKILL (the system kills "
                                                  "so what takes too")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_diverged_run_is_not_started_again(tmp_path, pictures, processes):
    process = begin(tmp_path, pictures, *JOB, "--lr", 1e30, "--warmup_epochs", 0, processes=processes)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert err.count("the loss is not finite") == 1 and "Traceback" not in err
    assert not list((tmp_path / "output_dir/r").glob("earlier-*"))


def test_wrong_input_ends_with_2(tmp_path, pictures):
    process = begin(tmp_path, pictures, *JOB, "--nb_classes", 4)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2 and out == "" and err.splitlines()[-1].startswith("error: --nb_classes 4")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_is_one_line_and_130(tmp_path, pictures, processes):
    process = begin(tmp_path, pictures, *JOB, "--epochs", 500, processes=processes)
    try:
        wait_for(lambda: epochs_logged(tmp_path) >= 1, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all of them
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "what was saved stays" in err
