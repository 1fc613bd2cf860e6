"""The backbones: one table, and the model that a row of it builds.

Architectures come from timm; what the authors' weights need beyond that (which pooling, which biases, whose
position embeddings) is decided here and in util/weights/fitting.py, and checked against the authors' own
numbers in tests/test_models_vit.py. Nothing is downloaded by building a model.
"""

import functools
import types
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import timm
import torch

from util.core.errors import InputError
from util.model import feature_kinds, lora, lr_decay, timm_models
from util.weights import checkpoint, file_checks, finding
from util.weights.fitting import COVARIATE_HEAD, HEAD_PREFIX, Fit, WeightFile, fit, put_in

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
HUB_OWNER = "YukunZhou"
# What the tests hold a row's features to: numbers that its authors' own code computed; a second computation,
# written from the authors' definition and itself held to such numbers; or nothing but names and shapes, where
# other sizes of the same code are held to numbers.
AUTHORS, SECOND, NAMES = "authors' numbers", "second computation", "names only"
Put = Callable[[torch.nn.Module, Fit], None]  # takes a part of a model, and what of a file fits it


@dataclass(frozen=True)
class Backbone:
    """A row of the table: how the user names it, what timm builds for it, what its weight files are
    called."""

    model: str
    arch: str
    timm_name: str
    family: str  # whose names and rules its weight files follow: a key of util/weights/fitting.py's tables
    # of the backbone alone (no head) at 224 pixels, as timm builds it; 0 = whatever timm's model has
    parameters: int
    patch: int
    weights: tuple[str, ...]  # what --finetune is usually given
    licence: str
    on_hub: bool = False  # the weights are a gated repository of that name on the Hugging Face hub
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    input_size: int = 224  # where none is asked for
    patch_mean: bool = False  # its maker reads the mean of the patch tokens, each past the final norm
    compared: str = AUTHORS  # with what its features are compared in tests/

    @property
    def reads(self) -> str:
        """What its head reads, in words; in the family of MAE --global_pool and --cls_token decide."""
        return "the mean of the patch tokens" if self.patch_mean else "the class token"


MAE_FILES = ("RETFound_mae_natureCFP", "RETFound_mae_natureOCT", "RETFound_mae_meh", "RETFound_mae_shanghai")
DINOV2_FILES = ("RETFound_dinov2_meh", "RETFound_dinov2_shanghai")


def _dinov3(arch: str, timm_name: str, parameters: int, compared: str = AUTHORS) -> Backbone:
    return Backbone("Dinov3", arch, timm_name, "dinov3", parameters, 16, (f"{arch}_pretrain.pth",),
                    "DINOv3 License", compared=compared)


def _dinov2(arch: str, timm_name: str, parameters: int, compared: str = AUTHORS) -> Backbone:
    family = "dinov2_reg" if "_reg" in arch else "dinov2"
    return Backbone("Dinov2", arch, timm_name, family, parameters, 14, (f"{arch}_pretrain.pth",),
                    "Apache-2.0", compared=compared)


def _visionfm(images: str, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Backbone:
    return Backbone("VisionFM", f"visionfm_{images.lower()}", "vit_base_patch16_224", "ibot", 85_798_656, 16,
                    (f"VFM_{images}_weights.pth",), "research and education only", mean=mean, std=std,
                    compared=SECOND)


# timm's plain DINOv3 models have no q and v biases, the `_qkvb` ones do; the 7B was trained without.
BACKBONES = (
    Backbone("RETFound_mae", "retfound_mae", "vit_large_patch16_224", "mae", 303_301_632, 16, MAE_FILES,
             "CC BY-NC 4.0", on_hub=True),
    Backbone("RETFound_dinov2", "retfound_dinov2", "vit_large_patch14_dinov2", "dinov2", 303_227_904, 14,
             DINOV2_FILES, "CC BY-NC 4.0", on_hub=True),
    _dinov3("dinov3_vits16", "vit_small_patch16_dinov3_qkvb", 21_596_160),
    _dinov3("dinov3_vits16plus", "vit_small_plus_patch16_dinov3_qkvb", 28_692_480),
    _dinov3("dinov3_vitb16", "vit_base_patch16_dinov3_qkvb", 85_659_648, NAMES),
    _dinov3("dinov3_vitl16", "vit_large_patch16_dinov3_qkvb", 303_128_576),
    _dinov3("dinov3_vith16plus", "vit_huge_plus_patch16_dinov3_qkvb", 840_591_360),
    _dinov3("dinov3_vit7b16", "vit_7b_patch16_dinov3", 6_716_030_976),
    _dinov2("dinov2_vits14", "vit_small_patch14_dinov2", 21_628_800),
    _dinov2("dinov2_vitb14", "vit_base_patch14_dinov2", 85_724_928, NAMES),
    _dinov2("dinov2_vitl14", "vit_large_patch14_dinov2", 303_227_904),
    _dinov2("dinov2_vitg14", "vit_giant_patch14_dinov2", 1_134_769_664),
    _dinov2("dinov2_vits14_reg4", "vit_small_patch14_reg4_dinov2", 21_629_952, SECOND),
    _dinov2("dinov2_vitb14_reg4", "vit_base_patch14_reg4_dinov2", 85_727_232, SECOND),
    _dinov2("dinov2_vitl14_reg4", "vit_large_patch14_reg4_dinov2", 303_230_976, SECOND),
    _dinov2("dinov2_vitg14_reg4", "vit_giant_patch14_reg4_dinov2", 1_134_774_272, SECOND),
    # Other makers' retinal weights; what is known of each stands in docs/weights.md.
    Backbone("RETFound_Green", "retfound_green", "vit_small_patch14_reg4_dinov2", "timm", 21_629_952, 14,
             ("retfoundgreen_statedict.pth",), "non-commercial research only", mean=HALF, std=HALF,
             input_size=392, patch_mean=True, compared=SECOND),
    Backbone("UrFound", "urfound", "vit_base_patch16_224", "mae", 85_798_656, 16,
             ("hf:yyyyk/UrFound/urfound_mm.pth",), "not stated (code: MIT)", compared=SECOND),
    Backbone("DERETFound", "deretfound", "vit_large_patch16_224", "mae", 303_301_632, 16,
             ("PreTraining/checkpoint-best.pth",), "not stated"),
    # one file a kind of image, each with constants of its own
    _visionfm("Fundus", (0.423737496137619, 0.2609460651874542, 0.128403902053833),
              (0.29482534527778625, 0.20167365670204163, 0.13668020069599152)),
    _visionfm("OCT", (0.21091926, 0.21091926, 0.21091919), (0.17598894, 0.17598891, 0.17598893)),
    _visionfm("FFA", (0.2020487, 0.20205145, 0.20201068), (0.17406046, 0.17404206, 0.17401208)),
)
HOW_TO_GET = {"Dinov3": "Meta sends the links after a request on "
                        "ai.meta.com/resources/models-and-libraries/dinov3-downloads",
              "Dinov2": "Meta's links are listed on github.com/facebookresearch/dinov2",
              "RETFound_Green": "it is a file of the release v0.1 on "
                                "github.com/justinengelmann/RETFound_Green",
              "UrFound": "it is the file of huggingface.co/yyyyk/UrFound",
              "DERETFound": "unpack PreTraining.zip of zenodo.org/records/13340936",
              "VisionFM": "the links of its files are listed on github.com/ABILab-CUHK/VisionFM"}
TIMM = "timm"
# the first release of the original named its one architecture so; its checkpoints still do
MODEL_ALIASES = {"vit_large_patch16": "RETFound_mae"}
HUB_FILES = {name: (f"{HUB_OWNER}/{name}", f"{name}.pth") for row in BACKBONES if row.on_hub
             for name in row.weights}


def find_backbone(model: str, arch: str | None = None) -> Backbone:
    """The row of `--model` and `--model_arch`; InputError where they are unknown, ambiguous or contradict
    each other.

    `arch` may be left out where the family has one architecture. For `timm` it is any name that timm knows.
    """
    model = MODEL_ALIASES.get(model, model)
    if model.lower() == TIMM:
        if not arch:
            raise InputError("--model timm needs --model_arch: any name that timm knows, such as "
                             "efficientnet_b4")
        name = timm_models.current_name(arch)
        settings = timm_models.settings_of(name)
        mean, std = (settings.mean, settings.std) if settings else (IMAGENET_MEAN, IMAGENET_STD)
        return Backbone(TIMM, name, name, "timm", 0, 0, (), "see timm's model card", mean=tuple(mean),
                        std=tuple(std))
    rows = [row for row in BACKBONES if row.model.lower() == model.lower()]
    if not rows:
        families = ", ".join(dict.fromkeys(row.model for row in BACKBONES))
        raise InputError(f"--model {model} is unknown: choose one of {families}, or timm with any of its "
                         "names as --model_arch")
    known = ", ".join(row.arch for row in rows)
    if not arch and len(rows) > 1:
        raise InputError(f"--model {rows[0].model} has several architectures: pass --model_arch, one of "
                         f"{known}")
    named = [row for row in BACKBONES if row.arch.lower() == arch.lower()] if arch else rows
    if named and named[0] in rows:
        return named[0]
    hint = f"it belongs to --model {named[0].model}" if named else f"choose {known}"
    raise InputError(f"--model_arch {arch} is not an architecture of --model {rows[0].model}: {hint}")


def belongs(model: str, arch: str | None) -> bool:
    """Whether `arch` is an architecture of `model`, one of the table's."""
    model = MODEL_ALIASES.get(model, model)
    return any(row.model.lower() == model.lower() and row.arch.lower() == (arch or "").lower()
               for row in BACKBONES)


def resolve_input_size(backbone: Backbone, input_size: int | None) -> int:
    """The side of the square input in pixels: as asked, else the row's or the timm model's own. InputError,
    naming sizes that work, where the patch does not divide it or a timm model does not take it."""
    if backbone.model == TIMM:
        size = input_size or timm_models.own_size(backbone.timm_name)
        patch = timm_models.patch_of(backbone.timm_name)
    else:
        size, patch = input_size or backbone.input_size, backbone.patch
    if size < max(patch, 8):
        raise InputError(f"--input_size {size} is too small: at least {max(patch, 8)}")
    if patch and size % patch:
        below = size // patch * patch
        raise InputError(f"--input_size {size} can't be cut into {patch} x {patch} patches for "
                         f"{backbone.arch}: the nearest sizes are {below} and {below + patch}")
    if backbone.model == TIMM:
        _require_size(backbone, size)
    return size


@functools.cache  # a list of --dataratio, and the trials of a search, ask again
def _require_size(backbone: Backbone, size: int) -> None:
    timm_models.require_size(backbone.timm_name,
                             functools.partial(build_model, backbone, 2, pretrained=False), size)


def has_plain_vit(backbone: Backbone) -> bool:
    """Whether a row is a vision transformer without stages, asked of the model itself."""
    return backbone.model != TIMM or lr_decay.is_plain_vit(timm_models.shapes_of(backbone.timm_name))


def build_model(backbone: Backbone, num_classes: int, input_size: int, drop_path: float = 0.0,
                global_pool: bool = True, fc_norm_passes: int = 1, pretrained: bool = True,
                **changes: Any) -> torch.nn.Module:
    """The timm model of a row: (B, 3, S, S) -> (B, num_classes); 0 classes for features alone.

    Only the family of MAE asks for `global_pool`: the mean of the patch tokens, then fc_norm. Without it, and
    for every other row, it is the class token after the final norm, or, where the row says `patch_mean`, the
    mean of the patch tokens after that norm. `fc_norm_passes` 2 is how checkpoints of the
    original's present code have to be scored. pretrained: whether weights will be put in; then the head
    starts next to zero, else as timm starts it. `changes` go to timm as they are (depth=2 in tests). Building
    under `torch.device("meta")` costs no memory.
    """
    options = {"num_classes": num_classes, **changes}
    if drop_path:
        options["drop_path_rate"] = drop_path
    if backbone.model != TIMM:
        options |= {"img_size": input_size, "global_pool": "token"}
        if backbone.family == "mae" and global_pool:
            options["global_pool"] = "avg"  # timm then takes the norm after the pooling, as fc_norm
        elif backbone.patch_mean:
            options |= {"global_pool": "avg", "fc_norm": False}  # the norm stays before the pooling
    elif timm_models.is_fixed_size(backbone.timm_name):
        options["img_size"] = input_size
    try:
        model = timm.create_model(backbone.timm_name, pretrained=False, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise InputError(f"{backbone.arch} can't be built as asked: timm says {error}") from error
        raise NoStochasticDepth(f"{backbone.arch} has no stochastic depth: pass --drop_path 0") from error
    except AssertionError as error:
        raise InputError(f"{backbone.arch} can't be built at --input_size {input_size}: {error}") from error
    if not hasattr(model, "get_classifier"):
        raise InputError(f"{backbone.arch} is no image classifier of timm's kind: choose another "
                         "--model_arch")
    if backbone.family == "mae" and fc_norm_passes != 1:
        if not global_pool:
            raise InputError("--fc_norm_passes has a meaning with --global_pool alone")
        model.fc_norm = RepeatedLayerNorm(model.fc_norm.normalized_shape, fc_norm_passes, model.fc_norm.eps)
    if not num_classes:
        with torch.device("meta"):
            whole = timm.create_model(backbone.timm_name, pretrained=False, **options | {"num_classes": 1})
        model.without_head = tuple(sorted({name.rpartition(".")[0] for name
                                           in whole.state_dict().keys() - model.state_dict().keys()}))
        model.layers_with_head = lr_decay.layer_of_parameters(whole)
    else:
        for name, layer in model.named_modules():
            if type(layer) is torch.nn.Linear and name.startswith(head_names(model)):
                layer.__class__ = ExactLinear  # the same parameters under the same names
        if pretrained:
            _start_head(model)
    return model


class Regressor(torch.nn.Module):
    """A backbone without a classifier, and a head that reads its feature: (B, 3, S, S), (B, C) or None -> (B,
    T)."""

    def __init__(self, backbone: torch.nn.Module, regression_head: torch.nn.Module) -> None:
        super().__init__()
        self.backbone, self.regression_head = backbone, regression_head

    def forward(self, images: torch.Tensor, covariates: torch.Tensor | None = None) -> torch.Tensor:
        return self.regression_head(self.backbone(images), covariates)


def put_covariate_head(model: torch.nn.Module, head: torch.nn.Module, num_classes: int) -> None:
    """A head that reads covariates beside the feature of a timm model that was built without a classifier:
    the model then takes (B, 3, S, S) and (B, C), or None, and gives out (B, num_classes). timm's names stay,
    the head's begin with covariate_head."""
    layer_of, last = lr_decay.layer_of_parameters(model)
    model.covariate_head, model.num_classes = head, num_classes
    head.read.__class__ = ExactLinear
    model.without_head = (*model.without_head, COVARIATE_HEAD.removesuffix("."))
    model.layers_with_head = (
        layer_of | {COVARIATE_HEAD + name: last for name, _ in head.named_parameters()}, last)
    model.forward = types.MethodType(_forward_with_covariates, model)


def _forward_with_covariates(model: torch.nn.Module, images: torch.Tensor,
                             covariates: torch.Tensor | None = None) -> torch.Tensor:
    return model.covariate_head(type(model).forward(model, images), covariates)


class FeatureOfModel(torch.nn.Module):
    """What a model's covariate head reads of the image: (B, 3, S, S) -> (B, W)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        plain = types.MethodType(type(self.model).forward, self.model)
        # inside of the model's own call, where FSDP2 has gathered what it needs
        with feature_kinds.instead_of_forward(self.model, plain):
            return self.model(images)


def feature_width(model: torch.nn.Module) -> int:
    """Width of the feature that a timm model without classifier gives out."""
    return getattr(model, "head_hidden_size", None) or model.num_features


class ExactLinear(torch.nn.Linear):
    """A classifier that runs in fp32 whatever the precision: in bf16 the logits of many images would be
    equal, and ranks would tie."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # meta has no autocast
        with nullcontext() if features.is_meta else torch.autocast(features.device.type, enabled=False):
            return torch.nn.functional.linear(features.float(), self.weight, self.bias)


def final_linear(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The last linear layer of a timm model's classifier; None where there are several classifiers, or none
    that is linear and has a bias."""
    names = head_names(model)
    layers = [module for name, module in model.get_submodule(names[0]).named_modules()
              if isinstance(module, torch.nn.Linear) and "attention." not in name] if len(names) == 1 else []
    return layers[-1] if layers and layers[-1].bias is not None else None


@torch.no_grad()
def feature_reader(model: torch.nn.Module, input_size: int) -> feature_kinds.KindsReader | None:
    """The reader of a model's features; None unless the model's outputs are its final linear layer of them,
    and no more."""
    layer = final_linear(model)
    if layer is None:
        return None
    read, was_training = [], model.training
    images = torch.linspace(-2, 2, 2 * 3 * input_size**2, device=layer.weight.device)
    handle = layer.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    try:
        logits = model.eval()(images.view(2, 3, input_size, input_size))
    finally:
        handle.remove()
    model.train(was_training)
    agrees = (read[0].shape == (2, layer.in_features)
              and torch.allclose(layer(read[0]), logits, rtol=1e-3, atol=1e-7))
    return feature_kinds.KindsReader(model, layer, input_size) if agrees else None


class NoStochasticDepth(InputError):
    """A timm model that takes no drop_path_rate was asked for one."""


class RepeatedLayerNorm(torch.nn.LayerNorm):
    """A layer norm applied `passes` times, its weights named as for one: the original's present code does
    so."""

    def __init__(self, shape: tuple[int, ...], passes: int, eps: float) -> None:
        super().__init__(shape, eps=eps)
        self.passes = passes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.passes):
            x = super().forward(x)
        return x


def head_names(model: torch.nn.Module) -> tuple[str, ...]:
    """Prefixes of the classifiers' parameter names ("head", "fc", "head.fc"; two for a distilled model of
    timm); those that a model built without a classifier would have."""
    if hasattr(model, "without_head"):
        return model.without_head
    classifiers = model.get_classifier()
    classifiers = classifiers if isinstance(classifiers, tuple) else (classifiers,)
    return tuple(name for name, module in model.named_modules() if name
                 and any(module is head for head in classifiers))


def _start_head(model: torch.nn.Module) -> None:
    """A head that starts next to zero, so that the first steps don't pull at pre-trained weights (MAE's
    fine-tuning).

    Drawn on the CPU from the seed alone, however much the backbone has drawn: a model of shapes (meta), whose
    backbone draws nothing, has the same head.
    """
    generator = torch.Generator("cpu").manual_seed(torch.initial_seed())
    for name in head_names(model):
        head = model.get_submodule(name)
        if isinstance(head, torch.nn.Linear):
            start = torch.empty(head.weight.shape, device="cpu")
            torch.nn.init.trunc_normal_(start, std=2e-5, generator=generator)
            head.weight = torch.nn.Parameter(start)
            if head.bias is not None:
                head.bias = torch.nn.Parameter(torch.zeros(head.bias.shape, device="cpu"))


def count_parameters(model: torch.nn.Module, trainable_only: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def head_prefixes(model: torch.nn.Module) -> tuple[str, ...]:
    """What the names of the head's parameters begin with."""
    return (HEAD_PREFIX,) if isinstance(model, Regressor) else tuple(f"{head}." for head in head_names(model))


def freeze_backbone(model: torch.nn.Module) -> None:
    """Linear probe: everything but the head stands still."""
    prefixes = head_prefixes(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))


def load_backbone(model: torch.nn.Module, backbone: Backbone, name: str, weights_dir: str,
                  allow_partial: bool = False, put: Put = put_in) -> dict:
    """Find the weights `name`, check them, put them into `model` (or only compare, where it lives on meta) ->
    what stands in the log, in run.json and in the checkpoint about the weights that a run started from.
    put: what takes a part of the model and what fits it; one of the caller's own may put it in later, into a
    model on meta too.

    InputError where one backbone tensor is missing, has another shape, or the file holds backbone tensors
    that nothing takes; `allow_partial` turns that into a line with all the names.
    """
    path = finding.find_weights(name, weights_dir, HUB_FILES, _how_to_get(backbone))
    digest, said = finding.sha256(path), finding.SHA256_PREFIX.search(path.name)
    if said and not digest.startswith(said.group(1)):  # Meta's names end in the first eight digits
        raise InputError(f"{path} is not the file that its name says (sha256 {digest[:8]}…, name "
                         f"{said.group(1)}): the download was cut or changed; fetch it again")
    file = checkpoint.read(path)
    if lora.is_adapter(file):
        raise InputError(f"{path} holds an adapter alone: pass {path.with_name('checkpoint-best.pth')}, the "
                         "whole model that its run ends with")
    fitted = fit(model, file.tensors, backbone.family, head_names(model), with_head=False)
    text = f"weights: {path}  sha256 {digest}  {fitted.describe()}"
    _require_complete(fitted, file, f"--model {backbone.model} --model_arch {backbone.arch}", allow_partial)
    file_checks.refuse_not_finite(path, fitted.used)
    if not fitted.complete:
        text += f"  PARTIAL (--allow_partial): {fitted.problems(limit=0)}"
    fitted.buffers |= file.rest.get("buffers", {})  # a checkpoint of ours keeps rotary periods there
    put(model, fitted)
    return {"name": name, "path": str(path), "sha256": digest, "used": len(fitted.used),
            "expected": len(fitted.expected), "text": text}


def load_trained(model: torch.nn.Module, backbone: Backbone, file: WeightFile, put: Put = put_in) -> Fit:
    """Put a trained checkpoint, head included, into `model`; InputError unless every tensor of it fits. put:
    see `load_backbone`."""
    if isinstance(model, Regressor):
        return _load_trained_regressor(model, backbone, file, put)
    heads = head_names(model)
    if not any(name.startswith(tuple(f"{head}." for head in heads)) for name in file.tensors):
        raise InputError(f"{file.path} has no classifier ({heads[0]}.weight): it holds a backbone's weights; "
                         "pass it with --finetune, and a trained checkpoint with --resume")
    fitted = fit(model, file.tensors, backbone.family, heads, with_head=True)
    _require_complete(fitted, file, f"--model {backbone.model} --model_arch {backbone.arch} --nb_classes "
                      f"{model.num_classes}", allow_partial=False)
    put(model, fitted)
    return fitted


def _load_trained_regressor(model: Regressor, backbone: Backbone, file: WeightFile, put: Put) -> Fit:
    """Head and backbone are fitted apart: the backbone's names are timm's, the head's are its own."""
    head = {name: tensor for name, tensor in file.tensors.items() if name.startswith(HEAD_PREFIX)}
    if not head:
        raise InputError(f"{file.path} has no regression head: pass a backbone's weights with --finetune, "
                         "and a trained checkpoint with --resume")
    rest = {name: tensor for name, tensor in file.tensors.items() if name not in head}
    fitted = fit(model.backbone, rest, backbone.family, head_names(model.backbone), with_head=True)
    of_head = fit(model.regression_head,
                  {name.removeprefix(HEAD_PREFIX): tensor for name, tensor in head.items()}, "timm", (),
                  with_head=True)
    flags = f"--model {backbone.model} --model_arch {backbone.arch} and the head's flags"
    for part in (fitted, of_head):
        _require_complete(part, file, flags, allow_partial=False)
    put(model.backbone, fitted)
    put(model.regression_head, of_head)
    return fitted.together_with(of_head)


def _require_complete(fitted: Fit, file: WeightFile, flags: str, allow_partial: bool) -> None:
    if fitted.complete or (allow_partial and fitted.used):
        return
    raise InputError(f"{file.path} does not fit {flags} ({len(fitted.used)} of {len(fitted.expected)} "
                     f"tensors fit; {fitted.problems()}): check --model, --model_arch and the file")


def _how_to_get(backbone: Backbone) -> str:
    if backbone.on_hub:
        return (f"the hub's names for this model are {', '.join(backbone.weights)}; ask for access on "
                f"huggingface.co/{HUB_OWNER}/{backbone.weights[0]}")
    return HOW_TO_GET.get(backbone.model, "leave --finetune out to train from random weights")
