"""Trained weights and unlabelled images: what predict.py and latent_feature.py have in common.

Read `take_checkpoint` for what is taken from a checkpoint, and `computed` for how a row an image is computed
so that a start that was killed goes on.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

import models_vit
from engine_finetune import make_loader, output_chunks
from jobs.loaders import GPU_EVAL_BATCHES, workers
from jobs.run_folder import versions
from jobs.tasks.base import Task
from jobs.tasks.classification import Classification
from jobs.tasks.regression import Regression
from util.core.errors import InputError, RunError
from util.core.partial_rows import PartialRows
from util.data import tables
from util.data.dataset import ImageDataset
from util.data.images import transforms
from util.data.images.fundus_fields import Fields
from util.data.images.scan import ImageFacts
from util.data.sampling import EvalBatches
from util.data.unlabelled import Unlabelled, facts_file, fundus_files, read_unlabelled, skipped_file
from util.model.frozen_features import pictures_digest
from util.model.precision import Precision
from util.options.groups import Options
from util.options.table import FLAGS, own_values
from util.parallel.processes import World
from util.report import fundus_sheet
from util.weights import checkpoint
from util.weights.fitting import WeightFile

TASKS = {task.kind: task for task in (Classification, Regression)}
DEFAULT_BATCH = 64  # where nothing says how large training's was


# ---- the checkpoint ----------------------------------------------------------------------------------------

def take_checkpoint(options: Options, file: WeightFile) -> tuple[Task, list[str]]:
    """The checkpoint's task, whose options have what the checkpoint says filled in, and lines for the user.
    InputError."""
    lines: list[str] = []
    if not checkpoint.is_ours(file):
        kind = Classification
        options, line = kind.with_foreign(options, file)
        options = options.having(decode=options.images.decode or "full",
                                 fc_norm_passes=options.model.fc_norm_passes or 1)
        lines.append(line)
    else:
        stored, own = file.rest["options"], own_values(options)
        kind = TASKS[file.rest.get("task", Classification.kind)]
        taken = [flag.name for flag in FLAGS.values() if flag.of_checkpoint]
        changed = [f"--{name} {stored.get(name)} -> {own[name]}" for name in taken
                   if name in options.typed - {"batch_size"} and stored.get(name) != own[name]]
        if changed:
            lines.append(f"differs from {file.path}, and the command line wins: {'; '.join(changed)}")
        values = {name: value for name, value in stored.items() if name in FLAGS and name not in own}
        values |= {name: stored.get(name) for name in taken if name not in options.typed}
        options = options.having(**{"select_metric": FLAGS["select_metric"].in_program(kind.program).default}
                                 | values)
    return kind(options.having(eval=True, csv_file=options.use.input,  # used as it is
                               batch_size=options.training.batch_size or DEFAULT_BATCH)), lines


def num_classes_of(file: WeightFile, backbone: models_vit.Backbone, options: Options) -> int:
    """Rows of a checkpoint's classifier; InputError where it has none."""
    asked = options.model
    with torch.device("meta"):
        model = models_vit.build_model(backbone, 1, asked.input_size, 0.0, asked.global_pool,
                                       asked.fc_norm_passes)
    heads = tuple(f"{head}." for head in models_vit.head_names(model))
    rows = [len(tensor) for name, tensor in file.tensors.items()
            if name.startswith(heads) and name.endswith("weight") and tensor.ndim > 1]
    if not rows:
        raise InputError(f"{file.path} has no classifier ({heads[0]}weight): it holds a backbone's weights, "
                         "which predict nothing yet; start from it with main_finetune.py --finetune "
                         f"{file.path}")
    return rows[-1]


# ---- images ------------------------------------------------------------------------------------------------

def read_pictures(options: Options, world: World, covariates: tuple[str, ...] = ()) -> Unlabelled:
    """The images of --input, those that don't decode refused or left out as --bad_images says."""
    def read() -> Unlabelled:
        data = read_unlabelled(options.use.input, options.data.path_col, covariates, options.data.path_suffix)
        others, listed = data.others, skipped_file(options.use.output)
        table_file, sheet, remembered = fundus_files(options.use.output)
        fields = Fields(remembered, options.model.read_images
                        == "as_shown") if options.model.fundus_crop == "auto" else None
        facts = ImageFacts(facts_file(options.use.output))
        if not options.data.skip_file_check:
            checked = tables.check_files(data, options.data.bad_images, facts,
                                         listed if world.is_main else None, fields=fields)
            if len(checked.table) == len(data.table) and world.is_main:
                listed.unlink(missing_ok=True)  # an earlier start's: its images have been mended
        else:
            checked = tables.look_at_some(data, facts, fields)
        paths = list(checked.table["path"])
        if fields is not None and world.is_main:
            world.say(*fundus_sheet.report(fields, paths, table_file, sheet))
        return Unlabelled(checked.table, [], checked.notes, others=others, fields=fields,
                          facts=facts.of(paths))

    with no_room(f"the folder of --output {options.use.output}"):
        return world.main_first(read)


@contextmanager
def no_room(what: str) -> Iterator[None]:
    """Turns a disk that can't be written into a RunError of one line."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{what} can't be written ({error.strerror or error}): make room and start again; it "
                       "goes on where it was") from error


# ---- computing ---------------------------------------------------------------------------------------------

def loader(options: Options, world: World, table: pd.DataFrame, covariates: torch.Tensor | None,
           transform: transforms.EvalTransform, batch_size: int):
    """Batches of the table's images in order, as evaluation reads them; whole batches are dealt to the
    processes."""
    dataset = ImageDataset(table, np.zeros(len(table), np.int64), transform, 0, covariates)
    return make_loader(dataset, EvalBatches(len(table), batch_size, world.rank, world.size),
                       workers(options, world), world.device.type == "cuda")


def computed(model: torch.nn.Module, data: Unlabelled, covariates: torch.Tensor | None, options: Options,
             world: World,
             precision: Precision, transform: dict, depends_on: dict, title: str) -> PartialRows | None:
    """A row of outputs an image, (N, K), in the files beside --output (main process; None in the others).

    What an earlier start computed is taken where everything that a row depends on is the same: `depends_on`
    (the weights and what is done with them) and what stands here. RunError for outputs that are no numbers
    and a full disk or device.
    """
    size = options.training.batch_size * (1 if world.device.type == "cpu" else GPU_EVAL_BATCHES)

    def find() -> PartialRows | None:
        if not world.is_main:
            return None
        beside = None if covariates is None else hashlib.sha256(covariates.numpy().tobytes()).hexdigest()
        partial = PartialRows(options.use.output, depends_on | {
            "transform": transform, "reading": transforms.READING, "precision": precision.name,
            "batch size": size,
            "device": world.device.type, "images": pictures_digest(list(data.table["path"])),
            "covariates": beside,
            "versions": versions()})
        line = partial.open()
        world.say(*[f"           {line}"] if line else [])
        return partial

    partial = world.main_first(find)
    done = world.from_main(partial.rows if partial is not None else None)
    if done < len(data.table):
        rest = loader(options, world, data.table[done:], None if covariates is None else covariates[done:],
                      transforms.EvalTransform(transform, data.fields), size)
        try:
            for values in output_chunks(model, rest, precision, world, title):
                wrong = ~np.isfinite(values).all(axis=1)
                if wrong.any():
                    first = data.table["path"].iloc[done + int(np.argmax(wrong))]
                    raise RunError(f"outputs are NaN or infinite (the first of {first}): the weights have "
                                   "diverged or are damaged; or try --precision fp32", everywhere=True)
                if partial is not None:
                    partial.append(values)
                done += len(values)
        except torch.OutOfMemoryError as error:
            raise RunError(f"the device's memory is full at --batch_size {options.training.batch_size}: "
                           "lower it") from error
    return partial
