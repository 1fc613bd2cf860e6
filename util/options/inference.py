"""The flags of the programs that use trained weights: predict.py and latent_feature.py. See flags.py for the
shared ones."""

import argparse
import os
from pathlib import Path

from util.core.errors import InputError
from util.options.flags import OneLineParser, Parsed, count, seed_number, whole

HEATMAP_METHODS = ("auto", "gradient", "rollout", "gradcam")
LONGEST_NAME = 200  # bytes of an output's name: 255 are allowed, and files beside it have longer ones
NOT_FOR_USE = ("finetune", "weights_dir", "allow_partial", "drop_path", "adaptation")  # flags of training's start
NOT_FOR_FEATURES = (*NOT_FOR_USE, "tta")
FOREIGN = "model of a checkpoint that does not name its own (of the original scripts)"


class _LaunchLinesAsTheyAre(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with defaults, and a description whose lines are not filled anew."""


def parser_of(program: str, documentation: str) -> OneLineParser:
    """A parser whose help begins with the program's own documentation, launch lines included."""
    parser = OneLineParser(prog=program, description=documentation)
    parser.formatter_class = _LaunchLinesAsTheyAre
    return parser


def add_picture_flags(group) -> None:
    group.add_argument("--input", required=True, metavar="DIR|CSV",
                       help="the images: a folder (all below it, at any depth), or a CSV with a column of paths")
    group.add_argument("--path_col", default="path",
                       help="the CSV's column of paths (relative ones from the CSV's folder)")
    group.add_argument("--path_suffix", default="", metavar="ENDING",
                       help="an ending that the CSV's paths lack, such as .png")
    group.add_argument("--bad_images", choices=("stop", "skip"), default="stop",
                       help="images that don't decode: stop names them all and ends, skip leaves them out, counted and "
                            "listed")
    group.add_argument("--skip_file_check", action="store_true", help="don't decode every image once at the start")


def add_heatmap_flags(parser) -> None:
    group = parser.add_argument_group("heat maps")
    group.add_argument("--heatmaps", nargs="?", const="", default=None, metavar="DIR",
                       help="also lay a map of where the model looked over each image, as PNG files in DIR (not named: "
                            "heatmaps beside --output; a run's report looks in OUTPUT_DIR/TASK/heatmaps)")
    group.add_argument("--heatmap_method", choices=HEATMAP_METHODS, default="auto",
                       help="auto: gradient-weighted attention for vision transformers, Grad-CAM for CNNs, see "
                            "docs/predict.md")
    group.add_argument("--heatmap_of", default=None, metavar="NAME",
                       help="the class or target whose map is shown; not set: the predicted class, the first target")


def add_weights_flags(parser) -> None:
    group = parser.add_argument_group("weights (one of --finetune, --resume, --random_weights)")
    group.add_argument("--finetune", default="",
                       help="a backbone's weights, as in training: a file, its name under --weights_dir, a name of the "
                            "hub, or hf:owner/repo/file; every tensor is accounted for on the screen")
    group.add_argument("--resume", default="", metavar="CKPT",
                       help="or a trained checkpoint, which also says the model and how images are read")
    group.add_argument("--random_weights", action="store_true",
                       help="or weights drawn at random (--seed), for comparison alone: never without this flag")
    group.add_argument("--seed", type=seed_number, default=0, help="seed of --random_weights")
    group.add_argument("--weights_dir", default="./weights", help="folder in which --finetune is looked for")
    group.add_argument("--allow_partial", action="store_true",
                       help="start although some tensors of the weights don't fit, and print which")


def check_weights(parsed: Parsed) -> None:
    """InputError unless exactly one source of weights is named."""
    options = parsed.options
    named = [name for name in ("finetune", "resume", "random_weights") if getattr(options, name)]
    if len(named) > 1:
        raise InputError(f"{' and '.join(f'--{name}' for name in named)} each name the weights: pass one of them")
    if not named:
        raise InputError("no weights are named: pass --finetune (a backbone's, see docs/weights.md) or --resume (a trained "
                         "checkpoint); features of random weights are made with --random_weights alone")


def add_machine_flags(parser, batch_size: str) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--batch_size", type=count, default=None, help=f"images a process and batch; not set: {batch_size}")
    group.add_argument("--precision", choices=("auto", "bf16", "fp16", "fp32"), default="auto",
                       help="auto: bf16 where the hardware has it, else fp16 on a GPU (not for DINOv3), else fp32; not "
                            "typed: the checkpoint's")
    group.add_argument("--device", choices=("cuda", "cpu", "mps"), default="cuda",
                       help="one that is not there falls back to the CPU, with a line")
    group.add_argument("--num_workers", type=whole, default=10,
                       help="loader processes of each process; at most the machine's cores divided by its processes")
    group.add_argument("--dist_url", default="env://", help="where the processes meet")
    group.add_argument("--dist_on_itp", action="store_true",
                       help="read ranks from Open MPI's variables (start with mpirun; set MASTER_ADDR)")


def check_output(output: str, suffixes: tuple[str, ...], source: str) -> None:
    """InputError unless a file can be written there."""
    path = Path(output)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"--output {output}: the file's name has to end in {' or '.join(suffixes)}")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError(f"--output {output}: the file's name is too long: at most {LONGEST_NAME} bytes")
    if not os.path.isdir(path.parent):
        raise InputError(f"--output {output}: there is no folder {path.parent}; make it first, or name another")
    if os.path.isdir(path):
        raise InputError(f"--output {output} is a folder: name a file")
    if os.path.exists(source) and path.exists() and os.path.samefile(source, path):
        raise InputError(f"--output {output} is the --input itself: name another file")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--output {output}: the folder {path.parent} can't be written; name another")


def idle(parsed: Parsed) -> list[str]:
    """A line for each typed flag that another option keeps from doing anything."""
    options, typed = parsed.options, parsed.typed
    conditions = (
        (("path_col", "path_suffix"), os.path.isdir(options.input), "with a folder as --input"),
        (("bad_images",), options.skip_file_check, "with --skip_file_check: a picture that can't be read ends the run"),
        (("heatmap_method", "heatmap_of"), getattr(options, "heatmaps", None) is None, "without --heatmaps"),
        (("weights_dir", "allow_partial"), not getattr(options, "finetune", "unset"), "without --finetune"),
        (("seed",), not getattr(options, "random_weights", True), "without --random_weights"),
    )
    return [f"--{name} does nothing {why}" for names, is_idle, why in conditions for name in names
            if is_idle and name in typed]
