"""Programs that are started by a fork of a process which has imported them already.

A start of Python that imports torch, timm and a program costs some four seconds of a core; a fork of one that
has done so costs some hundredths. `run` starts a program so and waits for it, one process or several ranks of
a group. Charts are not drawn. What depends on Python's own start (its options, its encoding, variables that a
library reads when it is imported) or on torchrun has to be started for real:
conftest.start_process(real=True).
"""

import atexit
import contextlib
import importlib
import os
import pickle
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests import undrawn

ROOT = Path(__file__).parent.parent
IMPORTED = ("main_finetune", "main_regression", "predict", "latent_feature", "jobs.train", "jobs.search",
            "jobs.predictions",
            "jobs.feature_vectors", "util.report.page",
            "util.parallel.sharding",
            "util.core.tensorboard", "util.data.leakage.fingerprints", "matplotlib.backends.backend_agg",
            "matplotlib.style",
            "tensorboard.compat.proto.event_pb2", "tensorboard.compat.proto.summary_pb2",
            "tensorboard.summary.writer.record_writer", "pyarrow.pandas_compat")
LARGEST_REQUEST = 2**20  # bytes


@dataclass(frozen=True)
class Start:
    """What a process is started with; its output goes to the files that come with it."""

    program: str  # a path
    words: tuple[str, ...]
    folder: str
    environment: dict[str, str]

    def run(self) -> None:
        """Be that process: returns, or raises what ends it, as the program does."""
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv = [self.program, *self.words]
        sys.path[0] = str(Path(self.program).resolve().parent)
        if "OMP_NUM_THREADS" in self.environment:
            import torch

            torch.set_num_threads(int(self.environment["OMP_NUM_THREADS"]))
        runpy.run_path(self.program, run_name="__main__")


# ---- the process that forks --------------------------------------------------------------------------------

def serve(path: str) -> Start:
    """Fork at each request. Returns in the forks alone, with what each is to be."""
    selector = selectors.DefaultSelector()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(f"{path}.new")
    listening.listen()
    os.rename(f"{path}.new", path)  # it is there once it can be connected to
    selector.register(listening, selectors.EVENT_READ, None)
    selector.register(0, selectors.EVENT_READ, None)  # its end is that of the process that started us
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                os._exit(0)
            elif key.data is None:
                connection, _ = listening.accept()
                request, streams, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 2)
                start, pid = pickle.loads(request), os.fork()
                if pid == 0:
                    selector.close()
                    listening.close()
                    connection.close()
                    nothing = os.open(os.devnull, os.O_RDONLY)
                    for number, stream in enumerate((nothing, *streams)):
                        os.dup2(stream, number)
                        os.close(stream)
                    return start
                for stream in streams:
                    os.close(stream)
                connection.send(str(pid).encode())
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
            else:
                pid, connection = key.data
                selector.unregister(key.fd)
                os.close(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):  # nobody waits for it any more
                    connection.send(str(code).encode())
                connection.close()


# ---- the side of the tests ---------------------------------------------------------------------------------

class Forked:
    """A process that was started; waiting for it is by its connection, since it is no child of ours."""

    def __init__(self, connection: socket.socket):
        self.connection, self.pid, self.returncode = connection, int(connection.recv(64)), None

    def wait(self, seconds: float | None) -> int | None:
        """Its exit code, None where it is still running after so long."""
        if self.returncode is None:
            self.connection.settimeout(seconds)
            try:
                self.returncode = int(self.connection.recv(64))
            except (TimeoutError, BlockingIOError):
                return None
            self.connection.close()
        return self.returncode


class _Server:
    """One a process of pytest, started when it is first needed."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="forks-")
        self.path = os.path.join(self.folder.name, "socket")
        self.process = subprocess.Popen([sys.executable, "-m", "tests.forks", self.path], cwd=ROOT,
                                        stdin=subprocess.PIPE)
        atexit.register(self.process.stdin.close)
        while not os.path.exists(self.path):
            if self.process.poll() is not None:
                raise RuntimeError("the process that forks has not begun")
            time.sleep(0.05)

    def start(self, start: Start, out: int, err: int) -> Forked:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.path)
        socket.send_fds(connection, [pickle.dumps(start)], [out, err])
        return Forked(connection)


_servers: list[_Server] = []


def run(program: Path, words: Sequence[str], folder: Path, environment: Mapping[str, str], processes: int,
        timeout: float) -> subprocess.CompletedProcess:
    """Start, wait, collect. Several processes are the ranks of one group; where one fails the others are
    ended, and the code is 1, as a launcher's. TimeoutExpired as subprocess.run raises it."""
    if not _servers:
        _servers.append(_Server())
    environment = dict(environment)
    ranks = [{}]
    if processes > 1:
        environment.setdefault("OMP_NUM_THREADS", "1")
        common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
                  "MASTER_ADDR": "127.0.0.1",
                  "MASTER_PORT": str(free_port())}
        ranks = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        running = [_servers[0].start(Start(str(program), tuple(words), str(folder), environment | rank),
                                     out.fileno(), err.fileno()) for rank in ranks]
        code = _wait(running, time.monotonic() + timeout)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    if code is None:
        raise subprocess.TimeoutExpired([str(program), *words], timeout, *texts)
    return subprocess.CompletedProcess([str(program), *words], code, *texts)


def _wait(running: list[Forked], deadline: float) -> int | None:
    """The common exit code; None where time is over, and then all are killed."""
    while any(process.wait(0 if len(running) > 1 else max(0.0, deadline - time.monotonic())) is None
              for process in running):
        failed = [process for process in running if process.returncode]
        if failed or time.monotonic() > deadline:
            for process in running:
                if process.returncode is None:
                    os.kill(process.pid, signal.SIGTERM if failed else signal.SIGKILL)
                    if process.wait(30) is None:
                        os.kill(process.pid, signal.SIGKILL)
                        process.wait(None)
            return 1 if failed else None
        time.sleep(0.02)
    codes = [process.returncode for process in running]
    return codes[0] if len(codes) == 1 else int(any(codes))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    for _name in IMPORTED:
        importlib.import_module(_name)
    Image.init()  # the formats' plugins
    undrawn.install(setattr)
    serve(sys.argv[1]).run()
