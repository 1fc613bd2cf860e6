"""The features of a frozen backbone: of every split once, for all that is trained on them."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from engine_finetune import output_chunks
from jobs import disk_space
from jobs.job import Job
from jobs.loaders import loader
from util.core.disk import free_of
from util.data import tables
from util.data.images.transforms import READING
from util.model.feature_kinds import KindsReader
from util.model.frozen_features import (
    feature_file,
    pictures_digest,
    stored_features,
    token_file,
    weights_digest,
)
from util.options.adaptation import ATTENTIVE, POOLED
from util.parallel.sharding import is_sharded
from util.report import terminal

MOST_TOKEN_BYTES = 8 * 2**30  # of all splits together, on the disk
FREE_SHARE = 0.5  # of what is free there once the run itself has its room
PIECE_BYTES = 2**28  # of rows that are gathered at a time


def features_of(job: Job) -> dict[str, torch.Tensor] | None:
    """{split: (N, W)}, computed once or found on the disk (OUTPUT_DIR/.features); for a grid of heads the
    columns of all kinds of features, which `job.kinds` tells apart, and `job.tokens`, what an attentive head
    reads, where there is room for it.

    With --lp_views K above 1 the train images of a grid of heads have K random views instead of the
    evaluation's, "train 0" to "train K-1". None, and a line, for a model whose head does not read one feature
    an image.
    """
    world, options, reader = job.world, job.options, job.task.feature_reader(job.model)
    if reader is None:
        world.say(f"{job.backbone.arch} has no single linear classifier: its head is trained through the "
                  "frozen backbone, which runs in every epoch")
        return None
    head, wanted, kinds = (
        job.task.head_of(job.model),
        _wanted(options.probe.lp_views if job.task.head_is_linear else 1),
        {},
    )
    if job.task.head_is_linear:
        reader = KindsReader(job.model, head, options.model.input_size)
        job.kinds, job.tokens = reader.kinds, {}
        kinds = {} if list(reader.kinds) == [POOLED] else {"kinds": list(reader.parts)}
    weights = world.from_main(weights_digest(job.model, without=head) if world.is_main
                              or is_sharded(job.model) else None)
    found, counts, began, files = {}, {True: 0, False: 0}, time.monotonic(), {}
    for name, split, view in wanted:
        rows = job.rows(split)
        settings = {"transform": job.eval_transform if view is None else job.train_transform,
                    "reading": READING,
                    "precision": job.precision.name, "backbone": job.backbone.timm_name,
                    "batch": options.training.batch_size,
                    **({} if view is None else {"view": view, "seed": options.run.seed}), **kinds}
        pictures = world.from_main(pictures_digest(list(rows["path"])) if world.is_main else None)
        files[name] = feature_file(Path(options.run.output_dir) / ".features", weights, pictures, settings)
    if job.kinds:
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
              f"{found['val'].shape[1]:,}; {terminal.duration(time.monotonic() - began)}")
    return found


def _computed(job: Job, reader: torch.nn.Module, split: str, view: int | None,
              name: str) -> Iterator[np.ndarray]:
    """Rows of what the reader gives out, piece by piece; covariates are the head's to read."""
    batches = loader(job, split, view=view)
    batches.dataset.covariates = None
    width = reader.columns + int(np.prod(reader.tokens)) if job.kinds and reader.with_tokens else 0
    most = max(1, PIECE_BYTES // max(1, 4 * width * job.options.training.batch_size * job.world.size))
    return output_chunks(reader, batches, job.precision, job.world, f"features of {name}", most)


def _has_room(job: Job, reader: KindsReader, wanted: list[tuple[str, str, int | None]],
              files: dict[str, Path]) -> bool:
    """Whether the tokens of all splits may lie on the disk (main process); where not, a line says so."""
    if reader.tokens is None:
        return False
    size = sum(2 * len(job.rows(split)) * int(np.prod(reader.tokens)) for name, split, _ in wanted
               if not token_file(files[name]).exists())
    folder = Path(job.options.run.output_dir)
    free = max(0, free_of(folder)[0] - disk_space.needed_bytes(job))
    if size > min(MOST_TOKEN_BYTES, FREE_SHARE * free):
        why = (f"more than {disk_space.size_of(MOST_TOKEN_BYTES)}" if size > MOST_TOKEN_BYTES else
               f"more than half of the {disk_space.size_of(free)} that this run leaves free in {folder}")
        job.world.say(f"tokens     {disk_space.size_of(size)} of them, {why}: no {ATTENTIVE} head is tried")
        return False
    return True


def _wanted(views: int) -> list[tuple[str, str, int | None]]:
    """(name, split, random view or None for the evaluation's)."""
    train = (
        [("train", "train", None)]
        if views == 1
        else [(f"train {view}", "train", view) for view in range(views)]
    )
    return train + [(split, split, None) for split in tables.SPLITS[1:]]
