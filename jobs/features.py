"""The features of a frozen backbone: of every split once, for all that is trained on them."""

import time
from pathlib import Path

import torch

from engine_finetune import outputs
from jobs.job import Job, loader
from util import datasets, summary
from util.probe import feature_file, pictures_digest, stored_features, weights_digest
from util.sharding import is_sharded
from util.transforms import READING


def features_of(job: Job) -> dict[str, torch.Tensor] | None:
    """{split: (N, W)}, computed once or found on the disk (OUTPUT_DIR/.features).

    With --lp_views K above 1 the train pictures of a grid of heads have K random views instead of the
    evaluation's, "train 0" to "train K-1". None, and a line, for a model whose head does not read one feature a picture.
    """
    world, options, reader = job.world, job.options, job.task.feature_reader(job.model)
    if reader is None:
        world.say(f"{job.backbone.arch} has no single linear classifier: its head is trained through the frozen backbone, "
                  "which runs in every epoch")
        return None
    head = job.task.head_of(job.model)
    weights = world.from_main(weights_digest(job.model, without=head) if world.is_main or is_sharded(job.model) else None)
    found, counts, began = {}, {True: 0, False: 0}, time.monotonic()
    for name, split, view in _wanted(options.lp_views if job.task.head_is_linear else 1):
        rows = job.rows(split)
        settings = {"transform": job.eval_transform if view is None else job.train_transform, "reading": READING,
                    "precision": job.precision.name, "backbone": job.backbone.timm_name, "batch": options.batch_size,
                    **({} if view is None else {"view": view, "seed": options.seed})}
        pictures = world.from_main(pictures_digest(list(rows["path"])) if world.is_main else None)
        found[name], was_there = stored_features(
            feature_file(Path(options.output_dir) / ".features", weights, pictures, settings), len(rows),
            lambda split=split, view=view, name=name: outputs(reader, _pictures(job, split, view), job.precision, world,
                                                              f"features of {name}")[1], world)
        counts[was_there] += len(rows)
    world.say(f"features   {counts[False]:,} pictures computed, {counts[True]:,} found stored, width "
              f"{found['val'].shape[1]:,}; {summary.duration(time.monotonic() - began)}")
    return found


def _pictures(job: Job, split: str, view: int | None):
    """Batches of pictures alone: covariates are the head's to read."""
    batches = loader(job, split, view=view)
    batches.dataset.covariates = None
    return batches


def _wanted(views: int) -> list[tuple[str, str, int | None]]:
    """(name, split, random view or None for the evaluation's)."""
    train = [("train", "train", None)] if views == 1 else [(f"train {view}", "train", view) for view in range(views)]
    return train + [(split, split, None) for split in datasets.SPLITS[1:]]
