"""A process that died ends the others; one that left does not. Real processes, without torch."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.conftest import ROOT
from util.parallel.processes import _attempt

PROGRAM = """
import os, sys, time
from pathlib import Path
from util.parallel import lifeline

class Files:  # a store of files
    def set(self, name, value):
        path = Path(name.replace("/", "_"))
        path.with_suffix(".new").write_text(value)
        path.with_suffix(".new").replace(path)
    def get(self, name):
        path = Path(name.replace("/", "_"))
        while not path.exists():
            time.sleep(0.01)
        return path.read_bytes()

rank, size = int(sys.argv[1]), int(sys.argv[2])
lifeline.GRACE_S, lifeline.PEER_GRACE_S, lifeline.CONNECT_S = 0.2, 0.4, 2.0
line = lifeline.Lifeline(Files(), rank, size)
if line.problem:
    print(line.problem)
Path(f"ready{rank}").touch()
while len(list(Path().glob("ready*"))) < size:
    time.sleep(0.01)
exec(sys.argv[3])
"""
WAIT = "time.sleep(60); line.close()"


def begin(folder: Path, *whats: str, **environment) -> list[subprocess.Popen]:
    """A process for each piece of program, all connected."""
    known = os.environ | {"PYTHONPATH": str(ROOT), **environment}
    processes = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(len(whats)), what], cwd=folder, text=True,
                                  env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for rank, what in enumerate(whats)]
    ends_at = time.monotonic() + 60
    while True:
        ended = [process for process in processes if process.poll()]  # looked at first: once all are ready, one may end
        if len(list(folder.glob("ready*"))) == len(whats):
            return processes
        assert time.monotonic() < ends_at and not ended, [process.communicate() for process in ended]
        time.sleep(0.01)


def ends(processes: list[subprocess.Popen], timeout: float = 50) -> list[tuple[int, str]]:
    found = []
    for process in processes:
        _, err = process.communicate(timeout=timeout)
        found.append((process.returncode, err))
    return found


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(tmp_path, victim):
    """Also where a forked child, as of a loader, lives on with copies of the connections."""
    fork = "child = os.fork()\nif not child:\n    os.close(1), os.close(2), time.sleep(30), os._exit(0)\n"
    processes = begin(tmp_path, fork + WAIT, fork + WAIT, WAIT)
    processes[victim].kill()
    for code, err in ends([process for rank, process in enumerate(processes) if rank != victim], 20):
        line = f"error: process {victim} on {socket.gethostname()} ended without a word; what was saved stays"
        assert code == 1 and err == f"{line}: start again to go on\n"


@pytest.mark.parametrize("first", [0, 1])
def test_one_that_leaves_first_is_not_dead(tmp_path, first):
    whats = ["time.sleep(1); line.close()"] * 3
    whats[first] = "line.close()"
    assert ends(begin(tmp_path, *whats)) == [(0, "")] * 3


def test_an_error_of_one_ends_all_with_its_code(tmp_path):
    """The launcher's mark is left, so that it does not start again what is wrong."""
    marker = tmp_path / "mark"
    processes = begin(tmp_path, WAIT, "line.close('2'); sys.exit(2)", WAIT, RETINA_ENDED_BY_ITSELF=str(marker))
    ended = ends(processes)
    assert [code for code, _ in ended] == [2, 2, 2] and marker.read_text() == "2"
    assert ended[0][1] == ended[2][1] == "error: process 1 ended with exit code 2, and its own line says why\n"


def test_a_bug_of_one_ends_all_without_the_mark(tmp_path):
    ended = ends(begin(tmp_path, WAIT, "line.close(lifeline.FAILED)", RETINA_ENDED_BY_ITSELF=str(tmp_path / "mark")))
    assert ended[0][0] == 1 and "process 1 on" in ended[0][1] and "ended with an error" in ended[0][1]
    assert not (tmp_path / "mark").exists()


def test_a_stopped_process_is_not_dead(tmp_path):
    processes = begin(tmp_path, "time.sleep(2); line.close()", "time.sleep(1); line.close()")
    os.kill(processes[1].pid, signal.SIGSTOP)
    time.sleep(0.7)
    assert processes[0].poll() is None
    os.kill(processes[1].pid, signal.SIGCONT)
    assert ends(processes) == [(0, ""), (0, "")]


def test_what_cannot_connect_goes_on_with_a_line(tmp_path):
    blocked = ("import socket\nreal = socket.create_connection\n"
               "def refuse(*_, **__):\n    raise ConnectionRefusedError\nsocket.create_connection = refuse\n")
    program = PROGRAM.replace("line = lifeline", f"if rank == 1:\n    exec({blocked!r})\nline = lifeline")
    processes = [subprocess.Popen([sys.executable, "-c", program, str(rank), "2", "line.close()"], cwd=tmp_path, text=True,
                                  env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for rank in range(2)]
    (out, err), other = (process.communicate(timeout=50) for process in processes)
    assert out.startswith("warning: process 1 cannot reach process 0") and out.count("\n") == 1 and err == ""
    assert other == ("", "") and [process.returncode for process in processes] == [0, 0]


def test_an_attempt_has_a_name_of_its_own():
    """Also where processes of an earlier attempt left their questions, and where these have other counts of restarts."""
    store = dist.HashStore()
    names = []
    for _ in range(3):
        found = {}

        def join(rank, found=found):
            found[rank] = _attempt(store, rank, 3)

        threads = [threading.Thread(target=join, args=(rank,)) for rank in (2, 1, 0)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        for thread in threads:
            thread.join(timeout=50)
        assert len(set(found.values())) == 1 and len(found) == 3
        names += set(found.values())
    assert len(set(names)) == 3
