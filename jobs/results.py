"""What is written down of a run beside its checkpoints: run.json, metrics, predictions, images, one page."""

import time
from collections.abc import Sequence

import pandas as pd

import models_vit
from jobs import group_metrics, recalibration, terminal
from jobs.job import Job
from jobs.run_folder import RunFolder, commit, now, versions
from jobs.tasks.base import Task
from util.core import run_files, secrets
from util.core.plain_numbers import duration
from util.metrics.intervals import drop_table, drops
from util.metrics.predictions import Evaluated, common_patients, read_predictions
from util.options.table import own_values
from util.report.page import write_report
from util.weights import checkpoint


def facts(job: Job) -> dict:
    """run.json: what is needed to say, and to do, the same again."""
    planned = {} if job.plan is None else {"learning_rate": job.schedule.peak,
                                           "effective_batch": job.plan.step_size,
                                           "steps_an_epoch": job.plan.steps}
    return checkpoint.plain({
        "started": now(), "options": secrets.plain_without_secrets(own_values(job.options)),
        "versions": versions(), "commit": commit(),
        "processes": job.world.size, "device": str(job.world.device), "precision": job.precision.name,
        "model": {"arch": job.backbone.arch, "timm": job.backbone.timm_name,
                  "parameters": models_vit.count_parameters(job.model),
                  "trained": models_vit.count_parameters(job.model, trainable_only=True)},
        "weights": job.started_from,
        "normalisation": {"mean": job.eval_transform["mean"], "std": job.eval_transform["std"],
                          "source": job.norm_source},
        "data": {"fingerprint": job.data.fingerprint, **job.task.facts(job.data),
                 **({"external": list(job.data.external)} if job.data.external else {}),
                 "notes": job.data.notes},
        **planned})


def _draw(job: Job, split: str) -> list[str]:
    with job.folder.writing():
        return job.task.draw(job.folder, split)


def finish_val(job: Job, best: dict) -> None:
    """Intervals and images of the best epoch's predictions on val, once it is known to be the best."""
    notes, path = job.folder.draw_curves(best["epoch"]), job.folder.file("predictions_val.csv")
    if path.exists():
        entries = job.task.intervals(read_predictions(path), best["figures"], best)
        with job.folder.writing(job.folder.file("metrics_val.json")) as metrics:
            run_files.write_metrics_json(metrics, entries)
        notes += _draw(job, "val")
    job.world.say(*(f"val: {note}" for note in notes))


def write_tests(job: Job, evaluated: dict[str, Evaluated], epoch: int | None, decided: dict) -> None:
    """Of each test set's predictions the metrics with their intervals and the images; what is lost on
    external sets; the page of all."""
    found = {split: _write_test(job, split, predictions, epoch, decided)
             for split, predictions in evaluated.items()}
    tables = {split: predictions.table for split, predictions in evaluated.items()}
    for split, predictions in tables.items():
        job.world.say(*group_metrics.write(job.task, job.folder, split, predictions,
                                           group_metrics.entries_by(job.task, decided)))
    job.world.say(*write_drops(job.task, job.folder, found, tables, job.data.external))
    if job.options.metrics.recalibrate is not None:
        split = recalibration.split_of(job.options.metrics.recalibrate)
        job.world.say(*recalibration.write(job.folder, split, tables[split], job.options))
    with job.folder.writing():
        job.world.say(*write_report(job.folder.path))


def write_drops(task: Task, folder: RunFolder, found: dict[str, dict], tables: dict[str, pd.DataFrame],
                external: Sequence[str]) -> list[str]:
    """What is lost from the first test set to the external ones -> lines. found: {split: its entries};
    tables: {split: its predictions}."""
    lines, (main, *others) = [], found
    for split in others:
        if split in external and main not in external:
            lost = drops(found[main], found[split])
            with folder.writing(folder.file(f"drop_{split}.csv")) as path:
                run_files.write_whole(path, drop_table(found[main], found[split], lost))
            lines += terminal.drop(task, main, split, lost, folder)
            shared = common_patients(tables[main], tables[split])
            if shared:
                lines.append(f"warning: {shared:,} patients are in {main} and in {split}: the two are no "
                             "independent samples, and the intervals of what is lost don't hold")
    return lines


def _write_test(job: Job, split: str, predictions: Evaluated, epoch: int | None,
                decided: dict) -> dict[str, dict]:
    metrics, notes = job.task.metrics(predictions.table, decided)
    entries = job.task.intervals(predictions.table, metrics, decided)
    job.folder.add_evaluation(split, predictions, metrics, epoch, entries)
    notes += _draw(job, split)
    job.world.say(*(f"{split}: {note}" for note in notes),
                  *terminal.figures(job.task, split, entries, job.folder))
    return entries


def is_scored(job: Job, epoch: int | None) -> bool:
    """Whether the folder holds all that is asked for of this epoch's weights."""
    asked = job.options.metrics.recalibrate
    file = None if asked is None else f"recalibration_{recalibration.split_of(asked)}.json"
    return (job.folder.is_scored(epoch, job.data.test_sets)
            and (file is None or job.folder.file(file).exists()))


def say_end(job: Job, best: dict, began: float) -> None:
    metric = job.options.metrics.select_metric
    job.world.say(f"best epoch {best['epoch']} (val {metric} {best['score']:.4f}); trained in "
                  f"{duration(time.monotonic() - began)}; results in {job.folder.path}")


def say_complete(job: Job) -> None:
    """What the terminal shows of a run that was trained and scored before."""
    job.world.say(*(line for split in job.data.test_sets
                    for line in terminal.figures(job.task, split, job.folder.figures(split), job.folder)),
                  f"this run is complete: its results stand in {job.folder.path}")
