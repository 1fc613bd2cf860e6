"""What contradicts itself among the options, and what was typed and does nothing."""

import argparse
import json
import os
import shutil
from pathlib import Path

from util.core.errors import InputError
from util.options import adaptation
from util.options.flag import REGRESSION, TRAINING
from util.options.parsing import Parsed
from util.options.table import FLAGS, flags_of
from util.options.training import METRICS, SEARCHED


def one_run_a_ratio(parsed: Parsed) -> list[Parsed]:
    """A list of --dataratio becomes one run after the other, each with a task of its own."""
    listed = parsed.options.dataratio
    if len(listed) == 1 or parsed.options.eval:
        return [parsed]
    runs = []
    for ratio in listed:
        options = argparse.Namespace(**vars(parsed.options))
        options.dataratio = [ratio]
        options.task = f"{options.task or 'run'}_ratio{ratio:g}"
        runs.append(Parsed(options, parsed.typed))
    return runs


def without_effect(parsed: Parsed, program: str) -> list[str]:
    """One line naming the flags that were typed and do nothing in a program, with the reason of each."""
    reasons = {flag.name: flag.no_effect_of(program) for flag in flags_of(program) if flag.no_effect_of(program)}
    if parsed.options.dry_run:
        reasons.pop("world_size")
    typed = [f"--{name} ({reason})" for name, reason in reasons.items() if name in parsed.typed]
    return [f"accepted for compatibility, no effect: {'; '.join(typed)}"] if typed else []


def idle(parsed: Parsed, program: str) -> list[str]:
    """A line for each typed flag that another option, typed or a checkpoint's, keeps from doing anything."""
    typed = [flag for flag in flags_of(program) if flag.name in parsed.typed]
    if program in TRAINING and parsed.options.eval:
        names = [f"--{flag.name}" for flag in typed if flag.of_training]
        return [f"with --eval these do nothing: {', '.join(names)}"] if names else []
    rules = [(flag.name, flag.idle_of(program)) for flag in typed]
    return [f"--{name} does nothing {rule.why}" for name, rule in rules if rule and rule.when(parsed.options)]


def check_combinations(parsed: Parsed) -> None:
    """Refuse what contradicts itself whatever the data."""
    options = parsed.options
    if {"data_path", "csv_file", "label_col"} <= vars(options).keys() and {"data_path", "csv_file"} <= parsed.typed:
        raise InputError("--data_path and --csv_file both name the pictures: pass one of them")
    if {"patient_col", "patient_regex"} <= parsed.typed:
        raise InputError("--patient_col and --patient_regex both name the patients: pass one of them")
    for name in ("crop_scale", "crop_ratio", "cutmix_minmax"):
        pair = getattr(options, name, None)
        if pair and pair[0] > pair[1]:
            raise InputError(f"--{name} {pair[0]:g} {pair[1]:g}: the first may not be above the second")
    if options.crop_scale[1] > 1:
        raise InputError(f"--crop_scale {options.crop_scale[0]:g} {options.crop_scale[1]:g}: a crop takes at most 1, the "
                         "whole picture")
    if options.tta != "off" and options.adaptation == "lp" and not options.eval:
        raise InputError("--tta with --adaptation lp: a probe's features are computed once, of each image as it is; leave it "
                         "out, or pass it to --eval and predict.py")
    if options.eval and not options.resume:
        raise InputError("--eval needs --resume: the checkpoint to score")
    if options.eval and options.resume in ("auto", "same") and not options.task:
        raise InputError("--eval --resume auto needs --task, the run whose best checkpoint is scored")
    if options.compile and not options.eval and not any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++"])):
        raise InputError("--compile needs a C++ compiler (g++ or clang++), and there is none: install one, or leave it out")
    if getattr(options, "balanced_sampling", False) and options.class_weights != "none":
        raise InputError(f"--balanced_sampling and --class_weights {options.class_weights} both even out the classes: pass one "
                         "of them")
    adaptation.settle(options, parsed.typed)
    if options.lr is not None and options.min_lr > options.lr:
        raise InputError(f"--min_lr {options.min_lr:g} is above --lr {options.lr:g}")
    if options.start_epoch >= options.epochs and not options.eval:
        raise InputError(f"--start_epoch {options.start_epoch} leaves nothing of --epochs {options.epochs}")
    if options.task and (options.task == "." or ".." in options.task.split("/") or options.task.startswith("/")):
        raise InputError(f"--task {options.task} is no name for a folder below --output_dir")


# ---- a regression -----------------------------------------------------------------------------------------------------

def take_params(parsed: Parsed) -> list[str]:
    """The settings of --params into the options, where they were not typed; a line that says so. Raises InputError."""
    options = parsed.options
    if not options.params:
        return []
    try:
        stored = json.loads(Path(options.params).read_text(encoding="utf-8"))
        params = dict(stored["params"].items())
        unknown = [name for name in params if name not in SEARCHED]
    except OSError as error:
        raise InputError(f"--params {options.params}: can't be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"--params {options.params}: not the optuna_best.json of a search ({error})") from error
    if unknown:
        raise InputError(f"--params {options.params}: unknown settings {', '.join(unknown)}")
    taken, kept = [], []
    for name, value in params.items():
        if isinstance(value, bool | str) or value is None or not FLAGS[name].accepts(value, REGRESSION):
            raise InputError(f"--params {options.params}: {name} is no number that --{name} takes")
        if name in parsed.typed or (name == "lr" and "blr" in parsed.typed):
            kept.append(name)
        else:
            setattr(options, name, value)
            parsed.typed.add(name)
            taken.append(f"{name} {value:g}")
    lines = [f"settings of {options.params}: {', '.join(taken) or 'none'}"]
    return lines + ([f"typed values win over {options.params}: {', '.join(kept)}"] if kept else [])


def check_search(parsed: Parsed) -> list[str]:
    """Refuse what contradicts itself among the search's flags; lines about what is resolved. Raises InputError."""
    options, typed, lines = parsed.options, parsed.typed, []
    names = [name for name in vars(options) if name.startswith("optuna_") and name != "optuna_trials" and name in typed]
    if not options.optuna_trials:
        return [f"without --optuna_trials these do nothing: {', '.join(f'--{name}' for name in names)}"] if names else []
    if options.eval:
        raise InputError("--eval scores a checkpoint and --optuna_trials starts a search: pass one of them")
    if options.parallel == "fsdp":
        raise InputError("--parallel fsdp does not go with --optuna_trials: a trial's model has to fit one device")
    if options.resume not in ("", "same"):
        raise InputError("--resume goes on with a training; a search goes on with --optuna_resume")
    if options.optuna_metric and "optuna_direction" in typed and METRICS[options.optuna_metric] != options.optuna_direction:
        raise InputError(f"--optuna_metric {options.optuna_metric} is to be {METRICS[options.optuna_metric]}d: "
                         f"--optuna_direction {options.optuna_direction} contradicts it; leave one of the two out")
    if options.optuna_metric:
        options.optuna_direction = METRICS[options.optuna_metric]
    else:
        options.optuna_metric = "r2" if options.optuna_direction == "maximize" else "loss"
        if options.optuna_direction == "minimize":
            lines.append("--optuna_direction minimize: the search minimizes the loss on val")
    if options.optuna_n_jobs > 1:
        lines.append(f"--optuna_n_jobs {options.optuna_n_jobs} has no effect: trials would share one device; start several "
                     "processes on one --optuna_storage instead")
    searched = [name for name in SEARCHED if name in typed]
    if searched:
        lines.append(f"the search proposes its own values instead of {', '.join(f'--{name}' for name in searched)}")
    return lines
