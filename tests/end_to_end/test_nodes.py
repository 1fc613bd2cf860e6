"""`torchrun --nnodes=2`, two launchers on this machine: the same training, a node lost and back, one end for both; and
processes without a launcher, of which one is killed.

The nodes have network namespaces of their own where this machine allows it (as root), else ports of the loopback.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="nodes run on Linux")
FLAGS = [word for word in SMALL if word not in ("--model", "timm", "--model_arch", "test_vit", "--nb_classes", "3")]
NODE_WAIT = "40"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def run_quietly(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


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
        yield [(["ip", "netns", "exec", name], {"GLOO_SOCKET_IFNAME": end}) for name, end in zip(names, cable, strict=True)
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
        known = {"PYTHON": sys.executable, "GPUS": "1", "NNODES": "2", "NODE_RANK": str(rank), "NODE_WAIT": NODE_WAIT,
                 "MASTER_ADDR": self.address, "MASTER_PORT": str(self.port), "DATA_PATH": str(self.data), "NUM_CLASS": "3",
                 "TASK": "n", "MODEL": "timm", "MODEL_ARCH": "test_vit", "FINETUNE": "", "OMP_NUM_THREADS": "1"}
        self.running[rank] = subprocess.Popen(
            [*prefix, "sh", str(ROOT / script), *map(str, words)], cwd=self.folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=os.environ | known | environment | variables, start_new_session=True)

    def lose(self, rank: int) -> None:
        """The whole node at once: its launcher, which takes its processes along."""
        os.killpg(self.running[rank].pid, signal.SIGKILL)
        self.running.pop(rank).communicate()

    def ends(self) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of both."""
        found = []
        for rank in sorted(self.running):
            out, err = self.running[rank].communicate(timeout=200)
            found.append((self.running[rank].returncode, out, err))
        return found

    def epochs(self, task="n") -> list[dict]:
        log = self.folder / f"output_dir/{task}/log.txt"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def wait_for_epoch(self, number: int) -> None:
        ends_at = time.monotonic() + 150
        while len(self.epochs()) <= number:
            assert time.monotonic() < ends_at, [process.poll() or process.communicate() for process in self.running.values()]
            time.sleep(0.02)


@pytest.fixture
def nodes(network, tmp_path, pictures):
    made = Nodes(network, tmp_path, pictures)
    yield made
    for process in made.running.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_each_node_is_lost_and_comes_back(nodes, tmp_path, start):
    """Two nodes that lost each other train what one process trains alone, and evaluate it."""
    job = [*FLAGS, "--batch_size", 4, "--epochs", 12, "--drop_path", 0]
    for rank in (0, 1):
        nodes.begin(rank, *job)
    for lost in (1, 0):
        nodes.wait_for_epoch(len(nodes.epochs()) + 2)
        nodes.lose(lost)
        nodes.begin(lost, *job)
    found = nodes.ends()
    assert [code for code, _, _ in found] == [0, 0], found
    assert "resumed at epoch" in found[0][1] and "best epoch" in found[0][1]
    assert "going on from the last checkpoint once all nodes are here" in found[1][1] and "Traceback" not in found[1][2]
    assert [row["epoch"] for row in nodes.epochs()] == list(range(12))

    code, _, err = start("--epochs", 12, "--drop_path", 0, "--task", "one")
    assert code == 0, err
    for number, (a, b) in enumerate(zip(nodes.epochs("one"), nodes.epochs(), strict=True)):  # roundings grow with the steps
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5 if number < 2 else 1e-3 if number < 8 else 0.05)

    best = tmp_path / "output_dir/n/checkpoint-best.pth"
    for rank in (0, 1):
        nodes.begin(rank, "--num_workers", 0, "--device", "cpu", script="eval.sh", CKPT=str(best), TASK="scored")
    assert [code for code, _, _ in nodes.ends()] == [0, 0]
    scored, before = (json.loads((tmp_path / f"output_dir/{task}/metrics_test.json").read_text()) for task in ("scored", "n"))
    assert {name: entry["value"] for name, entry in scored.items()} == pytest.approx(
        {name: entry["value"] for name, entry in before.items()}, abs=1e-5, nan_ok=True)


PROGRAM = """
import os, sys, time
from pathlib import Path
from util.parallel.processes import process_group
from util.core.errors import InputError; from util.core.ending import exit_code_of

def main(argv):
    what, rank = sys.argv[1], int(os.environ["RANK"])
    if what == "broken" and rank == 1:
        os._exit(5)
    with process_group("cpu") as world:
        world.barrier()
        Path("ready").touch()
        if what == "wrong" and rank == 1:
            raise InputError("--this is wrong")
        for _ in range(3000):
            time.sleep(0.02)
            world.barrier()

sys.exit(exit_code_of(main))
"""


def launched(nodes, what: str, restarts: int, **variables) -> None:
    """Our launcher alone, on both nodes, with a program that only waits for its peer."""
    (nodes.folder / "program.py").write_text(PROGRAM)
    for rank, (prefix, environment) in enumerate(nodes.places):
        command = [*prefix, sys.executable, str(ROOT / "util/parallel/torchrun.py"), "--nnodes", "2", "--node_rank", str(rank),
                   "--nproc_per_node", "1", "--master_addr", nodes.address, "--master_port", str(nodes.port), "--max-restarts",
                   str(restarts), "program.py", what]
        nodes.running[rank] = subprocess.Popen(
            command, cwd=nodes.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment | variables)


def test_a_node_that_does_not_come_back(nodes):
    launched(nodes, "wait", 3, NODE_WAIT="6")
    ends_at = time.monotonic() + 100
    while not (nodes.folder / "ready").exists():
        assert time.monotonic() < ends_at
        time.sleep(0.02)
    nodes.lose(1)
    ((code, out, err),) = nodes.ends()
    assert code == 1 and err.splitlines()[-1].startswith("error: node 0 waited 6 s in vain for node 1:"), err
    assert "Traceback" not in err and "going on from the last checkpoint" in out


def test_wrong_input_on_one_node_ends_both_with_2(nodes):
    launched(nodes, "wrong", 3)
    (code, out, err), (other, _, its) = nodes.ends()
    assert (code, other) == (2, 2), (err, its)
    assert its.count("error (process 1): --this is wrong") == 1 and "going on" not in out and "Traceback" not in err + its
    assert "error: process 1 ended with exit code 2, and its own line says why" in err


def test_a_process_that_fails_before_all_are_connected_ends_both(nodes):
    """Nothing but the nodes' own meeting place tells the other one, which waits to be connected."""
    launched(nodes, "broken", 0)
    (code, _, err), (other, _, its) = nodes.ends()
    assert (code, other) == (1, 1), (err, its)
    assert its.splitlines()[-1].startswith("error: process 1 ended with 5") and "Traceback" not in err
    assert err.splitlines()[-1] == "error: another node ended with exit code 1, and its own line says why"


def test_without_a_launcher_a_killed_process_ends_the_other(tmp_path, pictures):
    words = [sys.executable, ROOT / "main_finetune.py", *SMALL, "--epochs", 500, "--data_path", pictures, "--task", "x"]
    port = str(free_port())
    for victim in (1, 0):
        processes = [subprocess.Popen(list(map(str, words)), cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, env=os.environ | {
                                          "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
                                          "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"}) for rank in (0, 1)]
        log = tmp_path / "output_dir/x/log.txt"
        log.unlink(missing_ok=True)
        try:
            ends_at = time.monotonic() + 150
            while not log.exists() or not log.read_text():
                assert time.monotonic() < ends_at and processes[0].poll() is None, processes[0].communicate()
                time.sleep(0.02)
            processes[victim].kill()
            out, err = processes[1 - victim].communicate(timeout=60)
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        errors = [line for line in err.splitlines() if line.startswith("error")]
        assert processes[1 - victim].returncode == 1 and "Traceback" not in err
        assert len(errors) == 1 and errors[0].startswith(f"error: process {victim} on ") and "without a word" in errors[0]
