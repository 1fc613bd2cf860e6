"""`--batch_size auto`: the largest batch that fits into the memory, found once, when a run begins."""

import torch

from jobs.job import Job
from util.core.errors import InputError, RunError
from util.core.machine import available_bytes
from util.model.memory import need_of
from util.options.flag import AUTO
from util.options.groups import Options
from util.parallel.sharding import is_sharded
from util.weights import checkpoint
from util.weights.fitting import WeightFile

# 1, 2, 3, 4, 6, 8 to 1024
SIZES = tuple(sorted({2**power for power in range(11)} | {3 * 2**power for power in range(9)}))
LARGEST_WITHOUT_TRYING = 128  # what is only estimated; and on CPUs more costs memory and wins no time
SHARE = 0.5  # of the memory that an estimate may fill: libraries, loaders and the system need some
SLACK = 0.05  # of a GPU's memory that a tried batch leaves free, since memory breaks into pieces
EVALUATION = 64  # where a checkpoint that is only scored does not say its own


def with_stored(options: Options, resumed: WeightFile | None) -> Options:
    """A run that goes on, or a checkpoint that is scored, keeps the number that was found when it began."""
    if options.training.batch_size != AUTO or resumed is None:
        return options
    known = resumed.rest["options"].get("batch_size") if checkpoint.is_ours(resumed) else None
    return options.having(batch_size=known or (EVALUATION if options.run.eval else AUTO))


def choose(job: Job) -> tuple[int, str]:
    """The batch size, alike in all processes, and a line that says it. RunError where not one image fits,
    InputError for a model in shards.

    On a GPU whole steps are tried, each process on its own; else, and on a dry run, the need is estimated
    (util/model/memory.py). Never more than the training images of a process.
    """
    options, world = job.options, job.world
    if is_sharded(job.model):
        raise InputError("--batch_size auto can't try what no process can run alone: pass a number with "
                         "--parallel fsdp (--dry_run estimates the need)")
    processes = max(options.compatibility.world_size, world.size) if options.run.dry_run else world.size
    sizes = [size for size in SIZES if size == 1 or size * processes <= len(job.rows("train"))]
    tried = world.device.type == "cuda" and not options.run.dry_run
    found = (
        _largest(sizes, lambda size: fits(job, size, for_training=True)) if tried else _estimated(job, sizes)
    )
    found = min(world.gather(found))
    if found == 0:
        raise RunError(f"--batch_size auto: not one image of {options.model.input_size} pixels fits into the "
                       f"memory of {world.device} {'' if tried else 'by the estimate '}with this model: take "
                       "a smaller one, a smaller --input_size, or --adaptation lp", everywhere=True)
    how = f"tried on {torch.cuda.get_device_name(world.device)}" if tried else "estimated, not tried"
    bound = ", bounded by the training images" if found == sizes[-1] and found < SIZES[-1] and (
        tried or found < LARGEST_WITHOUT_TRYING) else ""
    return found, f"batch      --batch_size auto is {found} ({how}{bound}); a run that goes on keeps it"


def _largest(sizes: list[int], fit) -> int:
    """The largest size that fits, 0 for none: in steps up, for a try that fails costs more than one that
    fits."""
    found = 0
    for size in sizes:
        if not fit(size):
            break
        found = size
    return found


def _estimated(job: Job, sizes: list[int]) -> int:
    """The largest size whose estimated need is at most SHARE of the memory that is free, divided among the
    processes."""
    options, world = job.options, job.world
    covariates = job.task.covariates(job.rows("train")[:1])
    num_covariates = 0 if covariates is None else covariates.shape[1]
    small, large = (need_of(job.model, size, options.model.input_size, job.precision.name,
                            num_covariates).on() for size in (2, 4))
    a_picture = max(0, large.activations - small.activations) / 2
    fixed = large.total - 4 * a_picture
    free = (
        torch.cuda.mem_get_info(world.device)[0]
        if world.device.type == "cuda"
        else available_bytes() / world.local_size
    )
    return _largest([size for size in sizes if size <= LARGEST_WITHOUT_TRYING],
                    lambda size: fixed + size * a_picture <= SHARE * free)


def fits(job: Job, batch_size: int, for_training: bool = False) -> bool:
    """Whether a batch goes forward and back on this process's device. The model stays as it was.

    It is tried without the other processes, which would otherwise wait inside a step for one that has run out
    of memory.
    for_training: with room for what is not there yet: the optimizer's moments, the buckets of several
    processes, the slack.
    """
    options, device = job.options, job.world.device
    model = job.running.to(device).train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    room = []
    try:
        if for_training:
            trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
            slack = SLACK * torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0
            room.append(torch.empty(int((3 if job.world.size > 1 else 2) * trained + slack),
                                    dtype=torch.uint8, device=device))
            if options.model.adaptation == "lp" and device.type == "cuda":
                batch_size *= 2  # the frozen backbone reads the evaluation's batches
        batch_size = max(2, batch_size)  # batch norm needs two: training takes an image alone twice
        rows = job.features["train"][:batch_size] if job.features is not None else torch.zeros(
            batch_size, 3, options.model.input_size, options.model.input_size)
        inputs = (rows.to(device),)
        covariates = job.task.covariates(job.rows("train")[:1])
        if covariates is not None:
            inputs += (torch.zeros(len(rows), covariates.shape[1], device=device),)
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
