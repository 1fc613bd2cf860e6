"""Rows of the table of flags that the programs which use trained weights have alone: predict.py and
latent_feature.py."""

from dataclasses import dataclass

from util.options.flag import FEATURES, PREDICT, USE, Change, Idle, flag

NO_MAPS = Idle(lambda options: options.heatmaps.heatmaps is None, "without --heatmaps")


@dataclass(frozen=True)
class UseOptions:
    """checkpoint, images and result"""

    input: str | None = flag(
        None,
        "the images: a folder (all below it, at any depth), or a CSV with a column of paths",
        metavar="DIR|CSV",
        required=True,
        programs=USE,
    )
    output: str | None = flag(
        None,
        "where the predictions are written, FILE.csv",
        metavar="FILE.csv",
        required=True,
        programs=USE,
        at={FEATURES: Change(help="FILE.npz, or FILE.parquet (needs pyarrow)", metavar="FILE")},
    )
    class_names: list[str] | None = flag(
        None,
        (
            "classes in order, for a checkpoint of the original scripts, which does not name them; not "
            "set: 0, 1, …"
        ),
        words="+",
        metavar="NAME",
        programs=(PREDICT,),
    )
    random_weights: bool = flag(
        False,
        "or weights drawn at random (--seed), for comparison alone: never without this flag",
        programs=(FEATURES,),
    )


@dataclass(frozen=True)
class HeatmapOptions:
    """heat maps"""

    heatmaps: str | None = flag(
        None,
        (
            "also lay a map of where the model looked over each image, as PNG files in DIR (not named: "
            "heatmaps beside --output; a run's report looks in OUTPUT_DIR/TASK/heatmaps)"
        ),
        words="?",
        metavar="DIR",
        const="",
        programs=(PREDICT,),
    )
    heatmap_method: str = flag(
        "auto",
        "auto: gradient-weighted attention for vision transformers, Grad-CAM for CNNs, see docs/predict.md",
        choices=("auto", "gradient", "rollout", "gradcam"),
        programs=(PREDICT,),
        idle=NO_MAPS,
    )
    heatmap_of: str | None = flag(
        None,
        (
            "the class, label or target whose map is shown; not set: the predicted class, the label of the "
            "highest probability, the first target"
        ),
        metavar="NAME",
        programs=(PREDICT,),
        idle=NO_MAPS,
    )
