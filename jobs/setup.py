"""A job: all that is decided before the first step, for every task. Read `prepare` from top to bottom.

It stands apart from the entry points so that flags are read, rejected and explained before torch is imported.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import models_vit
from jobs import parallel
from jobs.data import compare_data, evaluation_settings, normalisation_source, read_data
from jobs.job import Job
from jobs.loaders import plan_training, workers
from jobs.model import build, choose_part, idle_for_backbone, new_model, resolve_backbone, restore_values
from jobs.run_folder import RunFolder
from jobs.tasks.base import Task
from util.core.errors import InputError, RunError
from util.core.machine import usable_cores
from util.data.images import cache, scan, transforms
from util.model import lora, timm_models
from util.model.precision import resolve_precision
from util.options import checks, flag, starts
from util.options.groups import Options
from util.options.stored import as_now, differences, with_stored
from util.parallel import sharding
from util.parallel.processes import World, repeat_bits
from util.weights import checkpoint, shard_files
from util.weights.fitting import WeightFile


def prepare(options: Options, world: World, *kinds: type[Task]) -> Job:
    """Resolve everything that the options say. kinds: of the program, the usual one first; another is taken
    where its switch was typed, or a checkpoint is of it. InputError, RunError: see util/core/errors.py."""
    folder = RunFolder(options.run.output_dir, options.run.log_dir, options.run.task)
    together = bool(options.search.optuna_trials)  # several processes may search in one folder
    if together or options.run.eval:
        folder.again = "start again with --optuna_resume" if together else "start again"
    if not options.run.dry_run:
        # before its checkpoint is read: another run may be writing it
        world.main_alone(folder.hold, world.say, together)
    resumed, kind = world.main_first(lambda: _find_checkpoint(options, folder, kinds))
    place = () if resumed is None else (resumed.rest.get("epoch"), resumed.rest.get("progress"))
    if any(other != place for other in world.gather(place)):
        raise RunError(f"the processes don't see the same checkpoint in {folder.path}: --output_dir has to "
                       "be one that all nodes share", everywhere=True)
    options, renamed = timm_models.with_current_name(parallel.with_stored_batch(options, resumed))
    options, lines = _taken_over(options, resumed, kind)
    world.say(*renamed, *lines, *checks.idle(options))
    if options.model.adaptation == "lora" and not options.run.eval:
        world.main_alone(lora.require)
    options, backbone = resolve_backbone(options, resumed)
    if resumed is None:
        options, lines = starts.settled(options, models_vit.has_plain_vit(backbone),
                                        kind.kind == "regression")
        world.say(*lines)
        options = options.having(cache_size=_first_side(options))
    task = kind(options)
    precision = resolve_precision(options.training.precision, world.device, backbone.timm_name)
    if options.training.deterministic and world.device.type == "cuda":
        repeat_bits()
    if not options.run.dry_run:
        world.main_first(folder.make)
        world.main_alone(folder.hold, world.say, together)  # where it was not there before
    settings = evaluation_settings(options, backbone, resumed, scan.NO_FACTS)
    data, filled = world.main_first(lambda: read_data(resumed, folder, world, task, settings))
    options = task.options
    eval_transform = evaluation_settings(options, backbone, resumed, data.facts)
    notes, warnings = scan.describe(data.facts, eval_transform)
    data.notes += notes
    world.say(*warnings, *compare_data(options, data, resumed))
    folder.columns, folder.curves = task.columns, task.curves
    shapes = new_model(backbone, world, task, "meta") if world.size > 1 and not options.run.dry_run else None
    if shapes is not None and not options.run.eval:
        choose_part(task, shapes, backbone)
    covariates = task.num_covariates(data.table)
    way, line = parallel.choose_parallel(
        options, world, lambda: parallel.need(options, shapes, precision.name, covariates))
    if resumed is not None and (way == "ddp" or lora.is_adapter(resumed)):  # an adapter is small
        resumed = world.main_first(lambda: shard_files.whole(resumed, with_moments=not options.run.eval))
    with_weights = functools.partial(build, backbone, resumed, world, task)
    parts: sharding.Parts | None = [] if way == "fsdp" else None
    model, started_from, loaded = world.main_first(lambda: with_weights(parts))
    if parts is not None and not sharding.fills_by_itself(model, parts):
        parts, (model, started_from, loaded) = None, world.main_first(with_weights)
    precision.place(task.backbone_of(model), lay_out=way == "ddp")
    if way == "fsdp":
        precision = replace(precision, keeps_casts=False)
        dealt = parallel.deal_out(options, world, model, parts, precision.name)
        line = "\n".join(filter(None, [line, dealt]))
        if resumed is not None:
            restore_values(model, resumed, task)
    world.say(*([line] if line else []))
    norm_source = normalisation_source(options, backbone, resumed.rest if resumed is not None else {})
    job = Job(world, folder, task, backbone, precision, data, model, started_from, resumed, loaded,
              eval_transform, norm_source, filled=filled)
    if options.training.batch_size == flag.AUTO:
        found, line = parallel.choose_batch(job)
        task.options = options.having(batch_size=found)
        world.say(line)
    if not options.run.eval:
        plan_training(job)
    return job


# ---- what was there before ---------------------------------------------------------------------------------

def _find_checkpoint(options: Options, folder: RunFolder,
                     kinds: Sequence[type[Task]]) -> tuple[WeightFile | None, type[Task]]:
    """The checkpoint that --resume names, and what kind of task it is, or is asked for."""
    asked = next((kind for kind in kinds if kind.asked_by and options.value(kind.asked_by)), None)
    kind = asked or kinds[0]
    if not options.run.resume:
        return None, kind
    path = Path(options.run.resume)
    if options.run.resume in ("auto", "same"):
        # an adapter alone: the run has not come to its end yet
        names = (checkpoint.BEST, checkpoint.ADAPTER) if options.run.eval else (checkpoint.LAST,)
        paths = list(map(folder.file, names))
        path = next((path for path in paths if path.exists()), paths[0])
        if not path.exists() and not options.run.eval:
            return None, kind
    file = checkpoint.read(path, whole=False)
    stored = file.rest.get("task", "classification") if checkpoint.is_ours(file) else kinds[0].kind
    kind = next((kind for kind in kinds if kind.kind == stored), kind)
    if kind.kind != stored:
        raise InputError(f"{path} is a checkpoint of a {stored}, and {kind.program} runs a {kind.kind}: "
                         "start the other program")
    if asked not in (None, kind):
        raise InputError(f"{path} is a checkpoint of a {stored}: leave --{asked.asked_by} out, or start a "
                         "new run from its weights with --finetune")
    if options.run.eval:
        return file, kind
    checkpoint.require_resumable(file)
    if options.run.resume == "same":
        changed = differences(file.rest["options"],
                              _as_it_would_be_stored(options, file.rest["options"], kind))
        if changed:
            raise InputError(f"{folder.path} holds a run of other options ({'; '.join(changed)}): name this "
                             "one otherwise with --task (TASK=...), or go on with the new options by "
                             "--resume auto")
    return file, kind


def _first_side(options: Options) -> int | str | None:
    """To which short side a new run reduces images first: by its input and its random crops alone, so that
    its metrics don't depend on whether the images are kept decoded. A probe without random views draws no
    crops and reads each image once, at its own size, unless it is to be kept."""
    images, named = options.images, options.images.image_cache not in (flag.AUTO, flag.OFF)
    draws = options.model.adaptation != "lp" or options.probe.lp_views > 1
    if images.cache_size is not None or options.run.eval or not (draws or named):
        return images.cache_size
    return cache.default_side(options.model.input_size, images.crop_scale, images.crop_ratio)


def _as_it_would_be_stored(options: Options, stored: dict, kind: type[Task]) -> Options:
    """The options with what is filled in later filled in as the stored run did, so that only choices are
    compared."""
    names = ["model_arch", "input_size", "decode", "fc_norm_passes", "class_order", "cache_size"]
    filled = options.having(**{name: stored.get(name) for name in names if options.value(name) is None})
    # another spelling is no other choice
    backbone = models_vit.find_backbone(filled.model.model, filled.model.model_arch)
    of_kind = starts.defaults(models_vit.has_plain_vit(backbone), bool(options.model.finetune),
                              kind.kind == "regression")
    filled = starts.as_stored(filled.having(model=backbone.model, model_arch=backbone.arch), stored,
                              (of_kind,))
    if filled.training.batch_size == flag.AUTO:
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
        if "group_col" in options.typed:  # bands of columns that are no groups any more
            kept = [word for word in stored.get("group_bins") or []
                    if word.partition("=")[0] in options.data.group_col]
            stored = {**stored, "group_bins": kept}
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
    options, typed = job.options, job.options.typed
    if options.run.eval:
        return []
    training, images, adaptation = options.training, options.images, options.model.adaptation
    warmup, processes = job.schedule.warmup_epochs, workers(options, job.world)
    is_new = job.resumed is None
    other_weights = (not is_new and not lora.is_adapter(job.resumed)
                     and job.resumed.rest["options"].get("finetune") != options.model.finetune)
    stands_still = options.part.train_last_blocks or adaptation == "lora"
    refused = ": training with --adaptation lora refuses that" if adaptation == "lora" else ""
    of_probe = [name for name in ("drop_path", "layer_decay", "activation_checkpointing")
                if adaptation == "lp" and name in typed]
    lines = [
        (warmup < training.warmup_epochs,
         f"warm-up: {warmup:g} of {training.epochs} epochs instead of {training.warmup_epochs:g}, at most a "
         "fifth of the run"),
        *((True, line) for line in idle_for_backbone(options, job.backbone)),
        (processes < (options.run.num_workers or 0),
         f"loader processes: {processes} instead of {options.run.num_workers}, for {usable_cores()} cores "
         f"and {job.world.local_size} process(es) on this machine"),
        (training.deterministic and job.world.device.type == "cpu",
         "--deterministic changes nothing on a CPU, which gives the same bits anyway"),
        ("start_epoch" in typed and not is_new,
         "--start_epoch does nothing with --resume: the checkpoint says where to go on"),
        ("finetune" in typed and other_weights,
         "--finetune does nothing with --resume: the weights are the checkpoint's"),
        (images.color_jitter is not None and not transforms.color_jitter_applies(job.train_transform),
         "--color_jitter does nothing beside --aa (timm's recipe): pass --aa none for it"),
        (adaptation == "lora" and "layer_decay" not in typed and is_new,
         "--layer_decay is 1 with --adaptation lora, unless it is typed: adapters start at nothing in every "
         "layer"),
        (stands_still and job.started_from is None and is_new,
         f"warning: without --finetune what stands still holds random weights{refused}"),
        *((True, f"--{name} does nothing in a linear probe: the backbone stands still") for name in of_probe)]
    return [line for applies, line in lines if applies] + job.task.idle()
