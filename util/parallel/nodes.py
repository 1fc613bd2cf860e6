"""Several nodes that run one job together, and meet again when one of them was lost.

Each node runs `util/parallel/torchrun.py` with its own `--node_rank`. Node 0 keeps a store at MASTER_ADDR:MASTER_PORT;
there the nodes meet, and run a round of PyTorch's launcher together under a name that they agreed on. A round fails on
all of them when a process or a whole node ends in it (util/parallel/lifeline.py ends the processes of the others). Then
they meet again: a node whose command was started anew comes as if it had never been away, also node 0 with a new store,
and the job goes on from its last checkpoint. The ranks stay where they were.

The launcher's own elastic meeting (c10d) is not used: it has no place to meet once the node that held it is gone, names
machines by names that the others may not know, and a node that ended for good leaves the others waiting.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException

from util.core import signals

WAIT_S = 900.0  # for a node that is not there, where NODE_WAIT does not say otherwise
POLL_S = 0.2
PATIENT_S = 5.0  # after which the waiting is said
ANSWER_S = 30  # a store that is there answers within
ROUND_BEGINS_S = 60  # nodes that met start their processes together
GRACE_S = 15.0  # processes of a round that is over end by themselves within
LINGER_S = 10.0  # node 0 stays, so that the others hear the end from it
LONG_ROUND_S = 3600.0  # a round that held for an hour gives the restarts back


class Over(Exception):
    """The job ended on another node, with this exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Missing(Exception):
    """Who did not come in time."""


@dataclass(frozen=True)
class End:
    """How a round ended on this node. `meant`: by a word of its own (done, an error, a signal), not to be tried again."""

    code: int
    line: str = ""
    meant: bool = True


class Meeting:
    """The place where the nodes meet, as this node sees it.

    The store's names: here/RANK is drawn anew by a node whenever it comes; round/TOKEN answers the one that drew it;
    over is the exit code of a job that ended; gone/RANK tells node 0 that a node has heard it.
    """

    def __init__(self, address: str, port: int, rank: int, size: int, wait: float):
        self.address, self.port, self.rank, self.size, self.wait = address, port, rank, size, wait
        self.members = {}  # of the last round: rank -> token
        self.store = self._store(is_master=True) if rank == 0 else None

    def _store(self, is_master: bool = False) -> dist.Store:
        # node 0's is kept for good: the processes of its rounds use it, too
        return dist.TCPStore(self.address, self.port, is_master=is_master, wait_for_workers=False, multi_tenant=is_master,
                             timeout=timedelta(seconds=ANSWER_S))

    def reach(self) -> dist.Store:
        """Node 0's store. OSError or DistError where it is not there; a plain socket asks first, for the store's own asking
        fills the screen."""
        socket.create_connection((self.address, self.port), timeout=5).close()
        return self._store()

    def meet(self) -> str:
        """Wait until all nodes are here -> the name of the next round. Over, or Missing when the time to wait is over."""
        self.own, self.missing, used = uuid.uuid4().hex, "", dict(self.members)
        begun, said = time.monotonic(), False
        came = False
        while time.monotonic() - begun < self.wait:
            try:
                self.store = self.store or self.reach()
                if not came:
                    self.store.set(f"here/{self.rank}", self.own)
                    came = True
                name = self._begin(used)
                if name:
                    return name
            except (OSError, dist.DistError) as error:
                if self.rank == 0:
                    raise
                self.store, came, self.missing = None, False, f"node 0 at {self.address}:{self.port} ({error})"
            if not said and time.monotonic() - begun > PATIENT_S:
                print(f"node {self.rank}: waiting for {self.missing.splitlines()[0]}, at most {self.wait:g} s", flush=True)
                said = True
            time.sleep(POLL_S)
        raise Missing(self.missing.splitlines()[0])

    def _begin(self, used: dict[int, str]) -> str | None:
        """The next round's name, as soon as there is one. used: the tokens of the last round, in node 0."""
        if self.store.check(["over"]):
            raise Over(self.heard())
        self.missing = "the others"
        if self.rank == 0:
            here = self.here(self.store)
            absent = [rank for rank in range(1, self.size) if here.get(rank) in (None, used.get(rank))]
            self.missing = ", ".join(f"node {rank}" for rank in absent)
            if not absent:
                told = json.dumps({"name": uuid.uuid4().hex, "members": here})
                for token in here.values():
                    self.store.set(f"round/{token}", told)
        if not self.store.check([f"round/{self.own}"]):
            return None
        told = json.loads(self.store.get(f"round/{self.own}"))
        self.members = {int(rank): token for rank, token in told["members"].items()}
        return told["name"]

    def heard(self) -> int | None:
        """The exit code of the job, where a node has said that it is over."""
        try:
            return int(self.store.get("over")) if self.store is not None and self.store.check(["over"]) else None
        except dist.DistError:
            return None  # node 0 is lost, and its word with it

    def here(self, store: dist.Store) -> dict[int, str]:
        """The tokens of the nodes that came, by rank."""
        return {rank: store.get(f"here/{rank}").decode() for rank in range(self.size) if store.check([f"here/{rank}"])}

    def is_over(self, store: dist.Store) -> bool:
        """Whether a node has left the round, or the whole job has ended."""
        return store.check(["over"]) or self.here(store) != self.members

    def end(self, code: int | None) -> None:
        """Tell the others that the job is over (None: only that this node has heard it), and let them hear it."""
        try:
            store = self.store or self.reach()
            if code is not None and not store.check(["over"]):
                store.set("over", str(code))
            store.set(f"gone/{self.rank}", "")
            ends_at = time.monotonic() + LINGER_S
            names = [f"gone/{rank}" for rank in range(self.size)]
            while self.rank == 0 and time.monotonic() < ends_at and not store.check(names):
                time.sleep(POLL_S)
        except (OSError, dist.DistError):
            return  # node 0 is not there: nobody to tell


class Watch(threading.Thread):
    """Ends this node's processes of a round that another node has left, should they not notice it themselves: before they
    are all connected there is nothing else that would tell them."""

    def __init__(self, meeting: Meeting, program: str):
        super().__init__(name="nodes", daemon=True)
        self.meeting, self.program, self.done = meeting, program, threading.Event()

    def run(self) -> None:
        store = since = None
        while not self.done.wait(1.0):
            try:
                store = store or self.meeting.reach()
                is_over = self.meeting.is_over(store)
            except (OSError, dist.DistError):
                store, is_over = None, True
            if not is_over:
                since = None
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since > GRACE_S:
                for process in children(self.program):
                    os.kill(process, signal.SIGKILL)


def children(program: str) -> list[int]:
    """The processes that this one has started with a program, from Linux's /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == os.getpid() and program.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue  # ended while it was looked at
    return found


def run_together(arguments, run_round: Callable[[], End]) -> int:
    """Run rounds until the job ends -> its exit code, the same on all nodes.

    arguments: the launcher's, read; run_round: runs the launcher once with them.
    """
    rank, restarts = arguments.node_rank, arguments.max_restarts
    left, wait = restarts, float(os.environ.get("NODE_WAIT") or WAIT_S)
    meeting = Meeting(arguments.master_addr, arguments.master_port, rank, int(arguments.nnodes), wait)
    arguments.max_restarts, arguments.rdzv_conf = 0, f"timeout={ROUND_BEGINS_S}"
    try:
        while True:
            arguments.rdzv_id = meeting.meet()
            watch, begun = Watch(meeting, arguments.training_script), time.monotonic()
            watch.start()
            try:
                end = run_round()
            finally:
                watch.done.set()
            if not end.meant and meeting.heard() is not None:
                raise Over(meeting.heard())
            left = restarts if time.monotonic() - begun > LONG_ROUND_S else left
            if end.meant or left == 0:
                meeting.end(None if end.code == 0 and rank > 0 else end.code)
                _say(end.line)
                return end.code
            left -= 1
            print(f"node {rank}: a process or a node was lost; going on from the last checkpoint once all nodes are here",
                  flush=True)
    except Over as over:
        meeting.end(None)
        _say(f"error: another node ended with exit code {over.code}, and its own line says why" if over.code else "")
        return over.code
    except Missing as missing:
        _say(f"error: node {rank} waited {wait:g} s in vain for {missing}: start the same command on every node, and on this "
             "one again; what was saved stays")
        return 1
    except (KeyboardInterrupt, SignalException) as stopped:
        code = signals.code_of(getattr(stopped, "sigval", signal.SIGINT))
        meeting.end(code)
        _say("stopped while waiting for the other nodes")
        return code


def _say(line: str) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)
