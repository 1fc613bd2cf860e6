"""What a machine does to a run: each fault is one line, or nothing at all. What needs root (mounts) is left
out elsewhere."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, start_process
from util.core import machine_faults
from util.core.errors import RunError

HAS_MOUNTS = shutil.which("unshare") is not None and subprocess.run(
    ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
needs_mounts = pytest.mark.skipif(not HAS_MOUNTS, reason="needs mounts of its own: root on Linux")
NAME = "Dönerstraße 视网膜"


def one_error(err: str) -> str:
    assert "Traceback" not in err, err
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    return line


def through_shell(text: str, *words, folder: Path, **environment) -> subprocess.CompletedProcess:
    """`text` of a shell, in which "$@" is main_finetune.py with these words."""
    command = ["sh", "-c", text, "sh", sys.executable, str(ROOT / "main_finetune.py"), *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment})


def children_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(folder.name))
        except (OSError, IndexError):
            continue  # ended while it was looked at
    return found


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="looks for the loader's processes in Linux's /proc"
)
def test_a_loader_process_killed_for_memory(tmp_path, pictures):
    words = [*SMALL, "--num_workers", 1, "--epochs", 500, "--data_path", pictures, "--task", "x"]
    process = subprocess.Popen([sys.executable, str(ROOT / "main_finetune.py"), *map(str, words)],
                               cwd=tmp_path, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    try:
        log, ends_at = tmp_path / "output_dir/x/log.txt", time.monotonic() + 150
        while not log.exists() or not children_of(process.pid):
            assert time.monotonic() < ends_at and process.poll() is None, process.communicate()
            time.sleep(0.02)
        for worker in children_of(process.pid):
            os.kill(worker, signal.SIGKILL)
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
        process.communicate()
    line = one_error(err)
    assert (
        process.returncode == 1
        and "memory is full" in line
        and "--num_workers" in line
        and "start again" in line
    )


@needs_mounts
def test_a_small_shared_memory(tmp_path, pictures):
    run = through_shell(
        'exec unshare -m sh -c \'mount -t tmpfs -o size=60k none /dev/shm && exec "$@"\' sh "$@"',
        *SMALL,
        "--num_workers",
        1,
        "--input_size",
        160,
        "--data_path",
        pictures,
        "--task",
        "x",
        folder=tmp_path,
    )
    line = one_error(run.stderr)
    assert run.returncode == 1 and "/dev/shm" in line and "--num_workers 0" in line and "--shm-size" in line


def test_a_name_in_another_script_in_data_that_cannot_be_written(tmp_path, pictures):
    """Under a locale that knows ASCII alone; nothing is written beside the images."""
    home = tmp_path / NAME
    shutil.copytree(pictures, home / "Bilder")
    for split in ("train", "val", "test"):
        (home / "Bilder" / split / "healthy").rename(home / "Bilder" / split / "gesünd")
    (home / "Bilder/train/mild/00.png").rename(home / "Bilder/train/mild/眼 0.png")
    there = sorted(path for path in home.rglob("*"))
    text = 'exec "$@"'
    if HAS_MOUNTS:
        text = 'exec unshare -m sh -c \'mount --bind Bilder Bilder && mount -o remount,ro,bind Bilder && exec "$@"\' sh "$@"'
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = through_shell(text, *SMALL, "--data_path", "Bilder", "--task", "läuft", "--output_dir", "Ausgäng",
                        "--log_dir", "Lög",
                        "--image_cache", "Zwischenlöger", "--bad_images", "skip", folder=home, **ascii_alone)
    assert run.returncode == 0, run.stderr
    assert "gesünd" in run.stdout and "Ausgäng/läuft" in run.stdout
    results = home / "Ausgäng/läuft"
    assert "gesünd" in (results / "predictions_test.csv").read_text(encoding="utf-8")
    assert "gesünd" in (results / "report.html").read_text(encoding="utf-8") and list(
        (home / "Lög/läuft").iterdir()
    )
    assert sorted(path for path in home.rglob("*") if path.is_relative_to(home / "Bilder")) == [
        path for path in there if path.is_relative_to(home / "Bilder")]
    run = through_shell('exec "$@"', *SMALL, "--eval", "--resume", "Ausgäng/läuft/checkpoint-best.pth",
                        "--data_path", "Bilder", "--task", "nochmal", folder=home, **ascii_alone)
    assert run.returncode == 0, run.stderr
    figures = [json.loads(path.read_text(encoding="utf-8")) for path in (
        results / "metrics_test.json", home / "output_dir/nochmal/metrics_test.json")]
    assert figures[0]["accuracy"] == figures[1]["accuracy"]


def test_a_clock_that_jumps(start, tmp_path, monkeypatch, pictures):
    """No duration is negative, no decision depends on it; images from the future are kept as any other."""
    data = shutil.copytree(pictures, tmp_path / "data")
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        os.utime(path, (4e9 + number, 4e9 + number) if number % 2 else (0, 0))
    dice, real = random.Random(3), time.time
    monkeypatch.setattr(time, "time", lambda: real() + dice.uniform(-1e8, 1e8))
    words = ["--image_cache", "kept", "--task", "x"]
    code, out, err = start(*words, data=data)
    assert code == 0, err
    assert all(json.loads(line)["seconds"] >= 0
               for line in (tmp_path / "output_dir/x/log.txt").read_text().splitlines())
    (kept,) = [path for path in Path("kept").rglob("*") if path.is_file()
               and path.stat().st_size > 10_000][:1]
    before = kept.stat().st_mtime_ns
    code, out, err = start(*words, "--epochs", 3, "--resume", "auto", data=data)
    assert code == 0 and "resumed at epoch 2" in out, err
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("text, code", [('"$@" | head -n 1', 0), ('"$@" <&- >&- 2>&-', 0)],
                         ids=["head", "closed"])
def test_output_that_nobody_reads(tmp_path, pictures, text, code):
    """A closed stream is no error; a closed pipe is one line, and never a traceback."""
    run = through_shell(text, *SMALL, "--epochs", 1, "--data_path", pictures, "--task", "x", folder=tmp_path)
    assert run.returncode == code
    if "head" in text:
        assert one_error(run.stderr) and "Exception ignored" not in run.stderr and run.stdout.count("\n") == 1
    else:
        assert (tmp_path / "output_dir/x/metrics_test.csv").exists()
        for path in (tmp_path / "output_dir/x").iterdir():
            assert b"Warning" not in path.read_bytes()[:4096]
    run = through_shell('"$@" | head -n 1', "--help", folder=tmp_path)
    assert run.stdout.startswith("usage") and run.stderr == ""


SAID = {
    "DataLoader worker (pid 71) is killed by signal: Killed. ": "memory is full",
    "DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that dataloader's workers are "
    "out of shared memory. Please try to raise your shared memory limit.": "/dev/shm",
    "Caught RuntimeError in DataLoader worker process 0.\nunable to write to file </torch_71_3>: No space "
    "left on device (28)":
        "/dev/shm",
    "unable to allocate shared memory(shm) for file </torch_71_3>: Resource temporarily unavailable "
    "(11)": "/dev/shm",
    "DataLoader worker (pid(s) 71, 72) exited unexpectedly": "--num_workers",
    "DataLoader worker (pid 71) is killed by signal: Segmentation fault. ": "(Segmentation fault)",
    "received 0 items of ancdata": "ulimit -n",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported": "--accum_iter",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "the device's memory is full",
    "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be":
        "no code for this GPU",
    "The NVIDIA driver on your system is too old (found version 11040). Please update": "up to date",
    "CUDA error: CUDA driver version is insufficient for CUDA runtime version": "up to date",
    "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors": "nvidia-smi -q -d ECC",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA": "has the GPU for itself",
    "CUDA error: unspecified launch failure\nCUDA kernel errors might": "unspecified launch failure",
    "upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation, but you set":
        "needs upsample_bicubic2d_backward_out_cuda",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED": "start again",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa)`": "start again",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 7 bytes.":
        "--batch_size",
}


@pytest.mark.parametrize("text, part", SAID.items(), ids=range(len(SAID)))
def test_known_messages(text, part):
    line = machine_faults.explain(RuntimeError(text))
    assert part in line and "\n" not in line


def test_other_errors_stay_what_they_are():
    assert machine_faults.explain(MemoryError()) == machine_faults.MEMORY
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might"),  # a fault of ours
        FileNotFoundError(2, "No such file", "x.png"),
    ):
        assert machine_faults.explain(error) is None
        with pytest.raises(type(error)), machine_faults.explained():
            raise error


def test_a_loader_process_that_ends_while_a_file_is_written():
    with pytest.raises(RunError, match="a loader process was killed"), machine_faults.explained():
        try:
            raise RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. ")
        except RuntimeError as error:
            raise RunError("checkpoint-last.pth could not be written") from error
    full = RunError("checkpoint-last.pth could not be written")
    with pytest.raises(RunError, match="could not be written"), machine_faults.explained():
        raise full from OSError(28, "No space left on device")


def test_an_automatic_batch_of_two_processes(tmp_path, pictures):
    """--batch_size auto: all processes take the same, and --resume goes on with it on another number of
    them."""
    words = [*SMALL, "--batch_size", "auto", "--data_path", pictures, "--task", "x"]
    run = start_process(*words, folder=tmp_path, processes=2, OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    assert (
        "--batch_size auto is 16" in run.stdout
        and "batch 16 x accumulation 1 x 2 processes = 32" in run.stdout
    )
    run = start_process(*words, "--epochs", 3, "--resume", "auto", folder=tmp_path, OMP_NUM_THREADS="1")
    assert run.returncode == 0 and "batch 16 x accumulation 1 x 1 process = 16" in run.stdout, run.stderr
