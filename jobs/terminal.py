"""What the terminal shows: what will run, how an epoch went, what came out."""

import math
from typing import TYPE_CHECKING

from util.core.plain_numbers import duration, mean_and_deviation
from util.data import cases
from util.data.tables import Data, counts
from util.options.adaptation import KINDS

if TYPE_CHECKING:
    from jobs.job import Job
    from jobs.run_folder import RunFolder
    from jobs.tasks.base import Task

MOST_CLASSES_LISTED = 60
FIGURES_A_LINE = 3


def describe(job: "Job") -> list[str]:
    """The run on one screen: model, weights, data, device, training."""
    options, model, training = job.options, job.options.model, job.options.training
    world, backbone = job.world, job.backbone
    trained = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in job.model.parameters())
    what = "all trained" if trained == total else f"{trained:,} of them trained"
    reads = f", reads {backbone.reads}" if backbone.model != "timm" else ""
    if backbone.family == "mae" and model.global_pool:
        times = " twice" if model.fc_norm_passes == 2 else ""
        reads = f", reads the mean of the patch tokens, then fc_norm{times}"
    if job.task.reads is not None:
        kind = job.task.reads["kind"]
        reads = f", reads the {KINDS[kind]} ({kind}: util/model/feature_kinds.py)"
    size = job.plan.world_size if job.plan is not None else world.size
    cores = f"{size} process{'es' if size > 1 else ''}"
    lines = [f"run        {'score' if options.run.eval else model.adaptation}, results in {job.folder.path}",
             f"model      {backbone.model} {backbone.arch}, {total:,} parameters ({what}), input "
             f"{model.input_size} pixels{reads}",
             f"weights    {_weights(job)}", *job.task.describe_data(job.data),
             *cases.describe(job.data.table, job.data.splits, options.data),
             *(f"           note: {note}" for note in job.data.notes),
             f"device     {world.device} ({cores}), precision {job.precision.name}",
             f"reading    {reading(job.eval_transform, model.norm, job.norm_source)}", *mirrors(model.tta)]
    if job.plan is not None and not options.search.optuna_trials:
        plan = job.plan
        lines.append(f"training   {training.epochs} epochs of {plan.steps} steps; batch "
                     f"{training.batch_size} x accumulation {training.accum_iter} x {cores} = "
                     f"{plan.step_size}; learning rate {job.schedule.peak:.3g}"
                     + ("" if training.lr is not None else f" (blr {training.blr:g})")
                     + f", warm-up {job.schedule.warmup_epochs:g} epochs; seed {options.run.seed}")
    return lines


def reading(transform: dict, norm: str, source: str) -> str:
    """How images are read, in a few words. source: where mean and standard deviation are from
    (jobs/data.py)."""
    is_cut = transform.get("fundus_crop", "off") == "auto"
    field = "cut to the round field (--fundus_crop auto); " if is_cut else ""
    side = transform.get("kept")
    reduced = "" if side is None else f", reduced to a short side of {side} where that is larger"
    return (f"{field}decoding {transform['decode']}{reduced}; normalised by "
            f"{mean_and_deviation(transform['mean'], transform['std'])} (--norm {norm}: {source})")


def mirrors(tta: str) -> list[str]:
    line = "           outputs are means over each image and its mirror image (--tta mirror)"
    return [line] if tta == "mirror" else []


def _weights(job: "Job") -> str:
    if job.resumed is not None:
        progress = job.resumed.rest.get("progress") or {}
        inside = f"epoch {progress['epoch']}, step {progress['steps']}" if progress.get("steps") else ""
        return f"{job.loaded}; {inside or 'epoch ' + str(job.resumed.rest.get('epoch', 'unknown'))}"
    if job.started_from is None:
        return "NONE: training starts from random weights (--finetune names pre-trained ones)"
    return job.started_from["text"].removeprefix("weights: ")


def classes(data: Data, source: str) -> list[str]:
    """How many images of each class each split has."""
    table = counts(data.table, data.class_names)
    totals = ", ".join(f"{split} {table[split].sum():,}" for split in table)
    lines = [f"data       {source}: {len(data.class_names)} classes; {totals}"]
    width = max(len(str(name)) for name in data.class_names)
    for name in data.class_names[:MOST_CLASSES_LISTED]:
        of_splits = "  ".join(f"{split} {table.loc[name, split]:>6,}" for split in table)
        lines.append(f"           {name!s:<{width}}  {of_splits}")
    if len(data.class_names) > MOST_CLASSES_LISTED:
        rest = table.loc[data.class_names[MOST_CLASSES_LISTED:]]
        lines.append(f"           and {len(rest)} more classes of {rest.min().min():,} to "
                     f"{rest.max().max():,} images a split (all in run.json)")
    return lines


def epoch_line(task: "Task", epoch: int, epochs: int, training: dict[str, float], metrics: dict[str, float],
               is_best: bool, seconds: float) -> str:
    shown = [f"{label} {_figure(metrics[name])}" for name, label in task.shown[:4]]
    if task.score not in [name for name, _ in task.shown[:4]]:
        shown.append(f"{task.options.metrics.select_metric} {_figure(metrics[task.score])}")
    return (f"epoch {epoch} ({epoch + 1}/{epochs})  loss {training['train_loss']:.4f}  val loss "
            f"{metrics['loss']:.4f}  {'  '.join(shown)}{' best' if is_best else ''}  {duration(seconds)}")


def figures(task: "Task", split: str, entries: dict[str, dict], folder: "RunFolder") -> list[str]:
    """A split's metrics with their intervals, and where they are written. entries: from
    util/metrics/intervals.py."""
    parts = [f"{label:<17}{figure_with_interval(entries[name])}" for name, label in task.shown
             if name in entries]
    width = max(map(len, parts))
    lines = ["  " + "   ".join(f"{part:<{width}}" for part in parts[start:start + FIGURES_A_LINE]).rstrip()
             for start in range(0, len(parts), FIGURES_A_LINE)]
    return [f"{split} ({entries['n']['value']:,.0f} {task.options.data.unit}{_how(entries)})", *lines,
            *task.lines_below(entries),
            f"written to {folder.path}: metrics_{split}.csv, metrics_{split}.json, predictions_{split}.csv, "
            f"{task.pictures(split)}"]


def drop(task: "Task", main: str, split: str, lost: dict[str, dict], folder: "RunFolder") -> list[str]:
    """What is lost from the main test set to an external one."""
    parts = [f"{label} {figure_with_interval(lost[name])}" for name, label in task.shown[:4] if name in lost]
    return [f"from {main} to {split}, independent {task.options.data.unit}; positive: worse on {split}",
            f"  {'   '.join(parts) or 'the means are not over the same labels: see those of each label'}",
            f"written to {folder.file(f'drop_{split}.csv')}"]


def figure_with_interval(entry: dict, digits: str = ".4f") -> str:
    """0.9037 (0.871-0.929), or the value alone."""
    value, lower, upper = entry["value"], entry["lower"], entry["upper"]
    if math.isnan(value):
        return "undefined"
    if lower is None or math.isnan(lower):
        return f"{value:{digits}}"
    of_bounds = ".3f" if digits == ".4f" else digits
    return f"{value:{digits}} ({lower:{of_bounds}}-{upper:{of_bounds}})"


def _how(entries: dict[str, dict]) -> str:
    """How the intervals were made, and what was left out of them."""
    drawn = [entry for entry in entries.values() if entry.get("resamples")]
    if not drawn:
        return ""
    first = drawn[0]
    text = (f"; 95 % intervals: {first['resamples']:,} resamples of {first['method'].split()[-1]}, "
            f"seed {first['seed']}")
    others = dict.fromkeys(entry["method"] for entry in entries.values()
                           if entry.get("method") and not entry.get("resamples"))
    text += f"; by {', '.join(others)} where these are better" if others else ""
    lacking = [entry["undefined"] for entry in entries.values() if entry.get("undefined")]
    if lacking:
        text += f"; metrics undefined in some resamples: {len(lacking)}, in at most {max(lacking)} of them"
    return text


def _figure(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4f}"
