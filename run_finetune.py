"""The classification job: from resolved options to results on the disk. Read `run` from top to bottom.

It stands apart from main_finetune.py so that flags are read, refused and explained before torch is imported.
"""

import copy
import time
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import models_vit
from engine_finetune import (
    ClassificationLoss,
    Mixing,
    Schedule,
    Trainer,
    balanced_class_weights,
    evaluate,
    make_loader,
    train_one_epoch,
)
from util import checkpoint, datasets, lr_sched, summary, transforms
from util import options as flags
from util.distributed import World, usable_cores, wrap
from util.errors import InputError, RunError
from util.lr_decay import parameter_groups
from util.memory import estimate_memory
from util.metrics import classification_metrics
from util.precision import Precision, resolve_precision
from util.pretrained import sha256
from util.results import RunFolder, commit, now, versions
from util.sampling import EvalBatches, StepPlan, TrainBatches
from util.state_dicts import WeightFile, set_buffers


@dataclass
class Job:
    """All that was decided before the first step."""

    options: Namespace
    world: World
    folder: RunFolder
    backbone: models_vit.Backbone
    precision: Precision
    data: datasets.Data
    model: torch.nn.Module
    started_from: models_vit.LoadedWeights | dict | None
    resumed: WeightFile | None
    loaded: str  # the line about the checkpoint's tensors
    eval_transform: dict
    train_transform: dict | None = None
    plan: StepPlan | None = None
    schedule: Schedule | None = None

    @property
    def class_names(self) -> list[str]:
        return self.data.class_names

    def rows(self, split: str):
        return self.data.table[self.data.table["split"] == split].reset_index(drop=True)


def run(parsed: flags.Parsed, world: World) -> None:
    """Train (or only score, or only tell) as the options say. InputError, RunError: see util/errors.py."""
    options = parsed.options
    folder = RunFolder(options.output_dir, options.log_dir, options.task)
    resumed = world.main_first(lambda: _find_checkpoint(parsed, folder))
    if len(set(world.gather(resumed.rest.get("epoch", -1) if resumed is not None else None))) > 1:
        raise RunError(f"the processes don't see the same checkpoint in {folder.path}: --output_dir has to be one that "
                       "all nodes share", everywhere=True)
    for line in _take_over(parsed, resumed):
        world.say(line)
    backbone = models_vit.find_backbone(options.model, options.model_arch)
    options.model_arch = backbone.arch
    stored = resumed.rest.get("backbone") if resumed is not None else None
    if stored and stored["arch"] != backbone.arch:
        raise InputError(f"{resumed.path} is a checkpoint of --model {stored['model']} --model_arch {stored['arch']}: "
                         f"{backbone.arch} contradicts it; leave the two flags out, or name its own")
    options.input_size = models_vit.resolve_input_size(backbone, options.input_size)
    precision = resolve_precision(options.precision, world.device, backbone.timm_name)
    if not options.dry_run:
        world.main_first(folder.make)
    data = world.main_first(lambda: _read_data(parsed, resumed, folder, world))
    options.nb_classes = len(data.class_names)
    model, started_from, loaded = world.main_first(lambda: _build(parsed, backbone, resumed, world))
    job = Job(options, world, folder, backbone, precision, data, model, started_from, resumed, loaded,
              _eval_transform(parsed, backbone, resumed))
    if not options.eval:
        _plan_training(job)
    world.say(*summary.describe(job), *_without_effect_here(parsed, job))
    if options.dry_run:
        world.say(*_memory(job), "dry run: nothing was trained")
        return
    precision.prepare()
    try:
        job.model.to(world.device)
        if options.eval:
            _evaluate_only(job)
        else:
            _train(job)
    except torch.OutOfMemoryError as error:
        raise RunError(f"the device's memory is full at --batch_size {options.batch_size} (--dry_run estimates the need): "
                       "lower --batch_size and raise --accum_iter alike, which keeps the effective batch") from error


# ---- what was there before ------------------------------------------------------------------------------------------

def _find_checkpoint(parsed: flags.Parsed, folder: RunFolder) -> WeightFile | None:
    options = parsed.options
    if not options.resume:
        return None
    path = Path(options.resume)
    if options.resume in ("auto", "same"):
        path = folder.file(checkpoint.BEST if options.eval else checkpoint.LAST)
        if not path.exists() and not options.eval:
            return None
    file = checkpoint.read(path)
    if options.eval:
        return file
    checkpoint.require_resumable(file)
    if options.resume == "same":
        changed = flags.differences(file.rest["options"], _as_it_would_be_stored(options, file.rest["options"]))
        if changed:
            raise InputError(f"{folder.path} holds a run of other options ({'; '.join(changed)}): name this one otherwise "
                             "with --task (TASK=...), or go on with the new options by --resume auto")
    return file


def _as_it_would_be_stored(options: Namespace, stored: dict) -> Namespace:
    """The options with what is filled in later filled in as the stored run did, so that only choices are compared."""
    filled = Namespace(**vars(options))
    for name in ("model_arch", "input_size", "decode", "fc_norm_passes"):
        if getattr(filled, name) is None:
            setattr(filled, name, stored.get(name))
    if filled.nb_classes == make_default("nb_classes"):
        filled.nb_classes = stored.get("nb_classes")
    return filled


def make_default(name: str):
    """The default of a flag of main_finetune.py."""
    from main_finetune import make_parser

    return make_parser().get_default(name)


def _take_over(parsed: flags.Parsed, resumed: WeightFile | None) -> list[str]:
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
        lines.append(_take_over_original(parsed, resumed))
    options.decode = options.decode or "full"
    options.fc_norm_passes = options.fc_norm_passes or 1
    return lines


def _take_over_original(parsed: flags.Parsed, file: WeightFile) -> str:
    """A checkpoint of the original scripts: its `args` say the model, and how often fc_norm is applied."""
    options, said = parsed.options, file.arguments
    for name in ("model", "model_arch", "input_size", "global_pool"):
        if name not in parsed.typed and said.get(name) not in (None, ""):
            setattr(options, name, said[name])
    if options.fc_norm_passes is None:
        options.fc_norm_passes = 2 if said.get("model") == "RETFound_mae" and options.global_pool else 1
    what = f"{file.path} is a checkpoint of the original scripts"
    if said.get("model"):
        what += f" (model {said['model']}, epoch {file.rest.get('epoch', 'unknown')})"
    if options.fc_norm_passes == 2:
        what += ", scored as they do, with fc_norm applied twice (--fc_norm_passes)"
    return what + "; it does not name its classes, so the folders' names in order are taken"


# ---- data -----------------------------------------------------------------------------------------------------------

def _read_data(parsed: flags.Parsed, resumed: WeightFile | None, folder: RunFolder, world: World) -> datasets.Data:
    options = parsed.options
    splits = ("test",) if options.eval else datasets.SPLITS
    if options.csv_file:
        data = datasets.read_csv(options.csv_file, options.path_col, options.label_col, options.split_col,
                                 options.patient_col, splits)
    else:
        data = datasets.read_folder(options.data_path, splits)
    # a picture's number counts within its split, so that it is the same where only test is read
    data.table["index"] = data.table.groupby("split", sort=False).cumcount()
    if resumed is not None and resumed.rest.get("class_names"):
        if "nb_classes" in parsed.typed and options.nb_classes != len(resumed.rest["class_names"]):
            raise InputError(f"--nb_classes {options.nb_classes}, but {resumed.path} knows {len(resumed.rest['class_names'])}: "
                             f"pass --nb_classes {len(resumed.rest['class_names'])}")
        data = datasets.match_classes(data, resumed.rest["class_names"])
    else:
        data = datasets.check_classes(data, options.nb_classes, explicit="nb_classes" in parsed.typed)
    if not options.skip_file_check:
        writes = world.is_main and not options.dry_run and options.bad_images == "skip"
        skipped = folder.new_list_of_skipped() if writes else None
        data = datasets.check_files(data, options.bad_images, Path(options.output_dir) / ".checked_images.npy", skipped)
    if options.dataratio[0] < 1 and not options.eval:
        data.table = datasets.subset(data.table, options.dataratio[0], options.stratified, options.datasets_seed)
    return data


def _eval_transform(parsed: flags.Parsed, backbone, resumed: WeightFile | None) -> dict:
    stored = resumed.rest.get("transform", {}).get("eval") if resumed is not None else None
    if stored and not {"input_size", "decode"} & parsed.typed:
        return stored
    options = parsed.options
    return transforms.eval_settings(options.input_size, backbone.mean, backbone.std, options.decode)


# ---- model ----------------------------------------------------------------------------------------------------------

def _build(parsed: flags.Parsed, backbone, resumed: WeightFile | None, world: World):
    """The model with its weights, where they come from, and a line on a checkpoint's. On a dry run it has shapes alone."""
    options, loaded = parsed.options, ""

    def build():
        torch.manual_seed(options.seed)
        with torch.device("meta" if options.dry_run else "cpu"):
            return models_vit.build_model(backbone, options.nb_classes, options.input_size, options.drop_path,
                                          options.global_pool, options.fc_norm_passes)
    try:
        model = build()
    except models_vit.NoStochasticDepth:
        if "drop_path" in parsed.typed:
            raise
        options.drop_path = 0.0
        world.say(f"{backbone.arch} has no stochastic depth: --drop_path is 0")
        model = build()
    if resumed is not None:
        fitted = models_vit.load_trained(model, backbone, resumed)
        loaded = f"{resumed.path}  sha256 {sha256(resumed.path)}  {fitted.describe()}" if world.is_main else ""
        if not options.dry_run:
            set_buffers(model, resumed.rest.get("buffers", {}))
        started_from = resumed.rest.get("weights")
    elif options.finetune:
        started_from = models_vit.load_backbone(model, backbone, options.finetune, options.weights_dir,
                                                options.allow_partial)
    else:
        started_from = None
    if options.adaptation == "lp":
        models_vit.freeze_backbone(model)
    return model, started_from, loaded


def _memory(job: Job) -> list[str]:
    if job.options.eval:
        return []
    estimate = estimate_memory(job.model, job.options.batch_size, job.options.input_size, job.precision.name)
    return [f"memory     about {estimate}"]


# ---- training -------------------------------------------------------------------------------------------------------

def _plan_training(job: Job) -> None:
    options = job.options
    job.train_transform = transforms.train_settings(
        options.input_size, job.backbone.mean, job.backbone.std, options.decode, options.crop_scale, options.crop_ratio,
        options.hflip, options.vflip, options.color_jitter, options.aa, options.reprob, options.remode, options.recount)
    # a dry run is one process and may plan for several
    processes = max(options.world_size, job.world.size) if options.dry_run else job.world.size
    job.plan = StepPlan(len(job.rows("train")), options.batch_size, options.accum_iter, processes)
    peak = options.lr if options.lr is not None else options.blr * job.plan.step_size / 256
    if options.min_lr > peak:
        raise InputError(f"--min_lr {options.min_lr:g} is above the peak rate {peak:g}: lower it, or raise --lr or --blr")
    job.schedule = Schedule(peak, options.min_lr, lr_sched.usable_warmup(options.warmup_epochs, options.epochs),
                            options.epochs)


def _without_effect_here(parsed: flags.Parsed, job: Job) -> list[str]:
    """Lines about what the user asked for and does not get, or gets otherwise."""
    options, typed, lines = job.options, parsed.typed, []
    if options.eval:
        return lines
    if job.schedule.warmup_epochs < options.warmup_epochs:
        lines.append(f"warm-up: {job.schedule.warmup_epochs:g} of {options.epochs} epochs instead of "
                     f"{options.warmup_epochs:g}, at most a fifth of the run")
    if "global_pool" in typed and not options.global_pool and job.backbone.family != "mae":
        lines.append(f"--cls_token changes nothing: {job.backbone.arch} reads its class token anyway"
                     if job.backbone.model != models_vit.TIMM else
                     "--cls_token changes nothing: a timm model pools as timm builds it")
    if "fc_norm_passes" in typed and job.backbone.family != "mae":
        lines.append(f"--fc_norm_passes does nothing for {job.backbone.arch}: RETFound_mae alone has fc_norm")
    if workers(options, job.world) < options.num_workers:
        lines.append(f"loader processes: {workers(options, job.world)} instead of {options.num_workers}, for "
                     f"{usable_cores()} cores and {job.world.local_size} process(es) on this machine")
    if "start_epoch" in typed and job.resumed is not None:
        lines.append("--start_epoch does nothing with --resume: the checkpoint says where to go on")
    if "finetune" in typed and job.resumed is not None and job.resumed.rest["options"].get("finetune") != options.finetune:
        lines.append("--finetune does nothing with --resume: the weights are the checkpoint's")
    if options.color_jitter is not None and not transforms.color_jitter_applies(job.train_transform):
        lines.append("--color_jitter does nothing beside --aa (timm's recipe): pass --aa none for it")
    if options.adaptation == "lp":
        lines += [f"--{name} does nothing in a linear probe: the backbone stands still"
                  for name in ("drop_path", "layer_decay") if name in typed]
    return lines


def _trainer(job: Job) -> Trainer:
    options, world = job.options, job.world
    weights = None
    if options.class_weights == "balanced":
        weights = balanced_class_weights(np.bincount(job.rows("train")["target"], minlength=len(job.class_names)))
    mixing = None
    if options.mixup > 0 or options.cutmix > 0 or options.cutmix_minmax:
        mixing = Mixing(len(job.class_names), options.smoothing, options.mixup, options.cutmix, options.cutmix_minmax,
                        options.mixup_prob, options.mixup_switch_prob, options.mixup_mode)
    optimizer = torch.optim.AdamW(parameter_groups(job.model, options.weight_decay, options.layer_decay),
                                  lr=job.schedule.peak)
    loss = ClassificationLoss(len(job.class_names), options.smoothing, weights).to(world.device)
    return Trainer(wrap(job.model, world), loss, optimizer, job.precision.scaler(), job.schedule, job.plan, job.precision,
                   world, options.seed, options.clip_grad, mixing, eval_mode=options.adaptation == "lp")


def _loader(job: Job, split: str, batches=None):
    options = job.options
    settings = job.train_transform if batches is not None else job.eval_transform
    transform = transforms.TrainTransform(settings) if batches is not None else transforms.EvalTransform(settings)
    rows = job.rows(split)
    batches = batches or EvalBatches(len(rows), options.batch_size, job.world.rank, job.world.size)
    pinned = options.pin_mem and job.world.device.type == "cuda"
    return make_loader(datasets.ImageDataset(rows, transform, options.seed), batches, workers(options, job.world), pinned)


def workers(options: Namespace, world: World) -> int:
    """Loader processes: as asked, at most this machine's cores divided by its processes."""
    return min(options.num_workers, max(1, usable_cores() // world.local_size))


def _train(job: Job) -> None:
    options, world, folder = job.options, job.world, job.folder
    trainer = _trainer(job)
    first, best = options.start_epoch, {"epoch": None, "score": None, "figures": {}}
    if job.resumed is not None:
        first, best = _resume(job, trainer)
    elif world.is_main:
        line = folder.put_aside()
        if line:
            world.say(line)
    if world.is_main:
        checkpoint.remove_torn(folder.path)
        folder.write_run(_facts(job))
    train_loader = _loader(job, "train", TrainBatches(job.plan, world.rank, options.seed))
    val_loader = _loader(job, "val")
    started, best_weights = time.monotonic(), None
    for epoch in range(first, options.epochs):
        begun = time.monotonic()
        figures = train_one_epoch(trainer, train_loader, epoch)
        world.share_buffers(job.model)
        predictions = evaluate(job.model, val_loader, job.rows("val"), job.class_names, job.precision, world, "val")
        metrics, notes = world.from_main(classification_metrics(predictions) if world.is_main else None)
        is_best = best["epoch"] is None or metrics["score"] > best["score"] or best["score"] != best["score"]
        if epoch == first:
            world.say(*(f"val: {note}" for note in notes))
        if is_best:
            best = {"epoch": epoch, "score": metrics["score"], "figures": metrics}
        states = world.gather(checkpoint.random_states(world.device))
        if world.is_main:
            folder.add_evaluation("val", predictions, metrics, epoch, keep=is_best)
            values = {f"val_{name}": value for name, value in metrics.items()}
            folder.add_log({"epoch": epoch, **figures, **values, "seconds": round(time.monotonic() - begun, 1)})
            folder.add_scalars({**figures, **values}, epoch)
            world.say(summary.epoch_line(epoch, options.epochs, figures, metrics, is_best, time.monotonic() - begun))
            # the last one first: it can stand in for the best of the same epoch, should the run be cut between the two
            if options.savemodel:
                checkpoint.write(folder.file(checkpoint.LAST), _content(job, epoch, best) | {
                    "optimizer": trainer.optimizer.state_dict(), "scaler": trainer.scaler.state_dict(),
                    "schedule": {"position": epoch + 1, "effective_batch": job.plan.step_size, **asdict(job.schedule)},
                    "random_states": checkpoint.plain(states)})
            if is_best:
                best_weights = _keep_best(job, best)
        world.barrier()
    if world.is_main:
        folder.draw_curves(best["epoch"])
        folder.draw_confusion("val", job.class_names)
    if world.from_main(first >= options.epochs and folder.is_scored(best["epoch"])):
        world.say(f"this run is complete: its results stand in {folder.path}")
    else:
        _load_best(job, best_weights)
        _score(job, "test", epoch=best["epoch"])
        world.say(f"best epoch {best['epoch']} (val score {best['score']:.4f}); trained in "
                  f"{summary.duration(time.monotonic() - started)}; results in {folder.path}")
    if world.is_main:
        folder.close()


def _resume(job: Job, trainer: Trainer) -> tuple[int, dict]:
    """Put the run back where its checkpoint left it -> (the next epoch, the best one so far)."""
    rest = job.resumed.rest
    _restore_optimizer(trainer.optimizer, rest["optimizer"], job.resumed.path)
    if trainer.scaler.is_enabled() and rest["scaler"]:
        trainer.scaler.load_state_dict(rest["scaler"])
    if job.world.is_main:
        job.folder.adopt(job.resumed.path.parent)
    if len(rest["random_states"]) == job.world.size:
        checkpoint.set_random_states(rest["random_states"][job.world.rank], job.world.device)
    first, best = rest["epoch"] + 1, dict(rest["best"])
    if job.world.is_main:
        job.folder.cut_after(rest["epoch"])
        best = _require_best(job, best, rest["epoch"])
    before = rest["schedule"]
    for what, stored, here in (("effective batch", before["effective_batch"], job.plan.step_size),
                               ("learning rate", before["peak"], job.schedule.peak)):
        if stored != here:
            job.world.say(f"{what}: {stored:g} before, {here:g} from here on")
    job.world.say(f"resumed at epoch {first} from {job.resumed.path}")
    return first, job.world.from_main(best)


def _require_best(job: Job, best: dict, last_epoch: int) -> dict:
    """The best epoch so far, once its weights are there: from the last checkpoint where that is the best one."""
    path = job.folder.file(checkpoint.BEST)
    if path.exists() and checkpoint.read(path).rest.get("epoch") == best["epoch"]:
        return best
    if best["epoch"] == last_epoch:
        _keep_best(job, best)
        return best
    job.world.say(f"{path} does not hold the best epoch {best['epoch']}: the search for the best starts anew from here")
    return {"epoch": None, "score": None, "figures": {}}


def _restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict, path: Path) -> None:
    """The moments come from the checkpoint, weight decay and layer-wise rates from this start's options.

    InputError where other parameters are trained now, or ones of another shape.
    """
    groups = stored["param_groups"]
    now = [name for group in optimizer.param_groups for name in group["names"]]
    before = [name for group in groups for name in group["names"]]
    shapes = {name: tuple(p.shape) for group in optimizer.param_groups
              for name, p in zip(group["names"], group["params"], strict=True)}
    moments = {name: stored["state"].get(number) for group in groups
               for name, number in zip(group["names"], group["params"], strict=True)}
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in optimizer.param_groups] or now != before or any(
            state is not None and tuple(state["exp_avg"].shape) != shapes[name] for name, state in moments.items()):
        raise InputError(f"{path} was trained with other parameters or groups of them (--adaptation, --input_size, weight "
                         "decay 0): start a new run from its weights with --finetune and another --task")
    kept = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    # copied: the file is mapped, and the next checkpoint takes its place
    optimizer.load_state_dict(copy.deepcopy(stored))
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update(own)


def _content(job: Job, epoch: int, best: dict) -> dict:
    """What every checkpoint holds; `model` loads in timm as it is."""
    buffers = {name: buffer for name, buffer in job.model.named_buffers() if name == "rope.periods"}
    return {
        "model": job.model.state_dict(), "buffers": buffers, "format": checkpoint.FORMAT, "epoch": epoch,
        **checkpoint.plain({
            "best": best, "class_names": job.class_names, "options": vars(job.options), "versions": versions(),
            "transform": {"eval": job.eval_transform, "train": job.train_transform},
            "backbone": {"model": job.backbone.model, "arch": job.backbone.arch, "timm": job.backbone.timm_name},
            "weights": _weights_facts(job)}),
    }


def _keep_best(job: Job, best: dict) -> dict | None:
    if job.options.savemodel:
        checkpoint.write(job.folder.file(checkpoint.BEST), _content(job, best["epoch"], best))
        return None
    return {name: tensor.detach().cpu().clone() for name, tensor in job.model.state_dict().items()}


def _load_best(job: Job, in_memory: dict | None) -> None:
    """The best epoch's weights into the model, from the main process to all."""
    if job.world.is_main:
        if in_memory is not None:
            job.model.load_state_dict(in_memory)
        elif job.folder.file(checkpoint.BEST).exists():
            job.model.load_state_dict(checkpoint.read(job.folder.file(checkpoint.BEST)).tensors)
        else:
            raise InputError(f"{job.folder.file(checkpoint.BEST)} is gone, so the test split can't be scored with it")
    if job.world.size > 1:
        for tensor in job.model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def _score(job: Job, split: str, epoch: int | None) -> None:
    """Evaluate a split, write what came out, and print it."""
    world = job.world
    predictions = evaluate(job.model, _loader(job, split), job.rows(split), job.class_names, job.precision, world, split)
    if not world.is_main:
        return
    metrics, notes = classification_metrics(predictions)
    job.folder.add_evaluation(split, predictions, metrics, epoch, keep=True)
    notes += job.folder.draw_confusion(split, job.class_names)
    world.say(*(f"{split}: {note}" for note in notes), *summary.figures(split, metrics, job.folder))


def _evaluate_only(job: Job) -> None:
    if job.world.is_main:
        job.world.say(*job.folder.put_foreign_tables_aside())
        if not job.folder.file("run.json").exists():
            job.folder.write_run(_facts(job))
    _score(job, "test", epoch=None)


def _weights_facts(job: Job) -> dict | None:
    return asdict(job.started_from) if isinstance(job.started_from, models_vit.LoadedWeights) else job.started_from


def _facts(job: Job) -> dict:
    """run.json: what is needed to say, and to do, the same again."""
    counts = datasets.counts(job.data.table, job.class_names)
    return checkpoint.plain({
        "started": now(), "options": vars(job.options), "versions": versions(), "commit": commit(),
        "processes": job.world.size, "device": str(job.world.device), "precision": job.precision.name,
        "model": {"arch": job.backbone.arch, "timm": job.backbone.timm_name,
                  "parameters": models_vit.count_parameters(job.model),
                  "trained": models_vit.count_parameters(job.model, trainable_only=True)},
        "weights": _weights_facts(job),
        "data": {"fingerprint": datasets.fingerprint(job.data.table), "class_names": job.class_names,
                 "images": {split: dict(counts[split]) for split in counts}, "notes": job.data.notes},
        **({} if job.plan is None else {"learning_rate": job.schedule.peak, "effective_batch": job.plan.step_size,
                                        "steps_an_epoch": job.plan.steps}),
    })
