"""What contradicts itself among the options, and what was typed and does nothing."""

import json
import os
import shutil
from pathlib import Path

from util.core.errors import InputError, reject_if
from util.metrics.table import CLASSIFICATION, choices, is_better_low
from util.options.flag import FINETUNE, REGRESSION, TRAINING
from util.options.groups import Options
from util.options.table import FLAGS, flags_of
from util.options.training import KINDS_OF, RIVALS, SPACES


def one_run_a_ratio(options: Options) -> list[Options]:
    """A list of --dataratio becomes one run after the other, each with a task of its own."""
    ratios = options.data.dataratio
    if len(ratios) == 1 or options.run.eval:
        return [options]
    return [options.having(dataratio=[ratio], task=f"{options.run.task or 'run'}_ratio{ratio:g}")
            for ratio in ratios]


def one_run_a_fold(options: Options) -> list[Options]:
    """--folds K becomes K runs, each with a folder of its own below TASK, which a second launch goes on with;
    with --fold that one alone."""
    folds, typed = options.data.folds, options.typed
    if not folds or options.run.eval:
        return [options]
    resume = options.run.resume if "resume" in typed else "same"
    return [options.having(fold=number, resume=resume, task=fold_task(options.run.task, number))
            for number in ([options.data.fold] if options.data.fold else range(1, folds + 1))]


def fold_task(task: str, number: int) -> str:
    """The name of a fold's run."""
    return "/".join(filter(None, (task, f"fold_{number}")))


def without_effect(options: Options) -> list[str]:
    """One line naming the flags that were typed and do nothing in a program, with the reason of each."""
    typed = [f"--{flag.name} ({flag.no_effect})" for flag in flags_of(options.program)
             if flag.no_effect and flag.name in options.typed
             and not (flag.name == "world_size" and options.run.dry_run)]
    return [f"accepted for compatibility, no effect: {'; '.join(typed)}"] if typed else []


def idle(options: Options) -> list[str]:
    """A line for each typed flag that another option, typed or a checkpoint's, keeps from doing anything."""
    typed = [flag for flag in flags_of(options.program) if flag.name in options.typed]
    lines = []
    if options.program in TRAINING and options.run.eval:
        names = [f"--{flag.name}" for flag in typed if flag.of_training]
        lines = [f"with --eval these do nothing: {', '.join(names)}"] if names else []
        typed = [flag for flag in typed if not flag.of_training]
    return lines + [f"--{flag.name} does nothing {flag.idle.why}" for flag in typed
                    if flag.idle and flag.idle.when(options)]


def check_combinations(options: Options) -> Options:
    """Reject what contradicts itself whatever the data -> the options with what follows from them."""
    model, images, mixing, run, training = (
        options.model, options.images, options.mixing, options.run, options.training)
    pairs = {name: options.value(name) or (0, 0) for name in ("crop_scale", "crop_ratio", "cutmix_minmax")}
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    reject_if(
        (options.program == FINETUNE and {"data_path", "csv_file"} <= options.typed,
         "--data_path and --csv_file both name the images: pass one of them"),
        ({"patient_col", "patient_regex"} <= options.typed,
         "--patient_col and --patient_regex both name the patients: pass one of them"),
        *((low > high, f"--{name} {low:g} {high:g}: the first may not be above the second")
          for name, (low, high) in pairs.items()),
        (images.crop_scale[1] > 1,
         f"--crop_scale {images.crop_scale[0]:g} {images.crop_scale[1]:g}: a crop takes at most 1, the whole "
         "image"),
        (model.tta != "off" and model.adaptation == "lp" and not run.eval,
         "--tta with --adaptation lp: a probe's features are computed once, of each image as it is; leave it "
         "out, or pass it to --eval and predict.py"),
        ({"case_col", "case_regex"} <= options.typed,
         "--case_col and --case_regex both name the cases: pass one of them"),
        (options.data.attends and options.program == REGRESSION,
         "--pool attention weighs the outputs of a classifier: a regression takes --pool mean or max"),
        (options.data.attends and bool(mixing.mixup or mixing.cutmix or mixing.cutmix_minmax),
         "--pool attention trains on cases, and --mixup and --cutmix mix images: leave them out"),
        (options.data.attends and model.adaptation == "lora",
         "--pool attention is trained with --adaptation finetune or lp: its weights are no adapter's"),
        (options.data.folds and (options.data.fold or 1) > options.data.folds,
         f"--fold {options.data.fold} of --folds {options.data.folds}: there is no such fold"),
        (options.data.folds and not run.eval and run.resume not in ("", "auto", "same"),
         f"--folds trains several models, and --resume {run.resume} is one: pass --resume auto, or leave it "
         "out (each fold goes on where it was)"),
        (run.eval and not run.resume, "--eval needs --resume: the checkpoint to score"),
        (run.eval and run.resume in ("auto", "same") and not run.task,
         "--eval --resume auto needs --task, the run whose best checkpoint is scored"),
        (training.compile and not run.eval and not any(map(shutil.which, compilers)),
         "--compile needs a C++ compiler (g++ or clang++), and there is none: install one, or leave it out"),
        (mixing.balanced_sampling and mixing.class_weights != "none",
         f"--balanced_sampling (--use_weighted_sampler) and --class_weights {mixing.class_weights} "
         "(--use_class_weights) both even out the classes: pass one of them"),
        (options.data.attends and options.data.covariates,
         "--pool attention weighs the outputs of timm's own classifier, and --covariates have another head: "
         "pass --pool mean or max"),
        (options.program == FINETUNE and options.data.covariates
         and bool(mixing.mixup or mixing.cutmix or mixing.cutmix_minmax),
         "--covariates are not mixed, and --mixup and --cutmix mix images and labels: pass one of them"),
        (run.start_epoch >= training.epochs and not run.eval,
         f"--start_epoch {run.start_epoch} leaves nothing of --epochs {training.epochs}"),
        (run.task == "." or ".." in run.task.split("/") or run.task.startswith("/"),
         f"--task {run.task} is no name for a folder below --output_dir"))
    if training.lr is not None and training.min_lr > training.lr:
        raise InputError(f"--min_lr {training.min_lr:g} is above --lr {training.lr:g}")
    check_part(options)
    if options.program == FINETUNE and options.data.covariates:
        options = options.having(lp_views=1)  # as a regression's, the head sees the evaluation's view alone
    if model.adaptation == "lora" and "layer_decay" not in options.typed:
        # adapters start at nothing, so there is nothing of the early layers' that a lower learning rate would
        # keep
        return options.having(layer_decay=1.0)
    return options


def check_part(options: Options) -> None:
    """Reject two answers to which part of the model is trained. Raises InputError."""
    model = options.model
    reject_if(
        (options.part.train_last_blocks and model.adaptation != "finetune",
         f"--train_last_blocks and --adaptation {model.adaptation} each say which part is trained: pass one "
         "of them"),
        (model.adaptation == "lora" and model.allow_partial and not options.run.eval,
         "--allow_partial leaves some tensors at random, and --adaptation lora would never train them: pass "
         "weights that fit"))


# ---- a search, and what it found ---------------------------------------------------------------------------

def checked(options: Options) -> tuple[Options, list[str]]:
    """A training program's options as they were typed -> them with the settings of --params and with what
    follows from what was typed; lines about it. InputError."""
    options, of_params = take_params(options)
    options, of_search = check_search(check_combinations(options))
    return options, of_params + of_search


def take_params(options: Options) -> tuple[Options, list[str]]:
    """The options with the settings of --params, where they were not typed; lines that say so. Raises
    InputError."""
    file = options.search.params
    if not file:
        return options, []
    try:
        stored = json.loads(Path(file).read_text(encoding="utf-8"))
        params = dict(stored["params"].items())
        unknown = [name for name in params if name not in SPACES[options.program]]
    except OSError as error:
        raise InputError(f"--params {file}: can't be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"--params {file}: not the optuna_best.json of a search ({error})") from error
    if unknown:
        raise InputError(f"--params {file}: unknown settings {', '.join(unknown)}; a search of "
                         f"{options.program} finds {', '.join(SPACES[options.program])}")
    for name, value in params.items():
        flag = FLAGS[name].in_program(options.program)
        is_word = flag.is_switch or bool(flag.choices)
        if isinstance(value, bool | str) is not is_word or value is None or not flag.accepts(value):
            raise InputError(f"--params {file}: {name} is nothing that --{name} takes")
    kept = [name for name in params if {name, RIVALS.get(name)} & options.typed]
    taken = {name: value for name, value in params.items() if name not in kept}
    settings = ", ".join(f"{name} {setting_text(value)}" for name, value in taken.items()) or "none"
    lines = [f"settings of {file}: {settings}"]
    lines += [f"typed values win over {file}: {', '.join(kept)}"] if kept else []
    return options.typing(**taken), lines


def setting_text(value: float | str, digits: str = "g") -> str:
    """A setting that a search proposes, in words. digits: the format of a number."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else format(value, digits)


def check_search(options: Options) -> tuple[Options, list[str]]:
    """Reject what contradicts itself among the search's flags -> the options with what follows; lines about
    it. InputError."""
    search, typed, kind = options.search, options.typed, KINDS_OF[options.program]
    if not search.optuna_trials:
        names = [f"--{name}" for name in vars(search) if name in typed - {"optuna_trials", "params"}]
        return options, [f"without --optuna_trials these do nothing: {', '.join(names)}"] if names else []
    direction, is_typed = search.optuna_direction, "optuna_direction" in typed
    of_best_epoch = options.metrics.select_metric if kind == CLASSIFICATION else "r2"
    asked = f"--optuna_metric {search.optuna_metric}"
    metric = choices(kind).get(search.optuna_metric or "")
    if metric is None:
        metric, asked = of_best_epoch, f"--select_metric {of_best_epoch}"
        if direction == "minimize" and is_typed and not is_better_low(metric):
            metric = "loss"
    way = "minimize" if is_better_low(metric) else "maximize"
    reject_if(
        (options.run.eval,
         "--eval scores a checkpoint and --optuna_trials starts a search: pass one of them"),
        (options.data.folds and options.data.fold,
         f"--fold {options.data.fold} is one run of --folds, and a search is by the mean of all: leave it "
         "out"),
        (options.processes.parallel == "fsdp",
         "--parallel fsdp does not go with --optuna_trials: a trial's model has to fit one device"),
        (options.run.resume not in ("", "same"),
         "--resume goes on with a training; a search goes on with --optuna_resume"),
        (len(options.data.dataratio) > 1,
         "--dataratio names several shares, each a run of its own, and --optuna_trials starts one search: "
         "name one share"),
        (is_typed and way != direction,
         f"{asked} is to be {way}d: --optuna_direction {direction} contradicts it; leave one of the two "
         "out"))
    lines = (
        (metric == "loss" and asked.startswith("--select") and metric != of_best_epoch,
         "--optuna_direction minimize: the search minimizes the loss on val"),
        (search.optuna_n_jobs > 1,
         f"--optuna_n_jobs {search.optuna_n_jobs} has no effect: trials would share one device; start "
         "several processes on one --optuna_storage instead"))
    return (options.having(optuna_metric=metric, optuna_direction=way),
            [text for is_so, text in lines if is_so])
