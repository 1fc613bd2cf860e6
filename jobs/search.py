"""A search for good settings, for every task: trials under one process or several, every one from the same
start.

The main process owns the study: it asks, reports, decides to prune and tells; parameters, decisions and
errors go to all processes, which begin and leave every trial together. The process group is made once, for
the whole search.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import optuna
import torch
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

import models_vit
from engine_finetune import Progress, Trainer
from jobs import terminal
from jobs.data import of_fold
from jobs.job import Job
from jobs.linear_probe import BestHead, best_head
from jobs.loaders import features_of, fill_cache, images_a_sample, loader, plan_training
from jobs.model import choose_part, describe_part
from jobs.parallel import fits
from jobs.setup import prepare, without_effect_here
from jobs.tasks.base import Task
from jobs.train import Epoch, epochs, evaluate, is_better, trainer_of
from util.core.errors import InputError, RunError
from util.core.plain_numbers import duration
from util.core.tensorboard import ScalarFile
from util.data.splits import OUT_OF_FOLD
from util.metrics.bootstrap import mean_of_defined
from util.metrics.folds import mean_of
from util.metrics.table import COMPOSED
from util.options.checks import setting_text
from util.options.groups import Options
from util.options.table import FLAGS, own_values
from util.options.training import NOT_PROPOSED, RIVALS, SPACES, Space
from util.parallel.processes import World
from util.parallel.sharding import is_own, plain_name
from util.study import optuna_study

Result = TypeVar("Result")
Told = Callable[[int, int, float], None]  # an epoch has ended; the best one so far; its value


def search(options: Options, world: World, *kinds: type[Task]) -> None:
    """Run the study up to its total and write what was found. InputError, RunError (all trials failed)."""
    job = prepare(options, world, *kinds)
    options = job.options
    space, lines = proposed(job)
    _require_rates(job, space)
    world.say(*terminal.describe(job), *describe_part(options, job.model), *without_effect_here(job),
              *_describe(job, space), *lines)
    if options.run.dry_run:
        world.say("dry run: no trial was begun")
        return
    job.model.to(world.device)
    try:
        if options.model.adaptation != "lp":
            fill_cache(job)
        folds = _of_folds(job)
        if options.model.adaptation == "lp":
            for one in folds or [job]:
                one.features = features_of(one)
        Search(job, folds, space).run()
    finally:
        job.folder.close()


def _of_folds(job: Job) -> list[Job]:
    """With --folds a job for each: its splits, and what its own training images decide."""
    found = []
    for fold in range(1, (job.options.data.folds or 0) + 1):
        task = copy.copy(job.task)
        task.options = job.options.having(fold=fold)
        one = replace(job, task=task, data=of_fold(task.options, job.data))
        task.settle(one.data, None)
        plan_training(one)
        found.append(one)
    return found


def proposed(job: Job) -> tuple[Space, list[str]]:
    """What has an effect in this job of all that a search of its task may propose, and lines about the rest
    and about what was typed in vain. InputError where nothing of a setting is left."""
    options, space = job.options, dict(job.task.space(job.model))
    adaptation = options.model.adaptation
    without_depth = adaptation != "lp" and not has_stochastic_depth(job)
    reasons = ((("layer_decay", "drop_path"), "the backbone is frozen", adaptation == "lp"),
               (("layer_decay",), "adapters start at nothing in every layer", adaptation == "lora"),
               (("drop_path",), f"{job.backbone.arch} has no stochastic depth", without_depth))
    lines = []
    for names, why, applies in reasons:
        if applies:
            space = {name: row for name, row in space.items() if name not in names}
            verb = "are" if len(names) > 1 else "is"
            lines.append(f"           {' and '.join(names)} {verb} not proposed: {why}")
    replaced = {*space, *map(RIVALS.get, space)} & options.typed
    if replaced:
        lines.append("           the search proposes its own values instead of "
                     + ", ".join(f"--{name}" for name in sorted(replaced)))
    return space, lines


def has_stochastic_depth(job: Job) -> bool:
    """Whether timm builds this model with a drop path, asked by building it without memory."""
    try:
        with torch.device("meta"):
            models_vit.build_model(job.backbone, 0, job.options.model.input_size, 0.1,
                                   job.options.model.global_pool)
    except models_vit.NoStochasticDepth:
        return False
    return True


def _require_rates(job: Job, space: Space) -> None:
    """InputError where a trial's schedule could end above its highest learning rate."""
    training = job.options.training
    name = "lr" if "lr" in space else "blr"
    lowest = space[name].low if name == "lr" else space[name].low * _images_a_batch(job) / 256
    if training.min_lr > lowest:
        raise InputError(f"--min_lr {training.min_lr:g} is above {lowest:g}, the lowest learning rate that "
                         "the search may propose: lower it")


def _images_a_batch(job: Job) -> int:
    return job.plan.step_size // job.options.training.accum_iter * images_a_sample(job.options)


def _describe(job: Job, space: Space) -> list[str]:
    search, training, size = job.options.search, job.options.training, _images_a_batch(job)
    batch = f"batch {training.batch_size} x processes {job.plan.world_size}"
    rate = f"lr is taken as it is; {batch} x accumulation {training.accum_iter} = {job.plan.step_size}"
    if "accum_iter" in space:
        rate = f"learning rate = blr x {size} x accum_iter / 256: a batch of all processes has {size} images"
    lines = [f"search     {search.optuna_trials} trials of {search.optuna_epochs} epochs in total, "
             f"{search.optuna_direction} {_value_text(job.options)}; sampler {search.optuna_sampler}, "
             f"pruner {search.optuna_pruner}",
             f"           {', '.join(space)}", f"           {rate}"]
    if search.optuna_eval_test and not _scored_too(job):
        lines.append("           --optuna_eval_test does nothing: there is no test set beside the folds")
    return lines


def _value_text(options: Options) -> str:
    metric, folds = options.search.optuna_metric, options.data.folds
    return f"the mean {metric} of {folds} folds" if folds else f"{metric} on val"


def _scored_too(job: Job) -> list[str]:
    """The test set that every trial scores for information, if any."""
    if not job.options.search.optuna_eval_test:
        return []
    return [split for split in job.data.test_sets if split != OUT_OF_FOLD][:1]


class Search:
    """The trials of this group of processes. folds: a job for each, with --folds."""

    def __init__(self, job: Job, folds: Sequence[Job], space: Space) -> None:
        options, asked = job.options, job.options.search
        self.job, self.folds, self.world, self.folder = job, folds, job.world, job.folder
        seed = asked.optuna_seed if asked.optuna_seed is not None else options.run.seed
        ends_at = None if asked.optuna_timeout is None else time.monotonic() + asked.optuna_timeout
        self.settings = optuna_study.Settings(asked.optuna_trials, seed, asked.optuna_sampler, space,
                                              ends_at)
        # several metrics joined by + are one of them all
        self.metric = COMPOSED if "+" in asked.optuna_metric else asked.optuna_metric
        # a trial's head and adapters are new
        body = job.task.backbone_of(job.model)
        own = models_vit.head_prefixes(body)
        self.state, self.buffers = ({plain_name(name): tensor.clone() for name, tensor in named
                                     if not is_own(name) and not name.startswith(own)}
                                    for named in (body.state_dict().items(), body.named_buffers()))
        self.study = self._alone(self._open)

    def _open(self) -> optuna.Study:
        options, asked = self.job.options, self.job.options.search
        storage = asked.optuna_storage or f"sqlite:///{(self.folder.path / 'optuna.db').resolve()}"
        made_for = {"metric": asked.optuna_metric, "epochs": asked.optuna_epochs, "folds": options.data.folds,
                    **self.job.task.made_for(), "model": self.job.backbone.arch,
                    "weights": (self.job.started_from or {}).get("sha256"),
                    "adaptation": options.model.adaptation, "data": self.job.data.fingerprint,
                    **_kept_settings(options)}
        return optuna_study.open_study(optuna_study.open_storage(storage),
                                       asked.optuna_study_name or options.run.task,
                                       asked.optuna_direction, made_for, asked.optuna_resume,
                                       asked.optuna_pruner)

    def run(self) -> None:
        world, began = self.world, time.monotonic()
        bar = tqdm(total=self.settings.total, desc="trials", unit="trial", leave=False,
                   disable=not (world.is_main and sys.stderr.isatty()))
        self.say = (lambda line: bar.write(line) if not bar.disable else print(line, flush=True))
        while True:
            chosen = world.from_main(self._alone(self._next))
            if chosen is None:
                break
            started = time.monotonic()  # a trial's time is without the wait for others' last ones
            number, params, seed = chosen
            state, value, reason = self._trial(params, seed)
            told = self._alone(self._tell, state, value, reason)
            if world.is_main:
                bar.n, best = told
                bar.set_postfix_str("" if best is None else f"best {best.value:.4f}")
                self.say(self._trial_line(number, state, value, reason, params, best,
                                          time.monotonic() - started))
        bar.close()
        found, lines = world.from_main(self._alone(self._results, began))
        world.say(*lines)
        if not found:
            raise RunError("no trial came to an end by itself: the reasons stand in "
                           f"{self.folder.path}/optuna_trials.csv", everywhere=True)

    def _alone(self, work: Callable[..., Result], *words: object) -> Result | None:
        """`work` in the main process, see World.main_alone. RunError where the study's storage fails, too."""
        return self.world.main_alone(_with_storage, work, *words)

    # ---- one trial

    def _next(self) -> tuple[int, dict, int] | None:
        found = optuna_study.next_trial(self.study, self.settings, self.say)
        if found is None:
            return None
        self.trial, params = found
        return self.trial.number, params, optuna_study.trial_seed(self.settings, self.trial)

    def _trial(self, params: dict, seed: int) -> tuple[str, float | None, str]:
        """-> (complete, pruned or fail; the best value; the reason of a failure), the same in all
        processes."""
        self.value: float | None = None
        try:
            train = self._all_folds if self.folds else self._one_run
            train(params, seed)
        except optuna.TrialPruned:
            return "pruned", self.value, ""
        except torch.OutOfMemoryError:
            if self.world.size > 1:
                # the others wait inside a step: the group has to end, and the trial is put in the queue again
                raise
            return "fail", None, self._memory_is_full()
        except RunError as error:
            if not error.everywhere:
                raise
            return "fail", None, str(error)
        return "complete", self.value, ""

    def _one_run(self, params: dict, seed: int) -> None:
        """Valued by the best epoch on val."""
        job, main = self._job_of(self.job, params, seed), _scored_too(self.job)

        def told(epoch: int, best_epoch: int, best: float) -> None:
            self.value = best
            self._alone(lambda: self.trial.set_user_attr("best_epoch", best_epoch))
            self._report(best, epoch)

        found = self._trained(job, main, told)
        if main:
            self._alone(lambda: self._enter_test(job.task.metrics(found.predictions[main[0]])[0]))

    def _all_folds(self, params: dict, seed: int) -> None:
        """Valued by the mean over the folds of the metric of each, by the run whose val is the next fold."""
        values, tests = [], []
        for number, base in enumerate(self.folds):
            job, main = self._job_of(base, params, seed), _scored_too(base)
            found = self._trained(job, [OUT_OF_FOLD, *main])
            values.append(self.world.from_main(self._alone(self._value_of_fold, job.task, found)))
            tests += [found.predictions[name] for name in main if self.world.is_main]
            self.value = float(mean_of_defined(values))
            if not math.isnan(self.value):
                self._report(self.value, number)
        self._require_number(self.value, "out of fold")
        if main:
            self._alone(lambda: self._enter_test(self.folds[0].task.metrics(mean_of(tests))[0]))

    def _value_of_fold(self, task: Task, found: BestHead) -> float:
        decided = task.decide(found.predictions["val"])
        return task.metrics(found.predictions[OUT_OF_FOLD], decided)[0][self.metric]

    def _trained(self, job: Job, splits: Sequence[str],
                 told: Told | None = None) -> BestHead:
        """What a training came to by the searched metric: its best epoch, and in the main process the
        predictions of val and `splits` then. RunError in all processes where there is no best one."""
        if job.features is not None and job.task.head_is_linear:
            return self._heads(job, splits, told)
        if self.world.size > 1 and self.world.any(not fits(job, job.options.training.batch_size)):
            raise RunError(self._memory_is_full(), everywhere=True)
        return self._epochs(job, trainer_of(job), splits, told)

    def _memory_is_full(self) -> str:
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        return f"the device's memory is full at --batch_size {self.job.options.training.batch_size}"

    def _epochs(self, job: Job, trainer: Trainer, splits: Sequence[str],
                told: Told | None) -> BestHead:
        best, value, weights, longest = None, None, None, 0.0
        sign = 1 if job.options.search.optuna_direction == "maximize" else -1
        figures = self._alone(self._trial_scalars, job)
        for epoch in epochs(job, trainer, Progress(0)):
            this = epoch.metrics[self.metric]
            longest = max(longest, epoch.seconds)
            if is_better(sign * this, None if value is None else sign * value):
                best, value = epoch, this
                if splits:
                    weights = {name: tensor.detach().clone()
                               for name, tensor in job.running.state_dict().items()}
            self._alone(self._note, epoch, longest, figures)
            if told is not None:
                told(epoch.number, best.number, value)
        self._require_number(value, "on val")
        if splits:
            job.running.load_state_dict(weights)
        predictions = {split: evaluate(job, split, loader(job, split)) for split in splits}
        if not self.world.is_main:
            return BestHead(best.number, best.training, best.metrics, {})
        tables = {split: one.table for split, one in {"val": best.predictions, **predictions}.items()}
        return BestHead(best.number, best.training, best.metrics, tables)

    def _heads(self, job: Job, splits: Sequence[str], told: Told | None) -> BestHead:
        """The same of a probe, whose heads are trained in one pass: what its run would choose."""
        began, figures = time.monotonic(), self._alone(self._trial_scalars, job)
        best = self._alone(best_head, job, splits)
        found = self.world.from_main(best and replace(best, predictions={}))
        if found is None:
            raise RunError("no head of the probe gives numbers on val", everywhere=True)
        self._require_number(found.metrics[self.metric], "on val")
        last = Epoch(job.options.training.epochs - 1, found.training, None, found.metrics, [],
                     time.monotonic() - began)
        self._alone(self._note, last, last.seconds, figures)
        if told is not None:
            told(last.number, found.epoch, found.metrics[self.metric])
        return best or found

    def _require_number(self, value: float | None, where: str) -> None:
        if value is None or math.isnan(value):
            raise RunError(f"{self.job.options.search.optuna_metric} {where} is undefined", everywhere=True)

    def _note(self, epoch: Epoch, longest: float, figures: ScalarFile) -> None:
        """That the trial lives, to the storage; its epoch, to TensorBoard (main process)."""
        self.trial.set_user_attr("lease", optuna_study.lease(optuna_study.lease_length(longest)))
        with self.folder.writing(figures.path):
            figures.add({**epoch.training, **{f"val_{name}": value for name, value in epoch.metrics.items()}},
                        epoch.number)

    def _report(self, value: float, step: int) -> None:
        """optuna.TrialPruned, in all processes, where the trial is to be ended by its values so far."""
        def is_pruned() -> bool:
            self.trial.report(value, step)
            return bool(self.trial.should_prune())

        if self.world.from_main(self._alone(is_pruned)):
            raise optuna.TrialPruned

    def _trial_scalars(self, job: Job) -> ScalarFile:
        fold = "" if job.options.data.fold is None else f"_fold_{job.options.data.fold}"
        name = f"trial_{self.trial.number:04d}{fold}"
        with self.folder.writing(self.folder.tensorboard_path / name) as path:
            path.mkdir(exist_ok=True)
        return ScalarFile(path)

    def _enter_test(self, metrics: dict[str, float]) -> None:
        self.trial.set_user_attr("test", {f"test_{name}": None if math.isnan(value) else value
                                          for name, value in metrics.items()})

    def _job_of(self, base: Job, params: dict, seed: int) -> Job:
        """The job of a trial: its own settings and head, the backbone as the search found it. base: the
        search's job, or that of a fold."""
        own = {**NOT_PROPOSED, **params, "seed": seed, "epochs": base.options.search.optuna_epochs}
        task = copy.copy(base.task)
        task.options = base.options.having(**own)
        torch.manual_seed(seed)
        if base.features is not None:
            model = task.new_head(base.model) or base.model
        else:
            model = task.build(base.backbone, task.options.model.drop_path)
            body = base.precision.place(task.backbone_of(model))
            body.load_state_dict({**body.state_dict(), **self.state})
            for name, buffer in body.named_buffers():
                buffer.copy_(self.buffers[name])
        choose_part(task, model, base.backbone)
        job = replace(base, task=task, model=model.to(self.world.device))
        plan_training(job)
        return job

    # ---- after it

    def _tell(self, state: str, value: float | None,
              reason: str) -> tuple[int, optuna.trial.FrozenTrial | None]:
        """Enter what a trial came to -> how many there are, the best one so far."""
        if state == "fail":
            self.trial.set_user_attr("reason", reason)
        self.study.tell(self.trial, value if state == "complete" else None,
                        optuna.trial.TrialState[state.upper()])
        self._write_results()
        return (sum(map(optuna_study.counts, self.study.get_trials(deepcopy=False))),
                optuna_study.best_of(self.study))

    def _trial_line(self, number: int, state: str, value: float | None, reason: str, params: dict,
                    best: optuna.trial.FrozenTrial | None, seconds: float) -> str:
        shown = "  ".join(f"{name} {setting_text(entry, '.3g')}" for name, entry in params.items())
        result = f"failed: {reason}"
        if state != "fail":
            result = f"{self.job.options.search.optuna_metric} {value:.4f}"
        sofar = "" if best is None else f"  best {best.value:.4f} (trial {best.number})"
        return (f"trial {number}  {'pruned, ' if state == 'pruned' else ''}{result}{sofar}  {shown}  "
                f"{duration(seconds)}")

    def _write_results(self) -> None:
        asked = self.job.options.search
        optuna_study.write_results(self.study, self.folder.path, asked.optuna_metric, asked.optuna_epochs,
                                   self.job.options.data.folds)

    def _results(self, began: float) -> tuple[bool, list[str]]:
        """Write what came out (main process) -> whether a trial came to an end by itself, and the lines."""
        metric, path = self.job.options.search.optuna_metric, self.folder.path
        self._write_results()
        states = [trial.state.name.lower() for trial in self.study.get_trials(deepcopy=False)
                  if optuna_study.counts(trial)]
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
        lines = [f"{len(states)} trials ({counted}) in {duration(time.monotonic() - began)}"]
        best = optuna_study.best_of(self.study)
        if best is None:
            return False, lines
        with self.folder.writing():
            lines += optuna_study.draw(self.study, path, _value_text(self.job.options))
        found = ", ".join(f"{name} {setting_text(value, '.4g')}" for name, value in best.params.items())
        return True, [
            *lines, f"best: trial {best.number}, {metric} {best.value:.4f}: {found}",
            f"written to {path}: optuna_best.json, optuna_trials.csv, optuna_history.png, "
            "optuna_importances.png, optuna_slices.png",
            "now train once more, at the full number of epochs: --params "
            f"{path / 'optuna_best.json'} instead of the search's flags"]


def _kept_settings(options: Options) -> dict[str, object]:
    """{--flag: value} of what all trials have alike and their values depend on."""
    groups = (options.model, options.probe, options.part, options.head, options.images, options.mixing,
              options.training)
    named = {"model", "model_arch", "finetune", "adaptation"}  # said in other words
    changing = {*SPACES[options.program], *NOT_PROPOSED, *RIVALS, "epochs"}
    names = [*(name for group in groups for name in vars(group)), "dataratio", "stratified", "datasets_seed",
             "pool", "case_size", "target_transform"]
    own = own_values(options)
    return {f"--{name}": own[name] for name in names
            if name in own and name not in named | changing and not FLAGS[name].of_launch}


def _with_storage(work: Callable[..., Result], *words: object) -> Result:
    try:
        return work(*words)
    # OSError: of a journal file
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0][:160]
        raise RunError(f"the study's storage failed ({reason}): start again with --optuna_resume once it "
                       "works") from error
