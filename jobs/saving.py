"""What of a training outlives a kill: the last checkpoint and the best one, written, read back and found again."""

import copy
from dataclasses import asdict
from pathlib import Path

import torch

from engine_finetune import Trainer
from jobs.job import Job
from jobs.records import content
from util import checkpoint, lora
from util.errors import InputError
from util.state_dicts import load_file


def keep_last(job: Job, trainer: Trainer, epoch: int, best: dict, states: list) -> None:
    """Write the last checkpoint (main process): all that a restart needs."""
    checkpoint.write(job.folder.file(checkpoint.LAST), content(job, epoch, best) | {
        "optimizer": trainer.optimizer.state_dict(), "scaler": trainer.scaler.state_dict(),
        "schedule": {"position": epoch + 1, "effective_batch": job.plan.step_size, **asdict(job.schedule)},
        "data_fingerprint": job.data.fingerprint, "random_states": checkpoint.plain(states)})


def resume(job: Job, trainer: Trainer) -> tuple[int, dict, dict | None]:
    """Put the run back where its checkpoint left it -> (the next epoch, the best one so far, its weights if in memory)."""
    rest = job.resumed.rest
    _restore_optimizer(trainer.optimizer, rest["optimizer"], job.resumed.path)
    if trainer.scaler.is_enabled() and rest["scaler"]:
        trainer.scaler.load_state_dict(rest["scaler"])
    if job.world.is_main:
        job.folder.adopt(job.resumed.path.parent)
    if len(rest["random_states"]) == job.world.size:
        checkpoint.set_random_states(rest["random_states"][job.world.rank], job.world.device)
    first, best, weights = rest["epoch"] + 1, dict(rest["best"]), None
    if job.world.is_main:
        job.folder.cut_after(rest["epoch"])
        best, weights = _require_best(job, best, rest["epoch"])
    before = rest["schedule"]
    for what, stored, here in (("effective batch", before["effective_batch"], job.plan.step_size),
                               ("learning rate", before["peak"], job.schedule.peak)):
        if stored != here:
            job.world.say(f"{what}: {stored:g} before, {here:g} from here on")
    job.world.say(f"resumed at epoch {first} from {job.resumed.path}")
    return first, job.world.from_main(best), weights


def _require_best(job: Job, best: dict, last_epoch: int) -> tuple[dict, dict | None]:
    """The best epoch so far, once its weights are there: from the last checkpoint where that is the best one. With
    --no_savemodel they are kept in memory."""
    path = best_file(job)
    if path.exists() and checkpoint.read(path).rest.get("epoch") == best["epoch"]:
        return best, None
    if best["epoch"] == last_epoch:
        return best, keep_best(job, best)
    job.world.say(f"{path} does not hold the best epoch {best['epoch']}: the search for the best starts anew from here")
    return {"epoch": None, "score": None, "figures": {}}, None


def _restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict, path: Path) -> None:
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
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in optimizer.param_groups] or now != before or any(
            state is not None and tuple(state["exp_avg"].shape) != shapes[name] for name, state in moments.items()):
        raise InputError(f"{path} was trained with other parameters or groups of them (--adaptation, --train_last_blocks, "
                         "--input_size, weight decay 0): start a new run from its weights with --finetune and another --task")
    kept = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    # copied: the file is mapped, and the next checkpoint takes its place
    optimizer.load_state_dict(copy.deepcopy(stored))
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update(own)


def keep_best(job: Job, best: dict) -> dict | None:
    """Write the best epoch's checkpoint, or return its weights where none is written now: with --no_savemodel, and with
    stored features, whose epochs are shorter than a checkpoint's writing (it is written at the end)."""
    adapted = lora.adapted_layers(job.model)
    if job.options.savemodel and job.features is None:
        checkpoint.write(best_file(job), content(job, best["epoch"], best))
        if adapted:
            job.folder.file(checkpoint.BEST).unlink(missing_ok=True)  # an earlier end's: no longer the best
        return None
    state = lora.trained_state(job.running) if adapted else job.running.state_dict()
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def best_file(job: Job) -> Path:
    """Where the best epoch's weights stand while the run goes on."""
    return job.folder.file(checkpoint.ADAPTER if lora.adapted_layers(job.model) else checkpoint.BEST)


def load_best(job: Job, in_memory: dict | None) -> None:
    """The best epoch's weights into the model, from the main process to all."""
    if job.world.is_main:
        path = best_file(job)
        if in_memory is None and not path.exists():
            raise InputError(f"{path} is gone, so the test split can't be scored with it")
        if lora.adapted_layers(job.model):
            lora.put_in(job.model, in_memory or load_file(path)["model"], path)
        elif in_memory is not None:
            job.running.load_state_dict(in_memory)
        else:
            job.model.load_state_dict(load_file(path)["model"])
    if job.world.size > 1:
        for tensor in job.model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def make_whole(job: Job) -> bool:
    """Merge adapters into the model, in every process -> whether there were any; the best checkpoint is then written whole.

    The main process first writes them as PEFT keeps them. What scores the test split is what others will load.
    """
    if not lora.adapted_layers(job.model):
        return False
    if job.world.is_main and job.options.savemodel:
        body = job.task.backbone_of(job.model)
        also = dict.fromkeys(name.rpartition(".")[0] for name, parameter in body.named_parameters()
                             if parameter.requires_grad and not lora.is_own(name))
        folder = job.folder.file("adapter")
        with job.folder.writing(folder):
            lora.write_peft(folder, body, also, job.options.finetune)
    lora.merge(job.model)
    return True
