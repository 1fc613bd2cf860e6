"""A linear probe: a grid of heads trained in one pass on stored features, the best on val scored once on
test.

It takes seconds, so a run that was cut is simply run again: from the same features, to the same bits.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from jobs.checkpointing import content, write_last, write_model
from jobs.job import Job
from jobs.results import facts, finish_val, is_scored, say_complete, say_end, write_tests
from util.core.errors import InputError, RunError
from util.core.plain_numbers import duration
from util.core.run_files import write_whole
from util.data import cases
from util.data.sampling import balanced_order, epoch_order
from util.metrics import selection
from util.metrics.predictions import Evaluated
from util.model import attentive_heads, case_attention, lr_schedule
from util.model.case_attention import CaseFeatures, case_outputs, train_case_heads
from util.model.probe_heads import (
    MOST_ROWS,
    Candidate,
    HeadSetting,
    Pass,
    Trained,
    classic_classifiers,
    grid,
    probabilities,
    train_heads,
)
from util.options.adaptation import ATTENTIVE, KINDS, OF_CASES, POOLED
from util.options.data import MEAN
from util.weights import checkpoint

if TYPE_CHECKING:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline


def probe(job: Job) -> None:
    """Train, choose, score, write. RunError where no head's outputs are numbers."""
    world, options = job.world, job.options
    if _is_complete(job):
        say_complete(job)
        return
    began = time.monotonic()
    # one process is enough: the others would compute the same
    best = world.from_main(world.main_alone(_train_and_choose, job))
    if best is None:
        raise RunError("no head of the probe gives numbers on val: check the weights, or try --precision "
                       "fp32", everywhere=True)
    kind = best.pop("reads")
    values = {name: torch.from_numpy(values).to(world.device) for name, values in best.pop("head").items()}
    job.task.put_probe_head(job.model, kind, values)
    if options.run.savemodel:
        write_model(job, checkpoint.BEST, content(job, best["epoch"], best))
    world.main_alone(_score, job, best, kind, tuple(values.values()))
    say_end(job, best, began)
    if options.run.savemodel:
        last = {"optimizer": {"state": {}, "param_groups": []}, "scaler": {}, "random_states": [],
                "schedule": {"position": options.training.epochs, "effective_batch": job.plan.step_size},
                "data_fingerprint": job.data.fingerprint}
        write_last(job, content(job, options.training.epochs - 1, best) | last)


def _is_complete(job: Job) -> bool:
    """Whether the checkpoint that was found is a probe's, of all epochs, and its head is scored."""
    if job.resumed is None:
        return False
    rest, folder = job.resumed.rest, job.folder
    if rest["options"].get("adaptation") != "lp":
        raise InputError(f"{job.resumed.path} is no probe's: start a new run from its weights with "
                         "--finetune and another --task")
    mine = folder.holds(job.resumed)
    if not mine:
        job.world.say("a probe is not gone on with: it is trained anew, from the backbone of "
                      f"{job.resumed.path}")
    return job.world.from_main(mine and rest["epoch"] + 1 >= job.options.training.epochs
                               and is_scored(job, rest["best"]["epoch"]))


def _labels(job: Job, split: str) -> torch.Tensor:
    return torch.tensor(job.task.targets(job.samples(split)))


@dataclass
class Scored:
    """A candidate, the kind of feature that it reads (util/model/feature_kinds.py), and its score on val."""

    kind: str
    trained: Trained
    candidate: Candidate
    score: float

    @property
    def setting(self) -> HeadSetting:
        return self.trained.heads.settings[self.candidate.head]

    @property
    def rank(self) -> tuple[float, float]:
        """The highest is the best: by the score, among equal ones by the loss."""
        return (-math.inf if math.isnan(self.score) else self.score,
                -self.trained.val_loss[self.candidate.epoch, self.candidate.head])


def _train_and_choose(job: Job) -> dict | None:
    """The best head on val: its metrics and folded weights; what else came out is written and said (main
    process)."""
    options, task, epochs = job.options, job.task, job.options.training.epochs
    job.world.say(*job.folder.put_aside())
    job.folder.write_run(facts(job))
    settings, began = grid(job.schedule.peak, options.training.weight_decay), time.monotonic()
    job.world.say(*_announced(job, settings))
    trained, features = _train_all(job, settings), job.features
    seconds = time.monotonic() - began
    scored = _score_all(job, trained)
    if not scored:
        return None
    chosen = choose(scored)
    job.world.say(*selection.undefined(options.metrics.select_metric, chosen.score,
                                       "the head of the least loss"))
    setting, candidate = chosen.setting, chosen.candidate
    job.world.say(
        f"           trained for {epochs} epochs in {duration(seconds)}; best on val: "
        f"{chosen.kind}, learning rate {setting.learning_rate:g}, weight decay {setting.weight_decay:g}, "
        f"{'normalised features' if setting.normalised else 'features as they are'}, epoch {candidate.epoch}")
    _log(job, chosen)
    _write_heads(job, scored, chosen)
    values = chosen.trained.folded(candidate)
    _compare(job, {name: values[:, job.kinds[POOLED]] for name, values in features.items()})
    predictions, figures = _scored(job, "val", _logits(job, chosen.kind, "val", *values))
    job.folder.add_evaluation("val", predictions, figures, candidate.epoch)
    return {"epoch": candidate.epoch, "score": figures[task.score], "figures": figures, "reads": chosen.kind,
            "head": {name: value.cpu().numpy()
                     for name, value in zip(chosen.trained.heads.names, values, strict=True)},
            **task.decide(predictions.table)}


def _train_attention(job: Job, features: dict[str, torch.Tensor], labels: torch.Tensor,
                     val_labels: torch.Tensor, run: Pass) -> Trained:
    """Heads of cases on what the model's own head reads (--pool attention)."""
    columns = job.kinds[POOLED]
    of_cases = {name: CaseFeatures.of(values[:, columns], cases.of_images(job.rows(name.split(" ")[0]))[1])
                for name, values in features.items() if name.startswith(("train", "val"))}
    views = [of_case for name, of_case in of_cases.items() if name.startswith("train")]
    return train_case_heads(views, labels, of_cases["val"], val_labels, run, job.options.run.seed)


@dataclass(frozen=True)
class BestHead:
    """What the best head of a grid on val came to: its epoch, what its training says ("train_loss", "lr"),
    the metrics of val, and the predictions of val and of the splits that were asked for."""

    epoch: int
    training: dict[str, float]
    metrics: dict[str, float]
    predictions: dict[str, pd.DataFrame]


def best_head(job: Job, splits: Sequence[str] = ()) -> BestHead | None:
    """Train and choose as `probe` does, and write nothing (main process); None where no head's outputs are
    numbers."""
    trained = _train_all(job, grid(job.schedule.peak, job.options.training.weight_decay))
    scored = _score_all(job, trained)
    if not scored:
        return None
    chosen = choose(scored)
    values, candidate = chosen.trained.folded(chosen.candidate), chosen.candidate
    found = {split: _scored(job, split, _logits(job, chosen.kind, split, *values))
             for split in ("val", *splits)}
    loss = float(chosen.trained.train_loss[candidate.epoch, candidate.head])
    return BestHead(candidate.epoch, {"train_loss": loss, "lr": chosen.setting.learning_rate},
                    found["val"][1], {split: one.table for split, (one, _) in found.items()})


def _train_all(job: Job, settings: list[HeadSetting]) -> dict[str, Trained]:
    """Every candidate of each kind of features, {kind: what its pass came to} (main process)."""
    options, device, task = job.options, job.world.device, job.task
    job.features = features = {name: values.to(device) for name, values in job.features.items()}
    labels, val_labels = (_labels(job, split).to(device) for split in ("train", "val"))
    epochs = options.training.epochs
    order = partial(epoch_order, len(labels), options.run.seed)
    if options.mixing.balanced_sampling:
        order = partial(balanced_order, labels.cpu().numpy(), options.run.seed)
    run = Pass(
        len(task.class_names),
        task.loss(job.samples("train")).to(device),
        task.plain_loss(job.samples("val")).to(device),
        epochs,
        job.plan.step_size,
        lambda position: lr_schedule.learning_rate_at(position, 1.0, 0.0, job.schedule.warmup_epochs, epochs),
        order,
    )
    if options.data.attends:
        return {OF_CASES: _train_attention(job, features, labels, val_labels, run)}
    trained = {}
    for kind, columns in job.kinds.items():
        views = [values[:, columns] for name, values in features.items() if name.startswith("train")]
        trained[kind] = train_heads(views, labels, features["val"][:, columns], val_labels, settings, run)
    if job.tokens:
        views = [values for name, values in job.tokens.items() if name.startswith("train")]
        trained[ATTENTIVE] = attentive_heads.train_attentive(
            views, labels, job.tokens["val"], val_labels, attentive_heads.attentive_grid(), run)
    return trained


def _announced(job: Job, settings: list[HeadSetting]) -> list[str]:
    """The line of how many heads are trained, on which kinds of features."""
    rates, decays = (len({getattr(setting, name) for setting in settings})
                     for name in ("learning_rate", "weight_decay"))
    if job.options.data.attends:
        width = job.features["val"][:, job.kinds[POOLED]].shape[1]
        rates, decays = map(len, (case_attention.LEARNING_RATES, case_attention.WEIGHT_DECAYS))
        return [f"probe      {rates * decays} heads ({rates} learning rates x {decays} weight decays), each "
                f"with an attention over a case's images; {KINDS[POOLED]}, width {width:,}"]
    kinds, attentive = job.kinds, len(attentive_heads.attentive_grid()) if job.tokens else 0
    more = f", and {attentive} attentive ones" if attentive else ""
    counted = f"{len(kinds)} kind{'s' * (len(kinds) > 1)} of features"
    return [f"probe      {len(settings) * len(kinds) + attentive} heads: {len(settings)} on each of "
            f"{counted} ({rates} learning rates x {decays} weight decays, with and without normalised "
            f"features){more}",
            *(f"           {kind:<10} {KINDS[kind]}, width {columns.stop - columns.start:,}"
              for kind, columns in kinds.items()),
            *([f"           {ATTENTIVE:<10} {KINDS[ATTENTIVE]}, {job.tokens['val'].shape[1]:,} of width "
               f"{job.tokens['val'].shape[2]:,}"] if attentive else [])]


def _logits(job: Job, kind: str, split: str, weight: torch.Tensor, bias: torch.Tensor,
            *more: torch.Tensor) -> torch.Tensor:
    """(N, K) of a head of a kind of features; with an attention over cases (N, K + 1)."""
    if kind == OF_CASES:
        return case_outputs(job.features[split][:, job.kinds[POOLED]], (weight, bias, *more))
    if kind == ATTENTIVE:
        return attentive_heads.attentive_logits(job.tokens[split], weight, bias, *more)
    return job.features[split][:, job.kinds[kind]] @ weight.T + bias


def _scored(job: Job, split: str, logits: torch.Tensor,
            pool: str | None = None) -> tuple[Evaluated, dict[str, float]]:
    predictions = job.task.evaluated(job.rows(split), logits.cpu().numpy(), pool)
    return predictions, job.task.metrics(predictions.table)[0]


def choose(scored: list[Scored]) -> Scored:
    """The highest score on val, whatever is read; of equal ones the least loss."""
    return max(scored, key=lambda one: one.rank)


def _score_all(job: Job, trained: dict[str, Trained]) -> list[Scored]:
    """Every candidate whose outputs on val are numbers."""
    scored, rows = [], job.rows("val")
    for kind, of_kind in trained.items():
        for candidate in of_kind.candidates():
            logits = _logits(job, kind, "val", *of_kind.folded(candidate))
            if bool(torch.isfinite(logits).all()):
                scored.append(Scored(kind, of_kind, candidate, job.task.score_of(rows, logits.cpu().numpy())))
    return scored


def _log(job: Job, chosen: Scored) -> None:
    """log.txt and TensorBoard: the chosen head's losses, an epoch a row."""
    rows, head = [], chosen.candidate.head
    for epoch in range(len(chosen.trained.val_loss)):
        factor = lr_schedule.learning_rate_at(epoch + 0.5, 1.0, 0.0, job.schedule.warmup_epochs,
                                              job.options.training.epochs)
        rows.append({"epoch": epoch, "train_loss": float(chosen.trained.train_loss[epoch, head]),
                     "lr": chosen.setting.learning_rate * factor,
                     "val_loss": float(chosen.trained.val_loss[epoch, head])})
        job.folder.add_scalars({name: value for name, value in rows[-1].items() if name != "epoch"}, epoch)
    job.folder.add_log(*rows)


def _write_heads(job: Job, scored: list[Scored], chosen: Scored) -> None:
    """probe_heads.csv: every candidate, and what it came to on val."""
    _write_table(job, "probe_heads.csv", [
        {"reads": one.kind, "learning_rate": one.setting.learning_rate,
         "weight_decay": one.setting.weight_decay, "normalised": int(one.setting.normalised),
         "epoch": one.candidate.epoch,
         "val_loss": one.trained.val_loss[one.candidate.epoch, one.candidate.head],
         f"val_{job.task.score}": one.score, "chosen": int(one is chosen)} for one in scored])


def _write_table(job: Job, name: str, rows: list[dict]) -> None:
    with job.folder.writing(job.folder.file(name)) as path:
        write_whole(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def _compare(job: Job, features: dict[str, torch.Tensor]) -> None:
    """Two classic classifiers on the same features: probe_classic.csv, and a line each."""
    task, rows = job.task, []
    train = next(values for name, values in features.items() if name.startswith("train")).cpu().numpy()
    labels = job.task.targets(job.rows("train"))
    pool = MEAN if job.options.data.attends else None  # they know of no attention
    if len(labels) > MOST_ROWS:
        job.world.say(f"           neighbours and logistic regression see {MOST_ROWS:,} of {len(labels):,} "
                      "training images")
    for name, candidates in _classic(train, labels, job.options.run.seed, len(task.class_names)).items():
        scored = [{split: _scored(job, split, logits_of(features[split]), pool)[1]
                   for split in ("val", *job.data.test_sets)} for logits_of in candidates]
        best = max(scored, key=lambda figures: np.nan_to_num(figures["val"][task.score], nan=-math.inf))
        rows += [{"classifier": name, "split": split, **figures} for split, figures in best.items()]
        shown = "; ".join(
            f"{split} " + ", ".join(f"{label} {figures[figure]:.4f}"
                                    for figure, label in (*task.shown[:2], (task.score, task.score)))
            for split, figures in best.items())
        job.world.say(f"           for comparison, {name}: {shown}")
    _write_table(job, "probe_classic.csv", rows)


def _classic(train: np.ndarray, labels: np.ndarray, seed: int,
             number: int) -> dict[str, list[Callable[[torch.Tensor], torch.Tensor]]]:
    """{name: from features to the outputs (N, K) of each candidate}; of several labels (N, T) one classifier
    each, of the images where it is known."""
    if labels.ndim == 1:
        return {name: [partial(_as_logits, one, num_classes=number) for one in candidates]
                for name, candidates in classic_classifiers(train, labels, seed).items()}
    by_label = [classic_classifiers(train[known], column[known].astype(np.int64), seed)
                for column in labels.T for known in [~np.isnan(column)]]
    return {name: [partial(_as_log_odds, list(of_labels))
                   for of_labels in zip(*(found[name] for found in by_label), strict=True)]
            for name in by_label[0]}


def _as_log_odds(classifiers: "list[KNeighborsClassifier | Pipeline]",
                 features: torch.Tensor) -> torch.Tensor:
    pairs = [_as_logits(one, features, 2) for one in classifiers]
    return torch.stack([pair[:, 1] - pair[:, 0] for pair in pairs], dim=1)


def _as_logits(classifier: "KNeighborsClassifier | Pipeline", features: torch.Tensor,
               num_classes: int) -> torch.Tensor:
    chances = probabilities(classifier, features.cpu().numpy(), num_classes)
    return torch.from_numpy(np.log(np.clip(chances, 1e-12, None)))


def _score(job: Job, best: dict, kind: str, values: tuple[torch.Tensor, ...]) -> None:
    """What the main process leaves on the disk once the head is in the model; the test sets are scored here,
    once."""
    finish_val(job, best)
    predictions = {split: job.task.evaluated(job.rows(split),
                                             _logits(job, kind, split, *values).cpu().numpy())
                   for split in job.data.test_sets}
    write_tests(job, predictions, best["epoch"], best)
