"""What of a training outlives a kill: the last checkpoint and the best one, written, read back and found
again; and whether the disk has room for them."""

import functools
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from engine_finetune import Progress, Trainer
from jobs.job import Job
from jobs.run_folder import versions
from util.core import disk, secrets
from util.core.errors import InputError, RunError
from util.core.plain_numbers import size_of
from util.data.sampling import StepPlan
from util.model import lora
from util.options.table import own_values
from util.parallel.sharding import fill, is_own, is_sharded, local, whole_tensors
from util.parallel.streamed_checkpoint import write_streamed
from util.weights import checkpoint, shard_files
from util.weights.background import Background
from util.weights.fitting import WeightFile, load_file

OTHER_BYTES, BYTES_A_PREDICTION = 8 * 2**20, 1000  # images, page, log; a row of predictions_*.csv
OTHER_FILES = 64

# what the last checkpoint holds beside what the best one does
OF_LAST = ("optimizer", "scaler", "progress", "schedule", "data_fingerprint", "random_states")
NO_BEST: dict = {"epoch": None, "score": None, "figures": {}}


def content(job: Job, epoch: int, best: dict) -> dict:
    """What every checkpoint holds; `model` loads in timm as it is. Of a model with adapters (and of no other)
    it is what is trained alone, and `adapter` says how they were made; the base weights are `weights`."""
    adapted = bool(lora.adapted_layers(job.model))
    adapter = {"adapter": asdict(lora.Settings.of(job.options.part))} if adapted else {}
    buffers = {name: buffer for name, buffer in job.task.backbone_of(job.model).named_buffers()
               if name == "rope.periods"}
    return {
        "model": _state_to_keep(job.model), "buffers": buffers, "format": checkpoint.FORMAT, "epoch": epoch,
        **checkpoint.plain({
            "task": job.task.kind, **job.task.stored(), "best": best, "versions": versions(),
            "options": secrets.plain_without_secrets(own_values(job.options)),
            "transform": {"eval": job.eval_transform, "train": job.train_transform},
            "backbone": {"model": job.backbone.model, "arch": job.backbone.arch,
                         "timm": job.backbone.timm_name},
            "weights": job.started_from, **adapter}),
    }


def keep(job: Job, trainer: Trainer, done: Progress, best: dict, background: Background,
         rows: Sequence[Callable[[], object]] = (), is_best: bool = False) -> None:
    """Write `rows`, then the last checkpoint (all processes call this), all that a restart needs; then the
    best one, where this is it. Its `epoch` is the last whole one; `done` says how far the next has come.

    Written in the background, but for a sharded model, whose processes write together, and for a probe, which
    writes once and has nothing else to do. RunError where what was begun before could not be written.
    """
    states = job.world.gather(checkpoint.random_states(job.world.device))
    whole = content(job, done.epoch - 1, best) | {
        "optimizer": trainer.optimizer.state_dict(), "scaler": trainer.scaler.state_dict(),
        "progress": asdict(done),
        "schedule": {"position": done.epoch + done.steps / job.plan.steps,
                     "effective_batch": job.plan.step_size,
                     "even_steps": job.plan.even, **asdict(job.schedule)},
        "data_fingerprint": job.data.fingerprint, "random_states": checkpoint.plain(states)}
    if is_sharded(job.model) or not writes_epochs(job):
        for write in rows:
            job.world.main_alone(write)
        write_last(job, whole)
        if is_best:
            write_best(job, {name: whole[name] for name in whole if name not in OF_LAST})
        return

    def begin() -> None:
        copy = background.copied(whole)
        work = [*rows, functools.partial(_write, job, checkpoint.LAST, copy),
                # of a run that was sharded before
                functools.partial(shard_files.remove_unnamed, job.folder.path, None)]
        if is_best:  # the last one first: it can stand in for the best of the same epoch
            beside = {name: copy[name] for name in copy if name not in OF_LAST}
            work += [functools.partial(_write, job, best_file(job).name, beside),
                     functools.partial(_forget_earlier_best, job)]
        background.begin(work)

    job.world.main_alone(begin)


def _write(job: Job, name: str, content: dict) -> None:
    checkpoint.write(job.folder.file_to_write(name), content)


def write_last(job: Job, content: dict) -> None:
    """checkpoint-last.pth (all processes call this); of a sharded model a small one that names its shards,
    which are written first (util/weights/shard_files.py)."""
    shards = None
    if is_sharded(job.model):
        # before anything is made in a folder that is gone
        job.world.main_alone(job.folder.file_to_write, checkpoint.LAST)
        shards = job.world.from_main(f"checkpoint-last.{uuid.uuid4().hex[:12]}.shards")
        content, tensors = shard_files.split(content)
        try:
            shard_files.write_shards(job.folder.file(shards), tensors)
        except RunError:
            if job.world.is_main:
                shutil.rmtree(job.folder.file(shards), ignore_errors=True)  # the room may be wanted
            raise
        content["shards"] = shards
    job.world.main_alone(lambda: checkpoint.write(job.folder.file_to_write(checkpoint.LAST), content))
    job.world.main_alone(shard_files.remove_unnamed, job.folder.path, shards)


def remove_torn(job: Job) -> None:
    """Delete what a killed run began to write (main process): half files, and shards that no checkpoint
    names."""
    checkpoint.remove_torn(job.folder.path)
    path = job.folder.file(checkpoint.LAST)
    if any(path.parent.glob(shard_files.PATTERN)):
        named = checkpoint.read(path, whole=False).rest.get("shards") if path.exists() else None
        shard_files.remove_unnamed(path.parent, named)


def write_model(job: Job, name: str, content: dict) -> None:
    """A checkpoint that is one ordinary file whatever the model lies on (all processes call this)."""
    path = job.world.main_alone(job.folder.file_to_write, name) or job.folder.file(name)
    if is_sharded(job.model):
        write_streamed(path, content, job.world)
    else:
        job.world.main_alone(checkpoint.write, path, content)


def resume(job: Job, trainer: Trainer) -> tuple[Progress, dict, dict | None]:
    """Put the run back where its checkpoint left it -> (where it goes on, the best epoch so far, its weights
    if in memory)."""
    rest = job.resumed.rest
    _restore_optimizer(trainer.optimizer, rest["optimizer"], job.resumed)
    if trainer.scaler.is_enabled() and rest["scaler"]:
        trainer.scaler.load_state_dict(rest["scaler"])
    job.world.main_alone(job.folder.adopt, job.resumed.path.parent)
    if len(rest["random_states"]) == job.world.size:
        checkpoint.set_random_states(rest["random_states"][job.world.rank], job.world.device)
    before = rest["schedule"]
    done = Progress(**rest.get("progress", {"epoch": rest["epoch"] + 1}))
    job.world.main_alone(job.folder.cut_after, rest["epoch"])
    best, weights = _require_best(job, job.world.from_main(dict(rest["best"])),
                                  rest["epoch"] if done.steps == 0 else None)
    done = _placed(job, done, before["effective_batch"])
    for what, stored, here in (("effective batch", before["effective_batch"], job.plan.step_size),
                               ("learning rate", before["peak"], job.schedule.peak)):
        if stored != here:
            job.world.say(f"{what}: {stored:g} before, {here:g} from here on")
    inside = f", step {done.steps} of {job.plan.steps}," if done.steps else ""
    job.world.say(f"resumed at epoch {done.epoch}{inside} from {job.resumed.path}")
    return done, job.world.from_main(best), weights


def _placed(job: Job, done: Progress, step_size: int) -> Progress:
    """The same place among an epoch's images where a step now takes another number of them."""
    plan = job.plan
    if done.steps == 0 or (step_size == plan.step_size and done.steps <= plan.steps):
        return done
    seen = StepPlan(plan.num_samples, step_size, 1, 1, plan.even).of_step(done.steps - 1)[1]
    steps = plan.steps_within(seen)
    kept = plan.of_step(steps - 1)[1] if steps else 0
    if kept < seen:
        job.world.say(f"epoch {done.epoch} goes on at step {steps}: {seen - kept} of its images are seen "
                      "once more")
    return Progress(done.epoch, steps, done.loss * kept / seen)


def _require_best(job: Job, best: dict, last_epoch: int | None) -> tuple[dict, dict | None]:
    """The best epoch so far, once its weights are there: from the last checkpoint where that is the best one
    (`last_epoch`; None where it stands inside an epoch). With --no_savemodel they are kept in memory."""
    path = best_file(job)
    if best["epoch"] is None or job.world.from_main(
            job.world.is_main and path.exists()
            and checkpoint.read(path).rest.get("epoch") == best["epoch"]):
        return best, None
    if best["epoch"] == last_epoch:
        if not writes_epochs(job):
            return best, best_in_memory(job)
        write_best(job, content(job, best["epoch"], best))
        return best, None
    job.world.say(f"{path} does not hold the best epoch {best['epoch']}: the search for the best starts anew "
                  "from here")
    return NO_BEST, None


def _restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict, file: WeightFile) -> None:
    """The moments come from the checkpoint, weight decay and layer-wise learning rates from this launch.

    InputError where other parameters are trained now, or ones of another shape.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names, before = ([group["names"] for group in groups]
                     for groups in (optimizer.param_groups, stored["param_groups"]))
    if names != before or any(state["exp_avg"].shape != parameters[number].shape
                              for number, state in stored["state"].items()):
        raise InputError(f"{file.path} was trained with other parameters or groups of them (--adaptation, "
                         "--train_last_blocks, --input_size, weight decay 0): start a new run from its "
                         "weights with --finetune and another --task")
    optimizer.load_state_dict({"state": _moments(parameters, stored["state"], file),
                               "param_groups": optimizer.state_dict()["param_groups"]})


def _moments(parameters: list[torch.nn.Parameter], stored: dict, file: WeightFile) -> dict:
    """The optimizer's state as its parameters lie, sharded or whole: from a file that may hold it either
    way."""
    found, waiting = {}, {}
    for number, entry in stored.items():
        # copied: the file is mapped, and the next checkpoint takes its place
        found[number] = {key: torch.zeros_like(parameters[number], dtype=tensor.dtype) if tensor.ndim
                         else tensor.clone() for key, tensor in entry.items()}
        fill(found[number], {key: tensor for key, tensor in entry.items()
                             if tensor.ndim and not tensor.is_meta})
        waiting |= {f"optimizer.{number}.{key}": found[number][key] for key, tensor in entry.items()
                    if tensor.is_meta}
    if waiting:
        shard_files.read_shards(shard_files.folder_of(file), waiting)
    return found


def write_best(job: Job, content: dict) -> None:
    """The best epoch's checkpoint (all processes call this)."""
    write_model(job, best_file(job).name, content)
    if job.world.is_main:
        _forget_earlier_best(job)


def _forget_earlier_best(job: Job) -> None:
    """An earlier end's whole model, where the best adapters are now others."""
    if lora.adapted_layers(job.model):
        job.folder.file(checkpoint.BEST).unlink(missing_ok=True)


def writes_epochs(job: Job) -> bool:
    """Whether each epoch's checkpoint is written; not with --no_savemodel, nor with stored features, whose
    epochs are shorter than the writing (theirs is written at the end)."""
    return job.options.run.savemodel and job.features is None


def best_in_memory(job: Job) -> dict:
    """A copy of the best epoch's weights, where no file has them: the main process's ({} elsewhere), of a
    sharded model each one's shards."""
    if not (job.world.is_main or is_sharded(job.running)):
        return {}
    return {name: local(tensor).to("cpu", copy=True) for name, tensor in _state_to_keep(job.running).items()}


def _state_to_keep(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What of a model its checkpoints hold: all, or of one with adapters what is trained."""
    return lora.trained_state(model) if lora.adapted_layers(model) else model.state_dict()


def best_file(job: Job) -> Path:
    """Where the best epoch's weights stand while the run trains."""
    return job.folder.file(checkpoint.ADAPTER if lora.adapted_layers(job.model) else checkpoint.BEST)


def load_best(job: Job, in_memory: dict | None) -> None:
    """The best epoch's weights into the model, from the main process to all; a sharded model's from the file
    that all read."""
    if is_sharded(job.running):
        _load_best(job, in_memory)
        return
    job.world.main_alone(_load_best, job, in_memory)
    if job.world.size > 1:
        for tensor in job.running.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


@torch.no_grad()
def _load_best(job: Job, in_memory: dict | None) -> None:
    if in_memory is not None:
        for name, tensor in _state_to_keep(job.running).items():
            local(tensor).copy_(in_memory[name])
        return
    path = best_file(job)
    gone = not path.exists()
    if job.world.any(gone) if is_sharded(job.running) else gone:  # all that read it say it together
        raise InputError(f"{path} is gone, so the test split can't be scored with it")
    wanted, found = _state_to_keep(job.model), load_file(path)["model"]
    if wanted.keys() != found.keys():
        raise InputError(f"{path} was changed while the run went on: it holds other tensors than this run "
                         "writes")
    fill(wanted, found)


def make_whole(job: Job) -> bool:
    """Merge adapters into the model, in every process -> whether there were any; the best checkpoint is then
    written whole.

    They are first written as PEFT keeps them. What scores the test split is what others will load.
    """
    if not lora.adapted_layers(job.model):
        return False
    if job.options.run.savemodel:
        body = job.task.backbone_of(job.model)
        also = list(dict.fromkeys(name.rpartition(".")[0] for name, parameter in body.named_parameters()
                                  if parameter.requires_grad and not is_own(name)))
        tensors = dict(whole_tensors(lora.tensors_of_peft(body, also)))
        job.world.main_alone(_write_peft, job, body, also, tensors)
    lora.merge(job.model)
    return True


def _write_peft(job: Job, body: torch.nn.Module, also: list[str], tensors: dict[str, torch.Tensor]) -> None:
    folder = job.folder.file_to_write("adapter")
    with job.folder.writing(folder):
        lora.write_peft(folder, body, also, tensors, job.options.model.finetune)


# ---- the disk's room for them, asked before the first step -------------------------------------------------

def checkpoint_bytes(job: Job) -> tuple[int, int]:
    """Sizes of checkpoint-last.pth (weights, and AdamW's two moments of what is trained; with its shards,
    where there are any) and checkpoint-best.pth (weights). With adapters the last one holds what is trained
    alone, and beside the best one, which is whole, lies checkpoint-adapter.pth."""
    weights = sum(tensor.nbytes for tensor in job.model.state_dict().values())
    moments = 2 * sum(p.nbytes for p in job.running.parameters() if p.requires_grad)
    if not lora.adapted_layers(job.model):
        return weights + moments, weights
    alone = sum(tensor.nbytes for tensor in lora.trained_state(job.model).values())
    return alone + moments, weights + alone


def needed_bytes(job: Job) -> int:
    """What has to be free before the first step. A checkpoint is written beside the one that it replaces, so
    that for a while there are two; those that a resumed run finds in its folder are replaced, those of an
    earlier run stay in earlier-N. Those of a linear probe are written once, at the end."""
    options, other = job.options, OTHER_BYTES + BYTES_A_PREDICTION * len(job.data.table)
    has_all_epochs = (job.resumed is not None
                      and job.resumed.rest.get("epoch", -1) + 1 >= options.training.epochs)
    if not options.run.savemodel or has_all_epochs:
        return other
    last, best = checkpoint_bytes(job)
    if options.model.adaptation == "lp":
        return other + last + best
    there = 0
    if job.folder.holds(job.resumed):
        files = [*map(job.folder.file, (checkpoint.LAST, checkpoint.BEST)),
                 *job.folder.path.glob(f"{shard_files.PATTERN}/*")]
        there = sum(path.stat().st_size for path in files if path.exists())
    return other + max(last + best + max(last, best) - there, 0)


def require_room(job: Job) -> None:
    """InputError where the room doesn't do (main process)."""
    options, path, (free, files) = job.options, job.folder.path, disk.free_of(job.folder.path)
    if options.run.eval:
        return
    if free < needed_bytes(job):
        without = " (--no_savemodel writes no checkpoints)" if options.run.savemodel else ""
        raise InputError(f"{path} is on a disk with {size_of(free)} free, and this run needs {_needed(job)}: "
                         f"make room, or name another folder with --output_dir{without}")
    if files is not None and files < OTHER_FILES:
        raise InputError(f"{path} is on a disk where only {files} more files can be made (no free inodes): "
                         "delete some, or name another folder with --output_dir")


def describe_room(job: Job) -> list[str]:
    """The line of a dry run, which rejects nothing: it may plan for another machine's disk."""
    free = disk.free_of(job.folder.path)[0]
    return [] if job.options.run.eval else [
        f"disk       about {_needed(job)}; {size_of(free)} free for {job.folder.path}"
        + ("" if needed_bytes(job) <= free else ": too little here")]


def _needed(job: Job) -> str:
    total = size_of(needed_bytes(job))
    if not job.options.run.savemodel:
        return total
    last, best = map(size_of, checkpoint_bytes(job))
    twice = "" if job.options.model.adaptation == "lp" else ", and one of them once more while it is replaced"
    return f"{total} (checkpoint-last.pth {last}, checkpoint-best.pth {best}{twice})"
