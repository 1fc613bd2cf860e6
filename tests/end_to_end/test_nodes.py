"""Several launchers on this machine as nodes of one job: the same training, a node lost and back, one end for
all; processes without a launcher, of which one is stopped or killed.

The nodes have network namespaces of their own where this machine allows it (as root), else ports of the
loopback.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, SMALL, start_process, weights_of
from tests.forks import free_port

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="nodes run on Linux")
FLAGS = [word for word in SMALL if word not in ("--model", "timm", "--model_arch", "test_vit", "--nb_classes",
                                                "3")]
NODE_WAIT = "150"


def run_quietly(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.fixture(scope="module")
def network():
    """[(words before a node's command, its environment)], the address of node 0."""
    names = [f"retina{os.getpid()}{letter}" for letter in "ab"]
    cable = [f"r{os.getpid()}{letter}" for letter in "ab"]
    made = all(run_quietly("ip", "netns", "add", name) for name in names) and run_quietly(
        "ip", "link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
    for number, (name, end) in enumerate(zip(names, cable, strict=True), 1):
        made = made and all(run_quietly("ip", *words.split()) for words in (
            f"link set {end} netns {name}", f"-n {name} addr add 10.213.7.{number}/16 dev {end}",
            f"-n {name} link set {end} up", f"-n {name} link set lo up"))
    if made:
        yield [(["ip", "netns", "exec", name], {"GLOO_SOCKET_IFNAME": end})
               for name, end in zip(names, cable, strict=True)
               ], "10.213.7.1"
    else:
        yield [([], {})] * 2, "127.0.0.1"
    for name in names:
        run_quietly("ip", "netns", "del", name)


class Nodes:
    """`sh train.sh` on two nodes with one output folder."""

    def __init__(self, network, folder: Path, data: Path):
        (self.places, self.address), self.folder, self.data, self.port = network, folder, data, free_port()
        self.running = {}

    def begin(self, rank: int, *words, script="train.sh", **variables) -> None:
        prefix, environment = self.places[rank]
        known = {"PYTHON": sys.executable, "GPUS": "1", "NNODES": "2", "NODE_RANK": str(rank),
                 "NODE_WAIT": NODE_WAIT,
                 "MASTER_ADDR": self.address, "MASTER_PORT": str(self.port), "DATA_PATH": str(self.data),
                 "NUM_CLASS": "3",
                 "TASK": "n", "MODEL": "timm", "MODEL_ARCH": "test_vit", "FINETUNE": "",
                 "OMP_NUM_THREADS": "1"}
        self.running[rank] = subprocess.Popen(
            [*prefix, "sh", str(ROOT / script), *map(str, words)], cwd=self.folder, text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=os.environ | known | environment | variables, start_new_session=True)

    def lose(self, rank: int) -> None:
        """The whole node at once: its launcher, which takes its processes along."""
        os.killpg(self.running[rank].pid, signal.SIGKILL)
        self.running.pop(rank).communicate()

    def processes(self, rank: int) -> list[int]:
        """Those that a node's launcher has started."""
        pid = self.running[rank].pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def ends(self) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of both."""
        found = []
        for rank in sorted(self.running):
            out, err = self.running[rank].communicate(timeout=400)
            found.append((self.running[rank].returncode, out, err))
        return found

    def epochs(self, task="n") -> list[dict]:
        log = self.folder / f"output_dir/{task}/log.txt"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def wait_for_epoch(self, number: int) -> None:
        ends_at = time.monotonic() + 150
        while len(self.epochs()) <= number:
            assert time.monotonic() < ends_at, [process.poll() or process.communicate()
                                                for process in self.running.values()]
            time.sleep(0.02)


@pytest.fixture
def nodes(network, tmp_path, pictures):
    made = Nodes(network, tmp_path, pictures)
    yield made
    for process in made.running.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.slow
def test_a_process_then_a_node_is_lost_and_comes_back(nodes, tmp_path, pictures):
    """Two nodes that lost each other twice end with the bits of two processes of one launcher."""
    job = [*FLAGS, "--batch_size", 4, "--epochs", 10]
    for rank in (0, 1):
        nodes.begin(rank, *job)
    nodes.wait_for_epoch(2)
    (process,) = nodes.processes(1)
    os.kill(process, signal.SIGKILL)
    nodes.wait_for_epoch(len(nodes.epochs()) + 2)
    nodes.lose(1)
    nodes.begin(1, *job)
    found = nodes.ends()
    assert [code for code, _, _ in found] == [0, 0], found
    assert found[0][1].count("going on from the last checkpoint once all nodes are here") >= 2, found[0]
    assert found[0][1].count("resumed at epoch") == 2 and "best epoch" in found[0][1], (
        "node 0 has the first process"
    )
    assert all("Traceback" not in err for _, _, err in found), found
    assert [row["epoch"] for row in nodes.epochs()] == list(range(10))

    run = start_process(*SMALL, *job, "--data_path", pictures, "--task", "one", "--savemodel",
                        "--global_pool", folder=tmp_path, processes=2, OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    one, two = (weights_of(tmp_path / f"output_dir/{task}/checkpoint-last.pth") for task in ("one", "n"))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert [row["val_loss"] for row in nodes.epochs("one")] == [row["val_loss"] for row in nodes.epochs()]


PROGRAM = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch
from util.parallel import heartbeat, processes
from util.core.errors import InputError; from util.core.ending import exit_code_of, exit_with

def main(argv):
    what, rank = sys.argv[1], int(os.environ["RANK"])
    if what == "broken" and rank == 1:
        os._exit(5)
    if what in ("work", "late", "stopped"):
        heartbeat.SILENCE_S, processes.STEP_PATIENCE = 3, timedelta(seconds=3)
    with processes.process_group("cpu") as world:
        world.barrier()
        if rank == 0:  # alone: a late one would write it again when it has been taken away
            Path("ready").touch()
        if what == "wrong" and rank == 1:
            raise InputError("--this is wrong")
        if what == "work":
            world.main_alone(time.sleep, 7)
            world.gather(time.sleep(7 * rank))
            return world.sum_of_step(torch.ones(1)).item() - 2
        if what == "late":
            time.sleep(20 * rank)
            world.sum_of_step(torch.ones(1))
        while not Path("enough").exists():
            time.sleep(0.02)
            world.barrier()
        world.barrier()

exit_with(exit_code_of(main))
"""


@pytest.fixture
def program(tmp_path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def launched(nodes, what: str, restarts: int, ranks=(0, 1), wait: int = 40, store: str = "") -> None:
    """Our launcher alone with a program that only waits for its peer. store: where it is, when not in node
    0."""
    for rank in ranks:
        prefix, environment = nodes.places[rank]
        command = [*prefix, sys.executable, ROOT / "util/parallel/torchrun.py", "--nnodes", 2, "--node-rank",
                   rank,
                   "--nproc-per-node", 1, "--master-addr", nodes.address, "--rdzv-backend", "c10d",
                   "--rdzv-id", "n",
                   "--rdzv-endpoint", store or f"{nodes.address}:{nodes.port}", "--rdzv-conf",
                   f"join_timeout={wait},is_host={rank == 0 and not store}", "--max-restarts", restarts,
                   "program.py", what]
        nodes.running[rank] = subprocess.Popen(
            list(map(str, command)), cwd=nodes.folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
            start_new_session=True)


def wait_for(path: Path) -> None:
    ends_at = time.monotonic() + 150
    while not path.exists():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def test_a_node_that_does_not_come_back(nodes, program):
    launched(nodes, "wait", 3, wait=6)
    wait_for(nodes.folder / "ready")
    nodes.lose(1)
    ((code, out, err),) = nodes.ends()
    assert code == 1 and err.splitlines()[-1].startswith(
        "error: node 0 waited 6 s in vain for the other nodes:"
    ), err
    assert "Traceback" not in err and "going on from the last checkpoint" in out


@pytest.mark.slow
def test_node_0_may_be_lost_where_the_store_is_elsewhere(nodes, program):
    if nodes.address != "127.0.0.1":
        # the store is here, outside of the namespaces
        nodes.places, nodes.address = [([], {})] * 2, "127.0.0.1"
    port = free_port()
    with held_store(port):
        launched(nodes, "wait", 3, store=f"127.0.0.1:{port}")
        wait_for(nodes.folder / "ready")
        nodes.lose(0)
        (nodes.folder / "ready").unlink()
        launched(nodes, "wait", 3, ranks=(0,), store=f"127.0.0.1:{port}")
        wait_for(nodes.folder / "ready")
        (nodes.folder / "enough").touch()
        found = nodes.ends()
    for code, out, err in found:  # the whole of each: what they say tells which of the two was in the way
        assert code == 0, f"{out}\n{err}"
    assert "going on from the last checkpoint" in found[1][1]


@pytest.mark.slow
def test_the_store_is_lost_with_node_0(nodes, program):
    launched(nodes, "wait", 3)
    wait_for(nodes.folder / "ready")
    nodes.lose(0)
    ((code, _, err),) = nodes.ends()
    assert code == 1 and err.splitlines()[-1].startswith(
        "error: node 1 can't reach the store of the nodes at "
    ), err
    assert "Traceback" not in err


def test_wrong_input_on_one_node_ends_both_with_2(nodes, program):
    launched(nodes, "wrong", 3)
    (code, out, err), (other, _, its) = nodes.ends()
    assert (code, other) == (2, 2), (err, its)
    assert (
        its.count("error (process 1): --this is wrong") == 1
        and "going on" not in out
        and "Traceback" not in err + its
    )
    assert (
        "process 1 ended with exit code 2, and its own line says why" in err
        or "another node ended with" in err
    )


@pytest.mark.slow
def test_a_process_that_fails_before_all_are_connected_ends_both(nodes, program):
    """Nothing but the nodes' own meeting place tells the other one, which waits to be connected."""
    launched(nodes, "broken", 0)
    (code, _, err), (other, _, its) = nodes.ends()
    assert (code, other) == (1, 1), (err, its)
    assert its.splitlines()[-1].startswith("error: process 1 ended with 5") and "Traceback" not in err
    assert err.splitlines()[-1] == "error: another node ended with exit code 1, and its own line says why"


@contextlib.contextmanager
def held_store(port: int):
    """As docs/cluster.md has it."""
    (command,) = [line for line in (ROOT / "docs/cluster.md").read_text().splitlines()
                  if line.startswith("python -c")]
    words = shlex.split(command.replace("29400", str(port)))
    process = subprocess.Popen([sys.executable, *words[1:]], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_long_work_of_one_process_kills_nobody(program, tmp_path):
    """Also where it takes longer than a silence, or a step of the others: of the first process, then of the
    second."""
    run = start_process("work", folder=tmp_path, processes=2, program=program)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_process_that_does_not_come_to_a_step_ends_all(program, tmp_path):
    run = start_process("late", folder=tmp_path, processes=2, program=program)
    errors = run.stderr.splitlines()
    assert run.returncode == 1 and len(errors) == 2, run.stderr
    assert any(line.startswith("error (process 0): another process does not answer (Timed out "
                               "waiting") for line in errors)
    assert any(line.startswith("error (process 1): process 0 on ") and "without its peers" in line
               for line in errors)


@pytest.mark.parametrize("victim, number, said", [
    (1, signal.SIGSTOP, "error (process 0): process 1 on {} has not been heard of for 3 s; what was saved "
                        "stays"),
    (0, signal.SIGKILL, "error (process 1): another process does not answer ("),
])
def test_without_a_launcher_a_process_that_is_gone_ends_the_other(program, tmp_path, victim, number, said):
    port = str(free_port())
    processes = [subprocess.Popen([sys.executable, program, "stopped"], cwd=tmp_path, text=True,
                                  stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, env=os.environ | {
                                      "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                                      "MASTER_ADDR": "127.0.0.1",
                                      "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"})
                 for rank in (0, 1)]
    try:
        wait_for(tmp_path / "ready")
        processes[victim].send_signal(number)
        out, err = processes[1 - victim].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1 - victim].returncode == 1 and err.count("\n") == 1, err
    assert err.startswith(said.format(socket.gethostname())) or "the store of the processes" in err, err
