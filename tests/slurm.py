"""A Slurm of its own for tests: munged, slurmctld and two nodes on this machine, in a folder, on free ports.

Debian's slurm-wlm and munge are enough (`.ci/run` installs them). Nothing of the machine's own configuration
is read or changed.
"""

import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
# cred_expire: how long a job that is queued again has to wait, 120 s where it is not said.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=1,bf_interval=1
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} CPUs=8 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def find_programs() -> bool:
    """Whether Slurm and munge are installed. Debian keeps daemons where not every user's PATH looks."""
    return all(shutil.which(name, path=_path()) for name in PROGRAMS)


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"


class Cluster:
    """What a user does on it. `environment` makes sbatch and its like find this cluster."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def call(self, *words, folder: Path | None = None, **variables: str) -> str:
        """What a command prints, without the last line's end. AssertionError where it fails."""
        done = subprocess.run(list(map(str, words)), cwd=folder, env=self.environment | variables, text=True,
                              timeout=60, capture_output=True)
        assert done.returncode == 0, (words, done.stdout, done.stderr, self.logs())
        return done.stdout.strip()

    def submit(self, *words, folder: Path, **variables: str) -> str:
        """The number of a new job."""
        return self.call("sbatch", "--parsable", *words, folder=folder, **variables)

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, for some minutes after the job's end too."""
        words = self.call("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, reached: Callable[[dict], bool], seconds: float = 400) -> dict[str, str]:
        """The facts of a job as soon as they are what is waited for. AssertionError after so many seconds."""
        deadline = time.monotonic() + seconds
        while not reached(facts := self.facts(job)):
            assert time.monotonic() < deadline, (facts, self.logs())
            time.sleep(0.5)
        return facts

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Set up in an empty folder, and take down on every way out. RuntimeError where it does not come up."""
    ports = _free_ports(3)
    user = getpass.getuser()
    (folder / "munge").mkdir(mode=0o700)
    (folder / "state").mkdir()
    for node in ("n1", "n2"):
        (folder / f"spool-{node}").mkdir()
    key = folder / "munge/key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(64))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, ports=ports, user=user))
    found = Cluster(folder)
    with ExitStack() as stack:
        def begin(*words: str) -> None:
            output = stack.enter_context(open(folder / "daemons.log", "ab"))
            daemon = subprocess.Popen(words, env=found.environment, stdin=subprocess.DEVNULL, stdout=output,
                                      stderr=output, start_new_session=True, preexec_fn=_end_with_the_tests)
            stack.callback(_end, daemon)

        munge = folder / "munge"
        begin("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket",
              f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed")
        _until((munge / "socket").exists, lambda: "munged has no socket")
        begin("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        for node in ("n1", "n2"):
            begin("slurmd", "-D", "-N", node, "-f", str(folder / "slurm.conf"))
        _until(lambda: _is_ready(found), lambda: f"Slurm does not come up: {found.logs()}")
        stack.callback(_empty, found)
        yield found


def _is_ready(found: Cluster) -> bool:
    states = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%T"], env=found.environment,
                            text=True, capture_output=True)
    return states.stdout.split() == ["idle", "idle"]


def _empty(found: Cluster) -> None:
    """No job may outlive the daemons: nobody would end its processes."""
    subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=found.environment)
    _until(lambda: not found.call("squeue", "--noheader"), lambda: "jobs don't end", 60)


def _end_with_the_tests() -> None:
    """In a daemon: SIGTERM where the tests are killed without a word."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of prctl.h


def _end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _until(reached: Callable[[], bool], problem: Callable[[], str], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise RuntimeError(problem())
        time.sleep(0.05)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
