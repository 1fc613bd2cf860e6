"""A job: all that is decided before the first step, for every task. Read `prepare` from top to bottom.

It stands apart from the entry points so that flags are read, refused and explained before torch is imported.
"""

import functools
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import models_vit
from engine_finetune import Schedule, make_loader
from jobs import batch_size, normalisation, parallel
from jobs.adaptation import choose_part, load_resumed
from jobs.data import compare_data, evaluation_settings, read_data
from jobs.run_folder import RunFolder
from jobs.tasks.base import Task
from util.core.errors import InputError, RunError
from util.data import tables
from util.data.images import scan, transforms
from util.data.images.cache import ImageCache, Kept, default_side, open_cache
from util.data.images.fundus_fields import Fields
from util.data.sampling import EvalBatches, StepPlan
from util.model import lora, lr_schedule
from util.model.frozen_features import FeatureDataset
from util.model.precision import Precision, resolve_precision
from util.model.timm_models import use_current_name
from util.options import flags, starts
from util.parallel import shard_files, sharding
from util.parallel.processes import World, usable_cores
from util.weights import checkpoint
from util.weights.fitting import WeightFile, put_in, set_buffers

GPU_EVAL_BATCHES = 2  # training's batches in one of an evaluation, which keeps no activations; on CPUs more only cost time


@dataclass
class Job:
    """All that was decided before the first step."""

    options: Namespace
    world: World
    folder: RunFolder
    task: Task
    backbone: models_vit.Backbone
    precision: Precision
    data: tables.Data
    model: torch.nn.Module
    started_from: models_vit.LoadedWeights | dict | None
    resumed: WeightFile | None
    loaded: str  # the line about the checkpoint's tensors
    eval_transform: dict
    norm_source: str  # where its mean and standard deviation are from
    train_transform: dict | None = None
    plan: StepPlan | None = None
    schedule: Schedule | None = None
    fields: Fields | None = None  # with --fundus_crop auto
    cache: ImageCache | None = None  # pictures decoded once, where they are read many times
    features: dict[str, torch.Tensor] | None = None  # of a frozen backbone, by split: then the head alone is run
    kinds: dict[str, slice] | None = None  # which columns of them are which kind of feature (util/model/feature_kinds.py)
    tokens: dict | None = None  # what an attentive head reads, by split, on the disk (main process)

    @property
    def running(self) -> torch.nn.Module:
        """What a loader's batches are given to: the model, or its head where features are stored."""
        return self.model if self.features is None else self.task.head_of(self.model)

    def rows(self, split: str):
        return self.data.table[self.data.table["split"] == split].reset_index(drop=True)


def prepare(parsed: flags.Parsed, world: World, task: Task) -> Job:
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
    world.say(*use_current_name(options), *_take_over(parsed, resumed, task), *flags.idle(parsed))
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
    data, fields, facts = world.main_first(lambda: read_data(parsed, resumed, folder, world, task))
    eval_transform = evaluation_settings(parsed, backbone, resumed, facts)
    notes, warnings = scan.describe(facts, eval_transform)
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
    build = functools.partial(_build, parsed, backbone, resumed, world, task)
    parts = [] if way == "fsdp" else None
    model, started_from, loaded = world.main_first(lambda: build(parts))
    if parts is not None and not sharding.fills_by_itself(model, parts):
        parts, (model, started_from, loaded) = None, world.main_first(build)
    precision.place(task.backbone_of(model), lay_out=way == "ddp")
    if way == "fsdp":
        precision = replace(precision, keeps_casts=False)
        line = "\n".join(filter(None, [line, parallel.deal_out(options, world, model, parts)]))
        _restore_values(model, resumed, task)
    world.say(*filter(None, [line]))
    norm_source = normalisation.source(options, parsed.typed, backbone, resumed.rest if resumed is not None else {})
    job = Job(options, world, folder, task, backbone, precision, data, model, started_from, resumed, loaded, eval_transform,
              norm_source, fields=fields)
    if options.batch_size == flags.AUTO:
        world.say(batch_size.choose(job))
    if not options.eval:
        plan_training(job)
    return job


def resolve_backbone(options: Namespace, resumed: WeightFile | None) -> models_vit.Backbone:
    """The row of the table that the options and the checkpoint name; the options then say its names and its input size."""
    backbone = models_vit.find_backbone(options.model, options.model_arch)
    options.model, options.model_arch = backbone.model, backbone.arch
    stored = resumed.rest.get("backbone") if resumed is not None else None
    if stored and stored["arch"] != backbone.arch:
        raise InputError(f"{resumed.path} is a checkpoint of --model {stored['model']} --model_arch {stored['arch']}: "
                         f"{backbone.arch} contradicts it; leave the two flags out, or name its own")
    options.input_size = models_vit.resolve_input_size(backbone, options.input_size)
    return backbone


# ---- what was there before ------------------------------------------------------------------------------------------

def _find_checkpoint(parsed: flags.Parsed, folder: RunFolder, task: Task) -> WeightFile | None:
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
        changed = flags.differences(file.rest["options"], _as_it_would_be_stored(parsed, file.rest["options"], task))
        if changed:
            raise InputError(f"{folder.path} holds a run of other options ({'; '.join(changed)}): name this one otherwise "
                             "with --task (TASK=...), or go on with the new options by --resume auto")
    return file


def _place_of(resumed: WeightFile | None) -> str:
    """Where a checkpoint stands, to compare between processes."""
    return "" if resumed is None else f"{resumed.rest.get('epoch')} {resumed.rest.get('progress')}"


def _as_it_would_be_stored(parsed: flags.Parsed, stored: dict, task: Task) -> Namespace:
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
    if filled.batch_size == flags.AUTO:
        filled.batch_size = stored.get("batch_size")
    for name in {"nb_classes", "read_images"} - parsed.typed:
        setattr(filled, name, flags.as_now(stored).get(name))
    return filled


def _take_over(parsed: flags.Parsed, resumed: WeightFile | None, task: Task) -> list[str]:
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
        changed = flags.differences(stored, options, typed)
        if changed:
            lines.append(f"differs from {resumed.path}, and the command line wins: " + "; ".join(changed))
        flags.take_stored(stored, options, typed)
    else:
        lines.append(task.take_over_foreign(parsed, resumed))
    options.decode = options.decode or "full"
    options.fc_norm_passes = options.fc_norm_passes or 1
    return lines


# ---- model ----------------------------------------------------------------------------------------------------------

def new_model(parsed: flags.Parsed, backbone, world: World, task: Task, device: str) -> torch.nn.Module:
    """The model as it starts, on the CPU, or its shapes alone on "meta"."""
    options = parsed.options

    def build():
        torch.manual_seed(options.seed)
        with torch.device(device):
            return task.build(backbone)
    try:
        model = build()
    except models_vit.NoStochasticDepth:
        if "drop_path" in parsed.typed:
            raise
        asked, options.drop_path = options.drop_path, 0.0
        if device == "cpu" or options.dry_run:
            world.say(f"{backbone.arch} has no stochastic depth: --drop_path is 0")
        model = build()
        options.drop_path = asked  # stored as asked, so that the same start again is the same
    return model


def _build(parsed: flags.Parsed, backbone, resumed: WeightFile | None, world: World, task: Task,
           parts: sharding.Parts | None = None):
    """The model with its weights, where they come from, and a line on a checkpoint's. On a dry run it has shapes alone; so
    it has with `parts`, which takes what of a file goes into which part of it."""
    options, loaded = parsed.options, ""
    model = new_model(parsed, backbone, world, task, "cpu" if parts is None and not options.dry_run else "meta")
    put = put_in if parts is None else lambda part, fitted: parts.append((part, fitted))
    if resumed is not None:
        started_from, loaded = load_resumed(parsed, model, backbone, resumed, task, put, streamed=parts is not None)
    elif options.finetune:
        try:
            started_from = models_vit.load_backbone(task.backbone_of(model), backbone, options.finetune, options.weights_dir,
                                                    options.allow_partial, put)
        except InputError as error:
            if "finetune" in parsed.typed or getattr(options, "pretrained", False):
                raise
            raise InputError(f"{error}; {options.finetune} is only the default: another model does as well, such as "
                             "--model efficientnet_b4 (--pretrained takes timm's weights of it)") from error
    else:
        started_from = None
    if not options.eval and not lora.adapted_layers(model):
        choose_part(task, model, backbone, options, has_weights=started_from is not None or options.dry_run)
    lora.require_gradients(task.backbone_of(model), options.input_size, backbone.arch)
    if options.activation_checkpointing and options.adaptation != "lp" and not options.eval:
        parallel.recompute_blocks(model)
    return model, started_from, loaded


def _restore_values(model: torch.nn.Module, resumed: WeightFile | None, task: Task) -> None:
    """Into a sharded model: what its checkpoint keeps in shards of its own, and buffers that stand beside the weights."""
    folder = shard_files.folder_of(resumed) if resumed is not None else None
    if folder is not None:
        shard_files.read_shards(folder, {f"model.{name}": tensor for name, tensor in model.state_dict().items() if not (
            task.keeps_own_head(resumed) and name.startswith(models_vit.head_prefixes(model)))})
    if resumed is not None:
        set_buffers(task.backbone_of(model), resumed.rest.get("buffers", {}))


# ---- training and loading -------------------------------------------------------------------------------------------

def plan_training(job: Job) -> None:
    options = job.options
    reading = job.eval_transform
    job.train_transform = transforms.read_alike(transforms.train_settings(
        options.input_size, reading["mean"], reading["std"], reading["decode"], options.crop_scale, options.crop_ratio,
        options.hflip, options.vflip, options.color_jitter, options.aa, options.reprob, options.remode, options.recount,
        options.cache_size, options.fundus_crop, options.resize), reading)
    # a dry run is one process and may plan for several
    processes = max(options.world_size, job.world.size) if options.dry_run else job.world.size
    even = job.resumed is None or job.resumed.rest.get("schedule", {}).get("even_steps", False)
    job.plan = StepPlan(len(job.rows("train")), options.batch_size, options.accum_iter, processes, even)
    peak = options.lr if options.lr is not None else options.blr * job.plan.step_size / 256
    if options.min_lr > peak:
        raise InputError(f"--min_lr {options.min_lr:g} is above the peak rate {peak:g}: lower it, or raise --lr or --blr")
    job.schedule = Schedule(peak, options.min_lr, lr_schedule.usable_warmup(options.warmup_epochs, options.epochs),
                            options.epochs)


def without_effect_here(parsed: flags.Parsed, job: Job) -> list[str]:
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


def idle_for_backbone(parsed: flags.Parsed, backbone: models_vit.Backbone) -> list[str]:
    """Lines about typed flags of the model that only RETFound_mae knows."""
    lines = []
    if "global_pool" in parsed.typed and not parsed.options.global_pool and backbone.family != "mae":
        lines.append(f"--cls_token changes nothing: {backbone.arch} reads its class token anyway"
                     if backbone.model != models_vit.TIMM else
                     "--cls_token changes nothing: a timm model pools as timm builds it")
    if "fc_norm_passes" in parsed.typed and backbone.family != "mae":
        lines.append(f"--fc_norm_passes does nothing for {backbone.arch}: RETFound_mae alone has fc_norm")
    return lines


def fill_cache(job: Job, splits: tuple[str, ...]) -> None:
    """With --image_cache: `job.cache` with the pictures of these splits, filled by the first process of each machine."""
    options, world, side = job.options, job.world, job.eval_transform.get("kept")
    if not options.image_cache:
        return
    if not side:
        world.say(f"--image_cache does nothing: {options.resume} reads pictures at their own size (--cache_size brings them "
                  "to another)")
        return
    paths = list(job.data.table["path"][job.data.table["split"].isin(splits)])

    def of(say, fill):
        return open_cache(Path(options.image_cache), paths, Kept.of(job.eval_transform, job.fields), usable_cores(), say, fill)

    job.cache = of(world.say, fill=True) if world.local_rank == 0 else None
    world.barrier()
    if job.cache is None:
        job.cache = of(world.say, fill=False)


def loader(job: Job, split: str, batches=None, view: int | None = None):
    """Batches of a split: as `batches` says, through the training's transform; else all of it in order, through the
    evaluation's. view: all of it in order, through the training's transform as in that epoch."""
    options, rows = job.options, job.rows(split)
    if job.features is not None:
        dataset = FeatureDataset(job.features[split], job.task.targets(rows), list(rows["path"]), job.task.covariates(rows))
        batches = batches or EvalBatches(len(rows), options.batch_size, job.world.rank, job.world.size)
        return make_loader(dataset, batches, 0, False)
    random_view = batches is not None or view is not None
    transform = (transforms.TrainTransform(job.train_transform, job.fields) if random_view else
                 transforms.EvalTransform(job.eval_transform, job.fields))
    size = options.batch_size * (1 if job.world.device.type == "cpu" else GPU_EVAL_BATCHES)
    batches = batches or EvalBatches(len(rows), size, job.world.rank, job.world.size, view or 0)
    pinned = options.pin_mem and job.world.device.type == "cuda"
    dataset = tables.ImageDataset(rows, job.task.targets(rows), transform, options.seed, job.task.covariates(rows),
                                  job.cache)
    return make_loader(dataset, batches, workers(options, job.world), pinned)


def workers(options: Namespace, world: World) -> int:
    """Loader processes: as asked, at most this machine's cores divided by its processes."""
    return min(options.num_workers, max(1, usable_cores() // world.local_size))
