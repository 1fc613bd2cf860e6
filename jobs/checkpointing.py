"""What of a training outlives a kill: the last checkpoint and the best one, written, read back and found
again."""

import shutil
import uuid
from dataclasses import asdict
from pathlib import Path

import torch

from engine_finetune import Progress, Trainer
from jobs.checkpoint_content import content
from jobs.job import Job
from util.core.errors import InputError, RunError
from util.data.sampling import StepPlan
from util.model import lora
from util.parallel.sharding import fill, is_own, is_sharded, local, whole_tensors
from util.parallel.streamed_checkpoint import write_streamed
from util.weights import checkpoint, shard_files
from util.weights.fitting import WeightFile, load_file


def keep_last(job: Job, trainer: Trainer, done: Progress, best: dict, states: list) -> None:
    """Write the last checkpoint (all processes call this): all that a restart needs. Its `epoch` is the last
    whole one; `done` says how far the next has come."""
    write_last(job, content(job, done.epoch - 1, best) | {
        "optimizer": trainer.optimizer.state_dict(), "scaler": trainer.scaler.state_dict(),
        "progress": asdict(done),
        "schedule": {"position": done.epoch + done.steps / job.plan.steps,
                     "effective_batch": job.plan.step_size,
                     "even_steps": job.plan.even, **asdict(job.schedule)},
        "data_fingerprint": job.data.fingerprint, "random_states": checkpoint.plain(states)})


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
    job.world.main_alone(_write_last, job, content, shards)


def _write_last(job: Job, content: dict, shards: str | None) -> None:
    checkpoint.write(job.folder.file_to_write(checkpoint.LAST), content)
    shard_files.remove_unnamed(job.folder.path, shards)


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
    done = Progress(**rest["progress"]) if "progress" in rest else Progress(rest["epoch"] + 1)
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
    if best["epoch"] is None:
        return best, None
    if job.world.from_main(job.world.is_main and path.exists()
                           and checkpoint.read(path).rest.get("epoch") == best["epoch"]):
        return best, None
    if best["epoch"] == last_epoch:
        return best, keep_best(job, best)
    job.world.say(f"{path} does not hold the best epoch {best['epoch']}: the search for the best starts anew "
                  "from here")
    return {"epoch": None, "score": None, "figures": {}}, None


def _restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict, file: WeightFile) -> None:
    """The moments come from the checkpoint, weight decay and layer-wise rates from this start's options.

    InputError where other parameters are trained now, or ones of another shape.
    """
    groups = stored["param_groups"]
    now = [name for group in optimizer.param_groups for name in group["names"]]
    before = [name for group in groups for name in group["names"]]
    shapes = {name: tuple(p.shape) for group in optimizer.param_groups
              for name, p in zip(group["names"], group["params"], strict=True)}
    moments = {name: stored["state"].get(number) for group in groups
               for name, number in zip(group["names"], group["params"], strict=True)}
    if [len(g["params"]) for g in groups] != [len(g["params"])
                                              for g in optimizer.param_groups] or now != before or any(
            state is not None and tuple(state["exp_avg"].shape) != shapes[name]
            for name, state in moments.items()):
        raise InputError(f"{file.path} was trained with other parameters or groups of them (--adaptation, "
                         "--train_last_blocks, --input_size, weight decay 0): start a new run from its "
                         "weights with --finetune and another --task")
    kept = [{key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups]
    optimizer.load_state_dict(stored | {"state": _moments(optimizer, stored["state"], file)})
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update(own)


def _moments(optimizer: torch.optim.Optimizer, stored: dict, file: WeightFile) -> dict:
    """The optimizer's state as its parameters lie, sharded or whole: from a file that may hold it either
    way."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found, waiting = {}, {}
    for number, entry in stored.items():
        found[number] = {}
        for key, tensor in entry.items():
            if tensor.ndim:
                # copied: the file is mapped, and the next checkpoint takes its place
                found[number][key] = torch.zeros_like(parameters[number], dtype=tensor.dtype)
                if tensor.is_meta:
                    waiting[f"optimizer.{number}.{key}"] = found[number][key]
                else:
                    fill({key: found[number][key]}, {key: tensor})
            else:
                found[number][key] = tensor.clone()
    if waiting:
        shard_files.read_shards(shard_files.folder_of(file), waiting)
    return found


def keep_best(job: Job, best: dict) -> dict | None:
    """Write the best epoch's checkpoint, or return its weights where none is written now: with
    --no_savemodel, and with stored features, whose epochs are shorter than a checkpoint's writing (it is
    written at the end). All processes call this; what is returned is the main process's ({} elsewhere), of a
    sharded model each one's shards."""
    if job.options.run.savemodel and job.features is None:
        write_model(job, best_file(job).name, content(job, best["epoch"], best))
        if lora.adapted_layers(job.model) and job.world.is_main:
            job.folder.file(checkpoint.BEST).unlink(missing_ok=True)  # an earlier end's: no longer the best
        return None
    if not (job.world.is_main or is_sharded(job.running)):
        return {}
    return {name: local(tensor).cpu().clone() for name, tensor in _state_to_keep(job.running).items()}


def _state_to_keep(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What of a model its checkpoints hold: all, or of one with adapters what is trained."""
    return lora.trained_state(model) if lora.adapted_layers(model) else model.state_dict()


def best_file(job: Job) -> Path:
    """Where the best epoch's weights stand while the run goes on."""
    return job.folder.file(checkpoint.ADAPTER if lora.adapted_layers(job.model) else checkpoint.BEST)


def load_best(job: Job, in_memory: dict | None) -> None:
    """The best epoch's weights into the model, from the main process to all; a sharded model's from the file
    that all read."""
    if is_sharded(job.running):
        _load_best_shards(job, in_memory)
        return
    job.world.main_alone(_load_best, job, in_memory)
    if job.world.size > 1:
        for tensor in job.running.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def _load_best(job: Job, in_memory: dict | None) -> None:
    if in_memory is not None:
        fill(_state_to_keep(job.running), in_memory)
    elif best_file(job).exists():
        _fill_model(job)
    else:
        raise InputError(f"{best_file(job)} is gone, so the test split can't be scored with it")


@torch.no_grad()
def _load_best_shards(job: Job, in_memory: dict | None) -> None:
    if in_memory is not None:
        for name, tensor in _state_to_keep(job.running).items():
            local(tensor).copy_(in_memory[name])
    elif job.world.any(not best_file(job).exists()):
        raise InputError(f"{best_file(job)} is gone, so the test split can't be scored with it")
    else:
        _fill_model(job)


def _fill_model(job: Job) -> None:
    """The best checkpoint's weights into this process's model, whole or sharded."""
    path = best_file(job)
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
