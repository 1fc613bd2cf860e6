"""One run a folder: the second is refused, and a run that is dead, however it died, locks nobody out."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL
from util.core import run_lock
from util.core.errors import InputError

HOLDER = """
import os, sys, time
from pathlib import Path
from util.core import run_lock
lock = run_lock.hold(Path(sys.argv[1]), print, sys.argv[2] == "shared")
child = os.fork()
if child == 0:  # as the loader's processes are
    os.close(1)
    time.sleep(300)
print(child, flush=True)
time.sleep(float(sys.argv[3]))
os.kill(child, 9)
"""


@pytest.fixture
def holder(tmp_path):
    """holder(kind, seconds) -> a process that holds the lock of tmp_path, and the number of its forked
    child."""
    begun = []

    def begin(kind="alone", seconds=300.0):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), kind, str(seconds)],
                                   text=True, cwd=ROOT, stdout=subprocess.PIPE)
        child = int(process.stdout.readline())
        begun.append((process, child))
        return process, child

    yield begin
    for process, child in begun:
        process.kill()
        process.communicate()
        if Path(f"/proc/{child}").exists():
            os.kill(child, signal.SIGKILL)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.3)


def test_the_second_is_refused_and_told_by_whom(tmp_path, holder):
    process, _ = holder()
    said = []
    with pytest.raises(
        InputError, match=rf"in use by another run \(process {process.pid} on .+, begun 20.+\): wait for it"
    ):
        run_lock.hold(tmp_path, said.append)
    assert len(said) == 1 and "waiting up to" in said[0]


def test_a_killed_holder_leaves_nothing_behind_though_its_children_live(tmp_path, holder):
    process, child = holder()
    process.kill()
    process.wait()
    said = []
    with run_lock.hold(tmp_path, said.append):
        assert not said and Path(f"/proc/{child}").exists()


def test_one_that_is_ending_is_waited_for(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE_S", 60)
    holder(seconds=0.5)
    said = []
    with run_lock.hold(tmp_path, said.append):
        assert len(said) == 1


def test_searches_share_a_folder_and_a_training_does_not_join_them(tmp_path, holder):
    holder("shared")
    with run_lock.hold(tmp_path, print, shared=True):
        pass
    with pytest.raises(InputError, match="in use by another run"):
        run_lock.hold(tmp_path, print)


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", none)
    said = []
    assert run_lock.hold(tmp_path, said.append) is None
    assert len(said) == 1 and "can't be locked (No locks available)" in said[0]


def test_a_lock_that_is_deleted_while_it_is_taken_is_taken_again(tmp_path, monkeypatch):
    lockf, calls = run_lock.fcntl.lockf, []

    def delete_first(file, *words):
        calls.append(1)
        if len(calls) == 1:
            (tmp_path / run_lock.NAME).unlink()
        lockf(file, *words)

    monkeypatch.setattr(run_lock.fcntl, "lockf", delete_first)
    with run_lock.hold(tmp_path, print) as file:
        assert os.path.samestat(os.fstat(file.fileno()),
                                os.stat(tmp_path / run_lock.NAME)) and len(calls) == 2


def children(pid):
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.long
@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="looks for the loader's processes in Linux's /proc"
)
def test_two_runs_of_one_task(start, tmp_path, pictures):
    words = [*SMALL, "--epochs", 2000, "--num_workers", 2, "--data_path", pictures, "--task", "t"]
    first = subprocess.Popen([sys.executable, str(ROOT / "main_finetune.py"), *map(str, words)], cwd=tmp_path,
                             text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             env=os.environ | {"PYTHONPATH": str(ROOT)})
    log, loaders = tmp_path / "output_dir/t/log.txt", []
    try:
        deadline = time.monotonic() + 200
        while not (log.exists() and log.read_text().count("\n") >= 1 and children(first.pid)):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        for more in ([], ["--resume", "same"], ["--eval", "--resume", "auto"]):
            code, _, err = start("--task", "t", *more)
            assert code == 2 and re.fullmatch(
                rf"error: output_dir/t is in use by another run \(process {first.pid} on .*\n", err
            ), err
        assert start("--task", "t", "--dry_run")[0] == 0
        assert not list((tmp_path / "output_dir/t").glob("earlier-*"))
        loaders = children(first.pid)
        first.kill()
        first.wait()
        alive = [number for number in loaders if Path(f"/proc/{number}").exists()]
        code, out, err = start("--task", "t", "--resume", "auto", "--epochs", 1, "--no_savemodel")
        assert code == 0 and "in use" not in out, err
        assert len(alive) == len(loaders) > 0
    finally:
        first.kill()
        first.communicate()
        for number in loaders:
            if Path(f"/proc/{number}").exists():
                os.kill(number, signal.SIGKILL)
