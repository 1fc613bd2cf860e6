"""A job: all that is decided before the first step, for every task. Read `prepare` from top to bottom.

It stands apart from the entry points so that flags are read, refused and explained before torch is imported.
"""

import functools
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import models_vit
from jobs import batch_size, normalisation, parallel
from jobs.adaptation import choose_part
from jobs.data import compare_data, evaluation_settings, read_data
from jobs.job import Job
from jobs.loaders import plan_training, workers
from jobs.model import build, idle_for_backbone, new_model, resolve_backbone, restore_values
from jobs.run_folder import RunFolder
from jobs.tasks.base import Task
from util.core.cores import usable_cores
from util.core.errors import InputError, RunError
from util.data.images import scan, transforms
from util.data.images.cache import default_side
from util.model import lora
from util.model.precision import resolve_precision
from util.model.timm_models import use_current_name
from util.options import starts
from util.options.checks import idle
from util.options.flag import AUTO
from util.options.parsing import Parsed
from util.options.stored import as_now, differences, take_stored
from util.parallel import sharding
from util.parallel.processes import World
from util.weights import checkpoint, shard_files
from util.weights.fitting import WeightFile


def prepare(parsed: Parsed, world: World, task: Task) -> Job:
    """Resolve everything that the options say. InputError, RunError: see util/core/errors.py."""
    options = parsed.options
    folder = RunFolder(options.output_dir, options.log_dir, options.task)
    together = bool(getattr(options, "optuna_trials", 0))  # several processes may search in one folder
    folder.again = "start again with --optuna_resume" if together else "start again" if options.eval else folder.again
    if not options.dry_run:
        world.main_alone(folder.hold, world.say, together)  # before its checkpoint is read: another run may be writing it
    resumed = world.main_first(lambda: _find_checkpoint(parsed, folder, task))
    if len(set(world.gather(_place_of(resumed)))) > 1:
        raise RunError(f"the processes don't see the same checkpoint in {folder.path}: --output_dir has to be one that "
                       "all nodes share", everywhere=True)
    batch_size.take_stored(parsed, resumed)
    world.say(*use_current_name(options), *_take_over(parsed, resumed, task), *idle(parsed, task.program))
    if options.adaptation == "lora" and not options.eval:
        world.main_first(lambda: lora.require() if world.is_main else None)
    backbone = resolve_backbone(options, resumed)
    if resumed is None:
        world.say(*starts.settle(options, parsed.typed, models_vit.has_plain_vit(backbone), task.kind == "regression"))
    if options.image_cache and not options.cache_size and not options.eval:
        options.cache_size = default_side(options.input_size, options.crop_scale, options.crop_ratio)
    precision = resolve_precision(options.precision, world.device, backbone.timm_name)
    if not options.dry_run:
        world.main_first(folder.make)
        world.main_alone(folder.hold, world.say, together)  # where it was not there before
    settings = evaluation_settings(parsed, backbone, resumed, scan.NO_FACTS)
    images = world.main_first(lambda: read_data(parsed, resumed, folder, world, task, settings))
    data, eval_transform = images.data, evaluation_settings(parsed, backbone, resumed, images.facts)
    notes, warnings = scan.describe(images.facts, eval_transform)
    data.notes += notes
    world.say(*warnings, *compare_data(options, data, resumed))
    folder.columns, folder.curves = task.columns, task.curves
    shapes = new_model(parsed, backbone, world, task, "meta") if world.size > 1 and not options.dry_run else None
    if shapes is not None and not options.eval:
        choose_part(task, shapes, backbone, options)
    way, line = parallel.choose(options, world, lambda: parallel.need(options, task, shapes, precision.name,
                                                                      task.num_covariates(data.table)))
    if resumed is not None and (way == "ddp" or lora.is_adapter(resumed)):  # an adapter is small
        resumed = world.main_first(lambda: shard_files.whole(resumed, with_moments=not options.eval))
    with_weights = functools.partial(build, parsed, backbone, resumed, world, task)
    parts = [] if way == "fsdp" else None
    model, started_from, loaded = world.main_first(lambda: with_weights(parts))
    if parts is not None and not sharding.fills_by_itself(model, parts):
        parts, (model, started_from, loaded) = None, world.main_first(with_weights)
    precision.place(task.backbone_of(model), lay_out=way == "ddp")
    if way == "fsdp":
        precision = replace(precision, keeps_casts=False)
        line = "\n".join(filter(None, [line, parallel.deal_out(options, world, model, parts)]))
        restore_values(model, resumed, task)
    world.say(*filter(None, [line]))
    norm_source = normalisation.source(options, parsed.typed, backbone, resumed.rest if resumed is not None else {})
    job = Job(options, world, folder, task, backbone, precision, data, model, started_from, resumed, loaded, eval_transform,
              norm_source, facts=images.facts, fields=images.fields, filled=images.filled)
    if options.batch_size == AUTO:
        world.say(batch_size.choose(job))
    if not options.eval:
        plan_training(job)
    return job


# ---- what was there before ------------------------------------------------------------------------------------------

def _find_checkpoint(parsed: Parsed, folder: RunFolder, task: Task) -> WeightFile | None:
    options = parsed.options
    if not options.resume:
        return None
    path = Path(options.resume)
    if options.resume in ("auto", "same"):
        path = folder.file(checkpoint.BEST if options.eval else checkpoint.LAST)
        if options.eval and not path.exists() and folder.file(checkpoint.ADAPTER).exists():
            path = folder.file(checkpoint.ADAPTER)  # the run has not come to its end yet
        if not path.exists() and not options.eval:
            return None
    file = checkpoint.read(path, whole=False)
    kind = file.rest.get("task", "classification") if checkpoint.is_ours(file) else task.kind
    if kind != task.kind:
        raise InputError(f"{path} is a checkpoint of a {kind}, and {task.program} runs a {task.kind}: start the other program")
    if options.eval:
        return file
    checkpoint.require_resumable(file)
    if options.resume == "same":
        changed = differences(file.rest["options"], _as_it_would_be_stored(parsed, file.rest["options"], task))
        if changed:
            raise InputError(f"{folder.path} holds a run of other options ({'; '.join(changed)}): name this one otherwise "
                             "with --task (TASK=...), or go on with the new options by --resume auto")
    return file


def _place_of(resumed: WeightFile | None) -> str:
    """Where a checkpoint stands, to compare between processes."""
    return "" if resumed is None else f"{resumed.rest.get('epoch')} {resumed.rest.get('progress')}"


def _as_it_would_be_stored(parsed: Parsed, stored: dict, task: Task) -> Namespace:
    """The options with what is filled in later filled in as the stored run did, so that only choices are compared."""
    filled = Namespace(**vars(parsed.options))
    names = ("model_arch", "input_size", "decode", "fc_norm_passes", "class_order")
    for name in (*names, *(("cache_size",) if filled.image_cache else ())):
        if getattr(filled, name, "") is None:  # a regression has no classes
            setattr(filled, name, stored.get(name))
    backbone = models_vit.find_backbone(filled.model, filled.model_arch)  # another spelling is no other choice
    filled.model, filled.model_arch = backbone.model, backbone.arch
    starts.as_stored(filled, parsed.typed, stored, (starts.defaults(
        models_vit.has_plain_vit(backbone), bool(filled.finetune), task.kind == "regression"),))
    if filled.batch_size == AUTO:
        filled.batch_size = stored.get("batch_size")
    for name in {"nb_classes", "read_images"} - parsed.typed:
        setattr(filled, name, as_now(stored).get(name))
    return filled


def _take_over(parsed: Parsed, resumed: WeightFile | None, task: Task) -> list[str]:
    """Fill what was not typed from the checkpoint; lines about what differs from it."""
    options, typed = parsed.options, parsed.typed
    if resumed is None:
        options.decode = options.decode or ("full" if options.eval else "scaled")
        options.fc_norm_passes = options.fc_norm_passes or 1
        return ["no checkpoint to go on from: starting anew"] if options.resume == "auto" else []
    lines = []
    if checkpoint.is_ours(resumed):
        stored = resumed.rest["options"]
        if "data_path" in typed and "csv_file" not in typed:
            stored = {**stored, "csv_file": None}  # other pictures were named: not the CSV that it was trained on
        changed = differences(stored, options, typed)
        if changed:
            lines.append(f"differs from {resumed.path}, and the command line wins: " + "; ".join(changed))
        take_stored(stored, options, typed)
    else:
        lines.append(task.take_over_foreign(parsed, resumed))
    options.decode = options.decode or "full"
    options.fc_norm_passes = options.fc_norm_passes or 1
    return lines


def without_effect_here(parsed: Parsed, job: Job) -> list[str]:
    """Lines about what the user asked for and does not get, or gets otherwise."""
    options, typed, lines = job.options, parsed.typed, []
    if options.eval:
        return lines
    if job.schedule.warmup_epochs < options.warmup_epochs:
        lines.append(f"warm-up: {job.schedule.warmup_epochs:g} of {options.epochs} epochs instead of "
                     f"{options.warmup_epochs:g}, at most a fifth of the run")
    lines += idle_for_backbone(parsed, job.backbone)
    if workers(options, job.world) < options.num_workers:
        lines.append(f"loader processes: {workers(options, job.world)} instead of {options.num_workers}, for "
                     f"{usable_cores()} cores and {job.world.local_size} process(es) on this machine")
    if "start_epoch" in typed and job.resumed is not None:
        lines.append("--start_epoch does nothing with --resume: the checkpoint says where to go on")
    if "finetune" in typed and job.resumed is not None and not lora.is_adapter(job.resumed) and (
            job.resumed.rest["options"].get("finetune") != options.finetune):
        lines.append("--finetune does nothing with --resume: the weights are the checkpoint's")
    if options.color_jitter is not None and not transforms.color_jitter_applies(job.train_transform):
        lines.append("--color_jitter does nothing beside --aa (timm's recipe): pass --aa none for it")
    if options.cache_size and not options.image_cache and "cache_size" not in typed:
        lines.append(f"pictures are brought to a short side of {options.cache_size} first, as this run began; --image_cache "
                     "DIR keeps them decoded")
    if options.adaptation == "lora" and "layer_decay" not in typed and job.resumed is None:
        lines.append("--layer_decay is 1 with --adaptation lora, unless it is typed: adapters start at nothing in every layer")
    if (options.train_last_blocks or options.adaptation == "lora") and job.started_from is None and job.resumed is None:
        lines.append("warning: without --finetune what stands still holds random weights"
                     + (": training with --adaptation lora refuses that" if options.adaptation == "lora" else ""))
    if options.adaptation == "lp":
        lines += [f"--{name} does nothing in a linear probe: the backbone stands still"
                  for name in ("drop_path", "layer_decay", "activation_checkpointing") if name in typed]
    return lines + job.task.idle(parsed, job.backbone)
