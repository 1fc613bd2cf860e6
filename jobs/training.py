"""A job from its first step to its results on the disk, for every task. Read `run`, then `_train`."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from engine_finetune import Trainer, outputs, train_one_epoch
from jobs.features import features_of
from jobs.job import Job, fill_cache, loader, prepare, without_effect_here
from jobs.probe import probe
from jobs.records import content, draw, facts, report
from jobs.task import Task
from util import checkpoint, datasets, summary
from util import options as flags
from util.distributed import World, wrap
from util.errors import InputError, RunError
from util.lr_decay import parameter_groups
from util.memory import estimate_memory
from util.sampling import TrainBatches
from util.state_dicts import load_file


def run(parsed: flags.Parsed, world: World, task: Task) -> None:
    """Train (or only score, or only tell) as the options say. InputError, RunError: see util/errors.py."""
    options, job = parsed.options, prepare(parsed, world, task)
    world.say(*summary.describe(job), *without_effect_here(parsed, job))
    if options.dry_run:
        world.say(*_memory(job), "dry run: nothing was trained")
        return
    job.precision.prepare()
    try:
        job.model.to(world.device)
        if options.eval:
            fill_cache(job, ("test",))
            _evaluate_only(job)
            return
        fill_cache(job, datasets.SPLITS)
        if options.adaptation == "lp":
            job.features = features_of(job)
        if job.features is not None and task.head_is_linear:
            probe(job)
        else:
            _train(job)
    except torch.OutOfMemoryError as error:
        raise RunError(f"the device's memory is full at --batch_size {options.batch_size} (--dry_run estimates the need): "
                       "lower --batch_size and raise --accum_iter alike, which keeps the effective batch") from error


def _memory(job: Job) -> list[str]:
    if job.options.eval:
        return []
    covariates = job.task.covariates(job.rows("train")[:1])
    estimate = estimate_memory(job.model, job.options.batch_size, job.options.input_size, job.precision.name,
                               0 if covariates is None else covariates.shape[1])
    return [f"memory     about {estimate}"]


# ---- training -------------------------------------------------------------------------------------------------------

def trainer_of(job: Job) -> Trainer:
    options, world = job.options, job.world
    optimizer = torch.optim.AdamW(parameter_groups(job.running, options.weight_decay, options.layer_decay),
                                  lr=job.schedule.peak, fused=True)
    if options.compile:
        job.running.compile()  # in place: names of the weights stay as they are
    return Trainer(wrap(job.running, world), job.task.loss(job.rows("train")).to(world.device), optimizer,
                   job.precision.scaler(), job.schedule, job.plan, job.precision, world, options.seed, options.clip_grad,
                   job.task.mixing(), eval_mode=options.adaptation == "lp" and job.features is None)


def evaluate(job: Job, split: str, batches) -> pd.DataFrame | None:
    """The predictions table of a split, in the main process (None in the others). RunError, in all of them, where outputs
    are no numbers."""
    _, values = outputs(job.running, batches, job.precision, job.world, split)
    table = problem = None
    if job.world.is_main:
        try:
            table = job.task.predictions(job.rows(split), values)
        except RunError as error:
            problem = str(error)
    problem = job.world.from_main(problem)
    if problem:
        raise RunError(problem, everywhere=True)
    return table


@dataclass
class Epoch:
    """What an epoch came to. The predictions table is the main process's; the figures are everybody's."""

    number: int
    training: dict[str, float]
    predictions: pd.DataFrame | None
    metrics: dict[str, float]
    notes: list[str]
    seconds: float


def epochs(job: Job, trainer: Trainer, first: int) -> Iterator[Epoch]:
    """Train and evaluate on val, epoch by epoch from `first`; the caller may stop in between."""
    train_loader = loader(job, "train", TrainBatches(job.plan, job.world.rank, job.options.seed))
    val_loader = loader(job, "val")
    for number in range(first, job.options.epochs):
        begun = time.monotonic()
        figures = train_one_epoch(trainer, train_loader, number)
        job.world.share_buffers(job.running)
        predictions = evaluate(job, "val", val_loader)
        metrics, notes = job.world.from_main(job.task.metrics(predictions) if job.world.is_main else None)
        yield Epoch(number, figures, predictions, metrics, notes, time.monotonic() - begun)


def is_better(score: float, best: float | None) -> bool:
    """Whether a score beats the best one so far; any number beats none and NaN."""
    return best is None or score > best or math.isnan(best)


def _train(job: Job) -> None:
    options, world, folder = job.options, job.world, job.folder
    trainer = trainer_of(job)
    first, best, best_weights = options.start_epoch, {"epoch": None, "score": None, "figures": {}}, None
    if job.resumed is not None:
        first, best, best_weights = _resume(job, trainer)
    elif world.is_main:
        line = folder.put_aside()
        if line:
            world.say(line)
    complete = world.from_main(first >= options.epochs and folder.is_scored(best["epoch"]))
    if world.is_main:
        checkpoint.remove_torn(folder.path)
        if not complete:
            folder.write_run(facts(job), first if job.resumed is not None else None)
    started = time.monotonic()
    epoch = states = None
    for epoch in epochs(job, trainer, first):
        is_best = is_better(epoch.metrics[job.task.score], best["score"])
        if epoch.number == first:
            world.say(*(f"val: {note}" for note in epoch.notes))
        if is_best:
            best = {"epoch": epoch.number, "score": epoch.metrics[job.task.score], "figures": epoch.metrics}
            best |= job.task.decide(epoch.predictions) if world.is_main else {}
        states = world.gather(checkpoint.random_states(world.device))
        if world.is_main:
            kept = _keep_epoch(job, trainer, epoch, best, states)
            best_weights = kept if is_best else best_weights
        world.barrier()
    if job.features is not None and world.is_main and epoch is not None and options.savemodel:
        _keep_last(job, trainer, epoch.number, best, states)
    if world.is_main and not complete:
        folder.draw_curves(best["epoch"])
        _finish_val(job, best)
    if complete:
        world.say(*summary.figures(job.task, "test", folder.figures("test"), folder),
                  f"this run is complete: its results stand in {folder.path}")
    else:
        _load_best(job, best_weights)
        if world.is_main and best_weights is not None and options.savemodel:
            checkpoint.write(folder.file(checkpoint.BEST), content(job, best["epoch"], best))
        _score(job, "test", best["epoch"], best)
        world.say(f"best epoch {best['epoch']} (val {options.select_metric} {best['score']:.4f}); trained in "
                  f"{summary.duration(time.monotonic() - started)}; results in {folder.path}")
    if world.is_main:
        folder.close()


def _keep_epoch(job: Job, trainer: Trainer, epoch: Epoch, best: dict, states: list) -> dict | None:
    """Write an epoch down (main process) -> the best weights, where no checkpoint keeps them."""
    folder, is_best = job.folder, best["epoch"] == epoch.number
    folder.add_evaluation("val", epoch.predictions, epoch.metrics, epoch.number, keep=is_best)
    values = {f"val_{name}": value for name, value in epoch.metrics.items()}
    folder.add_log({"epoch": epoch.number, **epoch.training, **values, "seconds": round(epoch.seconds, 1)})
    job.world.say(summary.epoch_line(job.task, epoch.number, job.options.epochs, epoch.training, epoch.metrics, is_best,
                                     epoch.seconds))
    # the last one first: it can stand in for the best of the same epoch, should the run be cut between the two
    if job.options.savemodel and job.features is None:
        _keep_last(job, trainer, epoch.number, best, states)
    kept = _keep_best(job, best) if is_best else None
    folder.add_scalars({**epoch.training, **values}, epoch.number)
    return kept


def _keep_last(job: Job, trainer: Trainer, epoch: int, best: dict, states: list) -> None:
    checkpoint.write(job.folder.file(checkpoint.LAST), content(job, epoch, best) | {
        "optimizer": trainer.optimizer.state_dict(), "scaler": trainer.scaler.state_dict(),
        "schedule": {"position": epoch + 1, "effective_batch": job.plan.step_size, **asdict(job.schedule)},
        "data_fingerprint": job.data.fingerprint, "random_states": checkpoint.plain(states)})


def _resume(job: Job, trainer: Trainer) -> tuple[int, dict, dict | None]:
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
    path = job.folder.file(checkpoint.BEST)
    if path.exists() and checkpoint.read(path).rest.get("epoch") == best["epoch"]:
        return best, None
    if best["epoch"] == last_epoch:
        return best, _keep_best(job, best)
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
        raise InputError(f"{path} was trained with other parameters or groups of them (--adaptation, --input_size, weight "
                         "decay 0): start a new run from its weights with --finetune and another --task")
    kept = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    # copied: the file is mapped, and the next checkpoint takes its place
    optimizer.load_state_dict(copy.deepcopy(stored))
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update(own)


def _keep_best(job: Job, best: dict) -> dict | None:
    """Write the best epoch's checkpoint, or return its weights where none is written now: with --no_savemodel, and with
    stored features, whose epochs are shorter than a checkpoint's writing (it is written at the end)."""
    if job.options.savemodel and job.features is None:
        checkpoint.write(job.folder.file(checkpoint.BEST), content(job, best["epoch"], best))
        return None
    return {name: tensor.detach().cpu().clone() for name, tensor in job.running.state_dict().items()}


def _load_best(job: Job, in_memory: dict | None) -> None:
    """The best epoch's weights into the model, from the main process to all."""
    if job.world.is_main:
        if in_memory is not None:
            job.running.load_state_dict(in_memory)
        elif job.folder.file(checkpoint.BEST).exists():
            job.model.load_state_dict(load_file(job.folder.file(checkpoint.BEST))["model"])
        else:
            raise InputError(f"{job.folder.file(checkpoint.BEST)} is gone, so the test split can't be scored with it")
    if job.world.size > 1:
        for tensor in job.model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def _finish_val(job: Job, best: dict) -> None:
    """Intervals and pictures of the best epoch's predictions on val, once it is known to be the best."""
    path = job.folder.file("predictions_val.csv")
    if path.exists():
        job.folder.write_figures("val", job.task.intervals(job.task.read_predictions(path), best["figures"], best))
    draw(job, "val")


def _score(job: Job, split: str, epoch: int | None, decided: dict) -> None:
    """Evaluate a split, write what came out, and print it."""
    world = job.world
    predictions = evaluate(job, split, loader(job, split))
    if not world.is_main:
        return
    metrics, notes = job.task.metrics(predictions)
    entries = job.task.intervals(predictions, metrics, decided)
    job.folder.add_evaluation(split, predictions, metrics, epoch, keep=True, entries=entries)
    notes += draw(job, split)
    world.say(*(f"{split}: {note}" for note in notes), *summary.figures(job.task, split, entries, job.folder), *report(job))


def _evaluate_only(job: Job) -> None:
    if job.world.is_main:
        job.world.say(*job.folder.put_foreign_tables_aside())
        if not job.folder.file("run.json").exists():
            job.folder.write_run(facts(job))
    _score(job, "test", None, job.resumed.rest["best"] if checkpoint.is_ours(job.resumed) else {})
