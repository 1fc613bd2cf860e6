"""A model in shards: PyTorch's FSDP2, one unit a block, every process with its share of each tensor.

A model is built as shapes alone (meta), sharded, given memory for its shards and filled from a mapped file,
tensor by tensor: no process ever holds the whole of it. What a file does not hold (the head) was drawn on the
CPU while the shapes were built. Sharded tensors are cut along their first side, as FSDP2 does it:
`torch.chunk` of the whole.
"""

import re
from collections.abc import Iterable, Iterator, Set
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from timm.models._manipulate import reinit_non_persistent_buffers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from util.core.machine import give_back_freed_memory
from util.parallel.processes import World
from util.weights.fitting import Fit, set_buffers

ADAPTED_NAME = re.compile(r"\.(base_layer|lora_[AB]\.default)(?=\.)")
Parts = list[tuple[torch.nn.Module, Fit]]  # what of a file goes into which part of a model


def is_sharded(model: torch.nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


def units(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The parts that are gathered, one after the other: transformer blocks, those of a stage too; none: the
    whole at once."""
    found, inside = [], ()
    for name, module in model.named_modules():
        in_a_row = isinstance(module, torch.nn.Sequential | torch.nn.ModuleList)
        if name.rpartition(".")[2] == "blocks" and in_a_row and not name.startswith(inside):
            inside += (f"{name}.",)
            found += list(module)
    return found


def shard(model: torch.nn.Module, world: World, kept_whole: Set[torch.nn.Parameter] = frozenset(),
          sent_as: torch.dtype = torch.float32) -> None:
    """Cut the model's parameters into one shard a process, in place; collective.

    kept_whole: parameters that every process keeps (a probe's head: it is run without the rest;
    `average_gradients`). A model's `backbone` is a unit of its own, so that it can be run alone. sent_as: how
    blocks are gathered and computed with; shards, the rest (heads, embeddings), the activations between
    blocks and the sums of gradients stay fp32.
    """
    if world.device.type == "cpu":
        give_back_freed_memory()
    mesh = init_device_mesh(world.device.type, (world.size,))
    roots = [model.backbone] if hasattr(model, "backbone") else []
    kept_whole = set(kept_whole)
    rest = {parameter for root in roots for parameter in root.parameters()} | kept_whole
    if not roots or any(parameter not in rest for parameter in model.parameters()):
        roots.append(model)
    for unit in [*units(model), *roots]:
        policy = MixedPrecisionPolicy()
        if unit not in roots and sent_as != torch.float32 and _may_be_sent_as_another(unit):
            policy = MixedPrecisionPolicy(sent_as, reduce_dtype=torch.float32, cast_forward_inputs=False)
        # sharded again after the forward pass even at the root: a state dict read then is that of the shards
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=kept_whole)


class Fp32LayerNorm(torch.nn.LayerNorm):
    """A layer norm that computes in fp32, whatever its weights were gathered as."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x.float(), self.normalized_shape, self.weight.float(),
                                              None if self.bias is None else self.bias.float(), self.eps)


def _may_be_sent_as_another(unit: torch.nn.Module) -> bool:
    """Make a transformer's block ready for weights in another format; False for what other norms and
    convolutions would compute with them."""
    modules = [module for module in unit.modules() if list(module.parameters(recurse=False))]
    norms = [module for module in modules if "Norm" in type(module).__name__]
    if (any(not isinstance(norm, torch.nn.LayerNorm) for norm in norms)
            or any(isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)
                   for module in modules)):
        return False
    for norm in norms:
        norm.__class__ = Fp32LayerNorm
    return True


def fills_by_itself(model: torch.nn.Module, parts: Parts) -> bool:
    """Whether `materialise` can give every tensor of a model of shapes its value: from the parts, drawn
    already, or a norm.

    Not where something else starts at random or a module sets buffers of its own that timm can't set again.
    """
    settable = all(hasattr(module, "init_non_persistent_buffers") for module in model.modules()
                   if module._non_persistent_buffers_set)
    given = {id(tensor) for part, fitted in parts for name, tensor in _by_plain_name(part).items()
             if name in fitted.used}
    return settable and all(id(tensor) in given or not tensor.is_meta or _is_norm(model, name)
                            for name, tensor in model.state_dict(keep_vars=True).items())


def plain_name(name: str) -> str:
    """timm's name of a parameter beside which PEFT has put an adapter, or of one of the adapter's:
    blocks.0.attn.qkv.lora_A.default.weight -> blocks.0.attn.qkv.weight."""
    return ADAPTED_NAME.sub("", name)


def is_own(name: str) -> bool:
    """Whether a parameter is an adapter's (no weight of the backbone)."""
    return ".lora_" in name


def _by_plain_name(part: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a weight file may fill, under the names that they have there."""
    return {plain_name(name): tensor for name, tensor in part.state_dict(keep_vars=True).items()
            if not is_own(name)}


def _is_norm(model: torch.nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.LayerNorm)


@torch.no_grad()
def materialise(model: torch.nn.Module, device: torch.device,
                parts: Iterable[tuple[torch.nn.Module, Fit]] = ()) -> None:
    """Give a sharded model of shapes its memory and its values.

    Values that stand already (drawn on the CPU) stay, the parts' come from their files, and norms that no
    file holds start at 1 and 0. Buffers that no file holds (rotary periods) are computed anew: fresh memory
    holds rubbish. AssertionError where a tensor is left without a value: our own bug.
    """
    drawn = {name: local(tensor).clone() for name, tensor in model.state_dict().items() if not tensor.is_meta}
    model.to_empty(device=device)
    reinit_non_persistent_buffers(model)
    filled = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in drawn:
            local(tensor).copy_(drawn[name])
        elif _is_norm(model, name):
            local(tensor).fill_(float(name.endswith("weight")))
        else:
            continue
        filled.add(id(tensor))
    for part, fitted in parts:
        wanted = _by_plain_name(part)
        # shapes without values are those of a sharded checkpoint: util/weights/shard_files.py fills them
        fill(wanted, {name: tensor for name, tensor in fitted.used.items() if not tensor.is_meta})
        filled |= {id(wanted[name]) for name in fitted.used}
        set_buffers(part, fitted.buffers)
    empty = [name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in filled]
    if empty:
        raise AssertionError(f"no value for {', '.join(empty[:5])}")


@torch.no_grad()
def fill(wanted: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    """Copy this process's shard of each whole tensor (mapped from a file: the rest is never read), then read
    it back."""
    for name, tensor in whole.items():
        mine, here = shard_of(tensor, wanted[name]), local(wanted[name])
        here.copy_(mine)
        if not torch.allclose(here, mine.to(here), rtol=0, atol=0, equal_nan=True):
            raise AssertionError(f"{name} was not loaded")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_of(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a whole tensor that this process holds of `like`: all of it unless that is sharded."""
    if not isinstance(like, DTensor):
        return whole
    mesh = like.device_mesh
    chunks, rank = whole.chunk(mesh.size()), mesh.get_local_rank()
    return chunks[rank] if rank < len(chunks) else whole[:0]  # fewer rows than processes


def whole_tensors(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor whole and on the CPU, one after the other; collective: every process takes all of them."""
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        yield name, (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def without_gradients(model: torch.nn.Module) -> AbstractContextManager:
    """What a forward pass for outputs alone runs in: gathered parameters made in inference mode could not be
    trained later."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()


def send_gradients(model: torch.nn.Module, now: bool) -> None:
    """Whether the next backward pass of a wrapped or sharded model sends its gradients to the other
    processes, or keeps them, whole, for one that does."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model.require_backward_grad_sync = now
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(now, recurse=False)


def average_gradients(model: torch.nn.Module, world: World) -> None:
    """The mean over the processes of the gradients of parameters that are not sharded, in a model that is."""
    for parameter in model.parameters():
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= world.size
