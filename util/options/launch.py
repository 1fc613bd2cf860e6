"""Rows of the table of flags: where a run lies, how it is resumed, and the machine and processes that it runs
on."""

from dataclasses import dataclass

from util.options.flag import (
    ALL,
    FEATURES,
    FINETUNE,
    PREDICT,
    REGRESSION,
    Change,
    Idle,
    count,
    flag,
    seed_number,
    whole,
)

NOT_SAVED = Idle(lambda options: not options.run.savemodel, "with --no_savemodel")
NOT_RANDOM = Idle(lambda options: not options.use.random_weights, "without --random_weights")


@dataclass(frozen=True)
class RunOptions:
    """run"""

    task: str = flag(
        "", "name of the run: results go to OUTPUT_DIR/TASK (empty: to OUTPUT_DIR itself)", of_launch=True
    )
    output_dir: str = flag("./output_dir", "the folder of results", of_launch=True)
    log_dir: str = flag("./output_logs", "TensorBoard's folder", of_launch=True)
    seed: int = flag(
        0,
        "seed of the initial weights, the order of images, augmentation, mixing and every other draw",
        read=seed_number,
        programs=(FINETUNE, REGRESSION, FEATURES),
        at={FEATURES: Change(help="seed of --random_weights", idle=NOT_RANDOM)},
    )
    resume: str = flag(
        "",
        (
            "same: go on from the run's own checkpoint-last.pth where there is one, but reject other "
            "options or images; auto: the same, and accept them; or the path of a checkpoint; empty: a "
            "new run, see docs/train.md. With --eval: the checkpoint to score (auto: the task's best)"
        ),
        programs=ALL,
        of_launch=True,
        at={
            PREDICT: Change(
                default=None,
                help=(
                    "the checkpoint: of main_finetune.py, main_regression.py or the original scripts; of "
                    "several, such as those of --folds, the mean of what they predict is written"
                ),
                metavar="CKPT",
                words="+",
                required=True,
            ),
            FEATURES: Change(
                help="or a trained checkpoint, which also says the model and how images are read",
                metavar="CKPT",
            ),
        },
    )
    start_epoch: int = flag(
        0,
        (
            "number of the first epoch of a new run, also its position in the schedule; a resumed run "
            "knows its own"
        ),
        read=whole,
        of_launch=True,
        of_training=True,
    )
    eval: bool = flag(False, "score --resume on the test split, without training", of_launch=True)
    dry_run: bool = flag(False, "resolve and print everything, then stop", of_launch=True)
    savemodel: bool = flag(
        True,
        "keep checkpoints",
        off=(
            "--no_savemodel",
            "keep no checkpoints (the test split is scored with the best epoch all the same)",
        ),
        of_launch=True,
    )
    save_every_steps: int | None = flag(
        None,
        (
            "write the last checkpoint inside an epoch, too, every N optimizer steps; not set: at each "
            "epoch's end"
        ),
        read=count,
        metavar="N",
        of_launch=True,
        of_training=True,
        idle=NOT_SAVED,
    )
    device: str = flag(
        "cuda",
        "one that is not there falls back to the CPU, with a line",
        choices=("cuda", "cpu", "mps"),
        programs=ALL,
        of_launch=True,
    )
    num_workers: int | None = flag(
        None,
        "loader processes of each process; at most, and where none is typed, the machine's cores divided by "
        "its processes",
        read=whole,
        programs=ALL,
        of_launch=True,
    )
    pin_mem: bool = flag(
        True,
        "pin the loaders' memory (CUDA)",
        off=("--no_pin_mem", "don't pin the loaders' memory"),
        of_launch=True,
    )


@dataclass(frozen=True)
class ProcessOptions:
    """processes (torchrun sets what is needed)"""

    parallel: str = flag(
        "auto",
        (
            "ddp: the whole model on each device; fsdp: a share of it on each; auto: fsdp where ddp does "
            "not fit the memory and fsdp does"
        ),
        choices=("auto", "ddp", "fsdp"),
        of_launch=True,
    )
    dist_url: str = flag("env://", "where the processes meet", programs=ALL, of_launch=True)
    dist_on_itp: bool = flag(
        False,
        "read ranks from Open MPI's variables (start with mpirun; set MASTER_ADDR)",
        programs=ALL,
        of_launch=True,
    )


@dataclass(frozen=True)
class CompatibilityOptions:
    """accepted for compatibility, no effect"""

    world_size: int = flag(
        1,
        read=int,
        of_launch=True,
        no_effect="the launcher says how many processes there are; with --dry_run, the number to plan for",
    )
    local_rank: int = flag(-1, read=int, of_launch=True, no_effect="the launcher's environment says it")
    dist_eval: bool = flag(False, of_launch=True, no_effect="evaluation is always spread over all processes")
    resplit: bool = flag(False, of_launch=True, no_effect="it did nothing in the original either")
    enhance: bool = flag(False, of_launch=True, no_effect="it did nothing in the original either")
