"""What fits into the devices' memory: a copy of the model on each (ddp) or a shard on each (fsdp); the batch
size."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace

import torch

from jobs.job import Job
from util.core.errors import InputError, RunError
from util.core.machine import available_bytes
from util.model.memory import GIB, Need, device_memory, gib, need_of
from util.options.flag import AUTO
from util.options.groups import Options
from util.parallel import sharding
from util.parallel.processes import World
from util.weights import checkpoint
from util.weights.fitting import WeightFile

DEVICES = (1, 2, 4, 8, 16, 32, 64)  # of the table that a dry run prints
USABLE = 0.9  # of a device's memory: the rest is the libraries' own
# 1, 2, 3, 4, 6, 8 to 1024
SIZES = tuple(sorted({2**power for power in range(11)} | {3 * 2**power for power in range(9)}))
LARGEST_WITHOUT_TRYING = 128  # what is only estimated; and on CPUs more costs memory and wins no time
SHARE = 0.5  # of the memory that an estimate may fill: libraries, loaders and the system need some
GRADIENTS_SHARE = 0.05  # of a device's memory, for what sharding would have spared
SLACK = 0.05  # of a GPU's memory that a tried batch leaves free, since memory breaks into pieces
EVALUATION = 64  # where a checkpoint that is only scored does not say its own


def kept_whole(options: Options, model: torch.nn.Module) -> set[torch.nn.Parameter]:
    """Parameters that every process keeps: a linear probe's head, which runs without the backbone."""
    if options.model.adaptation != "lp":
        return set()
    return {parameter for parameter in model.parameters() if parameter.requires_grad}


def need(options: Options, model: torch.nn.Module, precision: str, num_covariates: int) -> Need:
    """What the run asks of memory. A run that only scores keeps nothing for a backward pass, so it trains
    nothing here."""
    if options.run.eval:
        model = copy.deepcopy(model).requires_grad_(False)
    batch_size = 1 if options.training.batch_size == AUTO else options.training.batch_size
    found = need_of(model, batch_size, options.model.input_size, precision, num_covariates,
                    sharding.units(model), kept_whole(options, model) if not options.run.eval else ())
    nothing = (0,) * len(found.units)
    return replace(found, outside=0, inside=nothing, inputs=nothing) if options.run.eval else found


def copied_bytes(options: Options, found: Need) -> int:
    """Bytes of the host's memory that hold what a checkpoint of a model that is not sharded is written from,
    while the training goes on (util/weights/background.py). A probe's is written once, without a copy."""
    if not options.run.savemodel or options.model.adaptation == "lp":
        return 0
    weights = found.trained if options.model.adaptation == "lora" else found.parameters + found.buffers
    return weights + 2 * found.trained


def choose_parallel(options: Options, world: World, find_need: Callable[[], Need]) -> tuple[str, str]:
    """(ddp or fsdp, a line on it or ''). auto: ddp, unless only fsdp fits; find_need() estimates, in the main
    process.

    One process holds the whole model, whatever was asked.
    """
    if options.run.dry_run or options.search.optuna_trials:
        return "ddp", ""
    asked = options.processes.parallel
    if world.size == 1:
        return "ddp", "--parallel fsdp: one process alone holds the whole model" if asked == "fsdp" else ""
    if asked != "auto":
        return asked, f"parallel   {asked}, as asked"
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
        return "fsdp", (f"parallel   fsdp: ddp needs about {gib(whole)} and fsdp {gib(shards)} {has} "
                        "(--parallel auto)")
    return "ddp", (f"parallel   ddp, though it needs about {gib(whole)} {has}: fsdp does not fit either, "
                   f"with {gib(shards)}; use more devices, a smaller --batch_size, or "
                   "--activation_checkpointing")


def table(options: Options, model: torch.nn.Module, others: dict[str, torch.nn.Module], precision: str,
          num_covariates: int, world: World) -> list[str]:
    """Lines of a dry run: what a device needs for each way of training and of dealing the model out.

    model: of shapes alone, frozen as the run's --adaptation has it; others: as the other adaptations would
    have it.
    """
    kinds = {options.model.adaptation: model} | others
    needs = {kind: need(options.having(adaptation=kind), of_kind, precision, num_covariates)
             for kind, of_kind in kinds.items()}
    mine, devices = needs[options.model.adaptation], max(options.compatibility.world_size, world.size)
    asked, checkpointing = options.processes.parallel, options.training.activation_checkpointing
    copied = copied_bytes(options, mine)
    lines = [f"memory     about {mine.on(devices, 'ddp', checkpointing)}",
             *([f"           and in the main process {gib(copied)} of the host's memory, from which "
                "checkpoints are written (ddp)"] if copied else []),
             f"           GiB a device, batch {options.training.batch_size} on each"
             + "".join(f"{number:>9}" for number in DEVICES) + "  devices"]
    for kind, found in needs.items():
        may_recompute = (False, True) if kind != "lp" and sharding.units(model) else (False,)
        for parallel, recomputed in itertools.product(("ddp", "fsdp"), may_recompute):
            name = f"{kind}, {parallel}{', checkpointed' if recomputed else ''}"
            sizes = (found.on(number, parallel, recomputed).total for number in DEVICES)
            lines.append(f"           {name:<33}" + "".join(f"{size / GIB:>9.2f}" for size in sizes))
    room = device_memory(world.device, world.local_size
                         if world.size > 1 or world.device.type == "cuda" else devices)
    if devices > 1 and asked == "auto":
        lines.append(f"{pick(mine, devices, room, checkpointing)[1]}; {devices} devices")
    elif devices > 1:
        lines.append(f"parallel   {asked}, as asked: about "
                     f"{gib(mine.on(devices, asked, checkpointing).total)} a device; {devices} devices")
    return lines


def deal_out(options: Options, world: World, model: torch.nn.Module, parts: sharding.Parts | None,
             precision: str) -> str:
    """Shard a model over the processes, in place -> a line where each process held all of it for a moment;
    collective.

    parts: what of files goes into a model of shapes; None for a model that has its values already.
    """
    sent_as = torch.bfloat16 if precision == "bf16" else torch.float32
    sharding.shard(model, world, kept_whole(options, model), sent_as)
    if parts is not None:
        sharding.materialise(model, world.device, parts)
        return ""
    model.to(world.device)
    return ("           each process built the whole model on its CPU before it was sharded: weights that "
            "start at random are not streamed")


def keeps_gradients(model: torch.nn.Module, world: World) -> bool:
    """Whether a process has room for a sharded model's whole gradients, which it then sends once a step, not
    once a micro-step."""
    whole = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    return whole <= GRADIENTS_SHARE * min(world.gather(device_memory(world.device, world.local_size)))


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
                         "again: leave it out") from error


# ---- --batch_size auto: the largest batch that fits into the memory, found once, when a run begins ---------

def with_stored_batch(options: Options, resumed: WeightFile | None) -> Options:
    """A resumed run, or a checkpoint that is scored, keeps the number that was found when it began."""
    if options.training.batch_size != AUTO or resumed is None:
        return options
    known = resumed.rest["options"].get("batch_size") if checkpoint.is_ours(resumed) else None
    return options.having(batch_size=known or (EVALUATION if options.run.eval else AUTO))


def choose_batch(job: Job) -> tuple[int, str]:
    """The batch size, alike in all processes, and a line that says it. RunError where not one image fits,
    InputError for a model in shards.

    On a GPU whole steps are tried, each process on its own; else, and on a dry run, the need is estimated
    (util/model/memory.py). Never more than the training images of a process.
    """
    options, world = job.options, job.world
    if sharding.is_sharded(job.model):
        raise InputError("--batch_size auto can't try what no process can run alone: pass a number with "
                         "--parallel fsdp (--dry_run estimates the need)")
    processes = max(options.compatibility.world_size, world.size) if options.run.dry_run else world.size
    sizes = [size for size in SIZES if size == 1 or size * processes <= len(job.rows("train"))]
    tried = world.device.type == "cuda" and not options.run.dry_run
    mine = _largest(sizes, lambda size: fits(job, size, True)) if tried else _estimated(job, sizes)
    found = min(world.gather(mine))
    if found == 0:
        raise RunError(f"--batch_size auto: not one image of {options.model.input_size} pixels fits into the "
                       f"memory of {world.device} {'' if tried else 'by the estimate '}with this model: take "
                       "a smaller one, a smaller --input_size, or --adaptation lp", everywhere=True)
    how = f"tried on {torch.cuda.get_device_name(world.device)}" if tried else "estimated, not tried"
    bound = (", bounded by the training images" if found == sizes[-1] and found < SIZES[-1]
             and (tried or found < LARGEST_WITHOUT_TRYING) else "")
    return found, f"batch      --batch_size auto is {found} ({how}{bound}); a run that goes on keeps it"


def _largest(sizes: list[int], fit: Callable[[int], bool]) -> int:
    """The largest size that fits, 0 for none: in steps up, for a try that fails costs more than one that
    fits."""
    return max(itertools.takewhile(fit, sizes), default=0)


def _estimated(job: Job, sizes: list[int]) -> int:
    """The largest size whose estimated need is at most SHARE of the memory that is free, divided among the
    processes."""
    options, world = job.options, job.world
    covariates = job.task.num_covariates(job.rows("train"))
    small, large = (need_of(job.model, size, options.model.input_size, job.precision.name, covariates)
                    for size in (2, 4))
    a_picture = max(0, large.on().activations - small.on().activations) / 2
    fixed, free = large.on().total - 4 * a_picture, available_bytes() / world.local_size
    if world.device.type == "cuda":
        free = torch.cuda.mem_get_info(world.device)[0]
    else:
        fixed += copied_bytes(options, large)
    return _largest([size for size in sizes if size <= LARGEST_WITHOUT_TRYING],
                    lambda size: fixed + size * a_picture <= SHARE * free)


def fits(job: Job, batch_size: int, for_training: bool = False) -> bool:
    """Whether a batch goes forward and back on this process's device. The model stays as it was.

    It is tried without the other processes, which would otherwise wait inside a step for one that has run out
    of memory. for_training: with room for what is not there yet: the optimizer's moments, the buckets of
    several processes, the slack.
    """
    options, device = job.options, job.world.device
    model, room = job.running.train(), []
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        model.to(device)
        if for_training:
            trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
            slack = SLACK * torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0
            room.append(torch.empty(int((3 if job.world.size > 1 else 2) * trained + slack),
                                    dtype=torch.uint8, device=device))
            if options.model.adaptation == "lp" and device.type == "cuda":
                batch_size *= 2  # the frozen backbone reads the evaluation's batches
        batch_size = max(2, batch_size)  # batch norm needs two: training takes an image alone twice
        rows = (job.features["train"][:batch_size] if job.features is not None else
                torch.zeros(batch_size, 3, options.model.input_size, options.model.input_size))
        inputs: tuple[torch.Tensor, ...] = (rows.to(device),)
        covariates = job.task.num_covariates(job.rows("train"))
        if covariates:
            inputs += (torch.zeros(len(rows), covariates, device=device),)
        with job.precision.autocast():
            loss = model(*inputs).float().sum()
        loss.backward()
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        room.clear()
        if for_training and device.type == "cuda":
            torch.cuda.empty_cache()
    return True
