"""A job from its first step to its results on the disk, for every task. Read `run`, then `_train`."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch

from engine_finetune import Trainer, outputs, train_one_epoch
from jobs.features import features_of
from jobs.job import Job, fill_cache, loader, prepare, without_effect_here
from jobs.part import describe as describe_part
from jobs.probe import probe
from jobs.records import content, draw, facts, report
from jobs.saving import keep_best, keep_last, load_best, make_whole, resume
from jobs.task import Task
from util import checkpoint, datasets, summary
from util import options as flags
from util.distributed import World, wrap
from util.errors import RunError
from util.lr_decay import parameter_groups
from util.memory import estimate_memory
from util.sampling import TrainBatches


def run(parsed: flags.Parsed, world: World, task: Task) -> None:
    """Train (or only score, or only tell) as the options say. InputError, RunError: see util/errors.py."""
    options, job = parsed.options, prepare(parsed, world, task)
    world.say(*summary.describe(job), *describe_part(options, job.model), *without_effect_here(parsed, job))
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
        first, best, best_weights = resume(job, trainer)
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
        keep_last(job, trainer, epoch.number, best, states)
    if world.is_main and not complete:
        folder.draw_curves(best["epoch"])
        _finish_val(job, best)
    if complete:
        world.say(*summary.figures(job.task, "test", folder.figures("test"), folder),
                  f"this run is complete: its results stand in {folder.path}")
    else:
        load_best(job, best_weights)
        made_whole = make_whole(job)
        if world.is_main and (made_whole or best_weights is not None) and options.savemodel:
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
        keep_last(job, trainer, epoch.number, best, states)
    kept = keep_best(job, best) if is_best else None
    folder.add_scalars({**epoch.training, **values}, epoch.number)
    return kept


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
