"""A job from its first step to its results on the disk, for every task. Read `run`, then `_train`."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from engine_finetune import Progress, Trainer, outputs, train_one_epoch
from jobs import parallel, terminal
from jobs.checkpointing import (
    NO_BEST,
    best_in_memory,
    content,
    describe_room,
    keep,
    load_best,
    make_whole,
    remove_torn,
    require_room,
    resume,
    write_model,
    writes_epochs,
)
from jobs.job import Job
from jobs.linear_probe import probe
from jobs.loaders import features_of, fill_cache, images_a_sample, loader
from jobs.model import describe_part, shapes_adapted
from jobs.results import facts, finish_val, is_scored, say_complete, say_end, write_tests
from jobs.setup import prepare, without_effect_here
from jobs.tasks.base import Task
from util.core import signals
from util.core.errors import InputError, RunError
from util.data.images import seen_area
from util.data.loader import Loader
from util.data.sampling import TrainBatches
from util.metrics import selection
from util.metrics.predictions import Evaluated
from util.model import lr_decay, mirrors
from util.options.groups import Options
from util.parallel.compiled import compile_in_place
from util.parallel.processes import World, wrap
from util.parallel.sharding import is_sharded
from util.weights import checkpoint
from util.weights.background import Background


def run(options: Options, world: World, *kinds: type[Task]) -> Task:
    """Train (or only score, or only tell) as the options say -> the task, as it was resolved. kinds: those of
    the program, the usual one first. InputError, RunError: see util/core/errors.py."""
    job = prepare(options, world, *kinds)
    options, paths = job.options, list(job.data.table["path"]) if world.is_main else []
    seen = seen_area.describe(paths, job.eval_transform, job.data.fields, job.data.facts)
    world.say(*terminal.describe(job), *seen, *describe_part(options, job.model), *without_effect_here(job))
    if options.run.dry_run:
        world.say(*_memory(job), *describe_room(job), "dry run: nothing was trained")
        return job.task
    try:
        world.main_alone(remove_torn, job)
        world.main_alone(require_room, job)
        if not is_sharded(job.model):
            job.model.to(world.device)
        fill_cache(job)
        if options.run.eval:
            world.main_alone(_begin_evaluation, job)
            _score(job, None, job.resumed.rest["best"] if checkpoint.is_ours(job.resumed) else {})
            return job.task
        if options.model.adaptation == "lp":
            job.features = features_of(job)
        if job.features is not None and job.task.head_is_linear:
            probe(job)
        else:
            _train(job)
    finally:
        job.folder.close()
    return job.task


def _memory(job: Job) -> list[str]:
    if job.options.run.eval:
        return []
    others, lines = {}, []
    for kind in ("finetune", "lp", "lora"):
        if kind != job.options.model.adaptation:
            try:
                others[kind] = shapes_adapted(job.task, job.model, job.backbone, kind)
            except InputError as error:
                lines.append(f"           {kind}: not counted ({error})")
    covariates = job.task.num_covariates(job.data.table)
    return parallel.table(job.options, job.model, others, job.precision.name, covariates, job.world) + lines


# ---- training ----------------------------------------------------------------------------------------------

def trainer_of(job: Job) -> Trainer:
    options, training, world = job.options, job.options.training, job.world
    groups = lr_decay.parameter_groups(job.running, training.weight_decay, training.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=job.schedule.peak, fused=True)
    if training.compile:
        compile_in_place(job.running, world.device)
    return Trainer(wrap(job.running, world), job.task.loss(job.samples("train")).to(world.device), optimizer,
                   job.precision.scaler(), job.schedule, job.plan, job.precision, world, options.run.seed,
                   training.clip_grad, job.task.mixing(),
                   options.model.adaptation == "lp" and job.features is None,
                   not is_sharded(job.running) or parallel.keeps_gradients(job.running, world),
                   images_a_sample(options))


def evaluate(job: Job, split: str, batches: Loader,
             then: Callable[[], None] | None = None) -> Evaluated | None:
    """What a split's outputs come to, in the main process (None in the others); `then` is called when its
    last images are read. RunError, in all of them, where outputs are no numbers."""
    model = mirrors.with_mirrors(job.running, job.options.model.tta, job.task.kind,
                                 job.options.data.attends)
    values = outputs(model, batches, job.precision, job.world, split, then)
    found = problem = None
    if job.world.is_main:
        try:
            found = job.task.evaluated(job.rows(split), values)
        except RunError as error:
            problem = str(error)
    problem = job.world.from_main(problem)
    if problem:
        raise RunError(problem, everywhere=True)
    return found


@dataclass
class Epoch:
    """What an epoch came to. The predictions are the main process's; the metrics are everybody's."""

    number: int
    training: dict[str, float]
    predictions: Evaluated | None
    metrics: dict[str, float]
    notes: list[str]
    seconds: float


def epochs(job: Job, trainer: Trainer, done: Progress,
           keep: Callable[[Progress], None] | None = None) -> Iterator[Epoch]:
    """Train and evaluate on val, epoch by epoch from where `done` stands; the caller may stop in between.
    `keep` writes a checkpoint inside an epoch."""
    balanced = job.samples("train")["target"].to_numpy() if job.options.mixing.balanced_sampling else None
    train_loader = loader(job, "train",
                          TrainBatches(job.plan, job.world.rank, job.options.run.seed, balanced))
    val_loader, last = loader(job, "val"), job.options.training.epochs - 1

    def read_on() -> None:
        train_loader.batch_sampler.set_epoch(number + 1)
        train_loader.begin()

    for number in range(done.epoch, job.options.training.epochs):
        begun = time.monotonic()
        done = done if number == done.epoch else Progress(number)
        figures, done = train_one_epoch(trainer, train_loader, done, keep, job.options.run.save_every_steps,
                                        val_loader.begin)
        job.world.share_buffers(job.running)
        try:
            predictions = evaluate(job, "val", val_loader, read_on if number < last else None)
        except signals.StopRequested as stop:
            if keep is None:
                raise
            keep(done)
            raise signals.StopRequested(f"epoch {number} is trained and in the last checkpoint, not yet "
                                        "evaluated", together=True) from stop
        metrics, notes = job.world.from_main(job.task.metrics(predictions.table) if job.world.is_main
                                             else None)
        yield Epoch(number, figures, predictions, metrics, notes, time.monotonic() - begun)


def is_better(score: float, best: float | None) -> bool:
    """Whether a score beats the best one so far; any number beats none and NaN."""
    return best is None or score > best or math.isnan(best)


def _train(job: Job) -> None:
    options, world, folder = job.options, job.world, job.folder
    trainer = trainer_of(job)
    done, best, best_weights, resumed_at = Progress(options.run.start_epoch), NO_BEST, None, None
    if job.resumed is None:
        world.main_alone(lambda: world.say(*folder.put_aside()))
    else:
        done, best, best_weights = resume(job, trainer)
        resumed_at = done.epoch
    is_trained = done.epoch >= options.training.epochs
    if world.from_main(is_trained and is_scored(job, best["epoch"])):
        say_complete(job)
        return
    world.main_alone(lambda: folder.write_run(facts(job), resumed_at))
    started, epoch = time.monotonic(), None
    # without a checkpoint on the disk there is nothing that a few more seconds could save
    keeps, background = writes_epochs(job), Background()

    def keep_step(progress: Progress) -> None:
        keep(job, trainer, progress, best, background)

    with signals.held() if keeps else nullcontext(), background:
        for epoch in epochs(job, trainer, done, keep_step if keeps else None):
            is_best = is_better(epoch.metrics[job.task.score], best["score"])
            if epoch.number == done.epoch:
                world.say(*(f"val: {note}" for note in epoch.notes),
                          *selection.undefined(options.metrics.select_metric, epoch.metrics[job.task.score],
                                               "the last epoch"))
            if is_best:
                best = {"epoch": epoch.number, "score": epoch.metrics[job.task.score],
                        "figures": epoch.metrics}
                best |= job.task.decide(epoch.predictions.table) if world.is_main else {}
            world.say(terminal.epoch_line(job.task, epoch.number, options.training.epochs, epoch.training,
                                          epoch.metrics, is_best, epoch.seconds))
            rows = [partial(_write_rows, job, epoch, is_best, background.rest)]
            if keeps:
                keep(job, trainer, Progress(epoch.number + 1), best, background, rows, is_best)
            else:
                world.main_alone(background.begin, rows)
                best_weights = best_in_memory(job) if is_best else best_weights
        world.main_alone(background.wait)
        if world.any(signals.asked()):
            raise signals.StopRequested("all epochs are trained, the test split is not scored yet",
                                        together=True)
    if job.features is not None and epoch is not None and options.run.savemodel:
        keep(job, trainer, Progress(epoch.number + 1), best, background)
    load_best(job, best_weights)
    made_whole = make_whole(job)
    if (made_whole or best_weights is not None) and options.run.savemodel:
        write_model(job, checkpoint.BEST, content(job, best["epoch"], best))
    _score(job, best["epoch"], best, [partial(finish_val, job, best)])
    say_end(job, best, started)


def _write_rows(job: Job, epoch: Epoch, is_best: bool, rest: Callable[[float], object]) -> None:
    """An epoch's rows and scalars. Those past the checkpoint are cut when the run is resumed, so they are
    written before it. rest: see `Background`."""
    folder, values = job.folder, {f"val_{name}": value for name, value in epoch.metrics.items()}
    predictions = epoch.predictions if is_best else None
    folder.add_evaluation("val", predictions, epoch.metrics, epoch.number, rest=rest)
    folder.add_log({"epoch": epoch.number, **epoch.training, **values, "seconds": round(epoch.seconds, 1)})
    folder.add_scalars({**epoch.training, **values}, epoch.number)


def _score(job: Job, epoch: int | None, decided: dict, beside: Sequence[Callable[[], object]] = ()) -> None:
    """Evaluate the test sets, write what came out, and print it. beside: what a thread of the main process
    does during the first of them, such as val's 2,000 resamples, which would keep a GPU waiting."""
    loaders, predictions = {split: loader(job, split) for split in job.data.test_sets}, {}
    next(iter(loaders.values())).begin()  # its workers are forked before there is a thread
    with Background() as background:
        job.world.main_alone(background.begin, beside)
        for split, batches in loaders.items():
            predictions[split] = evaluate(job, split, batches)
            job.world.main_alone(background.wait)
    job.world.main_alone(write_tests, job, predictions, epoch, decided)


def _begin_evaluation(job: Job) -> None:
    job.world.say(*job.folder.put_foreign_tables_aside())
    if not job.folder.file("run.json").exists():
        job.folder.write_run(facts(job))
