"""Processes: the group in and out, the device, what the ranks tell each other.

One context manager makes the process group and ends it. One process on one device needs none: every method
works there too.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from util.core import machine_faults, signals
from util.core.disk import writing
from util.core.ending import ATTEMPT, THREADS_LEFT, end_after_traceback
from util.core.errors import InputError, PeerEnded, PeerLost, RunError, one_line
from util.core.machine import keep_freed_memory, usable_cores
from util.core.secrets import without_secrets
from util.parallel.heartbeat import SILENCE_S, Heartbeat, death_of, error_of

Result = TypeVar("Result")
BY_TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun sets it for its processes
MEETING = timedelta(hours=2)  # for the others to be started
# for one process that works alone: it downloads weights, or checks a million files
PATIENCE = timedelta(days=1)
# in a training step no process has work that the others have not
STEP_PATIENCE = timedelta(seconds=SILENCE_S)
START_FEWER = "start at most as many processes as there are GPUs, or pass --device cpu"


@dataclass
class World:
    """This process among the others, and its device."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = torch.device("cpu")
    note: str = ""
    steps: dist.ProcessGroup | None = None  # what a training step sends, for which nobody waits long

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, *lines: str) -> None:
        """Print from the main process alone. RunError where it goes to a file on a full disk."""
        if self.is_main:
            with writing("standard output"):
                for line in lines:
                    print(without_secrets(line), flush=True)

    def barrier(self) -> None:
        self.gather(None)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return any(self.gather(bool(flag)))

    def sum_of_step(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in place, in a training step: once its processes have met
        in that step's epoch (`barrier`)."""
        if self.size > 1:
            dist.all_reduce(values, group=self.steps)
        return values

    def from_main(self, value: object) -> Any:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Result) -> list[Result]:
        """Every process's value, in the order of ranks, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: torch.nn.Module) -> None:
        """The main process's buffers (batch norm's running statistics) in every process: they are what is
        saved."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def main_alone(self, work: Callable[..., Result], *words: object) -> Result | None:
        """`work(*words)` in the main process, while the others wait -> its result there, None in them. An
        InputError or RunError of it (a full disk) ends all, and only it is printed."""
        result = error = None
        if self.is_main:
            try:
                result = work(*words)
            except (InputError, RunError) as caught:
                error = caught
        ended = self.from_main(None if error is None else (type(error).__name__, str(error)))
        if ended:
            if error is not None:
                raise error
            raise PeerEnded(*ended)
        return result

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Run `work()` in the main process, then in the others: what the first stored (a download, a checked
        file) the others find. An InputError or RunError of the main process ends all, and only it is
        printed."""
        result = self.main_alone(work)
        return result if self.is_main else work()


class Agreement:
    """Whether any process was asked to end, known to all of them at the same step.

    The wish goes along with a step's losses. On a GPU it is read two steps later, so that the host need not
    wait for the step that it has just begun.
    """

    def __init__(self, world: World) -> None:
        self.world, self.waiting = world, deque()
        self.lag = 2 if world.device.type == "cuda" else 0

    def mine(self) -> torch.Tensor:
        return torch.full((), float(signals.asked()), device=self.world.device)

    def add(self, wishes: torch.Tensor) -> None:
        """The sum of all processes' wishes at a step."""
        if self.world.size == 1:
            return  # this process knows without asking the device
        event = None
        if self.lag:
            wishes = torch.empty((), pin_memory=True).copy_(wishes, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((wishes, event))

    def reached(self) -> bool:
        if self.world.size == 1:
            return signals.asked()
        while len(self.waiting) > self.lag:
            wishes, event = self.waiting.popleft()
            if event is not None:
                event.synchronize()
            if wishes.item() > 0:
                return True
        return False


@contextmanager
def process_group(device: str, dist_url: str = "env://", dist_on_itp: bool = False) -> Iterator[World]:
    """The process group of this launch, as a `World`. A process that dies ends the others
    (util/parallel/heartbeat.py).

    It is taken down when all processes are done; after an error, which its peers may not know of while they
    wait for this one, it ends with the process (`util.core.ending.exit_with`).

    Ranks come from torchrun's variables, or from Open MPI's with `dist_on_itp`; without them there is one
    process. gloo on CPUs, nccl on GPUs. A device that is not there falls back to the CPU, with a note.
    """
    if BY_TORCHRUN in os.environ:
        signals.end_with_parent(signal.SIGKILL)
    rank, size, local_rank, local_size = _places(dist_on_itp)
    chosen, note = _device(device, local_rank, local_size)
    world = World(rank, size, local_rank, local_size, chosen, note)
    if chosen.type == "cpu":
        # divided among this machine's processes: torchrun sets one thread each unless the user says otherwise
        by_torchrun = BY_TORCHRUN in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
        if local_size > 1 and ("OMP_NUM_THREADS" not in os.environ or by_torchrun):
            torch.set_num_threads(max(1, usable_cores() // local_size))
        keep_freed_memory()
    heartbeat, word = _join(world, dist_url) if size > 1 else None, death_of(rank, "with an error")
    try:
        with machine_faults.explained():
            yield world
        word = None
    except (InputError, RunError) as error:
        word = error_of(rank, 2 if isinstance(error, InputError) else 1)
        if rank > 0 and not getattr(error, "everywhere", False):
            print(f"error (process {rank}): {one_line(without_secrets(str(error)))}", file=sys.stderr,
                  flush=True)
        raise
    except RuntimeError as error:
        if heartbeat is None or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0].rpartition("] ")[2].split(". ")[0][:160]
        word = death_of(rank, "without its peers")
        heartbeat.wait_for_news()
        raise PeerLost(f"another process does not answer ({reason}); what was saved stays: start again to go "
                       "on") from error
    except signals.StopRequested as stop:
        word = "" if stop.together else death_of(rank, "by a signal")
        raise
    except (PeerEnded, KeyboardInterrupt, SystemExit):
        word = ""
        raise
    finally:
        signals.leave()
        if heartbeat is not None:
            heartbeat.close(word)
        if dist.is_initialized() and word is None:
            dist.destroy_process_group()


def _join(world: World, dist_url: str) -> Heartbeat:
    """Meet the other processes. InputError where the environment does not say where, RunError where they
    don't come."""
    if dist_url == "env://" and "MASTER_ADDR" not in os.environ:
        raise InputError("several processes, but MASTER_ADDR is not set: name the first machine's address, "
                         "or start with torchrun")
    # torchrun keeps its store over a restart: each launch of the processes has a name of its own there
    os.environ[THREADS_LEFT] = str(os.getpid())
    attempt = os.environ.get(ATTEMPT) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    options = {"device_id": world.device} if world.device.type == "cuda" else {}
    try:
        # two connections: one that waits for a value would keep the other's question
        store, own = (
            dist.PrefixStore(f"attempt {attempt}", next(dist.rendezvous(dist_url, world.rank, world.size,
                                                                        timeout=MEETING))[0])
            for _ in range(2))
        own.set(f"gpu/{world.rank}", _name_of(world.device, world.rank))
        own.set(f"host/{world.rank}", socket.gethostname())
        while not own.check([f"host/{rank}" for rank in range(world.size)]):
            time.sleep(0.1)  # and so a signal is answered, as of a launcher that has lost another process
        _require_own_gpus([own.get(f"gpu/{rank}").decode() for rank in range(world.size)])
        dist.init_process_group("nccl" if world.device.type == "cuda" else "gloo", store=store,
                                rank=world.rank, world_size=world.size, timeout=PATIENCE, **options)
        world.steps = dist.new_group(timeout=STEP_PATIENCE)
        end_after_traceback()
    except dist.DistError as error:
        by_environment = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        where = by_environment if dist_url == "env://" else dist_url
        raise PeerLost(f"the {world.size} processes did not all meet at {where}: one of them ended, or its "
                       f"machine cannot be reached ({str(error).splitlines()[0][:160]})") from error
    # the store is the launcher's, and outlives us
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Heartbeat(own, world.rank, world.size, holds_store=world.rank == 0 and not by_agent)


def _name_of(device: torch.device, rank: int) -> str:
    """What no other process may use: a GPU by its serial name, which is the same however it was made
    visible."""
    if device.type != "cuda":
        return str(rank)
    return f"{torch.cuda.get_device_properties(device).uuid} of {socket.gethostname()}"


def _require_own_gpus(names: list[str]) -> None:
    """InputError where two processes would share a GPU."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{names.count(twice[0])} processes would share the GPU {twice[0]}: {START_FEWER}, "
                         "or let each see its own (CUDA_VISIBLE_DEVICES, srun --gpus-per-task=1)")


def _places(dist_on_itp: bool) -> tuple[int, int, int, int]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if dist_on_itp:
        names = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
        if names[0] not in os.environ:
            raise InputError("--dist_on_itp: Open MPI's variables are not set; start with mpirun, or leave "
                             "the flag out")
        os.environ.setdefault("MASTER_PORT", "48766")
    if names[0] not in os.environ or names[1] not in os.environ:
        return 0, 1, 0, 1
    try:
        rank, size, local_rank, local_size = (int(os.environ.get(name, default)) for name, default
                                              in zip(names, (0, 1, 0, 1), strict=True))
    except ValueError as error:
        raise InputError(f"{names[0]} and {names[1]} in the environment are no numbers: {error}; start with "
                         "torchrun, or unset them") from error
    if not (0 <= rank < size and 0 <= local_rank < local_size):
        raise InputError(f"{names[0]}={rank} {names[1]}={size} {names[2]}={local_rank} "
                         f"{names[3]}={local_size} in the environment contradict each other; start with "
                         "torchrun, or unset them")
    return rank, size, local_rank, local_size


def _device(wanted: str, local_rank: int, local_size: int) -> tuple[torch.device, str]:
    """The device of this process, and a note where it is not the one asked for. InputError where a GPU is
    there that PyTorch can't use: a run that takes hours on it would take weeks on the CPU.

    A GPU a process of this machine: the one of its number, or the only one that its launcher (Slurm, mpirun)
    lets it see. Products that stay in fp32 (a classifier's, those of --precision fp32) are IEEE's there, not
    TF32's.
    """
    if wanted == "cuda" and torch.cuda.is_available():
        visible = torch.cuda.device_count()
        if 1 < visible < local_size:
            raise InputError(f"{local_size} processes on this machine, but {visible} GPUs are visible: "
                             f"{START_FEWER}")
        device = torch.device("cuda", local_rank if visible >= local_size else 0)
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return device, ""
    reason = _unusable_gpu() if wanted == "cuda" else ""
    if reason:
        raise InputError(f"nvidia-smi lists a GPU, and PyTorch {torch.__version__} can't use it ({reason}): "
                         "bring the driver up to date, or install a PyTorch for it "
                         "(pytorch.org/get-started); --device cpu runs without it")
    if wanted == "cpu" or (wanted == "mps" and torch.backends.mps.is_available()):
        return torch.device(wanted), ""
    return torch.device("cpu"), f"no {wanted} device here: running on the CPU"


def _unusable_gpu() -> str:
    """Why PyTorch can't use the GPUs that the driver lists; "" where it lists none, or they are hidden on
    purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1") or shutil.which("nvidia-smi") is None:
        return ""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if not listed.startswith("GPU "):
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: built for the CPU alone
        return one_line(str(error).splitlines()[0])
    return "it sees none"


def repeat_bits() -> None:
    """From here on only operations that give the same bits each time. torch raises where a model needs
    another."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS begins; torch asks for it
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # for debugging, and slow


def wrap(model: torch.nn.Module, world: World) -> torch.nn.Module:
    """The model for training: DistributedDataParallel where there is more than one process and it is not
    sharded already. Freeze before this."""
    if world.size == 1 or any(isinstance(module, FSDPModule) for module in model.modules()):
        return model
    devices = [world.device.index] if world.device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True,
                                                     process_group=world.steps)
