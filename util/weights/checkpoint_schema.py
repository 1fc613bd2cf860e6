"""What stands beside the tensors of a checkpoint, held to what this program writes there, before anything is
made of it.

A checkpoint may come from a stranger, or from an editor: epoch = "x", an image size of a million, a list that
contains itself ten times over. Options are held to the flags of the program that wrote them, so that a new
flag is covered as it is.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeGuard

import torch

from util.core.errors import InputError
from util.data.images.as_shown import DEPTHS
from util.options.adaptation import KINDS, POOLED
from util.options.flag import FINETUNE, LONGEST_TEXT, REGRESSION
from util.options.table import flags_of

LARGEST_SIDE = 2**16
MOST_WIDE = 2**20  # of a feature
SCALARS = (str, int, float, bool, type(None))


def check_stored(path: str | Path, rest: dict) -> None:
    """InputError unless the entries beside a checkpoint's model are what this program writes."""
    for name, (holds, what) in ENTRIES.items():
        if name in rest and not holds(rest[name]):
            raise _wrong(path, f"entry {name!r}", rest[name], what)
    kind = rest.get("task", "classification")
    needed = ("targets", "covariates") if kind == "regression" else ("class_names",)
    if "optimizer" in rest:
        needed += ("epoch", "best", "schedule", "random_states", "scaler")
    if rest.get("epoch") == -1 and not rest.get("progress", {}).get("steps"):
        raise _wrong(path, "entry 'epoch'", -1, "the number of an epoch")
    for name in needed:
        if name not in rest:
            raise InputError(f"{path}: its entry {name!r} is missing: {TAKE_ANOTHER}")
    if "optimizer" in rest and rest["optimizer"]["param_groups"] and "peak" not in rest["schedule"]:
        raise _wrong(path, "entry 'schedule'", rest["schedule"], "a schedule with its peak")
    program = REGRESSION if kind == "regression" else FINETUNE
    for flag in flags_of(program):
        value = rest["options"].get(flag.name)
        if flag.name in rest["options"] and not flag.accepts(value):
            choices = f" ({', '.join(map(str, flag.choices))})" if flag.choices else ""
            raise _wrong(path, f"option {flag.name!r}", value, f"what that flag takes{choices}")


def check_arguments(path: str | Path, arguments: dict) -> None:
    """The same for what is taken from the argparse.Namespace of the original scripts."""
    holds = {
        "model": lambda value: isinstance(value, str),
        "model_arch": lambda value: isinstance(value, str),
        "input_size": _whole(1, LARGEST_SIDE),
        "global_pool": lambda value: isinstance(value, bool),
    }
    for name, check in holds.items():
        value = arguments.get(name)
        if value not in (None, "") and not check(value):
            raise _wrong(path, f"argument {name!r}", value, "what that flag takes")


TAKE_ANOTHER = "the file was changed after it was written, or is another program's; take another copy of it"


def _wrong(path: str | Path, entry: str, value: object, what: str) -> InputError:
    return InputError(f"{path}: its {entry} is {_shown(value)}, not {what}: {TAKE_ANOTHER}")


def _shown(value: object) -> str:
    """A value in a few words; containers by their size alone, since one may contain itself many times
    over."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "…")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "a number of more than 18 digits"
    if isinstance(value, SCALARS):
        return repr(value)
    size = f" of {len(value)}" if isinstance(value, list | tuple | dict) else ""
    return f"a {type(value).__name__}{size}"


# ---- the other entries -------------------------------------------------------------------------------------


def _whole(least: int, most: int = 2**40) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _finite(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) and len(text) <= LONGEST_TEXT
                                           for text in value)


def _names(value: object) -> TypeGuard[list[str]]:
    return _texts(value) and len(value) > 0 and len(set(value)) == len(value)


def _plain_table(value: object, deep: int = 1) -> TypeGuard[dict]:
    """A dict by text of plain values, or of such dicts."""
    return isinstance(value, dict) and all(
        isinstance(key, str) and (isinstance(entry, SCALARS) or (deep > 0 and _plain_table(entry, deep - 1)))
        for key, entry in value.items()
    )


def _best(value: object) -> bool:
    return (
        _plain_table(value)
        and {"epoch", "score", "figures"} <= value.keys()
        and (value["epoch"] is None or _whole(0)(value["epoch"]))
        and isinstance(value["score"], float | int | None)
        and isinstance(value["figures"], dict)
        and (value.get("temperature") is None or (_finite(value["temperature"]) and value["temperature"] > 0))
        and isinstance(value.get("thresholds") or {}, dict)
        and isinstance(value.get("temperatures") or {}, dict)
        and all(_finite(one) and one > 0 for one in (value.get("temperatures") or {}).values())
        and all(_finite(threshold) or isinstance(threshold, float)
                for threshold in (value.get("thresholds") or {}).values())
    )


def _targets(value: object) -> bool:
    keys = ("names", "transforms", "means", "sds")
    if not (isinstance(value, dict) and set(value) == set(keys)
            and all(isinstance(value[key], list) for key in keys)):
        return False
    return (
        _names(value["names"])
        and len({len(value[key]) for key in keys}) == 1
        and all(transform in ("none", "log") for transform in value["transforms"]
                if isinstance(transform, str))
        and _texts(value["transforms"])
        and all(map(_finite, value["means"]))
        and all(_finite(sd) and sd > 0 for sd in value["sds"])
    )


def _covariates(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict)
        and set(one) == {"name", "levels", "mean", "sd"}
        and isinstance(one["name"], str)
        and _texts(one["levels"])
        and _finite(one["mean"])
        and _finite(one["sd"])
        and one["sd"] > 0
        for one in value
    )


def _transform(value: object) -> bool:
    if not (isinstance(value, dict) and isinstance(value.get("eval"), dict)):
        return False
    settings, side = value["eval"], _whole(1, LARGEST_SIDE)
    colours = [settings.get("mean"), settings.get("std")]
    return (
        settings.get("kind") == "eval"
        and side(settings.get("input_size"))
        and side(settings.get("resize"))
        and all(isinstance(three, list) and len(three) == 3 and all(map(_finite, three)) for three in colours)
        and min(settings["std"]) > 0
        and settings.get("decode") in ("full", "scaled")
        and settings.get("reduced", "any") in ("any", "colour")
        and settings.get("fundus_crop", "off") in ("off", "auto")
        and settings.get("fit", "crop") in ("crop", "pad", "squash")
        and settings.get("read_images", "as_stored") in ("as_shown", "as_stored")
        and settings.get("bits") in (None, *DEPTHS)
        and (settings.get("floats") is None or (_finite(settings["floats"]) and settings["floats"] > 0))
        and (settings.get("kept") is None or side(settings["kept"]))
        and settings["resize"] >= settings["input_size"]
    )


def _optimizer(value: object) -> bool:
    if not (isinstance(value, dict) and isinstance(value.get("state"), dict)
            and isinstance(value.get("param_groups"), list)):
        return False
    return all(
        isinstance(group, dict)
        and _texts(group.get("names"))
        and isinstance(group.get("params"), list)
        and all(map(_whole(0), group["params"]))
        and len(group["names"]) == len(group["params"])
        for group in value["param_groups"]
    ) and all(
        isinstance(state, dict) and all(isinstance(state.get(name), torch.Tensor)
                                        for name in ("exp_avg", "exp_avg_sq", "step"))
        for state in value["state"].values()
    )


def _schedule(value: object) -> bool:
    """A probe's has no peak: its heads are trained with many learning rates."""
    return (
        isinstance(value, dict)
        and _finite(value.get("position"))
        and value["position"] >= 0
        and _whole(1)(value.get("effective_batch"))
        and _finite(value.get("peak", 0.0))
    )


def _progress(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"epoch", "steps", "loss"}
        and _whole(0)(value["epoch"])
        and _whole(0)(value["steps"])
        and _finite(value["loss"])
    )


def _reads(value: object) -> bool:
    """Absent where the model's own head stands in its place."""
    return (
        isinstance(value, dict)
        and set(value) == {"kind", "width"}
        and isinstance(value["kind"], str)
        and value["kind"] in KINDS
        and value["kind"] != POOLED
        and _whole(1, MOST_WIDE)(value["width"])
    )


ENTRIES: dict[str, tuple[Callable[[object], bool], str]] = {
    "format": (_whole(1), "a whole number from 1"),
    "task": (
        lambda value: isinstance(value, str) and value in ("classification", "multilabel", "regression"),
        "classification, multilabel or regression",
    ),
    "epoch": (_whole(-1), "a whole number from 0 (-1 inside the first epoch)"),
    "progress": (_progress, "a place in an epoch"),
    "adapter": (_plain_table, "an adapter's settings"),
    "options": (
        lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value),
        "a table of options",
    ),
    "class_names": (_names, "a list of different names"),
    "targets": (_targets, "names, transforms, means and sds of the targets"),
    "covariates": (_covariates, "a list of covariates"),
    "best": (_best, "the best epoch with its score and figures"),
    "backbone": (
        lambda value: (_plain_table(value, 0)
                       and all(isinstance(value.get(name), str) for name in ("model", "arch", "timm"))),
        "the names of a backbone",
    ),
    "transform": (_transform, "the settings by which images are read"),
    "buffers": (
        lambda value: (isinstance(value, dict)
                       and all(isinstance(tensor, torch.Tensor) for tensor in value.values())),
        "a table of tensors",
    ),
    "reads": (_reads, "a kind of feature that a head reads, and its width"),
    "weights": (lambda value: value is None or _plain_table(value), "what is told of the first weights"),
    "data_fingerprint": (lambda value: isinstance(value, str), "a text"),
    "optimizer": (_optimizer, "an optimizer's state"),
    "schedule": (_schedule, "a schedule's numbers"),
    "scaler": (_plain_table, "a table of numbers"),
    "random_states": (
        lambda value: isinstance(value, list) and all(isinstance(state, dict) for state in value),
        "a list of generators' states",
    ),
}
