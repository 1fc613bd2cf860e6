"""Rows of the table of flags: what is optimised and how, how images and labels are mixed, what is chosen on
val, and a search for good settings; THE TABLE OF WHAT A SEARCH PROPOSES, a space for each program."""

from collections.abc import Mapping
from dataclasses import dataclass

from util.metrics import selection
from util.metrics.table import CLASSIFICATION, choices
from util.metrics.table import REGRESSION as REGRESSION_KIND
from util.options.flag import (
    ALL,
    FEATURES,
    FINETUNE,
    PREDICT,
    REGRESSION,
    USE,
    Change,
    Idle,
    below_one,
    count,
    count_or_auto,
    flag,
    not_negative,
    positive,
    seed_number,
    share,
    share_above_0,
    share_below_1,
    whole,
)


@dataclass(frozen=True)
class Between:
    """A number that a search proposes. log: evenly over its logarithm; whole: without a fraction."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class OneOf:
    """One of several values that a search proposes. only_with: another setting of the space, and the value
    of it beside which alone this one is proposed."""

    values: tuple[str | int, ...]
    only_with: tuple[str, str] | None = None


Space = Mapping[str, Between | OneOf]  # {an option: what is proposed for it}, in the order of drawing
SPACES: dict[str, Space] = {
    FINETUNE: {
        "blr": Between(5e-4, 5e-3, log=True), "weight_decay": Between(1e-6, 5e-2, log=True),
        "drop_path": Between(0.0, 0.4), "layer_decay": Between(0.5, 1.0), "smoothing": Between(0.0, 0.15),
        "accum_iter": OneOf((1, 2)), "class_weights": OneOf(("none", "balanced")),
        # both even out the classes, and together they would do it twice
        "balanced_sampling": OneOf((False, True), only_with=("class_weights", "none"))},
    REGRESSION: {
        "lr": Between(5e-5, 5e-3, log=True), "weight_decay": Between(1e-6, 0.1, log=True),
        "layer_decay": Between(0.4, 0.95), "drop_path": Between(0.0, 0.4),
        "head_dropout": Between(0.0, 0.5), "head_depth": Between(1, 4, whole=True),
        "head_mlp_ratio": Between(1.0, 4.0), "head_num_heads": OneOf((2, 4, 8)),
        "huber_beta": Between(0.5, 2.0)}}
# What a trial has of these options where its search proposes nothing for them, whatever was typed.
NOT_PROPOSED = {"drop_path": 0.0, "lr": None, "balanced_sampling": False}
# Two options that answer one question: what is typed of one has priority over what a file says of the other.
RIVALS = {"lr": "blr", "blr": "lr", "class_weights": "balanced_sampling",
          "balanced_sampling": "class_weights"}
KINDS_OF = {FINETUNE: CLASSIFICATION, REGRESSION: REGRESSION_KIND}
NOT_MIXED = Idle(
    lambda options: not (options.mixing.mixup or options.mixing.cutmix or options.mixing.cutmix_minmax),
    "without --mixup or --cutmix",
)
NOT_BOTH = Idle(
    lambda options: not (options.mixing.mixup and (options.mixing.cutmix or options.mixing.cutmix_minmax)),
    "unless both --mixup and --cutmix are on",
)
RATE_TYPED = Idle(lambda options: options.training.lr is not None, "beside --lr")


@dataclass(frozen=True)
class MetricOptions:
    """metrics"""

    select_metric: str = flag(
        "score",
        (
            "the metric on val whose best epoch is kept, or several joined by +, for their mean, such as "
            "auc+f1: score (the mean of macro F1, ROC AUC and kappa), auc, f1, kappa, qwk, accuracy, "
            "balanced_accuracy, ap, precision, recall, jaccard, and those of which less is better: loss, "
            "brier, ece, hamming, mae_grades"
        ),
        read=selection.reader(CLASSIFICATION),
        of_training=True,
        at={
            REGRESSION: Change(
                default="r2",
                read=selection.reader(REGRESSION_KIND),
                help=(
                    "the metric on val whose best epoch is kept, or several joined by +, for their mean: r2 "
                    "(the mean over the targets), pearson, mae, rmse, loss"
                ),
            )
        },
    )
    calibrate: bool = flag(
        False,
        (
            "fit a temperature on val, keep it in the checkpoint, and show calibrated metrics beside the "
            "others"
        ),
        of_training=True,
        at={REGRESSION: Change(no_effect="a regression has no probabilities")},
    )
    recalibrate: str | None = flag(
        None,
        (
            "a test set, by its NAME or test: fit intercepts, and a slope, of its probabilities on a share "
            "of it, and show what they do to its other images"
        ),
        metavar="NAME",
        programs=(FINETUNE,),
        of_launch=True,
        before=None,
    )
    recalibrate_share: float = flag(
        0.5,
        "the share of its patients, or images, that --recalibrate fits to",
        read=share_below_1,
        programs=(FINETUNE,),
        of_launch=True,
        before=0.5,
        idle=Idle(lambda options: options.metrics.recalibrate is None, "without --recalibrate"),
    )


@dataclass(frozen=True)
class MixingOptions:
    """mixing of images and labels"""

    smoothing: float = flag(
        0.1,
        "label smoothing, with and without mixup",
        read=below_one,
        of_training=True,
        at={REGRESSION: Change(no_effect="it softens class labels")},
    )
    mixup: float = flag(
        0.0,
        "mixup's alpha; 0: off",
        read=not_negative,
        of_training=True,
        at={REGRESSION: Change(no_effect="it mixes class labels")},
    )
    cutmix: float = flag(
        0.0,
        "cutmix's alpha; 0: off",
        read=not_negative,
        of_training=True,
        at={REGRESSION: Change(no_effect="it mixes class labels")},
    )
    cutmix_minmax: list[float] | None = flag(
        None,
        "least and largest share of the side that cutmix pastes, instead of its alpha",
        read=share,
        words=2,
        metavar=("MIN", "MAX"),
        of_training=True,
        at={REGRESSION: Change(no_effect="it belongs to cutmix")},
    )
    mixup_prob: float = flag(
        1.0,
        "probability of mixing, where mixup or cutmix is on",
        read=share,
        of_training=True,
        idle=NOT_MIXED,
        at={REGRESSION: Change(no_effect="it belongs to mixup")},
    )
    mixup_switch_prob: float = flag(
        0.5,
        "probability of cutmix where both are on",
        read=share,
        of_training=True,
        idle=NOT_BOTH,
        at={REGRESSION: Change(no_effect="it belongs to mixup")},
    )
    mixup_mode: str = flag(
        "batch",
        "what shares one draw: the batch, a pair of images, each image by itself (elem)",
        choices=("batch", "pair", "elem"),
        of_training=True,
        idle=NOT_MIXED,
        at={REGRESSION: Change(no_effect="it belongs to mixup")},
    )
    balanced_sampling: bool = flag(
        False,
        (
            "in an epoch each class comes as often as the others: images of rare ones several times, of "
            "frequent ones another part in each epoch"
        ),
        programs=(FINETUNE,),
        of_training=True,
        before=False,
        also=("--use_weighted_sampler", True, "another name of --balanced_sampling"),
    )
    class_weights: str = flag(
        "none",
        (
            "balanced: a class weighs the inverse of its share of the training images; with --multilabel, "
            "images with and without a label weigh the same in all"
        ),
        choices=("none", "balanced"),
        programs=(FINETUNE,),
        of_training=True,
        also=("--use_class_weights", "balanced", "another name of --class_weights balanced"),
    )


@dataclass(frozen=True)
class OptimisationOptions:
    """optimisation"""

    batch_size: int | str | None = flag(
        128,
        (
            "images a process and batch; auto: as many as fit into the device's memory, at most the "
            "training images (tried on a GPU; on a CPU estimated, at most 128); the number is printed and "
            "stored, and a resumed run keeps it"
        ),
        read=count_or_auto,
        programs=ALL,
        of_checkpoint=True,
        at={
            REGRESSION: Change(default=64),
            PREDICT: Change(
                default=None,
                read=count,
                help="images a process and batch; not set: as the checkpoint was trained",
            ),
            FEATURES: Change(
                default=None,
                read=count,
                help="images a process and batch; not set: 64, or as the checkpoint was trained",
            ),
        },
    )
    epochs: int = flag(
        50,
        "passes over the training images",
        read=count,
        of_training=True,
        at={REGRESSION: Change(default=30)},
    )
    accum_iter: int = flag(
        1,
        "batches whose gradients make one step",
        read=count,
        of_training=True,
        at={REGRESSION: Change(default=2)},
    )
    lr: float | None = flag(None, "the highest learning rate, as it is", read=positive, of_training=True)
    blr: float = flag(
        0.005,
        "where --lr is not given: learning rate = blr x effective batch / 256",
        read=positive,
        of_training=True,
        idle=RATE_TYPED,
        at={REGRESSION: Change(default=0.002)},
    )
    min_lr: float = flag(1e-06, "the learning rate at the end", read=not_negative, of_training=True)
    warmup_epochs: float = flag(
        10,
        "epochs in which the learning rate rises; at most a fifth of the run",
        read=not_negative,
        of_training=True,
        at={REGRESSION: Change(default=5)},
    )
    weight_decay: float = flag(
        0.05,
        "AdamW's weight decay; none on biases, norms and what the model exempts",
        read=not_negative,
        of_training=True,
    )
    layer_decay: float = flag(
        0.65,
        "learning rate of a layer over that of the next one towards the head",
        read=share_above_0,
        of_training=True,
    )
    clip_grad: float | None = flag(
        None, "largest norm of the gradient; not set: no clipping", read=positive, of_training=True
    )
    precision: str = flag(
        "auto",
        "auto: bf16 where the hardware has it, else fp16 on a GPU (not for DINOv3), else fp32",
        choices=("auto", "bf16", "fp16", "fp32"),
        programs=ALL,
        of_scoring=True,
        of_checkpoint=True,
        at=dict.fromkeys(
            USE,
            Change(
                help=(
                    "auto: bf16 where the hardware has it, else fp16 on a GPU (not for DINOv3), else fp32; "
                    "not typed: the checkpoint's"
                )
            ),
        ),
    )
    compile: bool = flag(
        False,
        (
            "compile the model first, which takes a minute or more, then train faster, see docs/speed.md; "
            "needs a C++ compiler"
        ),
        of_training=True,
    )
    deterministic: bool = flag(
        False,
        "on a GPU: only operations that give the same bits each time, which takes longer; on a CPU all do",
        of_training=True,
        before=False,
    )
    activation_checkpointing: bool = flag(
        False,
        (
            "compute each block again in the backward pass instead of keeping it: less memory, slower, "
            "see docs/cluster.md"
        ),
        of_launch=True,
        of_training=True,
    )


@dataclass(frozen=True)
class SearchOptions:
    """search (Optuna)"""

    optuna_trials: int = flag(0, "trials of the study in total; 0: no search", read=whole)
    optuna_epochs: int = flag(10, "epochs of a trial", read=count)
    optuna_timeout: float | None = flag(None, "seconds after which no trial is begun", read=positive)
    optuna_direction: str = flag(
        "maximize",
        "maximize val's metric of --select_metric, or minimize the loss on val",
        choices=("maximize", "minimize"),
        at={REGRESSION: Change(help="maximize the mean R² on val, or minimize the loss on val")},
    )
    optuna_metric: str | None = flag(
        None,
        "another metric on val to search by",
        choices=tuple(choices(CLASSIFICATION)),
        at={REGRESSION: Change(choices=tuple(choices(REGRESSION_KIND)))},
    )
    optuna_storage: str | None = flag(
        None,
        "sqlite:///FILE, a journal file's path, or postgresql://…; not set: optuna.db in the run's folder",
        of_launch=True,
    )
    optuna_study_name: str | None = flag(None, "the study's name; not set: the task's")
    optuna_resume: bool = flag(False, "go on with a study of that name (several machines may share one)")
    optuna_seed: int | None = flag(None, "seed of proposals and trials; not set: --seed", read=seed_number)
    optuna_sampler: str = flag("tpe", "what proposes settings", choices=("tpe", "random"))
    optuna_pruner: str = flag(
        "none",
        (
            "none never ends a trial early; median ends one that is worse than the median of the earlier "
            "ones at that epoch"
        ),
        choices=("none", "median"),
    )
    optuna_eval_test: bool = flag(
        False,
        "also score the test split in every trial, for information: nothing is chosen by it",
    )
    optuna_n_jobs: int = flag(
        1,
        "accepted for compatibility, no effect above 1: start several processes on one storage",
        read=count,
    )
    params: str | None = flag(
        None,
        "the settings of a search, its optuna_best.json; what is typed wins",
        metavar="FILE",
        before=None,
    )
