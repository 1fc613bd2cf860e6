"""Rows of the table of flags: the model, which part of it is trained, and its head."""

from dataclasses import dataclass

from util.options.adaptation import layers
from util.options.flag import (
    ALL,
    FEATURES,
    FINETUNE,
    PREDICT,
    REGRESSION,
    Change,
    Idle,
    below_one,
    count,
    flag,
    normalisation,
    positive,
    side,
    up_to_1000,
    width_ratio,
)

DEFAULT_WEIGHTS = "RETFound_dinov2_meh"  # of a regression
NO_LORA = Idle(lambda options: options.model.adaptation != "lora", "without --adaptation lora")
# a classification without covariates has timm's own head
NO_COVARIATES = {FINETUNE: Change(idle=Idle(lambda options: not options.data.covariates,
                                            "without --covariates"))}
NO_FINETUNE = Idle(lambda options: not options.model.finetune, "without --finetune")


@dataclass(frozen=True)
class ModelOptions:
    """model"""

    model: str = flag(
        "RETFound_dinov2",
        "a name of the table of weights (RETFound_mae, RETFound_dinov2, Dinov2, Dinov3, RETFound_Green, "
        "UrFound, DERETFound, VisionFM), or timm",
        programs=ALL,
        of_scoring=True,
        of_checkpoint=True,
    )
    model_arch: str | None = flag(
        None,
        (
            "the architecture, see docs/weights.md; may be left out where the model has only one. With "
            "--model timm: any name that timm knows"
        ),
        programs=ALL,
        of_scoring=True,
        of_checkpoint=True,
        filled_in=True,
    )
    finetune: str = flag(
        "",
        (
            "weights to start from: a file, its name under --weights_dir, a name of the hub, or "
            "hf:owner/repo/file, see docs/weights.md; empty: random weights"
        ),
        programs=(FINETUNE, REGRESSION, FEATURES),
        of_training=True,
        filled_in=True,
        at={
            REGRESSION: Change(default=DEFAULT_WEIGHTS),
            FEATURES: Change(
                help=(
                    "a backbone's weights, as in training: a file, its name under --weights_dir, a name of "
                    "the hub, or hf:owner/repo/file; every tensor is accounted for on the screen"
                )
            ),
        },
    )
    weights_dir: str = flag(
        "./weights",
        "folder in which --finetune is looked for",
        programs=(FINETUNE, REGRESSION, FEATURES),
        of_launch=True,
        at={FEATURES: Change(idle=NO_FINETUNE)},
    )
    allow_partial: bool = flag(
        False,
        "start although some tensors of the weights don't fit, and print which",
        programs=(FINETUNE, REGRESSION, FEATURES),
        of_training=True,
        at={FEATURES: Change(idle=NO_FINETUNE)},
    )
    input_size: int | None = flag(
        None,
        "side of the input in pixels; not set: 224 (RETFound_Green 392), or a timm model's own size",
        read=side,
        programs=ALL,
        of_scoring=True,
        of_checkpoint=True,
        filled_in=True,
    )
    norm: str = flag(
        "backbone",
        (
            "what the channels are normalised by: backbone (as its weights are known to be trained; for a "
            "timm model, timm's own), imagenet, half (mean and standard deviation 0.5), or six numbers "
            "R,G,B,R,G,B: means, then standard deviations, of values from 0 to 1. IMAGENET in capitals, "
            "as old command lines have it, is backbone"
        ),
        read=normalisation,
        programs=ALL,
        of_scoring=True,
        of_checkpoint=True,
    )
    fundus_crop: str = flag(
        "off",
        (
            "auto: find the round field of a fundus photograph and cut each image to the square around "
            "it, before anything else; images without one (OCT scans) stay whole, counted and listed"
        ),
        choices=("off", "auto"),
        programs=ALL,
        of_scoring=True,
        of_checkpoint=True,
        before="off",
    )
    resize: str = flag(
        "crop",
        (
            "how an image that is no square comes into one: crop takes the centre (training: random "
            "parts), pad adds black beside its longer sides, squash brings width and height to the same "
            "number of pixels"
        ),
        choices=("crop", "pad", "squash"),
        programs=ALL,
        of_scoring=True,
        of_checkpoint=True,
        before="crop",
    )
    read_images: str = flag(
        "as_shown",
        (
            "as_shown: turned as EXIF says, transparent parts black, values of more than 8 bits over the "
            "range that all files together use; as_stored, as the original's loader: TIFF files alone are "
            "turned, colours under transparency are read, values over the full range of their type"
        ),
        choices=("as_shown", "as_stored"),
        programs=ALL,
        of_scoring=True,
        of_checkpoint=True,
        filled_in=True,
        before="as_stored",
    )
    tta: str = flag(
        "off",
        (
            "mirror, or --tta alone: evaluation and predictions take the mean over each image and its "
            "mirror image (left to right), at twice the time"
        ),
        words="?",
        choices=("off", "mirror"),
        const="mirror",
        programs=(FINETUNE, REGRESSION, PREDICT),
        of_scoring=True,
        of_checkpoint=True,
        before="off",
    )
    drop_path: float = flag(
        0.2,
        (
            "stochastic depth: probability that the last block is skipped (earlier ones less); a timm "
            "model without it runs with 0, and a line says so"
        ),
        read=below_one,
        of_training=True,
    )
    global_pool: bool = flag(
        True,
        (
            "RETFound_mae, UrFound and DERETFound read the mean of the patch tokens; what the other models "
            "read, with or without this, is said at the start"
        ),
        programs=ALL,
        off=("--cls_token", "RETFound_mae, UrFound and DERETFound read the class token"),
        of_scoring=True,
        of_checkpoint=True,
    )
    fc_norm_passes: int | None = flag(
        None,
        (
            "times that RETFound_mae applies fc_norm: 1, or 2 for checkpoints of the original's present "
            "code; not set: 1, or what the checkpoint says"
        ),
        read=int,
        choices=(1, 2),
        programs=ALL,
        of_scoring=True,
        of_checkpoint=True,
        filled_in=True,
    )
    adaptation: str = flag(
        "finetune",
        (
            "finetune trains all weights, lp (linear probe) the head alone, lora small adapters and the "
            "head (needs PEFT)"
        ),
        choices=("finetune", "lp", "lora"),
    )


@dataclass(frozen=True)
class ProbeOptions:
    """linear probe"""

    lp_views: int = flag(
        1,
        "random views of each training image whose features are computed; 1: the evaluation's view",
        read=up_to_1000,
        of_training=True,
        at={REGRESSION: Change(no_effect="a regression's head is trained on the evaluation's view")},
    )


@dataclass(frozen=True)
class PartOptions:
    """part of a model"""

    train_last_blocks: int | None = flag(
        None,
        "train the last N blocks and what follows them (norm, head); the rest is not trained",
        read=count,
        metavar="N",
        of_training=True,
    )
    lora_rank: int = flag(
        8,
        "with --adaptation lora: rank of an adapter's two matrices",
        read=count,
        of_training=True,
        idle=NO_LORA,
    )
    lora_alpha: float = flag(
        16.0,
        "an adapter's product is multiplied by alpha / rank",
        read=positive,
        of_training=True,
        idle=NO_LORA,
    )
    lora_dropout: float = flag(
        0.0, "dropout before an adapter", read=below_one, of_training=True, idle=NO_LORA
    )
    lora_targets: str = flag(
        "attention",
        (
            "layers that get an adapter: attention, attention+mlp, ends of layers' names separated by "
            "commas (qkv,fc2), or a regular expression that a layer's whole name matches"
        ),
        read=layers,
        of_training=True,
        idle=NO_LORA,
    )


@dataclass(frozen=True)
class HeadOptions:
    """head and loss"""

    pretrained: bool = flag(
        False, "start a timm model from timm's own weights of the hub", programs=(REGRESSION,)
    )
    huber_beta: float = flag(
        1.0,
        "where the loss turns from quadratic to linear, in standard deviations",
        read=positive,
        programs=(REGRESSION,),
    )
    head_embed_dim: int | None = flag(
        None, "the head's width; not set: that of the image feature", read=side, at=NO_COVARIATES
    )
    head_depth: int = flag(2, "layers of the head's transformer", read=up_to_1000, at=NO_COVARIATES)
    head_num_heads: int = flag(
        4, "attention heads; they must divide the width", read=count, at=NO_COVARIATES
    )
    head_mlp_ratio: float = flag(
        2.0, "width of the head's MLPs over its own", read=width_ratio, at=NO_COVARIATES
    )
    head_dropout: float = flag(0.1, "dropout in the head", read=below_one, at=NO_COVARIATES)
