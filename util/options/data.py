"""Rows of the table of flags: the images of a run, and what is done with them before the model sees them."""

import os
from dataclasses import dataclass

from util.options.flag import (
    ALL,
    AUTO,
    FEATURES,
    FINETUNE,
    OWN,
    PREDICT,
    REGRESSION,
    TRAINING,
    USE,
    Change,
    Idle,
    count,
    flag,
    folds_number,
    not_negative,
    positive,
    ratios,
    seed_number,
    share,
    side_or_own,
    up_to_1000,
)

MEAN, MAX, ATTENTION = "mean", "max", "attention"  # what a case's outputs are of its images' (--pool)
DEFAULT_TARGETS = ["tc", "ldl", "hdl", "tg", "apoa", "apob"]
NO_CSV = Idle(lambda options: options.data.csv_file is None, "without --csv_file")
LABELS = Idle(lambda options: options.data.multilabel, "with --multilabel: each label is there or not")
OF_FOLDER = Idle(lambda options: os.path.isdir(options.use.input), "with a folder as --input")
NO_CASES = Idle(lambda options: not options.data.has_cases, "without --case_col, --case_regex or --case")
UNCHECKED = Idle(lambda options: options.data.skip_file_check, "with --skip_file_check")
UNCHECKED_USE = Idle(
    lambda options: options.data.skip_file_check,
    "with --skip_file_check: an image that can't be read ends the run",
)
WHOLE = Idle(lambda options: options.data.dataratio == [1.0], "with --dataratio 1")
NO_ERASING = Idle(lambda options: options.images.reprob == 0, "with --reprob 0")


@dataclass(frozen=True)
class DataOptions:
    """data"""

    data_path: str = flag(
        "./data/",
        "folder with train, val and test, a folder a class in each",
        at={REGRESSION: Change(no_effect="the images are those of --csv_file")},
    )
    csv_file: str | None = flag(
        None,
        "a CSV instead of the folder: columns path, label, split (and patient)",
        of_scoring=True,
        at={REGRESSION: Change(help="the CSV: columns path, split and the targets; must be given")},
    )
    path_col: str = flag(
        "path",
        "the CSV's column of paths (relative ones from the CSV's folder)",
        programs=ALL,
        idle=NO_CSV,
        at=dict.fromkeys(USE, Change(idle=OF_FOLDER)),
    )
    path_suffix: str = flag(
        "",
        "an ending that the CSV's paths lack, such as .png",
        metavar="ENDING",
        programs=ALL,
        before="",
        idle=NO_CSV,
        at=dict.fromkeys(USE, Change(idle=OF_FOLDER)),
    )
    label_col: str = flag(
        "label",
        "the CSV's column of class names; with --multilabel, of labels' names parted by ; or |",
        programs=(FINETUNE,),
        idle=NO_CSV,
    )
    multilabel: bool = flag(
        False,
        (
            "an image can have several labels, or none: the CSV says of each whether it is there "
            "(--label_cols, or --label_col), see docs/data.md"
        ),
        programs=(FINETUNE,),
        of_scoring=True,
        before=False,
    )
    label_cols: list[str] = flag(
        [],
        (
            "with --multilabel, the CSV's columns of labels, 1 or 0 in each; empty cells are left out of "
            "loss and metrics"
        ),
        words="+",
        metavar="COLUMN",
        programs=(FINETUNE,),
        before=[],
        idle=Idle(lambda options: not options.data.multilabel, "without --multilabel"),
    )
    ignore_unlabeled: bool = flag(
        False,
        "leave out the CSV's rows whose label is empty, NA, nan or null, and count them",
        programs=(FINETUNE,),
        before=False,
        idle=Idle(lambda options: options.data.csv_file is None or options.data.multilabel,
                  "without --csv_file, or with --multilabel, which counts only labels that are known"),
    )
    class_order: list[str] | None = flag(
        None,
        (
            "the classes from the lowest grade on, for quadratic kappa and the mean distance of grades; "
            "not set: by whole numbers that the names begin with, or grades that are known (No_DR, Mild, "
            "…), see docs/data.md"
        ),
        words="+",
        metavar="CLASS",
        programs=(FINETUNE,),
        of_scoring=True,
        before=None,
        idle=LABELS,
    )
    positive_class: str | None = flag(
        None,
        (
            "of two classes, the one that sensitivity at a specificity, calibration and the like are of; "
            "not set: the second in their order"
        ),
        metavar="CLASS",
        programs=(FINETUNE,),
        of_scoring=True,
        before=None,
        idle=LABELS,
    )
    external: list[str] = flag(
        [],
        (
            "folders of external test sets, each with a folder a class, in test/ where there is one; each is "
            "scored under its folder's name, as test_NAME"
        ),
        words="+",
        metavar="DIR",
        programs=(FINETUNE,),
        before=[],
        idle=Idle(lambda options: options.data.csv_file is not None,
                  "with --csv_file: its rows with the split ev:NAME are such a set"),
    )
    split_col: str = flag(
        "split", "the CSV's column of train, val, test (or iv, ev, test:NAME, ev:NAME)", idle=NO_CSV
    )
    targets: list[str] = flag(
        DEFAULT_TARGETS, "the CSV's columns of numbers to predict", words="+", programs=(REGRESSION,)
    )
    target_transform: list[str] = flag(
        ["none"],
        "what the loss sees of the targets, their values or their logarithms: one for all, or one a target",
        words="+",
        choices=("none", "log"),
        programs=(REGRESSION,),
    )
    covariates: list[str] = flag(
        [], "columns of the CSV that the head reads beside the image", words="+", before=[]
    )
    dropna: bool = flag(
        False,
        "leave out rows that lack a target, instead of leaving that target out of the loss",
        programs=(REGRESSION,),
    )
    patient_col: str | None = flag(
        None, "the CSV's column of patients, for the predictions table", idle=NO_CSV
    )
    group_col: list[str] = flag(
        [],
        (
            "columns of the CSV, such as camera, site or sex, for whose groups the test sets' metrics are "
            "told apart and compared"
        ),
        words="+",
        metavar="COLUMN",
        before=[],
        idle=NO_CSV,
    )
    group_bins: list[str] = flag(
        [],
        "cut a column of numbers of --group_col into bands, such as age=40,60",
        words="+",
        metavar="COLUMN=NUMBERS",
        before=[],
        idle=Idle(lambda options: not options.data.group_col, "without --group_col"),
    )
    case_col: str | None = flag(
        None,
        (
            "the CSV's column of cases: the images of an eye, a patient or a volume, which are judged "
            "together"
        ),
        metavar="COLUMN",
        programs=(*TRAINING, PREDICT),
        of_scoring=True,
        of_checkpoint=True,
        before=None,
        idle=NO_CSV,
        at={PREDICT: Change(idle=OF_FOLDER)},
    )
    case_regex: str | None = flag(
        None,
        (
            "where no column names the cases: a regular expression whose one group is the case in an image's "
            "file name, else in FOLDER/NAME, such as '(.+)/' for a folder a volume"
        ),
        metavar="RE",
        programs=(*TRAINING, PREDICT),
        of_scoring=True,
        of_checkpoint=True,
        before=None,
    )
    case: str | None = flag(
        None,
        "patient: all images of a patient are one case",
        choices=("patient",),
        of_scoring=True,
        before=None,
        idle=Idle(lambda options: bool(options.data.case_col or options.data.case_regex),
                  "with --case_col or --case_regex"),
    )
    pool: str = flag(
        MEAN,
        (
            "what a case's outputs are of its images': their mean; max, those of the image that is least "
            "like the first class (of numbers the largest); attention, a mean whose weights are learned"
        ),
        choices=(MEAN, MAX, ATTENTION),
        of_scoring=True,
        before=MEAN,
        idle=NO_CASES,
    )
    case_size: int = flag(
        16,
        (
            "with --pool attention most images of a case in a training step, drawn anew in each epoch; a "
            "step has as many cases as make --batch_size images"
        ),
        read=count,
        programs=(FINETUNE,),
        of_training=True,
        before=16,
        idle=Idle(lambda options: options.data.pool != ATTENTION or options.model.adaptation == "lp",
                  "without --pool attention, or with --adaptation lp, which reads all"),
    )
    folds: int | None = flag(
        None,
        (
            "K-fold cross-validation: the images of train and val are dealt to K folds by patient, else "
            "case, else image; K runs, each of which scores one fold and chooses by the next, see "
            "docs/train.md"
        ),
        read=folds_number,
        metavar="K",
        of_training=True,
        before=None,
    )
    fold: int | None = flag(
        None,
        "run this one of the --folds alone, 1 to K; not set: all of them, one after the other",
        read=count,
        metavar="I",
        of_training=True,
        before=None,
        idle=Idle(lambda options: options.data.folds is None, "without --folds"),
    )
    nb_classes: int = flag(
        8,
        "number of classes, or labels; checked where typed, else taken from the data",
        read=count,
        filled_in=True,
        at={REGRESSION: Change(no_effect="a regression has no classes")},
    )
    dataratio: list[float] = flag(
        [1.0],
        "share of the training images, or a comma-separated list to run one after the other",
        read=ratios,
        of_training=True,
    )
    stratified: bool = flag(
        False,
        "take the share of --dataratio of each class, or of each combination of labels",
        of_training=True,
        idle=WHOLE,
        at={REGRESSION: Change(no_effect="a regression has no classes")},
    )
    datasets_seed: int = flag(
        2026,
        "seed of the choice of the images of --dataratio, and of the deal of --folds",
        read=seed_number,
        of_training=True,
        idle=Idle(lambda options: options.data.dataratio == [1.0] and options.data.folds is None,
                  "with --dataratio 1 and without --folds"),
    )
    bad_images: str = flag(
        "stop",
        "images that don't decode: stop names them all and ends, skip leaves them out, counted and listed",
        choices=("stop", "skip"),
        programs=ALL,
        idle=UNCHECKED,
        at=dict.fromkeys(USE, Change(idle=UNCHECKED_USE)),
    )
    skip_file_check: bool = flag(
        False, "don't decode every image once at the start", programs=ALL, of_launch=True
    )
    leakage: str = flag(
        "warn",
        (
            "look for the same image, a near duplicate or the same patient in two splits before training: "
            "warn, stop where something is found, or off"
        ),
        choices=("warn", "stop", "off"),
        of_launch=True,
        of_training=True,
    )
    patient_regex: str | None = flag(
        None,
        (
            "where no column names the patients: a regular expression whose one group is the patient in "
            "an image's file name, such as '(p[0-9]+)_'"
        ),
        metavar="RE",
    )


    @property
    def has_cases(self) -> bool:
        return bool(self.case_col or self.case_regex or self.case)

    @property
    def unit(self) -> str:
        """What is judged, in the plural."""
        return "cases" if self.has_cases else "images"

    @property
    def attends(self) -> bool:
        """Whether the weights of a case's images are learned."""
        return self.has_cases and self.pool == ATTENTION


@dataclass(frozen=True)
class ImageOptions:
    """augmentation and decoding"""

    crop_scale: list[float] = flag(
        [0.08, 1.0],
        "least and largest share of the image's area that a random crop takes",
        read=positive,
        words=2,
        metavar=("MIN", "MAX"),
        of_training=True,
        at={REGRESSION: Change(default=[0.8, 1.0])},
    )
    crop_ratio: list[float] = flag(
        [3 / 4, 4 / 3],
        "least and largest width over height of a random crop",
        read=positive,
        words=2,
        metavar=("MIN", "MAX"),
        of_training=True,
    )
    hflip: float = flag(0.5, "probability of a mirror image", read=share, of_training=True)
    vflip: float = flag(0.0, "probability of an upside-down image", read=share, of_training=True)
    color_jitter: float | None = flag(
        None,
        "strength of colour jitter; acts where --aa is none (or 3a)",
        read=not_negative,
        of_training=True,
    )
    aa: str = flag("rand-m9-mstd0.5-inc1", "timm's augmentation policy, or none", of_training=True)
    reprob: float = flag(0.25, "probability of random erasing", read=share, of_training=True)
    remode: str = flag(
        "pixel",
        "what erasing leaves: const the mean, rand one random colour, pixel random pixels",
        choices=("const", "rand", "pixel"),
        of_training=True,
        idle=NO_ERASING,
    )
    recount: int = flag(
        1, "most areas that erasing takes", read=up_to_1000, of_training=True, idle=NO_ERASING
    )
    decode: str | None = flag(
        None,
        (
            "how much of a JPEG is decoded: full, or scaled (no finer than the crop needs). Not set: "
            "training takes scaled, evaluation what the checkpoint was trained with, full where it does "
            "not say"
        ),
        choices=("full", "scaled"),
        programs=(FINETUNE, REGRESSION, FEATURES),
        of_scoring=True,
        filled_in=True,
        at={
            FEATURES: Change(
                help=(
                    "how much of a JPEG is decoded; not set: as the checkpoint was trained, full for a "
                    "backbone's weights"
                )
            )
        },
    )
    image_cache: str = flag(
        AUTO,
        (
            "keep every image decoded, for the next epochs and runs (0.8 GB for a thousand at 512): a "
            "folder; auto: in OUTPUT_DIR/.pictures where that saves time and there is room; off. Changes "
            "the time alone, see docs/speed.md"
        ),
        metavar="DIR|auto|off",
        of_launch=True,
        before=None,
    )
    cache_size: int | str | None = flag(
        None,
        (
            "short side in pixels to which images are first reduced, kept or not; own: their own size. Not "
            "set: what the smallest random crop needs, at most 16/7 of the input (512 at 224)"
        ),
        read=side_or_own,
        of_scoring=True,
        filled_in=True,
    )

    @property
    def kept_side(self) -> int | None:
        """`cache_size` in pixels; None: an image's own size."""
        return None if self.cache_size == OWN else self.cache_size
