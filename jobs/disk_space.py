"""Whether the disk has room for what a training will write, asked before its first step."""

from jobs.job import Job
from util.core.disk import free_of
from util.core.errors import InputError
from util.model import lora
from util.model.memory import bytes_of
from util.weights import checkpoint
from util.weights.shard_files import PATTERN

OTHER_BYTES, BYTES_A_PREDICTION = 8 * 2**20, 1000  # images, page, log; a row of predictions_*.csv
OTHER_FILES = 64
GIB, MIB = 2**30, 2**20


def checkpoint_bytes(job: Job) -> tuple[int, int]:
    """Sizes of checkpoint-last.pth (weights, and AdamW's two moments of what is trained; with its shards,
    where there are any) and checkpoint-best.pth (weights). With adapters the last one holds what is trained
    alone, and beside the best one, which is whole, lies checkpoint-adapter.pth."""
    weights = bytes_of(job.model.state_dict().values())
    moments = 2 * sum(p.numel() * p.element_size() for p in job.running.parameters() if p.requires_grad)
    if not lora.adapted_layers(job.model):
        return weights + moments, weights
    alone = bytes_of(lora.trained_state(job.model).values())
    return alone + moments, weights + alone


def needed_bytes(job: Job) -> int:
    """What has to be free at the start. A checkpoint is written beside the one that it replaces, so that for
    a while there are two; those that a resumed run finds in its folder are replaced, those of an earlier run
    stay in earlier-N."""
    other = OTHER_BYTES + BYTES_A_PREDICTION * len(job.data.table)
    if not job.options.run.savemodel or _has_all_epochs(job):
        return other
    last, best = checkpoint_bytes(job)
    if _writes_once(job):
        return other + last + best
    there = 0
    if job.resumed is not None and job.resumed.path.parent.resolve() == job.folder.path.resolve():
        files = [*map(job.folder.file, (checkpoint.LAST, checkpoint.BEST)),
                 *job.folder.path.glob(f"{PATTERN}/*")]
        there = sum(path.stat().st_size for path in files if path.exists())
    return other + max(last + best + max(last, best) - there, 0)


def require(job: Job) -> None:
    """InputError where the room doesn't do (main process)."""
    if job.options.run.eval:
        return
    needed, (free, files) = needed_bytes(job), free_of(job.folder.path)
    if free < needed:
        raise InputError(f"{job.folder.path} is on a disk with {size_of(free)} free, and this run needs "
                         f"{size_of(needed)}{_reckoning(job)}: make room, or name another folder with "
                         "--output_dir"
                         + (" (--no_savemodel writes no checkpoints)" if job.options.run.savemodel else ""))
    if files is not None and files < OTHER_FILES:
        raise InputError(f"{job.folder.path} is on a disk where only {files} more files can be made (no free "
                         "inodes): delete some, or name another folder with --output_dir")


def describe(job: Job) -> list[str]:
    """The line of a dry run, which refuses nothing: it may plan for another machine's disk."""
    if job.options.run.eval:
        return []
    needed, free = needed_bytes(job), free_of(job.folder.path)[0]
    return [f"disk       about {size_of(needed)}{_reckoning(job)}; {size_of(free)} free for {job.folder.path}"
            + ("" if needed <= free else ": too little here")]


def _reckoning(job: Job) -> str:
    if not job.options.run.savemodel:
        return ""
    last, best = checkpoint_bytes(job)
    return (f" (checkpoint-last.pth {size_of(last)}, checkpoint-best.pth {size_of(best)}"
            + ("" if _writes_once(job) else ", and one of them once more while it is replaced") + ")")


def _writes_once(job: Job) -> bool:
    """Whether the checkpoints are written at the end alone, as those of stored features are."""
    return job.options.model.adaptation == "lp"


def _has_all_epochs(job: Job) -> bool:
    return job.resumed is not None and job.resumed.rest.get("epoch", -1) + 1 >= job.options.training.epochs


def size_of(number: int) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / MIB:.1f} MiB"
