"""What benchmarks/gpu.py's stages that compute themselves share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

import models_vit
from benchmarks.gpu_setting import Setting
from util.core.errors import InputError
from util.parallel.processes import World, process_group


@contextmanager
def on_device(setting: Setting) -> Iterator[World]:
    """The device as the programs set it up (products in fp32 without TF32). InputError where there is
    none."""
    with process_group(setting.device) as world:
        if world.note:
            raise InputError(f"{world.note}: --tiny shows that the check itself runs")
        yield world


@torch.no_grad()
def telling(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose outputs tell a mistake from a rounding, in place.

    Layer scales begin at 1e-5 and the head next to 0: a mistake in a block would not be seen. Batch norms of
    random weights make each block enlarge a rounding: a hundred times in all, which a tenth of what a block
    adds does not.
    """
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            parameter.fill_(1.0)
    for module in model.modules():
        if isinstance(module, models_vit.ExactLinear):
            torch.nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "has_skip", False):
            norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
            norms[-1].weight.fill_(0.1)
    return model
