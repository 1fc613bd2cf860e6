"""--compile: one graph for training and one for evaluation, whatever the batch or the block.

PyTorch compiles anew for what was a constant of a graph and changes. Two things change here: the last batch
of an epoch or an evaluation is smaller, after which shapes count as dynamic, and slower; and in a sharded
model, which is compiled block by block, each block has a drop path rate of its own, after eight of which
PyTorch gives up and runs the rest uncompiled.
"""

import torch
from timm.layers import DropPath

from util.parallel.sharding import is_sharded, units


class TensorDropPath(torch.nn.Module):
    """timm's DropPath with the rate in a tensor, which is no constant of a graph: blocks share one."""

    def __init__(self, rate: float, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("kept", torch.tensor(1 - rate, device=device), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        drawn = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device)
        return x * ((drawn < self.kept) / self.kept).to(x.dtype)


def compile_in_place(model: torch.nn.Module, device: torch.device) -> None:
    """Compile a model without changing its tensors' names; a sharded one unit by unit, between which it is
    gathered."""
    model.is_compiled = True
    if not is_sharded(model):
        model.compile(dynamic=False)
        return
    for unit in units(model) or [model]:
        for name, module in list(unit.named_modules()):
            # timm leaves a rate of 0 out: then a block would be another
            if isinstance(module, DropPath) or "drop_path" in name.rpartition(".")[2]:
                unit.set_submodule(name, TensorDropPath(getattr(module, "drop_prob", 0.0), device))
        unit.forward = torch.compile(unit.forward, dynamic=False)


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether a model, or what it wraps, wants all its batches to have one size."""
    return any("is_compiled" in vars(module) for module in model.modules())


def filled_up(values: torch.Tensor, rows: int) -> torch.Tensor:
    """(B, ...) -> (max(B, rows), ...) in the same memory layout: the first row again for those that are
    missing."""
    return torch.cat([values, *[values[:1]] * (rows - len(values))]) if len(values) < rows else values
