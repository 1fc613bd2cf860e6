"""A trained checkpoint and unlabelled images -> a CSV of predictions, and heat maps. Read `predict` from top
to bottom."""

import time
from pathlib import Path

import numpy as np
import pandas as pd

import models_vit
from jobs import heatmaps, normalisation
from jobs.adaptation import load_whole
from jobs.data import evaluation_settings
from jobs.inference import computed, no_room, num_classes_of, read_pictures, take_checkpoint
from jobs.job import Prediction
from jobs.model import idle_for_backbone, resolve_backbone
from jobs.tasks.base import Task
from jobs.tasks.classification import Classification
from util.core.errors import InputError
from util.core.run_files import write_predictions
from util.data.images import scan, seen_area
from util.data.unlabelled import class_answers, forget, with_answers
from util.model import timm_models
from util.model.mirrors import with_mirrors
from util.model.precision import resolve_precision
from util.options.adaptation import KINDS
from util.options.checks import idle
from util.options.groups import Options
from util.parallel.processes import World
from util.report import terminal
from util.weights import checkpoint
from util.weights.finding import sha256
from util.weights.fitting import WeightFile, set_buffers


def predict(options: Options, world: World) -> None:
    """Predict, write, tell. InputError, RunError: see util/core/errors.py."""
    began = time.monotonic()
    job = prepare(options, world)
    if job.options.heatmaps.heatmaps is not None:
        heatmaps.check(job)
    job.precision.prepare()
    job.model.to(world.device)
    model = with_mirrors(job.model, job.options.model.tta, job.task.kind)
    partial = computed(model, job.data, job.covariates, job.options, world, job.precision, job.transform,
                       {"checkpoint": job.digest, "model": _model_options(job)}, "predicting")
    outputs = None if partial is None else partial.values()
    if partial is not None:
        table = write(job, outputs)
        world.say(*describe_answers(job, table), f"written to {job.options.use.output}: {len(table):,} "
                                                 f"images; {terminal.duration(time.monotonic() - began)}")
    if job.options.heatmaps.heatmaps is not None:
        heatmaps.draw_heatmaps(job, partial, outputs)
    if partial is not None:
        partial.remove()
        forget(job.options.use.output)


def prepare(options: Options, world: World) -> Prediction:
    """The checkpoint's model and the images, checked and described."""
    file = world.main_first(lambda: checkpoint.read(options.run.resume))
    ours = checkpoint.is_ours(file)
    task, lines = take_checkpoint(options, file)
    options, renamed = timm_models.with_current_name(task.options)
    world.say(*lines, *renamed, *idle(options))
    options, backbone = resolve_backbone(options, file)
    task.options = options
    world.say(*idle_for_backbone(options, backbone))
    precision = resolve_precision(options.training.precision, world.device, backbone.timm_name)
    if isinstance(task, Classification):
        task.class_names, lines = class_names(options, backbone, file)
        world.say(*lines)
    _check_heatmap_of(options, task, file)
    names = (
        () if isinstance(task, Classification) else tuple(entry["name"] for entry in file.rest["covariates"])
    )
    data = read_pictures(options, world, names)
    task.settle(data, file)
    model = task.build(backbone, 0.0)
    line = load_whole(task, model, backbone, file)
    if ours:
        set_buffers(task.backbone_of(model), file.rest.get("buffers", {}))
    precision.place(task.backbone_of(model))
    digest = world.from_main(sha256(file.path) if world.is_main else None)
    best = file.rest.get("best") or {} if ours else {}
    transform = evaluation_settings(options, backbone, file if ours else None, data.facts)
    notes, warnings = scan.describe(data.facts, transform)
    data.notes += notes
    job = Prediction(world, task, backbone, precision, data, task.covariates(data.table), model.eval(),
                     transform, normalisation.source(options, backbone, file.rest), digest, best)
    world.say(f"checkpoint {file.path}  sha256 {digest}  {line}; epoch {file.rest.get('epoch', 'unknown')}")
    world.say(*warnings, *describe(job))
    return job


def class_names(options: Options, backbone: models_vit.Backbone,
                file: WeightFile) -> tuple[list[str], list[str]]:
    """The checkpoint's classes in order, and lines about them: --class_names, or numbers, where it does not
    name them."""
    if file.rest.get("class_names") and checkpoint.is_ours(file):
        known = list(file.rest["class_names"])
        if options.use.class_names and options.use.class_names != known:
            raise InputError(f"--class_names {' '.join(options.use.class_names)}: {file.path} names its "
                             f"classes itself ({', '.join(known)}); leave the flag out")
        return known, []
    number = num_classes_of(file, backbone, options)
    if not options.use.class_names:
        return [str(k) for k in range(number)], [f"classes are called 0 to {number - 1}, in the order of the "
                                                 "training folders' names: --class_names names them"]
    if len(options.use.class_names) != number:
        raise InputError(f"--class_names has {len(options.use.class_names)} names, {file.path} {number} "
                         "classes")
    if len(set(options.use.class_names)) < number:
        raise InputError(f"--class_names {' '.join(options.use.class_names)}: a name stands there twice")
    return list(options.use.class_names), []


def _check_heatmap_of(options: Options, task: Task, file: WeightFile) -> None:
    known = task.class_names if isinstance(task, Classification) else file.rest["targets"]["names"]
    if options.heatmaps.heatmap_of is not None and options.heatmaps.heatmap_of not in known:
        raise InputError(f"--heatmap_of {options.heatmaps.heatmap_of}: {file.path} predicts "
                         f"{', '.join(known)}")


def _model_options(job: Prediction) -> dict:
    asked = job.options.model
    return {"timm": job.backbone.timm_name, "input_size": asked.input_size, "global_pool": asked.global_pool,
            "fc_norm_passes": asked.fc_norm_passes, "tta": asked.tta}


def temperature_of(job: Prediction) -> float | None:
    return job.best.get("temperature")


def describe(job: Prediction) -> list[str]:
    options, world = job.options, job.world
    lines = [f"model      {job.task.kind}, {job.backbone.model} {job.backbone.arch}, input "
             f"{options.model.input_size} pixels: "
             + ", ".join(job.names)]
    if job.task.reads is not None:
        lines.append(f"           its head reads the {KINDS[job.task.reads['kind']]} "
                     f"({job.task.reads['kind']})")
    if isinstance(job.task, Classification):
        temperature = temperature_of(job)
        lines.append("           probabilities are " + (
            f"calibrated: temperature {temperature:.4g}, fitted on val" if temperature else
            "not calibrated: the checkpoint holds no temperature (training with --calibrate fits one)"))
    lines.append(f"images     {len(job.data.table):,} of {options.use.input}")
    lines += [f"           note: {note}" for note in job.data.notes]
    return lines + [f"device     {world.device} ({world.size} process{'es' if world.size > 1 else ''}), "
                    f"precision {job.precision.name}, batch size {options.training.batch_size}",
                    f"reading    {terminal.reading(job.transform, options.model.norm, job.norm_source)}",
                    *terminal.mirrors(options.model.tta),
                    *seen_area.describe(list(job.data.table["path"]) if world.is_main else [], job.transform,
                                        job.data.fields, job.data.facts)]


# ---- what is written ---------------------------------------------------------------------------------------

def answers(job: Prediction, outputs: np.ndarray) -> pd.DataFrame:
    """What the model says of each image: classes with their probabilities and logits, or numbers in the CSV's
    units."""
    if isinstance(job.task, Classification):
        return class_answers(job.data.table["path"], outputs, job.names, temperature_of(job),
                             job.best.get("thresholds"))
    values = job.task.scale.restore(outputs)
    return pd.DataFrame({f"pred_{name}": values[:, number] for number, name in enumerate(job.names)})


def write(job: Prediction, outputs: np.ndarray) -> pd.DataFrame:
    table, lines = with_answers(job.data, answers(job, outputs))
    job.world.say(*lines)
    with no_room(f"--output {job.options.use.output}"):
        write_predictions(table, Path(job.options.use.output))
    return table


def describe_answers(job: Prediction, table: pd.DataFrame) -> list[str]:
    if isinstance(job.task, Classification):
        counts = table["predicted_class"].value_counts()
        lines = ["predicted  " + ", ".join(f"{name} {counts.get(name, 0):,}" for name in job.names)]
        called = [name for name in table if name.startswith("called_at_")]
        return lines + ([f"           {', '.join(called)}: 1 where the probability of {job.names[1]}, before "
                         "calibration, reaches the threshold that was chosen on val"] if called else [])
    return ["predicted  " + ", ".join(f"{name} {values.mean():.4g} (sd {values.std(ddof=0):.3g})"
                                      for name in job.names for values in [table[f"pred_{name}"]])]
