"""Trained weights and unlabelled images: what predict.py and latent_feature.py have in common.

Read `take_checkpoint` for what is taken from a checkpoint, and `computed` for how a row an image is computed
so that a launch after one that was killed finds the rows again.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

import models_vit
from engine_finetune import output_chunks
from jobs import terminal
from jobs.data import evaluation_settings, normalisation_source
from jobs.loaders import GPU_EVAL_BATCHES, workers
from jobs.model import idle_for_backbone, resolve_backbone
from jobs.run_folder import versions
from jobs.tasks.base import Task
from jobs.tasks.classification import Classification
from jobs.tasks.multilabel import Multilabel
from jobs.tasks.regression import Regression
from util.core.disk import writing
from util.core.errors import InputError, RunError
from util.core.partial_rows import PartialRows
from util.data import sampling, tables
from util.data.dataset import ImageDataset
from util.data.images import fundus_fields, scan, seen_area, transforms
from util.data.loader import Loader, make_loader
from util.data.unlabelled import Unlabelled, facts_file, fundus_files, read_unlabelled, skipped_file
from util.model import frozen_features, timm_models
from util.model.precision import Precision, resolve_precision
from util.options.checks import idle
from util.options.groups import Options
from util.options.table import FLAGS, own_values
from util.parallel.processes import World
from util.report import fundus_sheet
from util.weights import checkpoint
from util.weights.fitting import WeightFile

AGAIN = "start again; it goes on where it was"
TASKS = {task.kind: task for task in (Classification, Multilabel, Regression)}
DEFAULT_BATCH = 64  # where nothing says how large training's was


# ---- the checkpoint ----------------------------------------------------------------------------------------

def take_checkpoint(options: Options, file: WeightFile) -> tuple[Task, list[str]]:
    """The checkpoint's task, whose options have what the checkpoint says filled in, and lines for the user.
    InputError."""
    if not checkpoint.is_ours(file):
        kind: type[Task] = Classification
        options, line = kind.with_foreign(options, file)
        options, lines = options.having(decode=options.images.decode or "full"), [line]
    else:
        stored, own = file.rest["options"], own_values(options)
        kind = TASKS[file.rest.get("task", Classification.kind)]
        taken = [flag.name for flag in FLAGS.values() if flag.of_checkpoint]
        changed = [f"--{name} {stored.get(name)} -> {own[name]}" for name in taken
                   if name in options.typed - {"batch_size"} and stored.get(name) != own[name]]
        differs = f"differs from {file.path}, and the command line wins: {'; '.join(changed)}"
        lines = [differs] if changed else []
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

@dataclass
class Inference:
    """All that was decided before the first image."""

    world: World
    options: Options
    backbone: models_vit.Backbone
    precision: Precision
    model: torch.nn.Module
    data: Unlabelled
    transform: dict
    norm_source: str  # where its mean and standard deviation are from
    covariates: torch.Tensor | None = None


def resolve(options: Options, world: World, ours: WeightFile | None,
            lines: list[str]) -> tuple[Options, models_vit.Backbone, Precision]:
    """The options with the names and the input size of the backbone; what the user is told of them, after
    `lines`."""
    options, renamed = timm_models.with_current_name(options)
    world.say(*lines, *renamed, *idle(options))
    options, backbone = resolve_backbone(options, ours)
    world.say(*idle_for_backbone(options, backbone))
    return options, backbone, resolve_precision(options.training.precision, world.device, backbone.timm_name)


def read_pictures(options: Options, world: World, backbone: models_vit.Backbone, ours: WeightFile | None,
                  covariates: tuple[str, ...] = ()) -> tuple[Unlabelled, dict, str]:
    """The images of --input, those that don't decode rejected or left out as --bad_images says; the transform
    that reads them, and where its mean and standard deviation are from."""
    def read() -> Unlabelled:
        data = read_unlabelled(options.use.input, options.data.path_col, covariates, options.data.path_suffix)
        listed = skipped_file(options.use.output)
        table_file, sheet, remembered = fundus_files(options.use.output)
        fields = None
        if options.model.fundus_crop == "auto":
            fields = fundus_fields.Fields(remembered, options.model.read_images == "as_shown")
        facts = scan.ImageFacts(facts_file(options.use.output))
        if not options.data.skip_file_check:
            checked = tables.check_files(data, options.data.bad_images, facts,
                                         listed if world.is_main else None, fields=fields)
            if len(checked.table) == len(data.table) and world.is_main:
                listed.unlink(missing_ok=True)  # an earlier launch's: its images have been fixed
        else:
            checked = tables.look_at_some(data, facts, fields)
        paths = list(checked.table["path"])
        if fields is not None and world.is_main:
            world.say(*fundus_sheet.report(fields, paths, table_file, sheet))
        return Unlabelled(checked.table, [], checked.notes, others=data.others, fields=fields,
                          facts=facts.of(paths))

    with writing(f"the folder of --output {options.use.output}", again=AGAIN):
        data = world.main_first(read)
    transform = evaluation_settings(options, backbone, ours, data.facts)
    notes, warnings = scan.describe(data.facts, transform)
    data.notes += notes
    world.say(*warnings)
    return data, transform, normalisation_source(options, backbone, ours.rest if ours is not None else {})


def describe(job: Inference) -> list[str]:
    """Lines about the images, how they are read and on what they are computed."""
    options, world, data = job.options, job.world, job.data
    return [f"images     {len(data.table):,} of {options.use.input}",
            *(f"           note: {note}" for note in data.notes),
            f"device     {world.device} ({world.size} process{'es' if world.size > 1 else ''}), "
            f"precision {job.precision.name}, batch size {options.training.batch_size}",
            f"reading    {terminal.reading(job.transform, options.model.norm, job.norm_source)}",
            *seen_area.describe(list(data.table["path"]) if world.is_main else [], job.transform, data.fields,
                                data.facts)]


# ---- computing ---------------------------------------------------------------------------------------------

def loader(job: Inference, first: int, batch_size: int) -> Loader:
    """Batches of the images from row `first` on, as evaluation reads them; whole batches are dealt to the
    processes."""
    table, world = job.data.table[first:], job.world
    dataset = ImageDataset(table, np.zeros(len(table), np.int64),
                           transforms.EvalTransform(job.transform, job.data.fields), 0,
                           None if job.covariates is None else job.covariates[first:])
    return make_loader(dataset, sampling.EvalBatches(len(table), batch_size, world.rank, world.size),
                       workers(job.options, world), world.device.type == "cuda")


def computed(job: Inference, model: torch.nn.Module, depends_on: dict, title: str,
             part: str = "") -> PartialRows | None:
    """A row of the model's outputs an image, (N, K), in the files beside --output (main process; None in the
    others).

    What an earlier launch computed is taken where everything that a row depends on is the same: `depends_on`
    (the weights and what is done with them) and what stands here. part: of the files' names, of a model among
    several. RunError for outputs that are no numbers
    and a full disk or device.
    """
    world, paths = job.world, job.data.table["path"]
    size = job.options.training.batch_size * (1 if world.device.type == "cpu" else GPU_EVAL_BATCHES)

    def find() -> PartialRows:
        beside = None
        if job.covariates is not None:
            beside = hashlib.sha256(job.covariates.numpy().tobytes()).hexdigest()
        partial = PartialRows(job.options.use.output + part, depends_on | {
            "transform": job.transform, "reading": transforms.READING, "precision": job.precision.name,
            "batch size": size, "device": world.device.type,
            "images": frozen_features.pictures_digest(list(paths)), "covariates": beside,
            "versions": versions()})
        line = partial.open()
        world.say(*[f"           {line}"] if line else [])
        return partial

    partial = world.main_alone(find)
    done = world.from_main(partial.rows if partial is not None else None)
    if done == len(paths):
        return partial
    for values in output_chunks(model, loader(job, done, size), job.precision, world, title):
        wrong = ~np.isfinite(values).all(axis=1)
        if wrong.any():
            first = paths.iloc[done + int(np.argmax(wrong))]
            raise RunError(f"outputs are NaN or infinite (the first of {first}): the weights have "
                           "diverged or are damaged; or try --precision fp32", everywhere=True)
        if partial is not None:
            partial.append(values)
        done += len(values)
    return partial
