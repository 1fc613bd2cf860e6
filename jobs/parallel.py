"""How a model lies on the devices: a copy on each (ddp) or a shard on each (fsdp), decided by what fits their
memory."""

import copy
from dataclasses import replace

import torch

from jobs.tasks.base import Task
from util.core.errors import InputError
from util.model.memory import GIB, Need, device_memory, gib, need_of
from util.options.flag import AUTO
from util.options.groups import Options
from util.parallel import sharding
from util.parallel.processes import World
from util.parallel.sharding import units

DEVICES = (1, 2, 4, 8, 16, 32, 64)  # of the table that a dry run prints
USABLE = 0.9  # of a device's memory: the rest is the libraries' own


def kept_whole(options: Options, model: torch.nn.Module) -> set[torch.nn.Parameter]:
    """Parameters that every process keeps: a linear probe's head, which runs without the backbone."""
    if options.model.adaptation != "lp":
        return set()
    return {parameter for parameter in model.parameters() if parameter.requires_grad}


def need(options: Options, task: Task, model: torch.nn.Module, precision: str, num_covariates: int) -> Need:
    """What the run asks of memory. A run that only scores keeps nothing for a backward pass, so it trains
    nothing here."""
    if options.run.eval:
        model = copy.deepcopy(model).requires_grad_(False)
    batch_size = 1 if options.training.batch_size == AUTO else options.training.batch_size
    found = need_of(model, batch_size, options.model.input_size, precision, num_covariates, units(model),
                    kept_whole(options, model) if not options.run.eval else ())
    nothing = (0,) * len(found.units)
    return replace(found, outside=0, inside=nothing, inputs=nothing) if options.run.eval else found


def choose(options: Options, world: World, find_need) -> tuple[str, str]:
    """(ddp or fsdp, a line on it or ''). auto: ddp, unless only fsdp fits; find_need() estimates, in the main
    process.

    One process holds the whole model, whatever was asked.
    """
    if options.run.dry_run or options.search.optuna_trials:
        return "ddp", ""
    if world.size == 1:
        return (
            "ddp",
            "--parallel fsdp: one process alone holds the whole model"
            if options.processes.parallel == "fsdp"
            else "",
        )
    if options.processes.parallel != "auto":
        return options.processes.parallel, f"parallel   {options.processes.parallel}, as asked"
    room = min(world.gather(device_memory(world.device, world.local_size)))
    recomputed = options.training.activation_checkpointing
    return world.from_main(pick(find_need(), world.size, room, recomputed) if world.is_main else None)


def pick(found: Need, devices: int, room: int, recomputed: bool) -> tuple[str, str]:
    """What auto takes with so much memory a device (0: unknown), and the line that says why."""
    whole, shards = (found.on(devices, parallel, recomputed).total for parallel in ("ddp", "fsdp"))
    usable = USABLE * room
    has = f"of {gib(room)} a process" if room else "of a memory that the system does not tell"
    if not room or whole <= usable:
        return "ddp", f"parallel   ddp: it needs about {gib(whole)} {has} (--parallel auto)"
    if shards <= usable:
        return (
            "fsdp",
            f"parallel   fsdp: ddp needs about {gib(whole)} and fsdp {gib(shards)} {has} (--parallel auto)",
        )
    return "ddp", (f"parallel   ddp, though it needs about {gib(whole)} {has}: fsdp does not fit either, "
                   f"with {gib(shards)}; use more devices, a smaller --batch_size, or "
                   "--activation_checkpointing")


def table(options: Options, task: Task, model: torch.nn.Module, others: dict[str, torch.nn.Module],
          precision: str,
          num_covariates: int, world: World) -> list[str]:
    """Lines of a dry run: what a device needs for each way of training and of dealing the model out.

    model: of shapes alone, frozen as the run's --adaptation has it; others: as the other adaptations would
    have it.
    """
    kinds = {options.model.adaptation: model} | others
    needs = {kind: need(options.having(adaptation=kind), task, of_kind, precision, num_covariates)
             for kind, of_kind in kinds.items()}
    mine, devices = needs[options.model.adaptation], max(options.compatibility.world_size, world.size)
    lines = [f"memory     about {mine.on(devices, 'ddp', options.training.activation_checkpointing)}",
             f"           GiB a device, batch {options.training.batch_size} on each"
             + "".join(f"{number:>9}" for number in DEVICES) + "  devices"]
    for kind, found in needs.items():
        ways = [("ddp", False), ("ddp", True), ("fsdp", False), ("fsdp", True)]
        for parallel, recomputed in (
            ways if kind != "lp" and units(model) else [way for way in ways if not way[1]]
        ):
            name = f"{kind}, {parallel}{', checkpointed' if recomputed else ''}"
            sizes = (found.on(number, parallel, recomputed).total for number in DEVICES)
            lines.append(f"           {name:<33}" + "".join(f"{size / GIB:>9.2f}" for size in sizes))
    room = device_memory(world.device, world.local_size if world.size > 1
                         or world.device.type == "cuda" else devices)
    if devices > 1 and options.processes.parallel == "auto":
        lines.append(f"{pick(mine, devices, room, options.training.activation_checkpointing)[1]}; {devices} "
                     "devices")
    elif devices > 1:
        asked = mine.on(devices, options.processes.parallel, options.training.activation_checkpointing)
        lines.append(f"parallel   {options.processes.parallel}, as asked: about {gib(asked.total)} a device; "
                     f"{devices} devices")
    return lines


def deal_out(options: Options, world: World, model: torch.nn.Module, parts: sharding.Parts | None) -> str:
    """Shard a model over the processes, in place -> a line where each process held all of it for a moment;
    collective.

    parts: what of files goes into a model of shapes; None for a model that has its values already.
    """
    sharding.shard(model, world, kept_whole(options, model))
    if parts is not None:
        sharding.materialise(model, world.device, parts)
        return ""
    model.to(world.device)
    return ("           each process built the whole model on its CPU before it was sharded: weights that "
            "start at random are not streamed")


def recompute_blocks(model: torch.nn.Module) -> None:
    """Activation checkpointing: a block's forward pass is computed again in the backward pass, with the same
    random draws, instead of keeping what lies in between. InputError for a model that can't.
    """
    backbone = getattr(model, "backbone", model)
    if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
        raise InputError("--activation_checkpointing can't be used with a model that has batch norm, whose "
                         "running statistics would count each batch twice: leave it out")
    try:
        backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise InputError("--activation_checkpointing: timm knows no way to compute this model's blocks "
                         "again: leave it out"
                         ) from error
