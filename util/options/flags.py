"""The flags that the entry points share, read, resolved and printed.

Nothing heavy is imported here, so that `--help` answers at once. A flag that would do nothing is named by
`without_effect`, never accepted in silence.
"""

import argparse
import difflib
import json
import math
import os
import shutil
from dataclasses import dataclass

from util.core.errors import InputError
from util.core.plain_numbers import number_of
from util.metrics import selection
from util.metrics.table import CLASSIFICATION
from util.options import adaptation

# Accepted because documented command lines and people's scripts pass them.
WITHOUT_EFFECT = {
    "world_size": "the launcher says how many processes there are; with --dry_run, the number to plan for",
    "local_rank": "the launcher's environment says it",
    "dist_eval": "evaluation is always spread over all processes",
    "resplit": "it did nothing in the original either",
    "enhance": "it did nothing in the original either",
}
# What belongs to a machine or a start, not to the run: neither taken from a checkpoint nor compared with one.
OF_THIS_START = {
    "resume", "eval", "dry_run", "device", "num_workers", "pin_mem", "world_size", "local_rank", "dist_on_itp",
    "dist_url", "start_epoch", "output_dir", "log_dir", "task", "weights_dir", "dist_eval", "savemodel",
    "skip_file_check", "leakage", "optuna_storage", "resplit", "enhance", "image_cache", "save_every_steps", "parallel",
    "activation_checkpointing",
}


# What a checkpoint's figures depend on where it is only scored; the rest of its options is training's.
OF_SCORING = {"model", "model_arch", "input_size", "norm", "fundus_crop", "decode", "cache_size", "precision", "global_pool",
              "fc_norm_passes", "csv_file", "class_order", "positive_class", "resize", "read_images", "tta"}
# What training alone reads.
OF_TRAINING = (
    "epochs", "accum_iter", "lr", "blr", "min_lr", "warmup_epochs", "weight_decay", "layer_decay", "clip_grad", "drop_path",
    "smoothing", "mixup", "cutmix", "cutmix_minmax", "mixup_prob", "mixup_switch_prob", "mixup_mode", "balanced_sampling",
    "class_weights",
    "crop_scale", "crop_ratio", "hflip", "vflip", "color_jitter", "aa", "reprob", "remode", "recount", "dataratio",
    "stratified", "datasets_seed", "start_epoch", "finetune", "allow_partial", "compile", "lp_views", "select_metric",
    "calibrate", "leakage", "save_every_steps", "activation_checkpointing", "train_last_blocks", "lora_rank", "lora_alpha",
    "lora_dropout", "lora_targets",
)
# What runs did before there was a flag for it, so that typing the flag is a difference.
BEFORE = {"fundus_crop": "off", "balanced_sampling": False, "class_order": None, "positive_class": None, "path_suffix": "",
          "resize": "crop", "read_images": "as_stored", "tta": "off"}


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the nearest flag's name for a misspelt one."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def error(self, message: str):
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0]
        if unknown != message.split(" ")[0] and unknown.startswith("--"):
            near = difflib.get_close_matches(unknown, self._option_string_actions, 1)
            message += f" (did you mean {near[0]}?)" if near else " (--help lists the flags)"
        raise InputError(message)


@dataclass
class Parsed:
    """The options, and the names of those that were typed."""

    options: argparse.Namespace
    typed: set[str]


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> Parsed:
    """Read a command line; InputError for anything that the parser does not understand."""
    options = parser.parse_args(argv)
    defaults = {action: action.default for action in parser._actions}
    try:  # a second reading without defaults leaves what was typed
        for action in parser._actions:
            action.default = argparse.SUPPRESS
        typed = set(vars(parser.parse_args(argv)))
    finally:
        for action, default in defaults.items():
            action.default = default
    return Parsed(options, typed)


def _number(kind, low=None, high=None, open_low=False, open_high=False):
    def read(text: str):
        try:
            value = number_of(text, kind)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        too_low = low is not None and (value < low or (open_low and value == low))
        too_high = high is not None and (value > high or (open_high and value == high))
        if value != value or too_low or too_high:
            left = "" if low is None else f"{'above' if open_low else 'at least'} {low:g}"
            right = "" if high is None else f"{'below' if open_high else 'at most'} {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: {' and '.join(filter(None, (left, right)))}")
        return value
    return read


count = _number(int, 1, 10**9)
up_to_1000 = _number(int, 1, 1000)  # what the program does one after the other: a mistyped number must not take a year
side = _number(int, 1, 8192)  # pixels, or the width of a head
width_ratio = _number(float, 0, 100, open_low=True)
whole = _number(int, 0, 10**9)
positive = _number(float, 0, open_low=True, high=float("inf"), open_high=True)
not_negative = _number(float, 0, high=float("inf"), open_high=True)
share = _number(float, 0, 1)
AUTO = "auto"
below_one = _number(float, 0, 1, open_high=True)


def count_or_auto(text: str) -> int | str:
    return AUTO if text == AUTO else count(text)


def normalisation(text: str) -> str:
    """`--norm` as it is stored: backbone, imagenet, half, or six numbers parted by commas."""
    if text == "IMAGENET":  # the original's default, in its command lines and in checkpoints: it meant the backbone's own
        return "backbone"
    if text.lower() in ("backbone", "imagenet", "half"):
        return text.lower()
    try:
        numbers = [number_of(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or min(numbers[3:]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is none of backbone, imagenet, half, nor six numbers parted by commas: "
                                         "three means and three standard deviations above 0, of values from 0 to 1")
    return ",".join(str(number).removesuffix(".0") for number in numbers)  # to the last digit


def seed_number(text: str) -> int:
    return _number(int, 0, 2**32 - 1)(text)


def ratios(text: str) -> list[float]:
    """`--dataratio`: one share of the training pictures or a comma-separated list, each in (0, 1]."""
    values = [_number(float, 0, 1, open_low=True)(part.strip()) for part in text.split(",") if part.strip()]
    if not values:
        raise argparse.ArgumentTypeError(f"{text!r} names no share")
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text!r} names a share twice")
    return values


def add_model_flags(parser, finetune="", title="model", leave_out=()) -> None:
    """leave_out: names of flags that a program has no use for."""
    group = parser.add_argument_group(title)

    def add(flag, **settings):
        if flag[2:] not in leave_out:
            group.add_argument(flag, **settings)

    add("--model", default="RETFound_dinov2", help="RETFound_mae, RETFound_dinov2, Dinov2, Dinov3 or timm")
    add("--model_arch", default=None,
        help="the architecture, see docs/weights.md; may be left out where the model has only one. With --model timm: "
             "any name that timm knows")
    add("--finetune", default=finetune,
        help="weights to start from: a file, its name under --weights_dir, a name of the hub, or hf:owner/repo/file, see "
             "docs/weights.md; empty: random weights")
    add("--weights_dir", default="./weights", help="folder in which --finetune is looked for")
    add("--allow_partial", action="store_true",
        help="start although some tensors of the weights don't fit, and print which")
    add("--input_size", type=side, default=None,
        help="side of the input in pixels; not set: 224, or a timm model's own size")
    add("--norm", type=normalisation, default="backbone",
        help="what the channels are normalised by: backbone (as its weights are known to be trained; for a timm model, "
             "timm's own), imagenet, half (mean and standard deviation 0.5), or six numbers R,G,B,R,G,B: means, then "
             "standard deviations, of values from 0 to 1. IMAGENET in capitals, as old command lines have it, is "
             "backbone")
    add("--fundus_crop", choices=("off", "auto"), default="off",
        help="auto: find the round field of a fundus photograph and cut each image to the square around it, before "
             "anything else; images without one (OCT scans) stay whole, counted and listed")
    add("--resize", choices=("crop", "pad", "squash"), default="crop",
        help="how an image that is no square comes into one: crop takes the centre (training: random parts), pad adds "
             "black beside its longer sides, squash brings width and height to the same number of pixels")
    add("--read_images", choices=("as_shown", "as_stored"), default="as_shown",
        help="as_shown: turned as EXIF says, transparent parts black, values of more than 8 bits over the range that "
             "all files together use; as_stored, as the original's loader: TIFF files alone are turned, colours under "
             "transparency are read, values over the full range of their type")
    add("--tta", nargs="?", const="mirror", choices=("off", "mirror"), default="off",
        help="mirror, or --tta alone: evaluation and predictions take the mean over each image and its mirror image "
             "(left to right), at twice the time")
    add("--drop_path", type=below_one, default=0.2,
        help="stochastic depth: probability that the last block is skipped (earlier ones less); a timm model without it "
             "runs with 0, and a line says so")
    add("--global_pool", action="store_true", default=True,
        help="RETFound_mae reads the mean of the patch tokens; the other models read the class token, with or without "
             "this")
    add("--cls_token", action="store_false", dest="global_pool",
        help="RETFound_mae reads the class token")
    add("--fc_norm_passes", type=int, choices=(1, 2), default=None,
        help="times that RETFound_mae applies fc_norm: 1, or 2 for checkpoints of the original's present code; not set: "
             "1, or what the checkpoint says")
    add("--adaptation", choices=("finetune", "lp", "lora"), default="finetune",
        help="finetune trains all weights, lp (linear probe) the head alone, lora small adapters and the head (needs "
             "PEFT)")


def add_probe_flags(parser) -> None:
    group = parser.add_argument_group("linear probe")
    group.add_argument("--lp_views", type=up_to_1000, default=1,
                       help="random views of each training image whose features are computed; 1: the evaluation's view")


def add_part_flags(parser) -> None:
    group = parser.add_argument_group("part of a model")
    group.add_argument("--train_last_blocks", type=count, default=None, metavar="N",
                       help="train the last N blocks and what follows them (norm, head); the rest is not trained")
    group.add_argument("--lora_rank", type=count, default=8,
                       help="with --adaptation lora: rank of an adapter's two matrices")
    group.add_argument("--lora_alpha", type=positive, default=16.0,
                       help="an adapter's product is multiplied by alpha / rank")
    group.add_argument("--lora_dropout", type=below_one, default=0.0, help="dropout before an adapter")
    group.add_argument("--lora_targets", type=adaptation.layers, default="attention",
                       help="layers that get an adapter: attention, attention+mlp, ends of layers' names separated by "
                            "commas (qkv,fc2), or a regular expression that a layer's whole name matches")


def add_data_flags(parser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--data_path", default="./data/", help="folder with train, val and test, a folder a class in each")
    group.add_argument("--csv_file", default=None,
                       help="a CSV instead of the folder: columns path, label, split (and patient)")
    group.add_argument("--path_col", default="path",
                       help="the CSV's column of paths (relative ones from the CSV's folder)")
    group.add_argument("--path_suffix", default="", metavar="ENDING",
                       help="an ending that the CSV's paths lack, such as .png")
    group.add_argument("--label_col", default="label", help="the CSV's column of class names")
    group.add_argument("--class_order", nargs="+", default=None, metavar="CLASS",
                       help="the classes from the lowest grade on, for quadratic kappa and the mean distance of grades; "
                            "not set: by whole numbers that the names begin with, or grades that are known (No_DR, "
                            "Mild, …), see docs/data.md")
    group.add_argument("--positive_class", default=None, metavar="CLASS",
                       help="of two classes, the one that sensitivity at a specificity, calibration and the like are "
                            "of; not set: the second in their order")
    group.add_argument("--split_col", default="split", help="the CSV's column of train, val, test (or iv, ev)")
    group.add_argument("--patient_col", default=None, help="the CSV's column of patients, for the predictions table")
    group.add_argument("--nb_classes", type=count, default=8,
                       help="number of classes; checked where typed, else taken from the data")
    group.add_argument("--dataratio", type=ratios, default=[1.0],
                       help="share of the training images, or a comma-separated list to run one after the other")
    group.add_argument("--stratified", action="store_true", help="take the share of --dataratio of each class")
    group.add_argument("--datasets_seed", type=seed_number, default=2026,
                       help="seed of the choice of the images of --dataratio")
    group.add_argument("--bad_images", choices=("stop", "skip"), default="stop",
                       help="images that don't decode: stop names them all and ends, skip leaves them out, counted and "
                            "listed")
    group.add_argument("--skip_file_check", action="store_true", help="don't decode every image once at the start")
    add_leakage_flags(group)


def add_leakage_flags(group) -> None:
    group.add_argument("--leakage", choices=("warn", "stop", "off"), default="warn",
                       help="look for the same image, a near duplicate or the same patient in two splits before "
                            "training: warn, stop where something is found, or off")
    group.add_argument("--patient_regex", default=None, metavar="RE",
                       help="where no column names the patients: a regular expression whose one group is the patient in "
                            "an image's file name, such as '(p[0-9]+)_'")


def add_image_flags(parser, crop_scale=(0.08, 1.0)) -> None:
    group = parser.add_argument_group("augmentation and decoding")
    group.add_argument("--crop_scale", type=positive, nargs=2, default=list(crop_scale), metavar=("MIN", "MAX"),
                       help="least and largest share of the image's area that a random crop takes")
    group.add_argument("--crop_ratio", type=positive, nargs=2, default=[3 / 4, 4 / 3], metavar=("MIN", "MAX"),
                       help="least and largest width over height of a random crop")
    group.add_argument("--hflip", type=share, default=0.5, help="probability of a mirror image")
    group.add_argument("--vflip", type=share, default=0.0, help="probability of an upside-down image")
    group.add_argument("--color_jitter", type=not_negative, default=None,
                       help="strength of colour jitter; acts where --aa is none (or 3a)")
    group.add_argument("--aa", default="rand-m9-mstd0.5-inc1", help="timm's augmentation policy, or none")
    group.add_argument("--reprob", type=share, default=0.25, help="probability of random erasing")
    group.add_argument("--remode", choices=("const", "rand", "pixel"), default="pixel",
                       help="what erasing leaves: const the mean, rand one random colour, pixel random pixels")
    group.add_argument("--recount", type=up_to_1000, default=1, help="most areas that erasing takes")
    group.add_argument("--decode", choices=("full", "scaled"), default=None,
                       help="how much of a JPEG is decoded: full, or scaled (no finer than the crop needs). Not set: "
                            "training takes scaled, evaluation what the checkpoint was trained with, full where it does "
                            "not say")
    group.add_argument("--image_cache", default=None, metavar="DIR",
                       help="folder in which every image is kept decoded, for the next epochs and runs (0.8 GB for a "
                            "thousand at 512), see docs/speed.md")
    group.add_argument("--cache_size", type=side, default=None,
                       help="short side in pixels to which images are first resized, kept or not. Not set, with "
                            "--image_cache: what the smallest crop needs, at most 16/7 of the input (512 at 224); "
                            "without: an image's own size")


def add_figure_flags(parser) -> None:
    group = parser.add_argument_group("metrics")
    group.add_argument("--select_metric", type=selection.reader(CLASSIFICATION), default="score",
                       help="the metric on val whose best epoch is kept, or several joined by +, for their mean, such "
                            "as auc+f1: score (the mean of macro F1, ROC AUC and kappa), auc, f1, kappa, qwk, accuracy, "
                            "balanced_accuracy, ap, precision, recall, jaccard, and those of which less is better: "
                            "loss, brier, ece, hamming, mae_grades")
    group.add_argument("--calibrate", action="store_true",
                       help="fit a temperature on val, keep it in the checkpoint, and show calibrated metrics beside "
                            "the others")


def add_mixing_flags(parser) -> None:
    group = parser.add_argument_group("mixing of images and labels")
    group.add_argument("--smoothing", type=below_one, default=0.1, help="label smoothing, with and without mixup")
    group.add_argument("--mixup", type=not_negative, default=0.0, help="mixup's alpha; 0: off")
    group.add_argument("--cutmix", type=not_negative, default=0.0, help="cutmix's alpha; 0: off")
    group.add_argument("--cutmix_minmax", type=share, nargs=2, default=None, metavar=("MIN", "MAX"),
                       help="least and largest share of the side that cutmix pastes, instead of its alpha")
    group.add_argument("--mixup_prob", type=share, default=1.0, help="probability of mixing, where mixup or cutmix is on")
    group.add_argument("--mixup_switch_prob", type=share, default=0.5, help="probability of cutmix where both are on")
    group.add_argument("--mixup_mode", choices=("batch", "pair", "elem"), default="batch",
                       help="what shares one draw: the batch, a pair of images, each image by itself (elem)")
    group.add_argument("--balanced_sampling", action="store_true",
                       help="in an epoch each class comes as often as the others: images of rare ones several times, of "
                            "frequent ones another part in each epoch")
    group.add_argument("--class_weights", choices=("none", "balanced"), default="none",
                       help="balanced: a class weighs the inverse of its share of the training images")


def add_optimisation_flags(parser, batch_size=128, epochs=50, accum_iter=1, blr=5e-3, warmup_epochs=10) -> None:
    group = parser.add_argument_group("optimisation")
    group.add_argument("--batch_size", type=count_or_auto, default=batch_size,
                       help="images a process and batch; auto: as many as fit into the device's memory, at most the "
                            "training images (tried on a GPU; on a CPU estimated, at most 128); the number is printed "
                            "and stored, and a resumed run keeps it")
    group.add_argument("--epochs", type=count, default=epochs, help="passes over the training images")
    group.add_argument("--accum_iter", type=count, default=accum_iter, help="batches whose gradients make one step")
    group.add_argument("--lr", type=positive, default=None, help="the highest learning rate, as it is")
    group.add_argument("--blr", type=positive, default=blr,
                       help="where --lr is not given: learning rate = blr x effective batch / 256")
    group.add_argument("--min_lr", type=not_negative, default=1e-6, help="the learning rate at the end")
    group.add_argument("--warmup_epochs", type=not_negative, default=warmup_epochs,
                       help="epochs in which the learning rate rises; at most a fifth of the run")
    group.add_argument("--weight_decay", type=not_negative, default=0.05,
                       help="AdamW's weight decay; none on biases, norms and what the model exempts")
    group.add_argument("--layer_decay", type=_number(float, 0, 1, open_low=True), default=0.65,
                       help="learning rate of a layer over that of the next one towards the head")
    group.add_argument("--clip_grad", type=positive, default=None,
                       help="largest norm of the gradient; not set: no clipping")
    group.add_argument("--precision", choices=("auto", "bf16", "fp16", "fp32"), default="auto",
                       help="auto: bf16 where the hardware has it, else fp16 on a GPU (not for DINOv3), else fp32")
    group.add_argument("--compile", action="store_true",
                       help="compile the model first, which takes a minute or more, then train faster, see "
                            "docs/speed.md; needs a C++ compiler")
    group.add_argument("--activation_checkpointing", action="store_true",
                       help="compute each block again in the backward pass instead of keeping it: less memory, slower, "
                            "see docs/cluster.md")


def add_run_flags(parser, num_workers=10) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--task", default="",
                       help="name of the run: results go to OUTPUT_DIR/TASK (empty: to OUTPUT_DIR itself)")
    group.add_argument("--output_dir", default="./output_dir", help="the folder of results")
    group.add_argument("--log_dir", default="./output_logs", help="TensorBoard's folder")
    group.add_argument("--seed", type=seed_number, default=0,
                       help="seed of the initial weights, the order of images, augmentation, mixing and every other draw")
    group.add_argument("--resume", default="",
                       help="same: go on from the run's own checkpoint-last.pth where there is one, but reject other "
                            "options or images; auto: the same, and accept them; or the path of a checkpoint; empty: a "
                            "new run, see docs/train.md. With --eval: the checkpoint to score (auto: the task's best)")
    group.add_argument("--start_epoch", type=whole, default=0,
                       help="number of the first epoch of a new run, also its position in the schedule; a resumed run "
                            "knows its own")
    group.add_argument("--eval", action="store_true", help="score --resume on the test split, without training")
    group.add_argument("--dry_run", action="store_true", help="resolve and print everything, then stop")
    group.add_argument("--savemodel", action="store_true", default=True, help="keep checkpoints")
    group.add_argument("--save_every_steps", type=count, default=None, metavar="N",
                       help="write the last checkpoint inside an epoch, too, every N optimizer steps; not set: at each "
                            "epoch's end")
    group.add_argument("--no_savemodel", action="store_false", dest="savemodel",
                       help="keep no checkpoints (the test split is scored with the best epoch all the same)")
    group.add_argument("--device", choices=("cuda", "cpu", "mps"), default="cuda",
                       help="one that is not there falls back to the CPU, with a line")
    group.add_argument("--num_workers", type=whole, default=num_workers,
                       help="loader processes of each process; at most the machine's cores divided by its processes")
    group.add_argument("--pin_mem", action="store_true", default=True, help="pin the loaders' memory (CUDA)")
    group.add_argument("--no_pin_mem", action="store_false", dest="pin_mem", help="don't pin the loaders' memory")


def add_distribution_flags(parser) -> None:
    group = parser.add_argument_group("processes (torchrun sets what is needed)")
    group.add_argument("--parallel", choices=("auto", "ddp", "fsdp"), default="auto",
                       help="ddp: the whole model on each device; fsdp: a share of it on each; auto: fsdp where ddp "
                            "does not fit the memory and fsdp does")
    group.add_argument("--dist_url", default="env://", help="where the processes meet")
    group.add_argument("--dist_on_itp", action="store_true",
                       help="read ranks from Open MPI's variables (start with mpirun; set MASTER_ADDR)")
    for name, kind in (("world_size", int), ("local_rank", int)):
        group.add_argument(f"--{name}", type=kind, default={"world_size": 1, "local_rank": -1}[name],
                           help="accepted for compatibility, no effect: " + WITHOUT_EFFECT[name])
    group.add_argument("--local-rank", dest="local_rank", type=int, help=argparse.SUPPRESS, default=argparse.SUPPRESS)


def add_compatibility_flags(parser):
    """The group, so that a program can add its own."""
    group = parser.add_argument_group("accepted for compatibility, no effect")
    for name in ("dist_eval", "resplit", "enhance"):
        group.add_argument(f"--{name}", action="store_true", help=WITHOUT_EFFECT[name])
    return group


def add_classification_flags(parser) -> None:
    """All flags of main_finetune.py, in the order of its help."""
    add_model_flags(parser)
    add_probe_flags(parser)
    add_part_flags(parser)
    add_data_flags(parser)
    add_image_flags(parser)
    add_mixing_flags(parser)
    add_figure_flags(parser)
    add_optimisation_flags(parser)
    add_run_flags(parser)
    add_distribution_flags(parser)
    add_compatibility_flags(parser)


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


def without_effect(parsed: Parsed, more: dict[str, str] | None = None) -> list[str]:
    """One line naming the flags that were typed and do nothing, with the reason of each. more: those of one program."""
    known = WITHOUT_EFFECT | (more or {})
    names = [name for name in known if name in parsed.typed]
    if parsed.options.dry_run and "world_size" in names:
        names.remove("world_size")
    if not names:
        return []
    reasons = "; ".join(f"--{name} ({known[name]})" for name in names)
    return [f"accepted for compatibility, no effect: {reasons}"]


def idle(parsed: Parsed) -> list[str]:
    """A line for each typed flag that another option, typed or a checkpoint's, keeps from doing anything."""
    options, typed = parsed.options, parsed.typed
    if options.eval:
        names = [f"--{name}" for name in OF_TRAINING if name in typed]
        return [f"with --eval these do nothing: {', '.join(names)}"] if names else []
    mixup, cutmix = getattr(options, "mixup", 0), getattr(options, "cutmix", 0) or getattr(options, "cutmix_minmax", None)
    mixes, both = mixup or cutmix, mixup and cutmix
    conditions = (
        (("mixup_prob", "mixup_mode"), not mixes, "without --mixup or --cutmix"),
        (("mixup_switch_prob",), not both, "unless both --mixup and --cutmix are on"),
        (("remode", "recount"), options.reprob == 0, "with --reprob 0"),
        (("blr",), options.lr is not None, "beside --lr"),
        (("stratified", "datasets_seed"), options.dataratio == [1.0], "with --dataratio 1"),
        (("patient_col", "path_col", "path_suffix", "label_col", "split_col"), options.csv_file is None, "without --csv_file"),
        (("bad_images",), options.skip_file_check, "with --skip_file_check"),
        (("save_every_steps",), not options.savemodel, "with --no_savemodel"),
        (("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"), options.adaptation != "lora",
         "without --adaptation lora"),
    )
    return [f"--{name} does nothing {why}" for names, is_idle, why in conditions for name in names
            if is_idle and name in typed]


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


def differences(stored: dict, options, typed: set[str] | None = None) -> list[str]:
    """`name: stored -> now` for the options of a run that differ (of those typed alone, where given).

    Where the checkpoint is only scored, for those that its figures depend on.
    """
    now = vars(options)
    names = [name for name in stored if name in now and name not in OF_THIS_START]
    if options.eval:
        names = [name for name in names if name in OF_SCORING]
    if typed is not None:
        names = [name for name in names if name in typed]
    return [f"--{name} {_text(stored[name])} -> {_text(now[name])}" for name in names if stored[name] != now[name]]


def take_stored(stored: dict, options, typed: set[str]) -> None:
    """Options that were not typed take the value that the checkpoint's run had."""
    for name, value in stored.items():
        if hasattr(options, name) and name not in OF_THIS_START and name not in typed:
            setattr(options, name, value)


def as_now(stored: dict) -> dict:
    """A run's options in today's words. Before --norm had a meaning any word could stand there: it was the backbone's own.
    What a later flag says of an earlier run stands in `BEFORE`."""
    stored = BEFORE | stored
    try:
        return stored | {"norm": normalisation(str(stored.get("norm", "backbone")))}
    except argparse.ArgumentTypeError:
        return stored | {"norm": "backbone"}


def _text(value) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
