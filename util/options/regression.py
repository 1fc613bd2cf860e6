"""The flags that a regression has of its own: targets, head, search. See util/options/flags.py for the shared ones."""

import json
from pathlib import Path

from util.core.errors import InputError
from util.metrics import selection
from util.metrics.table import REGRESSION, choices, is_better_low
from util.options import flags as shared
from util.options.flag_values import is_value_of
from util.options.flags import (
    Parsed,
    add_leakage_flags,
    below_one,
    count,
    positive,
    ratios,
    seed_number,
    side,
    up_to_1000,
    whole,
    width_ratio,
)

DEFAULT_TARGETS = ("tc", "ldl", "hdl", "tg", "apoa", "apob")
DEFAULT_WEIGHTS = "RETFound_dinov2_meh"
# Flags of a classification that people's scripts pass along.
WITHOUT_EFFECT = {
    "data_path": "the pictures are those of --csv_file",
    "nb_classes": "a regression has no classes",
    "stratified": "a regression has no classes",
    "smoothing": "it softens class labels", "mixup": "it mixes class labels", "cutmix": "it mixes class labels",
    "cutmix_minmax": "it belongs to cutmix", "mixup_prob": "it belongs to mixup",
    "mixup_switch_prob": "it belongs to mixup", "mixup_mode": "it belongs to mixup",
    "lp_views": "a regression's head is trained on the evaluation's view",
    "calibrate": "a regression has no probabilities",
}
# The options that a search proposes.
SEARCHED = ("lr", "weight_decay", "layer_decay", "drop_path", "head_dropout", "head_depth", "head_mlp_ratio",
            "head_num_heads", "huber_beta")
PRUNERS, SAMPLERS, DIRECTIONS = ("none", "median"), ("tpe", "random"), ("maximize", "minimize")
METRICS = {name: "minimize" if is_better_low(name) else "maximize" for name in choices(REGRESSION)}


def add_csv_flags(parser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--csv_file", default=None, help="the CSV: columns path, split and the targets; must be given")
    group.add_argument("--path_col", default="path",
                       help="the CSV's column of paths (relative ones from the CSV's folder)")
    group.add_argument("--path_suffix", default="", metavar="ENDING",
                       help="an ending that the CSV's paths lack, such as .png")
    group.add_argument("--split_col", default="split", help="the CSV's column of train, val, test (or iv, ev)")
    group.add_argument("--targets", nargs="+", default=list(DEFAULT_TARGETS),
                       help="the CSV's columns of numbers to predict")
    group.add_argument("--target_transform", nargs="+", choices=("none", "log"), default=["none"],
                       help="what the loss sees of the targets, their values or their logarithms: one for all, or one a "
                            "target")
    group.add_argument("--covariates", nargs="+", default=[], help="columns that the head reads beside the image")
    group.add_argument("--patient_col", default=None, help="the CSV's column of patients, for the predictions table")
    group.add_argument("--dropna", action="store_true",
                       help="leave out rows that lack a target, instead of leaving that target out of the loss")
    group.add_argument("--dataratio", type=ratios, default=[1.0],
                       help="share of the training images, or a comma-separated list to run one after the other")
    group.add_argument("--datasets_seed", type=seed_number, default=2026,
                       help="seed of the choice of the images of --dataratio")
    group.add_argument("--bad_images", choices=("stop", "skip"), default="stop",
                       help="images that don't decode: stop names them all and ends, skip leaves them out, counted and "
                            "listed")
    group.add_argument("--skip_file_check", action="store_true", help="don't decode every image once at the start")
    add_leakage_flags(group)


def add_head_flags(parser) -> None:
    group = parser.add_argument_group("head and loss")
    group.add_argument("--pretrained", action="store_true", help="start a timm model from timm's own weights of the hub")
    group.add_argument("--huber_beta", type=positive, default=1.0,
                       help="where the loss turns from quadratic to linear, in standard deviations")
    group.add_argument("--head_embed_dim", type=side, default=None,
                       help="the head's width; not set: that of the image feature")
    group.add_argument("--head_depth", type=up_to_1000, default=2, help="layers of the head's transformer")
    group.add_argument("--head_num_heads", type=count, default=4, help="attention heads; they must divide the width")
    group.add_argument("--head_mlp_ratio", type=width_ratio, default=2.0,
                       help="width of the head's MLPs over its own")
    group.add_argument("--head_dropout", type=below_one, default=0.1, help="dropout in the head")
    group.add_argument("--params", default=None, metavar="FILE",
                       help="the settings of a search, its optuna_best.json; what is typed wins")


def add_figure_flags(parser) -> None:
    group = parser.add_argument_group("metrics")
    group.add_argument("--select_metric", type=selection.reader(REGRESSION), default="r2",
                       help="the metric on val whose best epoch is kept, or several joined by +, for their mean: r2 "
                            "(the mean over the targets), pearson, mae, rmse, loss")


def add_search_flags(parser) -> None:
    group = parser.add_argument_group("search (Optuna)")
    group.add_argument("--optuna_trials", type=whole, default=0, help="trials of the study in total; 0: no search")
    group.add_argument("--optuna_epochs", type=count, default=10, help="epochs of a trial")
    group.add_argument("--optuna_timeout", type=positive, default=None, help="seconds after which no trial is begun")
    group.add_argument("--optuna_direction", choices=DIRECTIONS, default="maximize",
                       help="maximize the mean R² on val, or minimize the loss on val")
    group.add_argument("--optuna_metric", choices=tuple(METRICS), default=None,
                       help="another metric on val to search by")
    group.add_argument("--optuna_storage", default=None,
                       help="sqlite:///FILE, a journal file's path, or postgresql://…; not set: optuna.db in the run's "
                            "folder")
    group.add_argument("--optuna_study_name", default=None, help="the study's name; not set: the task's")
    group.add_argument("--optuna_resume", action="store_true",
                       help="go on with a study of that name (several machines may share one)")
    group.add_argument("--optuna_seed", type=seed_number, default=None,
                       help="seed of proposals and trials; not set: --seed")
    group.add_argument("--optuna_sampler", choices=SAMPLERS, default="tpe", help="what proposes settings")
    group.add_argument("--optuna_pruner", choices=PRUNERS, default="none",
                       help="none never ends a trial early; median ends one that is worse than the median of the "
                            "earlier ones at that epoch")
    group.add_argument("--optuna_eval_test", action="store_true",
                       help="also score the test split in every trial, for information: nothing is chosen by it")
    group.add_argument("--optuna_n_jobs", type=count, default=1,
                       help="accepted for compatibility, no effect above 1: start several processes on one storage")


def add_compatibility_flags(parser) -> None:
    group = shared.add_compatibility_flags(parser)
    group.add_argument("--data_path", default="./data/", help=WITHOUT_EFFECT["data_path"])
    group.add_argument("--nb_classes", type=count, default=8, help=WITHOUT_EFFECT["nb_classes"])
    group.add_argument("--stratified", action="store_true", help=WITHOUT_EFFECT["stratified"])
    for name, default in (("smoothing", 0.1), ("mixup", 0.0), ("cutmix", 0.0), ("mixup_prob", 1.0), ("mixup_switch_prob", 0.5)):
        group.add_argument(f"--{name}", type=float, default=default, help=WITHOUT_EFFECT[name])
    group.add_argument("--cutmix_minmax", type=float, nargs=2, default=None, metavar=("MIN", "MAX"),
                       help=WITHOUT_EFFECT["cutmix_minmax"])
    group.add_argument("--mixup_mode", default="batch", help=WITHOUT_EFFECT["mixup_mode"])
    group.add_argument("--lp_views", type=up_to_1000, default=1, help=WITHOUT_EFFECT["lp_views"])
    group.add_argument("--calibrate", action="store_true", help=WITHOUT_EFFECT["calibrate"])


def add_regression_flags(parser) -> None:
    """All flags of main_regression.py, in the order of its help."""
    shared.add_model_flags(parser, finetune=DEFAULT_WEIGHTS)
    shared.add_part_flags(parser)
    add_head_flags(parser)
    add_csv_flags(parser)
    shared.add_image_flags(parser, crop_scale=(0.8, 1.0))
    shared.add_optimisation_flags(parser, batch_size=64, epochs=30, accum_iter=2, blr=2e-3, warmup_epochs=5)
    add_figure_flags(parser)
    add_search_flags(parser)
    shared.add_run_flags(parser, num_workers=8)
    shared.add_distribution_flags(parser)
    add_compatibility_flags(parser)


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
    parser = shared.OneLineParser()
    add_regression_flags(parser)
    actions = {action.dest: action for action in parser._actions}
    taken, kept = [], []
    for name, value in params.items():
        if isinstance(value, bool | str) or value is None or not is_value_of(actions[name], value):
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
