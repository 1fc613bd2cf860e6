"""By which mean and standard deviation the channels are normalised, and where these numbers are from."""

import re
from typing import NamedTuple

import timm

from models_vit import IMAGENET_MEAN, IMAGENET_STD, TIMM, Backbone
from util.options.groups import Options

_OF_TIMM = re.compile(r"hf:timm/([^/.]+\.[^/]+)(?:/.*)?")


class Normalisation(NamedTuple):
    """Of values of 0…1, by channel; source: in a few words."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def normalisation(backbone: Backbone, norm: str, finetune: str = "") -> Normalisation:
    """What --norm stands for. A timm model's constants are those of the weights that --finetune
    hf:timm/NAME.TAG/FILE names: a name's tags differ in them (vit_base_patch16_224.mae has ImageNet's, the
    default tag 0.5)."""
    if norm == "backbone":
        if backbone.model == TIMM:
            return _timms(backbone, finetune)
        return Normalisation(backbone.mean, backbone.std, f"ImageNet's, by which {backbone.arch} was trained")
    if norm == "imagenet":
        return Normalisation(IMAGENET_MEAN, IMAGENET_STD, "ImageNet's")
    if norm == "half":
        return Normalisation((0.5,) * 3, (0.5,) * 3, "0.5 throughout")
    numbers = tuple(map(float, norm.split(",")))
    return Normalisation(numbers[:3], numbers[3:], "typed")


def _timms(backbone: Backbone, finetune: str) -> Normalisation:
    named = _OF_TIMM.fullmatch(finetune or "")
    if named and timm.is_model_pretrained(named[1]):
        settings = timm.get_pretrained_cfg(named[1], allow_unregistered=False)
        return Normalisation(tuple(settings.mean), tuple(settings.std), f"timm's constants of {named[1]}")
    settings = timm.get_pretrained_cfg(backbone.timm_name, allow_unregistered=False)
    if settings is None:
        return Normalisation(
            backbone.mean, backbone.std, f"ImageNet's: timm has no constants of {backbone.timm_name}"
        )
    full = f"{backbone.timm_name.split('.')[0]}.{settings.tag}" if settings.tag else backbone.timm_name
    default = "" if full == backbone.timm_name else ", its default tag"
    return Normalisation(backbone.mean, backbone.std, f"timm's constants of {full}{default}")


def of_options(options: Options, backbone: Backbone, rest: dict) -> Normalisation:
    """What --norm stands for where it decides. rest: the entries of a checkpoint beside its weights, {}
    without one; it knows the weights that its run started from."""
    return normalisation(backbone, options.model.norm,
                         options.model.finetune or rest.get("options", {}).get("finetune") or "")


def source(options: Options, backbone: Backbone, rest: dict) -> str:
    """Where the numbers of evaluation's transform are from: a checkpoint's own stay, unless --norm was
    typed."""
    stored = rest.get("transform", {}).get("eval")
    if not stored or "norm" in options.typed:
        return of_options(options, backbone, rest).source
    then = rest.get("options", {})
    known = normalisation(backbone, then.get("norm", "backbone"), then.get("finetune") or "")
    same = [list(known.mean), list(known.std)] == [list(stored["mean"]), list(stored["std"])]
    return f"the checkpoint's, {known.source}" if same else "the checkpoint's"
