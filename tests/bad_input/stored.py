"""Checkpoints whose tensors are sound and whose other entries are not: options, class names, transforms,
states."""

import copy
import math
from argparse import Namespace

import torch

from tests.bad_input.checkpoints import saved, whole
from tests.bad_input.hostile import laughs
from tests.bad_input.place import TRAINING, Place, predicting
from tests.bad_input.table import ACCEPTED, Row, Table

KIND = "Weights and checkpoints"
TABLE = Table()

ENTRY = Row(
    KIND,
    "Something beside a checkpoint's tensors was changed: its epoch, class names, image settings, targets, "
    "optimizer",
    "…: its entry … is …: the file was changed after it was written, or is another program's; take another "
    "copy of it",
    "take another copy of the file",
)
OPTION = Row(
    KIND,
    'An option that a checkpoint stores is none (`epochs` = "x", `input_size` = a million, a list in place of a number)',
    "…: its option … is …, not what that flag takes…",
    "take another copy of the file",
)
ARGUMENT = Row(
    KIND,
    "The `args` of a checkpoint of the original scripts are none",
    "…: its argument … is …, not what that flag takes…",
    "take another copy of the file",
)
NEWER = Row(
    KIND,
    "A checkpoint was written by a newer version",
    "… was written by a newer version of this program (format …)",
    "update the program",
)
UNKNOWN = Row(
    KIND,
    "A checkpoint holds entries or options that this version does not know",
    "",
    "nothing to do",
    ACCEPTED,
    "they are left alone",
)


def changed(place: Place, file: str, *path_and_value) -> bytes:
    """A checkpoint of the kit with another value at a path of its entries."""
    content = copy.deepcopy(torch.load(getattr(place.kit, file), weights_only=True))
    *path, last, value = path_and_value
    at = content
    for name in path:
        at = at[name]
    at[last] = value
    return saved(content)


def stored(row: Row, name: str, path: tuple, value, *says: str, file="best", use="predict") -> None:
    """use: predict, score or resume."""

    def make(place: Place):
        place.write("c.pth", changed(place, file, *path, value))
        if use == "predict":
            place.some_pictures()
            place.pictures = 3 if row.outcome == ACCEPTED else None
            return predicting(place, "pictures", checkpoint="c.pth")
        place.data()
        words = ["--eval"] if use == "score" else ["--epochs", 2]
        place.pictures = 4 if row.outcome == ACCEPTED else None
        return [*TRAINING, "--data_path", "data", "--task", "t", "--resume", "c.pth", *words]

    TABLE.add(row, f"{name}, {use}", make, *says,
              program="predict.py" if use == "predict" else "main_finetune.py")


ENDLESS = laughs()
for name, path, values in (
    ("format", ("format",), {"a text": "x", "0": 0}),
    ("options", ("options",), {"a list": [1], "None": None, "numbers as names": {1: 2}}),
    ("task", ("task",), {"another": "segmentation", "a number": 3}),
    (
        "class names",
        ("class_names",),
        {"a text": "dry", "a number": 2, "none": [], "numbers": [1, 2], "one twice": ["dry", "dry"],
         "lists": ENDLESS},
    ),
    ("epoch", ("epoch",), {"a text": "x", "below 0": -3, "a fraction": 0.5, "endless": ENDLESS}),
    ("backbone", ("backbone",), {"a text": "x", "no names": {},
                                 "endless": {"model": ENDLESS, "arch": "a", "timm": "t"}}),
    ("transform", ("transform",), {"garbage": "x", "empty": {}, "None": None}),
    ("settings of the transform", ("transform", "eval"), {"garbage": "x", "empty": {}}),
    (
        "input size of the transform",
        ("transform", "eval", "input_size"),
        {"a million": 10**6, "a text": "32", "0": 0, "not a number": math.nan},
    ),
    ("resize of the transform", ("transform", "eval", "resize"),
     {"endless": 10**12, "less than the input": 3}),
    ("mean of the transform", ("transform", "eval", "mean"),
     {"a number": 0.5, "two": [0.1, 0.2], "texts": ["a", "b", "c"]}),
    ("sd of the transform", ("transform", "eval", "std"),
     {"zeros": [0.0, 0.0, 0.0], "not a number": [math.nan] * 3}),
    ("reduced files of the transform", ("transform", "eval", "reduced"), {"unknown": "half", "a number": 2}),
    ("reading of the transform", ("transform", "eval", "read_images"), {"unknown": "upright", "a number": 1}),
    ("bits of the transform", ("transform", "eval", "bits"), {"11": 11, "a text": "12", "a list": [12]}),
    ("white of the transform", ("transform", "eval", "floats"),
     {"0": 0.0, "not a number": math.nan, "a text": "1"}),
    ("decoding of the transform", ("transform", "eval", "decode"), {"unknown": "half"}),
    ("best epoch", ("best",), {"a text": "x", "empty": {}}),
    ("thresholds", ("best", "thresholds"), {"texts": {"sensitivity_at_90_specificity": "x"}, "a list": [1]}),
    ("temperature", ("best", "temperature"), {"0": 0.0, "a text": "x"}),
    ("what the head reads", ("reads",), {
        "a text": "last4", "unknown": {"kind": "nose", "width": 64}, "no width": {"kind": "last4"},
        "a width of 0": {"kind": "last4", "width": 0}, "endless": {"kind": ENDLESS, "width": ENDLESS}}),
    ("buffers", ("buffers",), {"a list": [1], "a text inside": {"rope.periods": "x"}}),
):
    for which, value in values.items():
        stored(ENTRY, f"{name}: {which}", path, value)
for name, value in {"a text": "x", "endless": ENDLESS, "below 0": -1, "a table": {}}.items():
    stored(ENTRY, f"epoch: {name}", ("epoch",), value, file="last", use="resume")
for name, path, value in (
    ("optimizer: empty", ("optimizer",), {}),
    ("optimizer: a text", ("optimizer",), "x"),
    ("optimizer: states of text", ("optimizer", "state"), {0: "x"}),
    ("optimizer: groups of text", ("optimizer", "param_groups"), ["x"]),
    ("optimizer: a name too few", ("optimizer", "param_groups", 0, "names"), []),
    ("schedule: a text", ("schedule",), "x"),
    ("random states: a text", ("random_states",), "x"),
    ("first weights: endless", ("weights",), {"a": ENDLESS}),
    ("scaler: a list", ("scaler",), [1]),
    ("fingerprint: a number", ("data_fingerprint",), 5),
    ("best: endless figures", ("best", "figures"), {"loss": ENDLESS}),
):
    stored(ENTRY, name, path, value, file="last", use="resume")
for name, value in {
    "input_size: a million": ("input_size", 10**6),
    "input_size: a text": ("input_size", "x"),
    "model: a number": ("model", 5),
    "model_arch: a list": ("model_arch", ["a"]),
    "batch_size: 0": ("batch_size", 0),
    "batch_size: endless": ("batch_size", ENDLESS),
    "precision: unknown": ("precision", "int2"),
    "global_pool: a text": ("global_pool", "yes"),
    "fc_norm_passes: 9": ("fc_norm_passes", 9),
    "select_metric: unknown": ("select_metric", "luck"),
}.items():
    stored(OPTION, name, ("options", value[0]), value[1], value[0])
for name, value in {
    "epochs: a text": ("epochs", "x"),
    "epochs: not a number": ("epochs", math.nan),
    "lr: infinite": ("lr", math.inf),
    "lr: a list": ("lr", [1e-3]),
    "crop_scale: one number": ("crop_scale", [0.5]),
    "crop_scale: endless": ("crop_scale", ENDLESS),
    "dataratio: above 1": ("dataratio", [7.0]),
    "dataratio: endless": ("dataratio", ENDLESS),
    "aa: a number": ("aa", 3),
    "layer_decay: 0": ("layer_decay", 0.0),
    "seed: endless": ("seed", 10**30),
    "seed: true": ("seed", True),
    "mixup_mode: unknown": ("mixup_mode", "x"),
    "decode: unknown": ("decode", "x"),
    "a text of a million letters": ("patient_regex", "x" * 10**6),
}.items():
    stored(OPTION, name, ("options", value[0]), value[1], value[0], file="last", use="resume")
stored(NEWER, "format 2", ("format",), 2)
stored(NEWER, "format 2", ("format",), 2, file="last", use="resume")
stored(UNKNOWN, "an entry", ("note",), ENDLESS)
stored(UNKNOWN, "an option", ("options", "colour"), ENDLESS)
stored(UNKNOWN, "an option", ("options", "colour"), ENDLESS, use="score")
stored(UNKNOWN, "an option", ("options", "colour"), ENDLESS, file="last", use="resume")

for name, key, value in (
    ("targets: a list", "targets", [1]),
    ("targets: none", "targets", {"names": [], "transforms": [], "means": [], "sds": []}),
    ("targets: sd of 0", "targets", {"names": ["depth"], "transforms": ["none"], "means": [1.0],
                                     "sds": [0.0]}),
    ("targets: unknown transform", "targets",
     {"names": ["depth"], "transforms": ["sqrt"], "means": [1.0], "sds": [1.0]}),
    ("covariates: a text", "covariates", "x"),
    ("covariates: a number", "covariates", [5]),
    ("covariates: gone", "covariates", None),
):

    def make(place: Place, key=key, value=value):
        place.write("c.pth", changed(place, "numbers", key, value))
        place.some_pictures()
        return predicting(place, "pictures", checkpoint="c.pth")

    TABLE.add(ENTRY, f"{name}, predict", make, key, program="predict.py")

for name, value in {"model": 5, "model_arch": [1], "input_size": "huge", "global_pool": "yes"}.items():

    def make(place: Place, name=name, value=value):
        place.write("c.pth", saved({"model": whole(place)["model"], "args": Namespace(**{name: value}),
                                    "epoch": 3}))
        place.some_pictures()
        return predicting(place, "pictures", checkpoint="c.pth")

    TABLE.add(ARGUMENT, f"{name}", make, name, program="predict.py")


@TABLE.case(UNKNOWN, "an endless epoch of another script", program="predict.py")
def _(place: Place):
    place.write("c.pth", saved({"model": whole(place)["model"], "epoch": ENDLESS, "class_names": ENDLESS,
                                "transform": "x"}))
    place.some_pictures()
    place.pictures = 3
    return predicting(place, "pictures", "--model", "timm", "--model_arch", "test_vit", "--input_size", 32,
                      checkpoint="c.pth")
