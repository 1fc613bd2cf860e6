"""PyTorch's elastic launcher (torchrun), and the little that it lacks here.

    python util/parallel/torchrun.py [torchrun's arguments] PROGRAM [ARGUMENTS]

The nodes meet, start their processes, restart them and wait for each other by torchrun's own rendezvous
(c10d, or what --rdzv-backend names). Added to it:
- It ends with the exit code of the program and one line; torchrun ends with 1 and a page.
- A program that ended on its own (util/core/ending.py leaves a mark) is not started again: the error would be
  the same.
- Nodes are ranked by --node-rank; torchrun ranks them by their names.
- Each round has a name. The store outlives a round, and what an earlier one has left there would be taken for
  the new one's.
- A node that fails for good ends the others at once, and a store whose machine vanished is given up after
  LOST_S. torchrun lets the others wait until their processes fail.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from types import FrameType

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as in util/__init__.py, before torch is imported
sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

import torch.distributed.elastic.rendezvous as rendezvous  # noqa: E402
from torch.distributed import DistError  # noqa: E402
from torch.distributed.elastic.multiprocessing import SignalException  # noqa: E402
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: E402
from torch.distributed.run import parse_args, run  # noqa: E402

from util.core import signals  # noqa: E402
from util.core.ending import ATTEMPT, ENDED_BY_ITSELF  # noqa: E402

SHUTDOWN_S = 600  # for the step that the processes are in and a checkpoint, after a signal
LOST_S = 60.0
LINGER_S = 5.0  # node 0 keeps its store, so that the others read there how the job ended


class Nodes:
    """The rendezvous that the arguments name, and what is added to it."""

    def __init__(self, arguments: argparse.Namespace, marker: Path) -> None:
        self.rank, self.size, self.marker = arguments.node_rank, int(arguments.nnodes.split(":")[-1]), marker
        if arguments.standalone:
            arguments.standalone, arguments.rdzv_id = False, uuid.uuid4().hex
            arguments.rdzv_backend, arguments.rdzv_endpoint = "c10d", "127.0.0.1:0"
        self.backend, self.endpoint = arguments.rdzv_backend, arguments.rdzv_endpoint
        arguments.rdzv_backend = "nodes"
        # sorted by this name they get their ranks; only the first one's is used as an address
        arguments.local_addr = arguments.master_addr if self.rank == 0 else f"~{self.rank:05}"
        self.store, self.wait = None, 0
        rendezvous.rendezvous_handler_registry.register("nodes", self.create)

    def create(self, parameters: rendezvous.RendezvousParameters) -> rendezvous.RendezvousHandler:
        """torchrun's own, once the store is there. RendezvousConnectionError when the time to wait is
        over."""
        parameters.backend, self.wait = self.backend, parameters.get_as_int("join_timeout", 600)
        if self.size > 1:
            print(f"node {self.rank}: meeting the other nodes at {self.endpoint}, waiting at most "
                  f"{self.wait} s", flush=True)
        ends_at = time.monotonic() + self.wait
        while True:
            try:
                self.handler = rendezvous.rendezvous_handler_registry.create_handler(parameters)
                self.meet, self.count_waiting = self.handler.next_rendezvous, self.handler.num_nodes_waiting
                self.handler.next_rendezvous = self.next_round
                self.handler.num_nodes_waiting = self.nodes_waiting
                return self.handler
            except rendezvous.RendezvousConnectionError:
                if parameters.get_as_bool("is_host") or time.monotonic() > ends_at:
                    raise
                time.sleep(1)

    def next_round(self) -> rendezvous.RendezvousInfo:
        if self.marker.exists():
            raise rendezvous.RendezvousClosedError
        if self.store is not None:
            print(f"node {self.rank}: a process or a node was lost; going on from the last checkpoint once "
                  "all nodes are here", flush=True)
        elif self.size > 1:
            threading.Thread(target=self.watch_store, daemon=True).start()
        info = self.meet()
        self.store = info.store
        if info.rank == 0:
            self.store.set("attempt", uuid.uuid4().hex)
        os.environ[ATTEMPT] = self.store.get("attempt").decode()
        # torchrun would take the address of an earlier round, whose node 0 may have been started anew since
        known = info.bootstrap_store_info
        place = rendezvous.RendezvousStoreInfo.build(info.rank, info.store, known.master_addr,
                                                     known.master_port)
        return rendezvous.RendezvousInfo(info.store, info.rank, info.world_size, place)

    def nodes_waiting(self) -> int:
        """torchrun asks this all the time while its processes run."""
        if self.store.check(["over"]):
            raise rendezvous.RendezvousClosedError
        return self.count_waiting()

    def watch_store(self) -> None:
        """A question to a machine that vanished is never answered, and torchrun waits for the answer."""
        host, port = self.endpoint.rsplit(":", 1)
        seen = time.monotonic()
        while True:
            time.sleep(LOST_S / 10)
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=LOST_S / 10).close()
                seen = time.monotonic()
            except OSError as error:
                if time.monotonic() - seen > LOST_S:
                    say(f"error: the store of the nodes at {self.endpoint} has not answered for {LOST_S:g} s "
                        f"({error}); what was saved stays: start again on all nodes to go on")
                    os._exit(1)

    def heard(self) -> int | None:
        """The exit code of the job, where another node has said that it is over."""
        with contextlib.suppress(DistError):  # the store is gone
            if self.store is not None and self.store.check(["over"]):
                return int(self.store.get("over"))
        return None

    def tell(self, code: int) -> None:
        """End the job on the other nodes, too."""
        if self.size == 1 or self.store is None:
            return
        with contextlib.suppress(DistError, rendezvous.RendezvousError):  # the store is gone: nobody to tell
            self.store.set("over", str(code))
            self.handler.shutdown()
            time.sleep(LINGER_S if self.rank == 0 else 0)


def main(words: list[str]) -> int:
    arguments = parse_args(words)
    logging.disable(logging.ERROR)  # what torchrun logs is in our one line
    with tempfile.TemporaryDirectory(prefix="retina-") as folder:
        marker = Path(folder) / "exit_code"
        os.environ[ENDED_BY_ITSELF] = str(marker)
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_S))
        for name in arguments.signals_to_handle.split(","):
            # until torchrun sets its own, at the start of the processes
            signal.signal(signal.Signals[name], stop)
        nodes = Nodes(arguments, marker)
        code, line = launched(arguments, nodes)
        if code and marker.exists():
            code, line = int(marker.read_text(encoding="ascii")), ""
        elif code and (heard := nodes.heard()) is not None:
            code, line = heard, f"error: another node ended with exit code {heard}, and its own line says why"
        if line:
            say(line)
        if code:
            nodes.tell(code)
    return code


def launched(arguments: argparse.Namespace, nodes: Nodes) -> tuple[int, str]:
    """Run torchrun -> its exit code, and the line that says what happened."""
    again = "what was saved stays: start again to go on"
    try:
        run(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return 1, f"error: process {rank} ended with {failure.exitcode} ({failure.signal_name()}); {again}"
    except SignalException as signalled:
        return signals.code_of(signalled.sigval), f"stopped by {signalled.sigval.name}: {again}"
    except rendezvous.RendezvousTimeoutError:
        return 1, (f"error: node {nodes.rank} waited {nodes.wait} s in vain for the other nodes: start the "
                   "same command on every node; what was saved stays")
    except (DistError, rendezvous.RendezvousError) as error:
        return 1, (f"error: node {nodes.rank} can't reach the store of the nodes at {nodes.endpoint} "
                   f"({type(error).__name__}); what was saved stays: start the same command on every node")
    return 0, ""


def stop(number: int, frame: FrameType | None) -> None:
    raise SignalException("", signal.Signals(number))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
