"""The batches of a job: the plan of its steps, the cache of decoded images, a loader for each split, the
features of a frozen backbone."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from engine_finetune import Schedule, output_chunks
from jobs.checkpointing import needed_bytes
from jobs.data import cache_folder, is_cached
from jobs.job import Job
from util.core import disk, machine
from util.core.errors import InputError
from util.core.plain_numbers import duration, size_of
from util.data import cases, sampling
from util.data.dataset import CaseDataset, ImageDataset
from util.data.images import cache, transforms
from util.data.loader import Loader, make_loader
from util.model import feature_kinds, lr_schedule
from util.model.frozen_features import (
    FeatureDataset,
    feature_file,
    pictures_digest,
    stored_features,
    token_file,
    weights_digest,
)
from util.options.adaptation import ATTENTIVE, POOLED
from util.options.flag import AUTO, OFF
from util.options.groups import Options
from util.parallel.processes import World
from util.parallel.sharding import is_sharded

# training's batches in one of an evaluation, which keeps no activations; on CPUs more only cost time
GPU_EVAL_BATCHES = 2
MOST_TOKEN_BYTES = 8 * 2**30  # of all splits together, on the disk
FREE_SHARE = 0.5  # of what is free there once the run itself has its room
PIECE_BYTES = 2**28  # of rows that are gathered at a time


def plan_training(job: Job) -> None:
    images, model, training = job.options.images, job.options.model, job.options.training
    reading = job.eval_transform
    job.train_transform = transforms.read_alike(transforms.train_settings(
        model.input_size, reading["mean"], reading["std"], reading["decode"], images, model), reading)
    # a dry run is one process and may plan for several
    planned = job.options.compatibility.world_size if job.options.run.dry_run else 1
    even = job.resumed is None or job.resumed.rest.get("schedule", {}).get("even_steps", False)
    # of a case as many images as --case_size says are in a step
    a_sample = images_a_sample(job.options)
    job.plan = sampling.StepPlan(len(job.samples("train")), max(1, training.batch_size // a_sample),
                                 training.accum_iter, max(planned, job.world.size), even)
    peak = training.lr if training.lr is not None else training.blr * job.plan.step_size * a_sample / 256
    if training.min_lr > peak:
        raise InputError(f"--min_lr {training.min_lr:g} is above the peak rate {peak:g}: lower it, or raise "
                         "--lr or --blr")
    warmup = lr_schedule.usable_warmup(training.warmup_epochs, training.epochs)
    job.schedule = Schedule(peak, training.min_lr, warmup, training.epochs)


def images_a_sample(options: Options) -> int:
    """Most images of a training step's sample: of a case, where an attention over them is trained."""
    data = options.data
    return data.case_size if data.attends and options.model.adaptation != "lp" else 1


def fill_cache(job: Job) -> None:
    """With --image_cache: `job.cache` with the images that this launch reads again and again. The check of
    all files has filled it (`job.filled`) on the main process's machine; what it had to leave out, and the
    folders that were named and that other machines have of their own, are filled here by the first process
    of each machine."""
    options, world, side = job.options, job.world, job.eval_transform.get("kept")
    asked = options.images.image_cache
    if asked == OFF or (asked == AUTO and not world.from_main(job.filled is not None)):
        return
    if not side:
        whose = options.run.resume or "--cache_size own"
        world.say(f"--image_cache does nothing: {whose} reads images at their own size "
                  "(--cache_size brings them to another)")
        return
    paths = list(job.data.table["path"][is_cached(options, job.data.table["split"])])

    def of(say: Callable[[str], None], fill: bool) -> cache.ImageCache:
        kept = cache.Kept.of(job.eval_transform, job.data.fields)
        return cache.open_cache(cache_folder(options), paths, kept, machine.usable_cores(), say, fill,
                                job.filled)

    fills = world.is_main if asked == AUTO else world.local_rank == 0
    job.cache = of(world.say, fill=True) if fills else None
    world.barrier()
    if job.cache is None:
        job.cache = of(world.say, fill=False)


def loader(job: Job, split: str, batches: sampling.TrainBatches | sampling.EvalBatches | None = None,
           view: int | None = None) -> Loader:
    """Batches of a split: as `batches` says, through the training's transform; else all of it in order,
    through the evaluation's. view: all of it in order, through the training's transform as in that epoch."""
    options, rows = job.options, job.rows(split)
    if job.features is not None:
        dataset = FeatureDataset(job.features[split], job.task.targets(rows), list(rows["path"]),
                                 job.task.covariates(rows))
        batches = batches or sampling.EvalBatches(len(rows), options.training.batch_size, job.world.rank,
                                                  job.world.size)
        return make_loader(dataset, batches, 0, False)
    random_view = batches is not None or view is not None
    transform = (transforms.TrainTransform(job.train_transform, job.data.fields) if random_view else
                 transforms.EvalTransform(job.eval_transform, job.data.fields))
    size = options.training.batch_size * (1 if job.world.device.type == "cpu" else GPU_EVAL_BATCHES)
    batches = batches or sampling.EvalBatches(len(rows), size, job.world.rank, job.world.size, view or 0)
    pinned = options.run.pin_mem and job.world.device.type == "cuda"
    dataset = ImageDataset(rows, job.task.targets(rows), transform, options.run.seed,
                           job.task.covariates(rows), job.cache)
    if isinstance(batches, sampling.TrainBatches) and options.data.attends:
        samples, owners = cases.of_images(rows)
        dataset = CaseDataset(dataset, owners, job.task.targets(samples), images_a_sample(options))
    return make_loader(dataset, batches, workers(options, job.world), pinned)


def workers(options: Options, world: World) -> int:
    """Loader processes: as asked, at most this machine's cores divided by its processes."""
    most, asked = max(1, machine.usable_cores() // world.local_size), options.run.num_workers
    return most if asked is None else min(asked, most)


# ---- the features of a frozen backbone: of every split once, for all that is trained on them ---------------

def features_of(job: Job) -> dict[str, torch.Tensor] | None:
    """{split: (N, W)}, computed once or found on the disk (OUTPUT_DIR/.features); for a grid of heads the
    columns of all kinds of features, which `job.kinds` tells apart, and `job.tokens`, what an attentive head
    reads, where there is room for it.

    With --lp_views K above 1 the train images of a grid of heads have K random views instead of the
    evaluation's, "train 0" to "train K-1". None, and a line, for a model whose head does not read one feature
    an image.
    """
    world, options = job.world, job.options
    with job.precision.autocast():
        reader = job.task.feature_reader(job.model)
    if reader is None:
        world.say(f"{job.backbone.arch} has no single linear classifier: its head is trained through the "
                  "frozen backbone, which runs in every epoch")
        return None
    head, kinds = job.task.head_of(job.model), {}
    # name, split, random view or None for the evaluation's
    wanted: list[tuple[str, str, int | None]] = [(split, split, None) for split in job.data.splits]
    if job.task.head_is_linear:
        if options.probe.lp_views > 1:
            wanted[:1] = [(f"train {view}", "train", view) for view in range(options.probe.lp_views)]
        job.kinds, job.tokens = reader.kinds, {}
        kinds = {} if list(reader.kinds) == [POOLED] else {"kinds": list(reader.parts)}
    weights = world.from_main(weights_digest(job.model, without=head)
                              if world.is_main or is_sharded(job.model) else None)
    found, counts, began, files = {}, {True: 0, False: 0}, time.monotonic(), {}
    for name, split, view in wanted:
        rows = job.rows(split)
        settings = {"transform": job.eval_transform if view is None else job.train_transform,
                    "reading": transforms.READING, "precision": job.precision.name,
                    "backbone": job.backbone.timm_name, "batch": options.training.batch_size,
                    **({} if job.world.device.type == "cpu" else {"device": job.world.device.type}),
                    **({} if view is None else {"view": view, "seed": options.run.seed}), **kinds}
        pictures = world.from_main(pictures_digest(list(rows["path"])) if world.is_main else None)
        files[name] = feature_file(Path(options.run.output_dir) / ".features", weights, pictures, settings)
    if job.kinds and not options.data.attends:
        reader.with_tokens = world.from_main(_has_room(job, reader, wanted, files) if world.is_main else None)
    shape = (reader.columns, reader.tokens if reader.with_tokens else None) if job.kinds else ()
    for name, split, view in wanted:
        found[name], tokens, was_there = stored_features(
            files[name], len(job.rows(split)),
            lambda split=split, view=view, name=name: _computed(job, reader, split, view, name), world,
            *shape)
        if tokens is not None:
            job.tokens[name] = tokens
        counts[was_there] += len(job.rows(split))
    job.tokens = job.tokens if job.tokens and len(job.tokens) == len(wanted) else None
    world.say(f"features   {counts[False]:,} images computed, {counts[True]:,} found stored, width "
              f"{found['val'].shape[1]:,}; {duration(time.monotonic() - began)}")
    return found


def _computed(job: Job, reader: torch.nn.Module, split: str, view: int | None,
              name: str) -> Iterator[np.ndarray]:
    """Rows of what the reader gives out, piece by piece; covariates are the head's to read."""
    batches = loader(job, split, view=view)
    batches.dataset.covariates = None
    width = reader.columns + int(np.prod(reader.tokens)) if job.kinds and reader.with_tokens else 0
    most = max(1, PIECE_BYTES // max(1, 4 * width * job.options.training.batch_size * job.world.size))
    return output_chunks(reader, batches, job.precision, job.world, f"features of {name}", most)


def _has_room(job: Job, reader: feature_kinds.KindsReader, wanted: list[tuple[str, str, int | None]],
              files: dict[str, Path]) -> bool:
    """Whether the tokens of all splits may lie on the disk (main process); where not, a line says so."""
    if reader.tokens is None:
        return False
    size = sum(2 * len(job.rows(split)) * int(np.prod(reader.tokens)) for name, split, _ in wanted
               if not token_file(files[name]).exists())
    folder = Path(job.options.run.output_dir)
    free = max(0, disk.free_of(folder)[0] - needed_bytes(job))
    if size > min(MOST_TOKEN_BYTES, FREE_SHARE * free):
        why = (f"more than {size_of(MOST_TOKEN_BYTES)}" if size > MOST_TOKEN_BYTES else
               f"more than half of the {size_of(free)} that this run leaves free in {folder}")
        job.world.say(f"tokens     {size_of(size)} of them, {why}: no {ATTENTIVE} head is tried")
        return False
    return True


