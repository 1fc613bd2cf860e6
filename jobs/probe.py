"""A linear probe: a grid of heads trained in one pass on stored features, the best on val scored once on test.

It takes seconds, so a run that was cut is simply run again: from the same features, to the same bits.
"""

import math
import time

import numpy as np
import pandas as pd
import torch

from jobs.job import Job
from jobs.records import content, draw, facts, report
from jobs.saving import write_last, write_model
from util import checkpoint, lr_sched, summary
from util.errors import InputError, RunError
from util.probe_heads import (
    MOST_ROWS,
    Candidate,
    HeadSetting,
    Trained,
    classic_classifiers,
    grid,
    probabilities,
    train_heads,
)
from util.run_files import write_whole


def probe(job: Job) -> None:
    """Train, choose, score, write. RunError where no head's outputs are numbers."""
    world, folder, options = job.world, job.folder, job.options
    if _is_complete(job):
        world.say(*summary.figures(job.task, "test", folder.figures("test"), folder),
                  f"this run is complete: its results stand in {folder.path}")
        return
    began = time.monotonic()
    # one process is enough: the others would compute the same
    best = world.from_main(world.main_alone(_train_and_choose, job))
    if best is None:
        raise RunError("no head of the probe gives numbers on val: check the weights, or try --precision fp32", everywhere=True)
    weight, bias = (torch.from_numpy(values).to(world.device) for values in (best.pop("weight"), best.pop("bias")))
    head = job.task.head_of(job.model)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    if options.savemodel:
        write_model(job, checkpoint.BEST, content(job, best["epoch"], best))
    world.main_alone(_write, job, best, began)
    if options.savemodel:
        last = {"optimizer": {"state": {}, "param_groups": []}, "scaler": {}, "random_states": [],
                "schedule": {"position": options.epochs, "effective_batch": job.plan.step_size},
                "data_fingerprint": job.data.fingerprint}
        write_last(job, content(job, options.epochs - 1, best) | last)


def _is_complete(job: Job) -> bool:
    """Whether the checkpoint that was found is a probe's, of all epochs, and its head is scored."""
    if job.resumed is None:
        return False
    rest, folder = job.resumed.rest, job.folder
    if rest["options"].get("adaptation") != "lp":
        raise InputError(f"{job.resumed.path} is no probe's: start a new run from its weights with --finetune and another "
                         "--task")
    if job.world.is_main and job.resumed.path.parent.resolve() != folder.path.resolve():
        job.world.say(f"a probe is not gone on with: it is trained anew, from the backbone of {job.resumed.path}")
    mine = job.resumed.path.parent.resolve() == folder.path.resolve()
    done = mine and rest["epoch"] + 1 >= job.options.epochs and folder.is_scored(rest["best"]["epoch"])
    return job.world.from_main(done)


def _labels(job: Job, split: str) -> torch.Tensor:
    return torch.tensor(job.task.targets(job.rows(split)))


def _train_and_choose(job: Job) -> dict | None:
    """The best head on val: its figures and folded weights; what else came out is written and said (main process)."""
    options, device, task = job.options, job.world.device, job.task
    line = job.folder.put_aside()
    job.world.say(*([line] if line else []))
    job.folder.write_run(facts(job))
    features = {name: values.to(device) for name, values in job.features.items()}
    views = [values for name, values in features.items() if name.startswith("train")]
    labels, val_labels = (_labels(job, split).to(device) for split in ("train", "val"))
    settings = grid(job.schedule.peak, options.weight_decay)
    began = time.monotonic()
    trained = train_heads(
        views, labels, features["val"], val_labels, settings, len(task.class_names), task.loss(job.rows("train")).to(device),
        lambda logits, target: torch.nn.functional.cross_entropy(logits, target, reduction="none"), options.epochs,
        job.plan.step_size, lambda position: lr_sched.learning_rate_at(position, 1.0, 0.0, job.schedule.warmup_epochs,
                                                                       options.epochs), options.seed)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.monotonic() - began
    chosen, scores = _choose(job, trained, features["val"])
    if chosen is None:
        return None
    setting = settings[chosen.head]
    rates, decays = (len({getattr(s, name) for s in settings}) for name in ("learning_rate", "weight_decay"))
    job.world.say(
        f"probe      {len(settings)} heads ({rates} learning rates x {decays} weight decays, with and without normalised "
        f"features), {options.epochs} epochs in {summary.duration(seconds)}",
        f"           best on val: learning rate {setting.learning_rate:g}, weight decay {setting.weight_decay:g}, "
        f"{'normalised features' if setting.normalised else 'features as they are'}, epoch {chosen.epoch}")
    _log(job, trained, chosen, setting)
    _write_heads(job, trained, scores, chosen)
    weight, bias = trained.folded(chosen)
    _compare(job, features)
    predictions, figures = _scored(job, "val", features["val"] @ weight.T + bias)
    decided = task.decide(predictions)
    job.folder.add_evaluation("val", predictions, figures, chosen.epoch, keep=True,
                              entries=task.intervals(predictions, figures, decided))
    return {"epoch": chosen.epoch, "score": figures[task.score], "figures": figures, "weight": weight.cpu().numpy(),
            "bias": bias.cpu().numpy(), **decided}


def _scored(job: Job, split: str, logits: torch.Tensor) -> tuple[pd.DataFrame, dict[str, float]]:
    predictions = job.task.predictions(job.rows(split), logits.cpu().numpy())
    return predictions, job.task.metrics(predictions)[0]


def _choose(job: Job, trained: Trained, val: torch.Tensor) -> tuple[Candidate | None, list[tuple[Candidate, float]]]:
    """The candidate with the highest score on val (of equal ones that with the least loss), and the score of each."""
    scores, rows = [], job.rows("val")
    for candidate in trained.candidates():
        weight, bias = trained.folded(candidate)
        logits = val @ weight.T + bias
        if not bool(torch.isfinite(logits).all()):
            continue
        scores.append((candidate, job.task.score_of(rows, logits.cpu().numpy())))

    def rank(pair):
        candidate, score = pair
        return (-math.inf if math.isnan(score) else score, -trained.val_loss[candidate.epoch, candidate.head])

    return (max(scores, key=rank)[0] if scores else None), scores


def _log(job: Job, trained: Trained, chosen: Candidate, setting: HeadSetting) -> None:
    """log.txt and TensorBoard: the chosen head's losses, an epoch a row."""
    rows = []
    for epoch in range(len(trained.val_loss)):
        factor = lr_sched.learning_rate_at(epoch + 0.5, 1.0, 0.0, job.schedule.warmup_epochs, job.options.epochs)
        rows.append({"epoch": epoch, "train_loss": float(trained.train_loss[epoch, chosen.head]),
                     "lr": setting.learning_rate * factor, "val_loss": float(trained.val_loss[epoch, chosen.head])})
        job.folder.add_scalars({name: value for name, value in rows[-1].items() if name != "epoch"}, epoch)
    job.folder.add_log(*rows)


def _write_heads(job: Job, trained: Trained, scores: list[tuple[Candidate, float]], chosen: Candidate) -> None:
    """probe_heads.csv: every candidate, and what it came to on val."""
    rows = []
    for candidate, score in scores:
        setting = trained.heads.settings[candidate.head]
        rows.append({"learning_rate": setting.learning_rate, "weight_decay": setting.weight_decay,
                     "normalised": int(setting.normalised), "epoch": candidate.epoch,
                     "val_loss": trained.val_loss[candidate.epoch, candidate.head], f"val_{job.task.score}": score,
                     "chosen": int(candidate is chosen)})
    _write_table(job, "probe_heads.csv", rows)


def _write_table(job: Job, name: str, rows: list[dict]) -> None:
    with job.folder.writing(job.folder.file(name)) as path:
        write_whole(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def _compare(job: Job, features: dict[str, torch.Tensor]) -> None:
    """Two classic classifiers on the same features: probe_classic.csv, and a line each."""
    task, rows = job.task, []
    train = next(values for name, values in features.items() if name.startswith("train")).cpu().numpy()
    labels = _labels(job, "train").numpy()
    if len(labels) > MOST_ROWS:
        job.world.say(f"           neighbours and logistic regression see {MOST_ROWS:,} of {len(labels):,} training pictures")
    for name, candidates in classic_classifiers(train, labels, job.options.seed).items():
        scored = [{split: _scored(job, split, _as_logits(classifier, features[split], len(task.class_names)))[1]
                   for split in ("val", "test")} for classifier in candidates]
        best = max(scored, key=lambda figures: np.nan_to_num(figures["val"][task.score], nan=-math.inf))
        rows += [{"classifier": name, "split": split, **figures} for split, figures in best.items()]
        shown = "; ".join(f"{split} " + ", ".join(f"{label} {figures[figure]:.4f}" for figure, label in (
            *task.shown[:2], (task.score, task.score))) for split, figures in best.items())
        job.world.say(f"           for comparison, {name}: {shown}")
    _write_table(job, "probe_classic.csv", rows)


def _as_logits(classifier, features: torch.Tensor, num_classes: int) -> torch.Tensor:
    chances = probabilities(classifier, features.cpu().numpy(), num_classes)
    return torch.from_numpy(np.log(np.clip(chances, 1e-12, None)))


def _write(job: Job, best: dict, began: float) -> None:
    """What the main process leaves on the disk once the head is in the model; test is scored here, once."""
    folder, task, options = job.folder, job.task, job.options
    head = task.head_of(job.model)
    with torch.inference_mode():
        logits = head(job.features["test"].to(job.world.device))
    folder.draw_curves(best["epoch"])
    draw(job, "val")
    predictions, figures = _scored(job, "test", logits)
    entries = task.intervals(predictions, figures, best)
    folder.add_evaluation("test", predictions, figures, best["epoch"], keep=True, entries=entries)
    notes = task.metrics(predictions)[1] + draw(job, "test")
    job.world.say(*(f"test: {note}" for note in notes), *summary.figures(task, "test", entries, folder), *report(job))
    job.world.say(f"best epoch {best['epoch']} (val {options.select_metric} {best['score']:.4f}); trained in "
                  f"{summary.duration(time.monotonic() - began)}; results in {folder.path}")
