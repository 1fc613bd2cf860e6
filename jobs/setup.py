"""A job: all that is decided before the first step, for every task. Read `prepare` from top to bottom.

It stands apart from the entry points so that flags are read, refused and explained before torch is imported.
"""

import functools
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
from util.core.errors import InputError, RunError
from util.core.machine import usable_cores
from util.data.images import scan, transforms
from util.data.images.cache import default_side
from util.model import lora
from util.model.precision import resolve_precision
from util.model.timm_models import with_current_name
from util.options import starts
from util.options.checks import idle
from util.options.flag import AUTO
from util.options.groups import Options
from util.options.stored import as_now, differences, with_stored
from util.parallel import sharding
from util.parallel.processes import World
from util.weights import checkpoint, shard_files
from util.weights.fitting import WeightFile


def prepare(options: Options, world: World, kind: type[Task]) -> Job:
    """Resolve everything that the options say. InputError, RunError: see util/core/errors.py."""
    folder = RunFolder(options.run.output_dir, options.run.log_dir, options.run.task)
    together = bool(options.search.optuna_trials)  # several processes may search in one folder
    folder.again = (
        "start again with --optuna_resume"
        if together
        else "start again"
        if options.run.eval
        else folder.again
    )
    if not options.run.dry_run:
        # before its checkpoint is read: another run may be writing it
        world.main_alone(folder.hold, world.say, together)
    resumed = world.main_first(lambda: _find_checkpoint(options, folder, kind))
    if len(set(world.gather(_place_of(resumed)))) > 1:
        raise RunError(f"the processes don't see the same checkpoint in {folder.path}: --output_dir has to "
                       "be one that all nodes share", everywhere=True)
    options, renamed = with_current_name(batch_size.with_stored(options, resumed))
    options, lines = _taken_over(options, resumed, kind)
    world.say(*renamed, *lines, *idle(options))
    if options.model.adaptation == "lora" and not options.run.eval:
        world.main_first(lambda: lora.require() if world.is_main else None)
    options, backbone = resolve_backbone(options, resumed)
    if resumed is None:
        options, lines = starts.settled(options, models_vit.has_plain_vit(backbone),
                                        kind.kind == "regression")
        world.say(*lines)
    images = options.images
    if images.image_cache and not images.cache_size and not options.run.eval:
        options = options.having(
            cache_size=default_side(options.model.input_size, images.crop_scale, images.crop_ratio)
        )
    task = kind(options)
    precision = resolve_precision(options.training.precision, world.device, backbone.timm_name)
    if not options.run.dry_run:
        world.main_first(folder.make)
        world.main_alone(folder.hold, world.say, together)  # where it was not there before
    settings = evaluation_settings(options, backbone, resumed, scan.NO_FACTS)
    images = world.main_first(lambda: read_data(resumed, folder, world, task, settings))
    data, options = images.data, task.options
    eval_transform = evaluation_settings(options, backbone, resumed, images.facts)
    notes, warnings = scan.describe(images.facts, eval_transform)
    data.notes += notes
    world.say(*warnings, *compare_data(options, data, resumed))
    folder.columns, folder.curves = task.columns, task.curves
    shapes = new_model(backbone, world, task, "meta") if world.size > 1 and not options.run.dry_run else None
    if shapes is not None and not options.run.eval:
        choose_part(task, shapes, backbone)
    way, line = parallel.choose(
        options,
        world,
        lambda: parallel.need(options, task, shapes, precision.name, task.num_covariates(data.table)),
    )
    if resumed is not None and (way == "ddp" or lora.is_adapter(resumed)):  # an adapter is small
        resumed = world.main_first(lambda: shard_files.whole(resumed, with_moments=not options.run.eval))
    with_weights = functools.partial(build, backbone, resumed, world, task)
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
    norm_source = normalisation.source(options, backbone, resumed.rest if resumed is not None else {})
    job = Job(world, folder, task, backbone, precision, data, model, started_from, resumed, loaded,
              eval_transform, norm_source, facts=images.facts, fields=images.fields, filled=images.filled)
    if options.training.batch_size == AUTO:
        found, line = batch_size.choose(job)
        task.options = options.having(batch_size=found)
        world.say(line)
    if not options.run.eval:
        plan_training(job)
    return job


# ---- what was there before ---------------------------------------------------------------------------------

def _find_checkpoint(options: Options, folder: RunFolder, kind: type[Task]) -> WeightFile | None:
    if not options.run.resume:
        return None
    path = Path(options.run.resume)
    if options.run.resume in ("auto", "same"):
        path = folder.file(checkpoint.BEST if options.run.eval else checkpoint.LAST)
        if options.run.eval and not path.exists() and folder.file(checkpoint.ADAPTER).exists():
            path = folder.file(checkpoint.ADAPTER)  # the run has not come to its end yet
        if not path.exists() and not options.run.eval:
            return None
    file = checkpoint.read(path, whole=False)
    stored = file.rest.get("task", "classification") if checkpoint.is_ours(file) else kind.kind
    if stored != kind.kind:
        raise InputError(f"{path} is a checkpoint of a {stored}, and {kind.program} runs a {kind.kind}: "
                         "start the other program")
    if options.run.eval:
        return file
    checkpoint.require_resumable(file)
    if options.run.resume == "same":
        changed = differences(file.rest["options"],
                              _as_it_would_be_stored(options, file.rest["options"], kind))
        if changed:
            raise InputError(f"{folder.path} holds a run of other options ({'; '.join(changed)}): name this "
                             "one otherwise with --task (TASK=...), or go on with the new options by "
                             "--resume auto")
    return file


def _place_of(resumed: WeightFile | None) -> str:
    """Where a checkpoint stands, to compare between processes."""
    return "" if resumed is None else f"{resumed.rest.get('epoch')} {resumed.rest.get('progress')}"


def _as_it_would_be_stored(options: Options, stored: dict, kind: type[Task]) -> Options:
    """The options with what is filled in later filled in as the stored run did, so that only choices are
    compared."""
    names = ["model_arch", "input_size", "decode", "fc_norm_passes", "class_order"]
    names += ["cache_size"] if options.images.image_cache else []
    filled = options.having(**{name: stored.get(name) for name in names if options.value(name) is None})
    # another spelling is no other choice
    backbone = models_vit.find_backbone(filled.model.model, filled.model.model_arch)
    of_kind = starts.defaults(models_vit.has_plain_vit(backbone), bool(options.model.finetune),
                              kind.kind == "regression")
    filled = starts.as_stored(filled.having(model=backbone.model, model_arch=backbone.arch), stored,
                              (of_kind,))
    if filled.training.batch_size == AUTO:
        filled = filled.having(batch_size=stored.get("batch_size"))
    return filled.having(**{name: as_now(stored).get(name)
                            for name in {"nb_classes", "read_images"} - options.typed})


def _taken_over(options: Options, resumed: WeightFile | None, kind: type[Task]) -> tuple[Options, list[str]]:
    """The options with the checkpoint's values where nothing was typed; lines about what differs from it."""
    lines = []
    if resumed is None:
        lines = ["no checkpoint to go on from: starting anew"] if options.run.resume == "auto" else []
    elif checkpoint.is_ours(resumed):
        stored = resumed.rest["options"]
        if "data_path" in options.typed and "csv_file" not in options.typed:
            # other images were named: not the CSV that it was trained on
            stored = {**stored, "csv_file": None}
        changed = differences(stored, options, typed_alone=True)
        if changed:
            lines.append(f"differs from {resumed.path}, and the command line wins: " + "; ".join(changed))
        options = with_stored(options, stored)
    else:
        options, line = kind.with_foreign(options, resumed)
        lines.append(line)
    decode = "scaled" if resumed is None and not options.run.eval else "full"
    return options.having(decode=options.images.decode or decode,
                          fc_norm_passes=options.model.fc_norm_passes or 1), lines


def without_effect_here(job: Job) -> list[str]:
    """Lines about what the user asked for and does not get, or gets otherwise."""
    options, typed, lines = job.options, job.options.typed, []
    if options.run.eval:
        return lines
    if job.schedule.warmup_epochs < options.training.warmup_epochs:
        lines.append(f"warm-up: {job.schedule.warmup_epochs:g} of {options.training.epochs} epochs instead "
                     f"of {options.training.warmup_epochs:g}, at most a fifth of the run")
    lines += idle_for_backbone(options, job.backbone)
    if workers(options, job.world) < options.run.num_workers:
        lines.append(f"loader processes: {workers(options, job.world)} instead of {options.run.num_workers}, "
                     f"for {usable_cores()} cores and {job.world.local_size} process(es) on this machine")
    if "start_epoch" in typed and job.resumed is not None:
        lines.append("--start_epoch does nothing with --resume: the checkpoint says where to go on")
    if "finetune" in typed and job.resumed is not None and not lora.is_adapter(job.resumed) and (
            job.resumed.rest["options"].get("finetune") != options.model.finetune):
        lines.append("--finetune does nothing with --resume: the weights are the checkpoint's")
    if options.images.color_jitter is not None and not transforms.color_jitter_applies(job.train_transform):
        lines.append("--color_jitter does nothing beside --aa (timm's recipe): pass --aa none for it")
    if options.images.cache_size and not options.images.image_cache and "cache_size" not in typed:
        lines.append(f"images are brought to a short side of {options.images.cache_size} first, as this run "
                     "began; --image_cache DIR keeps them decoded")
    if options.model.adaptation == "lora" and "layer_decay" not in typed and job.resumed is None:
        lines.append("--layer_decay is 1 with --adaptation lora, unless it is typed: adapters start at "
                     "nothing in every layer")
    stands_still = options.part.train_last_blocks or options.model.adaptation == "lora"
    if stands_still and job.started_from is None and job.resumed is None:
        lines.append("warning: without --finetune what stands still holds random weights"
                     + (": training with --adaptation lora refuses that"
                        if options.model.adaptation == "lora" else ""))
    if options.model.adaptation == "lp":
        lines += [f"--{name} does nothing in a linear probe: the backbone stands still"
                  for name in ("drop_path", "layer_decay", "activation_checkpointing") if name in typed]
    return lines + job.task.idle()
