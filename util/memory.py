"""What a training step needs on a device, estimated before anything is allocated there; and the host's own allocator."""

import copy
import ctypes
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device. Activations are what the backward pass keeps of one batch."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        return (f"{_gib(self.total)} a device: weights {_gib(self.weights)}, gradients {_gib(self.gradients)}, "
                f"optimizer state {_gib(self.optimizer)}, activations {_gib(self.activations)} "
                "(without the library's own workspaces)")


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def estimate_memory(model: torch.nn.Module, batch_size: int, input_size: int, precision: str,
                    num_covariates: int = 0) -> MemoryEstimate:
    """Weights and gradients in fp32, AdamW's two moments, and the tensors that autograd saves for one batch.

    The batch runs through a copy of the model without memory behind it (fake tensors, as if on the CPU), and every
    tensor saved for the backward pass is counted once by its storage. `precision` is fp32, bf16 or fp16;
    `num_covariates`: what the model reads beside each picture.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    weights += sum(b.numel() * b.element_size() for b in model.buffers())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return MemoryEstimate(weights, trained, 2 * trained, _saved_bytes(model, batch_size, input_size, precision, num_covariates))


def _saved_bytes(model: torch.nn.Module, batch_size: int, input_size: int, precision: str, num_covariates: int) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    shadow = copy.deepcopy(model).to("meta").train()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        shadow.to_empty(device="cpu")
        owned = {_storage(tensor) for tensor in [*shadow.parameters(), *shadow.buffers()]}
        kept = {}

        def keep(tensor):
            if _storage(tensor) not in owned:
                kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        half = torch.bfloat16  # fp16 is as large, and known to the CPU's kernels in fewer places
        casting = torch.autocast("cpu", dtype=half) if precision != "fp32" else nullcontext()
        with fake, casting, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            inputs = (torch.empty(batch_size, 3, input_size, input_size),)
            if num_covariates:
                inputs += (torch.empty(batch_size, num_covariates),)
            shadow(*inputs).float().sum()
    return sum(kept.values())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def available_bytes() -> int:
    """Memory of this machine that a process may still take: what Linux calls available, at most what the container's limit
    leaves; elsewhere half of the machine's."""
    lines = _numbers("/proc/meminfo")
    if "MemAvailable:" not in lines:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    found = 1024 * lines["MemAvailable:"]
    for limit, used in (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
                        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes")):
        most, taken = _numbers(limit).get(""), _numbers(used).get("")
        if most is not None and taken is not None:  # "max": no limit
            found = min(found, max(0, most - taken))
    return found


def _numbers(path: str) -> dict[str, int]:
    """{first word: number that follows} of a file's lines, "" for a line that is a number; {} where there is no such file."""
    try:
        words = [line.split() for line in Path(path).read_text(encoding="ascii").splitlines()]
    except OSError:
        return {}
    words = [["", *line] if len(line) == 1 else line for line in words]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed instead of giving it back to the system; False where there is no glibc.

    A layer's output is larger than what malloc keeps by itself, so that each is mapped, cleared page by page and given back:
    a third of a forward pass on CPUs. The most memory that a process takes stays the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    return bool(mallopt(trim_threshold, ctypes.c_int(2**31 - 1)) and mallopt(mmap_threshold, ctypes.c_int(2**30)))
