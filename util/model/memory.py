"""What a training step needs on a device, estimated before anything is allocated there."""

import copy
import functools
import math
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from util.core.machine import available_bytes

GIB = 2**30


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device. Activations are what the backward pass keeps of one batch; gathered: blocks of a
    sharded model that are whole for the moment, and their gradients."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.gathered

    def __str__(self) -> str:
        gathered = f", blocks gathered for the moment {gib(self.gathered)}" if self.gathered else ""
        return (f"{gib(self.total)} a device: weights {gib(self.weights)}, gradients {gib(self.gradients)}, "
                f"optimizer state {gib(self.optimizer)}, activations {gib(self.activations)}{gathered} "
                "(without the library's own workspaces)")


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


@dataclass(frozen=True)
class Need:
    """What a model and a batch ask for, in bytes, before it is decided how they lie on devices.

    trained: of the parameters, those with gradients. outside: tensors that autograd keeps outside the units
    (blocks); inside: those of each unit; inputs: what goes into each, kept instead where a unit is computed
    again in the backward pass. units, trained_units: parameters of each, and of those the trained ones;
    whole: parameters that every device keeps even where the others are sharded.
    """

    parameters: int
    trained: int
    buffers: int
    outside: int
    inside: tuple[int, ...]
    inputs: tuple[int, ...]
    units: tuple[int, ...]
    trained_units: tuple[int, ...]
    whole: int = 0

    def on(self, devices: int = 1, parallel: str = "ddp", recomputed: bool = False) -> MemoryEstimate:
        """One device's share under ddp or fsdp (fully sharded: two units at a time are whole, one computing
        and the next on its way, and so are their gradients until they are dealt out); `recomputed`: with
        activation checkpointing.

        With one device there is nothing to shard.
        """
        kept = self.outside + sum(self.inside)
        if recomputed:
            kept = min(kept, self.outside + sum(self.inputs) + max(self.inside, default=0))
        if parallel == "ddp" or devices == 1:
            return MemoryEstimate(self.parameters + self.buffers, self.trained, 2 * self.trained, kept)
        rest = self.parameters - self.whole - sum(self.units)
        pair = min(2, len(self.units))
        gathered = rest + pair * max(self.units, default=0) + pair * max(self.trained_units, default=0)
        mine = math.ceil((self.parameters - self.whole) / devices) + self.whole
        trained = math.ceil(max(0, self.trained - self.whole) / devices) + min(self.whole, self.trained)
        return MemoryEstimate(mine + self.buffers, trained, 2 * trained, kept, gathered)


def need_of(model: torch.nn.Module, batch_size: int, input_size: int, precision: str, num_covariates: int = 0,
            units: Sequence[torch.nn.Module] = (), whole: Collection[torch.nn.Parameter] = ()) -> Need:
    """Weights and gradients in fp32, AdamW's two moments, and the tensors that autograd saves for one batch.

    The batch runs through a copy of the model without memory behind it (fake tensors, as if on the CPU), and
    every tensor saved for the backward pass is counted once by its storage. `precision` is fp32, bf16 or
    fp16; `num_covariates`: what the model reads beside each image; `units`: the model's parts that are
    sharded and computed again one by one; `whole`: parameters that stay whole. What is trained is what
    requires a gradient.
    """
    outside, inside, inputs = _saved_bytes(model, batch_size, input_size, precision, num_covariates, units)
    parts = [model, *units]
    sizes = [bytes_of(part.parameters()) for part in parts]
    trained = [bytes_of(p for p in part.parameters() if p.requires_grad) for part in parts]
    return Need(sizes[0], trained[0], bytes_of(model.buffers()), outside, inside, inputs, tuple(sizes[1:]),
                tuple(trained[1:]), bytes_of(whole))


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _saved_bytes(
        model: torch.nn.Module, batch_size: int, input_size: int, precision: str, num_covariates: int,
        units: Sequence[torch.nn.Module]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Bytes kept outside the units, inside each, and of the input of each."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    places = {id(unit): place for place, unit in enumerate(units)}
    names = {name: places[id(module)] for name, module in model.named_modules() if id(module) in places}
    shadow = copy.deepcopy(model).to("meta").train()
    # what is kept is counted without it
    if hasattr(getattr(shadow, "backbone", shadow), "set_grad_checkpointing"):
        getattr(shadow, "backbone", shadow).set_grad_checkpointing(False)
    kept, inputs, inside = {}, [0] * len(units), []

    def enter(place: int, _: torch.nn.Module, arguments: tuple) -> None:
        inside.append(place)
        size = sum(a.untyped_storage().nbytes() for a in arguments if torch.is_tensor(a))
        inputs[place] = max(inputs[place], size)

    def leave(*_: object) -> None:
        inside.pop()

    for name, place in names.items():
        shadow.get_submodule(name).register_forward_pre_hook(functools.partial(enter, place))
        shadow.get_submodule(name).register_forward_hook(leave)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        shadow.to_empty(device="cpu")
        owned = {_storage(tensor) for tensor in [*shadow.parameters(), *shadow.buffers()]}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if _storage(tensor) not in owned:
                kept.setdefault(_storage(tensor),
                                (tensor.untyped_storage().nbytes(), inside[-1] if inside else None))
            return tensor

        half = torch.bfloat16  # fp16 is as large, and known to the CPU's kernels in fewer places
        casting = torch.autocast("cpu", dtype=half) if precision != "fp32" else nullcontext()
        with fake, casting, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            shapes = [(batch_size, 3, input_size, input_size), (batch_size, num_covariates)]
            inputs_read = shapes if num_covariates else shapes[:1]
            shadow(*map(torch.empty, inputs_read)).float().sum()
    of = [sum(size for size, where in kept.values() if where == place)
          for place in [None, *range(len(units))]]
    return of[0], tuple(of[1:]), tuple(inputs)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def device_memory(device: torch.device, local_size: int) -> int:
    """Bytes that a process may use: its GPU's memory, or its share of what this machine has to spare."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return max(available_bytes(), 1) // local_size
