"""From a weight file's tensors to a model's: names converted, every tensor accounted for.

A file is read into plain tensors (`read_weights`), its names are turned into timm's (`convert`), and what
fits is compared with what the model expects (`fit`). Nothing is dropped without being listed; nothing is
loaded that the model does not take; code in a file is never run (`weights_only=True`).
"""

import argparse
import errno
import os
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors

from util.core.errors import InputError
from util.weights.file_checks import ASK, is_safetensors, refuse_archive, refuse_odd
from util.weights.position_embeddings import resize_position_embedding

# What a family's files may hold beyond the backbone. Anything else that nothing takes is an error.
LEFT_OVER = {
    "mae": {
        "decoder": r"decoder_.+",
        "mask token": r"mask_token",
        "head": r"head\..+",
        "text encoder": r"bert_(encoder|mlp)\..+",  # UrFound's
    },
    "dinov2": {
        "DINO and iBOT heads": r"(dino_head|ibot_head)\..+",
        "mask token": r"mask_token",
        "head": r"head\..+",
    },
    "dinov3": {
        "mask token": r"mask_token",
        "norm of local crops": r"local_cls_norm\..+",
        "DINO and iBOT heads": r"(dino_head|ibot_head)\..+",
        "head": r"head\..+",
    },
    # VisionFM's; its teacher's head is named `head` as a classifier is
    "ibot": {"head": r"head\..+", "mask token": r"masked_embed"},
    "timm": {},
}
LEFT_OVER["dinov2_reg"] = LEFT_OVER["dinov2"]
# of a regression's head and of a classification's that reads covariates: in the names of our checkpoints
HEAD_PREFIX, COVARIATE_HEAD = "regression_head.", "covariate_head."
# What a model may have that a family's files lack (it stays as it was drawn, and that is said).
MAY_BE_NEW = dict.fromkeys(LEFT_OVER, r"(?!)") | {"mae": r"fc_norm\..+"}

RENAMES = {
    "mae": [],
    # DINOv2's training saves its blocks in chunks (blocks.<chunk>.<i>., i counting through). Meta's vit_giant
    # fuses its gate: w12 is timm's fc1 (both halves in the same order), w3 the way out.
    "dinov2": [
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
        (r"\.mlp\.w12\.", ".mlp.fc1."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
    ],
    "dinov3": [
        (r"^storage_tokens$", "reg_token"),
        (r"\.ls([12])\.gamma$", r".gamma_\1"),
        (r"\.mlp\.w1\.", ".mlp.fc1_g."),
        (r"\.mlp\.w2\.", ".mlp.fc1_x."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
    ],
    "ibot": [],
    "timm": [],
}
RENAMES["dinov2_reg"] = [*RENAMES["dinov2"], (r"^register_tokens$", "reg_token")]
# Meta resizes for DINOv2 with registers with antialias and without an offset (dinov2/hub/backbones.py), which
# is timm's rule; VisionFM resizes to the size (its utils.py), which is MAE's.
POSITION_RULE = {"mae": "mae", "dinov2": "dinov2", "dinov2_reg": "timm", "dinov3": "timm", "ibot": "mae",
                 "timm": "timm"}


@dataclass
class WeightFile:
    """A file's tensors under their own names, and what stood beside them."""

    path: Path
    tensors: dict[str, torch.Tensor]
    arguments: dict = field(default_factory=dict)  # the original scripts' argparse.Namespace, as a dict
    # the other entries of a checkpoint (epoch, class_names, options ...)
    rest: dict = field(default_factory=dict)


@dataclass
class Fit:
    """What of a file goes into a model, and what does not. Names are the model's (timm's)."""

    used: dict[str, torch.Tensor]
    expected: list[str]
    missing: list[str]
    misshapen: list[str]  # "name (file 1 x 197 x 768, model 1 x 197 x 1024)"
    unexpected: list[str]
    left_over: dict[str, int]  # kind -> number of tensors
    new: list[str]
    buffers: dict[str, torch.Tensor]  # rotary periods: no part of timm's state dict, copied in afterwards
    parameters: int  # numbers in `used`, without batch norm's running statistics

    def together_with(self, other: "Fit") -> "Fit":
        """What two parts of one model come to."""
        return Fit(self.used | other.used, self.expected + other.expected, self.missing + other.missing,
                   self.misshapen + other.misshapen, self.unexpected + other.unexpected,
                   self.left_over | other.left_over, self.new + other.new, self.buffers | other.buffers,
                   self.parameters + other.parameters)

    @property
    def complete(self) -> bool:
        return not (self.missing or self.misshapen or self.unexpected)

    def describe(self) -> str:
        """`used / expected tensors, parameters; left over …; new …`."""
        text = f"{len(self.used)}/{len(self.expected)} tensors, {self.parameters:,} parameters"
        if self.left_over:
            text += "; not needed: " + ", ".join(f"{kind} {n}" for kind, n in self.left_over.items())
        if self.new:
            text += "; newly started: " + ", ".join(self.new)
        return text

    def problems(self, limit: int = 5) -> str:
        """The misfits in words, at most `limit` names of a kind (0 = all)."""
        kinds = (("missing", self.missing), ("of another shape", self.misshapen),
                 ("taken by nothing", self.unexpected))
        return "; ".join(f"{len(names)} {kind}: {some_of(names, limit)}" for kind, names in kinds if names)


def some_of(names: list[str], limit: int) -> str:
    """At most so many of the names (0: all), and how many more there are."""
    shown = ", ".join(names[:limit or None])
    return f"{shown} and {len(names) - limit} more" if 0 < limit < len(names) else shown


def _looks_like_text(start: bytes) -> str | None:
    """Two mistakes that people make when they fetch weights by hand, told from the first bytes."""
    start = start.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights themselves: fetch it with `git lfs pull`"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return ("a web page, not weights: the download was answered with a page (log in or ask for access "
                "first)")
    return None


def load_file(path: str | Path) -> Any:
    """Whatever a `.pth`/`.pt` or `.safetensors` file holds, on the CPU, memory-mapped where that is possible.

    Only tensors, numbers, strings, lists, dicts and argparse.Namespace are read; a file with any other object
    is rejected and nothing in it is run. InputError where the file is absent, damaged or rejected.
    """
    path = Path(path)
    if os.path.isdir(path):  # pathlib's would raise for a name that is too long
        raise InputError(f"{path} is a folder: name the weight file in it")
    if not os.path.isfile(path):
        what = "is a pipe, socket or device, no file" if os.path.exists(path) else "does not exist"
        raise InputError(f"weight file {path} {what}: pass the path of the file itself")
    zipped = False
    try:
        with open(path, "rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            start = file.read(64)
            if not start:
                raise InputError(f"weight file {path} is empty: fetch or copy it again")
            text = _looks_like_text(start)
            if text:
                raise InputError(f"{path} is {text}")
            zipped = zipfile.is_zipfile(path)
            if zipped:
                refuse_archive(path)
            named_safetensors = path.suffix == ".safetensors"
            if is_safetensors(start, path.stat().st_size) or (named_safetensors and not zipped):
                return load_safetensors(path)
            file.seek(0)
            mapped = zipped and not named_safetensors  # misnamed: torch would go by the name, so it gets none
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or no safetensors file: fetch or copy it again "
                         f"({error})") from error
    except Exception as error:  # a stranger's bytes can fail the reader in any way; the cause stays attached
        # EINVAL: a cut file whose parts lie beyond its end
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise InputError(f"weight file {path} can't be read: {error.strerror or error}") from error
        refused = isinstance(error, pickle.UnpicklingError) and (zipped or start.startswith(b"\x80"))
        if not refused or re.search("magic number|invalid load key|Invalid", str(error)):
            raise _damaged(path, error) from error
        kind = re.search(r"GLOBAL (\S+)", str(error))
        what = (f"an object of type {kind.group(1)}" if kind else
                "something other than tensors and plain values (or is damaged)")
        raise InputError(f"{path} holds {what}: refused, and nothing in it was run; {ASK}") from error


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [""])[0][:120]
    return InputError(f"{path} is damaged or no PyTorch file: fetch or copy it again "
                      f"({type(error).__name__}: {reason})")


# What stands before a model's own names: DataParallel, torch.compile, Lightning and other trainers, DINO's
# teacher.
WRAPPERS = re.compile(r"^((module|_orig_mod|model|net|backbone)\.)+")


def read_weights(path: str | Path) -> WeightFile:
    """A weight file or checkpoint as tensors under its own flat names.

    Unwraps `{"model": …}` (MAE, the original scripts, ours), `{"teacher": {"backbone.…"}}` (DINOv2's
    training, VisionFM), `{"state_dict": …}`, `{"visionfm_state_dict": …}` (VisionFM, fine-tuned); drops the
    prefixes of `WRAPPERS`. InputError for a file without tensors.
    """
    content = load_file(path)
    rest, arguments = {}, {}
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a table of tensors by name")
    for key in ("teacher", "model", "state_dict", "visionfm_state_dict"):
        if isinstance(content.get(key), dict):
            rest = {name: value for name, value in content.items() if name != key}
            content = content[key]
            break
    if isinstance(rest.get("args"), argparse.Namespace):
        arguments = vars(rest.pop("args"))
    tensors = {}
    for name, value in content.items():
        # its numbers lie in the shards
        if not ("shards" in rest and isinstance(value, torch.Tensor) and value.is_meta):
            refuse_odd(path, name, value)
        flat = WRAPPERS.sub("", str(name))
        if flat in tensors:
            raise InputError(f"{path} holds two tensors for {flat}")
        tensors[flat] = value
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    return WeightFile(Path(path), tensors, arguments, rest)


def convert(tensors: dict[str, torch.Tensor], family: str) -> tuple[dict, dict, list[str]]:
    """A family's tensors under timm's names -> (tensors, rotary buffers, names that the conversion rejected).

    DINOv3: `qkv.bias` times its `bias_mask` becomes q_bias and v_bias (the k third has to be zero: timm's
    attention has none); Meta's published files hold an all-zero mask, so there the biases vanish, as they do
    in Meta's code.

    DINOv2 with registers: Meta's `pos_embed` begins with the class token's, timm's model adds none to it, so
    it becomes part of the class token. Registers have none in both.
    """
    if family == "dinov2_reg" and "register_tokens" in tensors:
        tensors = tensors | _class_position_added(tensors)
    converted, buffers, refused = {}, {}, []
    is_dinov3 = family == "dinov3"
    for name, tensor in tensors.items():
        if is_dinov3 and name == "rope_embed.periods":
            buffers["rope.periods"] = tensor
        elif is_dinov3 and name.endswith(".attn.qkv.bias"):
            mask = tensors.get(name + "_mask", torch.ones_like(tensor))
            q, k, v = (tensor * mask.to(tensor.dtype)).chunk(3)
            if k.any():
                refused.append(f"{name} (its key third is not zero)")
            prefix = name.removesuffix("qkv.bias")
            converted[prefix + "q_bias"], converted[prefix + "v_bias"] = q.clone(), v.clone()
        elif not (is_dinov3 and name.endswith(".attn.qkv.bias_mask")):
            for pattern, replacement in RENAMES[family]:
                name = re.sub(pattern, replacement, name)
            converted[name] = tensor
    return converted, buffers, refused


def _class_position_added(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    token, position = tensors.get("cls_token"), tensors.get("pos_embed")
    if token is None or position is None or not token.ndim == position.ndim == 3 or (
            token.shape[-1] != position.shape[-1]):
        return {}  # said as missing, or of another shape
    return {"cls_token": token + position[:, :1], "pos_embed": position[:, 1:]}


def fit(model: torch.nn.Module, tensors: dict[str, torch.Tensor], family: str, heads: tuple[str, ...],
        with_head: bool) -> Fit:
    """Compare a file's tensors with what `model` expects; nothing is changed yet (see `put_in`).

    `model` may live on the meta device. `heads` are the prefixes of its classifiers' names. With `with_head`
    (a trained checkpoint) the head belongs to what is expected; without (a backbone's weights) it is new and
    any head of the file is left over.
    """
    converted, buffers, refused = convert(tensors, family)
    wanted = model.state_dict()
    head_pattern = rf"({'|'.join(map(re.escape, heads)) or '(?!)'})\..+"
    is_head = re.compile(head_pattern).fullmatch
    expected = [name for name in wanted if with_head or not is_head(name)]
    kinds = LEFT_OVER[family]
    if not with_head:
        kinds = kinds | {"regression head": re.escape(HEAD_PREFIX) + ".+",
                         "head with covariates": re.escape(COVARIATE_HEAD) + ".+"}
    if not with_head and family == "timm":
        kinds["head"] = head_pattern
    if family == "mae":
        # one of the two norms has no place in the model, whichever way it pools
        kinds["norm of the other pooling"] = r"fc_norm\..+" if "norm.weight" in wanted else r"norm\..+"

    used, misshapen, unexpected, left_over = {}, {}, list(refused), {}
    for name, tensor in converted.items():
        if name not in wanted or (is_head(name) and not with_head):
            kind = next((kind for kind, pattern in kinds.items() if re.fullmatch(pattern, name)), None)
            if kind is None:
                unexpected.append(name)
            else:
                left_over[kind] = left_over.get(kind, 0) + 1
            continue
        if name == "pos_embed" and tensor.ndim == 3 and tensor.shape != wanted[name].shape:
            tensor = _fit_position_embedding(tensor, model, family)
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            misshapen[name] = f"file {tensor.dtype}, model {wanted[name].dtype}".replace("torch.", "")
        elif tensor.shape != wanted[name].shape:
            misshapen[name] = f"file {_shape(tensor)}, model {_shape(wanted[name])}"
        else:
            used[name] = tensor

    missing = [name for name in expected if name not in used and name not in misshapen]
    new = []
    if not with_head:
        may_be_new = re.compile(MAY_BE_NEW[family]).fullmatch
        new = sorted({name.split(".")[0] for name in missing if may_be_new(name)})
        missing = [name for name in missing if not may_be_new(name)]
    # timm's own DINOv3 files leave out q and v biases that are all zero: zeros are exactly what they mean
    biases = [name for name in missing if re.fullmatch(r"blocks\.\d+\.attn\.[qv]_bias", name)]
    if family == "dinov3" and biases and not any(name.endswith(("q_bias", "v_bias", "qkv.bias"))
                                                 for name in converted):
        used |= {name: torch.zeros(wanted[name].shape) for name in biases}
        new.append("q and v biases (zero, as the file has none)")
        missing = [name for name in missing if name not in biases]
    if family == "mae" and not with_head:
        expected = [name for name in expected if name in used or name in missing or name in misshapen]
    parameters = sum(parameter.numel() for name, parameter in model.named_parameters() if name in used)
    misfits = [f"{name} ({what})" for name, what in misshapen.items()]
    return Fit(used, expected, missing, misfits, unexpected, left_over, new, buffers, parameters)


def _fit_position_embedding(tensor: torch.Tensor, model: torch.nn.Module, family: str) -> torch.Tensor:
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    side_y, side_x = model.patch_embed.grid_size
    if side_y != side_x or tensor.shape[-1] != model.pos_embed.shape[-1] or tensor.shape[1] <= prefix:
        return tensor
    try:
        return resize_position_embedding(tensor, side_y, prefix, POSITION_RULE[family])
    except ValueError:  # not a square grid: reported as a tensor of another shape, with both shapes
        return tensor


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(str(side) for side in tensor.shape) or "a single number"


@torch.no_grad()
def put_in(model: torch.nn.Module, fitted: Fit) -> None:
    """Copy what fits into the model, then read it back: a tensor that did not arrive is our own bug, and
    said. A model of shapes alone (meta) takes nothing."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    wanted = model.state_dict()
    for name, tensor in fitted.used.items():
        if not tensor.is_meta:  # the rest comes from shards
            wanted[name].copy_(tensor)
            # NaN equals itself here: weights that diverged are loaded as they are, and their outputs say so
            if not torch.allclose(wanted[name], tensor.to(wanted[name]), rtol=0, atol=0, equal_nan=True):
                raise AssertionError(f"{name} was not loaded")
    set_buffers(model, fitted.buffers)


@torch.no_grad()
def set_buffers(model: torch.nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    """Put rotary periods into the model, and renew what it caches of them for a fixed grid.

    Meta rounds the published periods to bfloat16; timm computes its own in fp32 and forgets them at every
    cast, so call this again after one.
    """
    for name, tensor in buffers.items():
        rope = dict(model.named_modules()).get(str(name).rpartition(".")[0])
        if not hasattr(rope, "periods"):
            raise InputError(f"the file has a buffer {name}, which the model has not: check --model and "
                             "--model_arch")
        if rope.periods.shape != tensor.shape:
            raise InputError(f"rotary periods: the file has {_shape(tensor)}, the model "
                             f"{_shape(rope.periods)}")
        rope.periods.copy_(tensor)
        if getattr(rope, "pos_embed_cached", None) is not None:
            side, rope.feat_shape = rope.feat_shape, []  # what is cached is renewed for another grid alone
            rope.update_feat_shape(side)
