"""Heat maps of unlabelled images: a map of each, laid over what the model saw, shared among the processes."""

import itertools
import os
from pathlib import Path

import numpy as np
import torch

from engine_finetune import loaded, to_device
from jobs.inference import loader
from jobs.job import Prediction
from jobs.tasks.classification import Classification
from util.core.errors import InputError
from util.core.partial_rows import PartialRows
from util.core.run_files import write_whole
from util.data.images.transforms import EvalTransform
from util.model.heatmaps import INDEX_FILE, heat_maps, methods_of, pictures_of, write_overlays

BATCH = 16  # images; what fits into memory at once with gradients, heat_maps decides itself
BATCHES_A_PIECE = 16  # of each process, after which the overlays are listed and counted


def folder_of(job: Prediction) -> Path:
    return Path(job.options.heatmaps.heatmaps or Path(job.options.use.output).parent / "heatmaps")


def check(job: Prediction) -> None:
    """InputError where no map of this model can be made or the method does not fit it, or the folder can't be
    made: before hours of predicting."""
    method, fitting = job.options.heatmaps.heatmap_method, methods_of(job.model)
    if method not in ("auto", *fitting):
        raise InputError(f"--heatmap_method {method} does not fit {job.backbone.arch}: choose "
                         f"{' or '.join(fitting)}, or auto")
    side = job.options.model.input_size
    # some models have none
    heat_maps(job.model, torch.linspace(-2, 2, 3 * side**2).view(1, 3, side, side), [0], method)
    folder = folder_of(job)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--heatmaps {folder}: can't be made ({error.strerror}); name another "
                         "folder") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"--heatmaps {folder}: can't be written; name another folder")
    if job.world.is_main and not (folder / INDEX_FILE).exists():
        # it tells overlays from photographs, also where a start is killed
        write_whole(folder / INDEX_FILE, "{}\n")


def draw_heatmaps(job: Prediction, partial: PartialRows | None, outputs: np.ndarray | None) -> None:
    """Overlays of all images in the folder, from where an earlier start came to. outputs: the main process's
    rows."""
    options, world, folder = job.options, job.world, folder_of(job)
    targets, name = _targets(job, outputs)
    mark = f"heat maps of {name} by {options.heatmaps.heatmap_method} in {folder.resolve()}"
    done = world.from_main(partial.marked(mark) if partial is not None else None)
    method = (
        methods_of(job.model)[0]
        if options.heatmaps.heatmap_method == "auto"
        else options.heatmaps.heatmap_method
    )
    world.say(f"heat maps  {method}, of {name}" + (f"; {done:,} are there from an earlier "
                                                   "start" if done else ""))
    table = job.data.table[done:]
    covariates = None if job.covariates is None else job.covariates[done:]
    batches = loader(options, world, table, covariates, EvalTransform(job.transform, job.data.fields), BATCH)
    feed, targets, total = loaded(batches, "heat maps", world), targets[done:], len(job.data.table)
    while done < total:
        positions, maps, pictures = [], [], []
        for (images, _, where), _ in itertools.islice(feed, BATCHES_A_PIECE):
            beside = None if covariates is None else covariates[where]
            maps.append(heat_maps(job.model, to_device(images, world.device), targets[where],
                                  options.heatmaps.heatmap_method, beside))
            pictures += pictures_of(images, job.transform["mean"], job.transform["std"])
            positions += where.tolist()
        if positions:
            write_overlays([table["path"].iloc[place] for place in positions], np.concatenate(maps), folder,
                           pictures)
        done += sum(world.gather(len(positions)))
        if partial is not None:
            partial.mark(mark, done)
    feed.close()
    world.say(f"written to {folder}: {total:,} overlays, listed in heatmaps.json")


def _targets(job: Prediction, outputs: np.ndarray | None) -> tuple[torch.Tensor, str]:
    """(N,) numbers of the outputs whose maps are shown, and what they are."""
    asked, number = job.options.heatmaps.heatmap_of, len(job.data.table)
    if asked is not None:
        return torch.full((number,), job.names.index(asked)), asked
    if isinstance(job.task, Classification):
        return torch.from_numpy(
            job.world.from_main(None if outputs is None else outputs.argmax(axis=1))
        ), "the predicted class"
    return torch.zeros(number, dtype=torch.int64), job.names[0]
