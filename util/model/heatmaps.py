"""Where a model looked: maps of relevance over an image, and the image with its map laid over.

Three methods, each for the models that it was made for:

gradient  for vision transformers, the default there: the relevance of H. Chefer, S. Gur and L. Wolf (Generic
          Attention-model Explainability, ICCV 2021), for self-attention: R = 1, then in every block
          R += mean over heads(relu(gradient * attention)) R, with the gradient of one output. It tells what
          speaks FOR that output, and is another map for another class.
rollout   for vision transformers: attention rollout (S. Abnar and W. Zuidema, Quantifying Attention Flow in
          Transformers, ACL 2020): R = 1, then R = (mean over heads(attention) + 1) / 2 R. It knows of no
          class: it tells what was mixed into the feature, for or against the output, used or not.
gradcam   for models whose last feature map is an image (CNNs, also Swin): Grad-CAM (R. Selvaraju et al., ICCV
          2017), as captum computes it, on the last feature map. As coarse as that map: 7 x 7 fields at 224
          pixels in most CNNs, so that a small lesion gets a large patch. It may lie up to half a field right
          of and below what caused it: a strided convolution that pads looks at the upper left of its field
          (ResNets do; Swin and ConvNeXt don't).

On drawn grey retinas with one lesion of 2.3 % of the image, small models trained from scratch put so many
times the lesion's share of the area inside of it (tests/model/test_heatmaps_on_lesions.py prints three):
gradient 3.5 to 16, rollout 6 to 12, neither of them always the better one; Grad-CAM 4 to 6 in ResNets of 6 x
6 or 12 x 12 fields, 1.3 to 3.7 with 2 x 2 to 8 x 8. On fundus-like images (util/data/public/demo.py's, one
lesion of 0.7 %): gradient 27, rollout 19, Grad-CAM 2.9.

Of R the row is read that the pooled feature is made of: the class token's, or where a model pools its patches
(RETFound_mae) the mean of the patches' rows. Class and register tokens are no places in the image and are
left out. A probe's head that reads more (util/model/feature_kinds.py): the parts that lie side by side count
alike, a block's class token from that block on; of an attentive head the row is the shares that its query
gives the patches, in gradient weighted by their gradient like any other attention.

A map shows what moved this model's output, which need not be what made the eye ill.
"""

import fcntl
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from util.core.disk import replacing
from util.core.errors import InputError, RunError
from util.core.run_files import write_whole
from util.model.feature_kinds import AttentiveHead, wide_head

OF_TRANSFORMERS = ("gradient", "rollout")
# of one pass: 8 images of 197 tokens, some 4 GB for a ViT-L; gradients need every activation
TOKENS_AT_ONCE = 1600
PICTURES_AT_ONCE = 8  # of one pass of a CNN
STRONGEST = 0.65  # opacity of a map's 1: what lies below can still be seen
# even steps to the eye, also to a colour-blind one; blue and green stand out from a red retina
COLOURS = "viridis"
INDEX_FILE = "heatmaps.json"
LONGEST_STEM = 80  # of an image's name in its overlay's name, in characters; file systems end at 255 bytes


def heat_maps(model: torch.nn.Module, images: torch.Tensor,
              targets: Sequence[int] | torch.Tensor | None = None, method: str = "auto",
              covariates: torch.Tensor | None = None) -> np.ndarray:
    """Where a model looked: images (B, 3, S, S), normalised as for the model -> (B, S, S) float32 in 0..1.

    model       a timm classifier, or a Regressor (a `backbone`, a `regression_head`)
    targets     (B,) numbers of the classes or outputs to explain; None: the predicted class, of a regression
                output 0
    method      auto (gradient for vision transformers, gradcam for others) or one of `methods_of` the model
    covariates  (B, C) of a model that reads them, NaN where missing; None: all missing

    Each map is stretched so that its least is 0 and its most is 1: maps tell places of one image apart, they
    don't compare images. A map that is the same everywhere (Grad-CAM finds nothing that speaks for the
    output) is 0. For a regression the map shows what moves the output the way it went from the mean of the
    training set, up or down.

    Computed without autocast in the weights' own precision. The model, its mode, its gradients and what
    requires them are left as found; frozen models and callers in inference mode are fine. Raises InputError
    for a model of which no map can be made, RunError where a map is not finite.
    """
    method = methods_of(model)[0] if method == "auto" else method
    like = next(itertools.chain(model.parameters(), model.buffers()))
    at_once, maps = PICTURES_AT_ONCE, []
    if method in OF_TRANSFORMERS:
        at_once = max(1, TOKENS_AT_ONCE // _num_tokens(model, images))
    # Tensors made in inference mode can't take part in gradients: leave that mode, and copy those.
    with torch.inference_mode(False), torch.autocast(like.device.type, enabled=False), _laid_open(model):
        targets = None if targets is None else torch.as_tensor(targets).to(like.device).clone().long()
        for first in range(0, len(images), at_once):
            part = slice(first, first + at_once)
            inputs = [images[part].detach().to(like.device, like.dtype).clone()]
            if covariates is not None:
                inputs.append(covariates[part].detach().to(like.device).clone())
            coarse = _COMPUTE[method](model, inputs, None if targets is None else targets[part])
            fine = interpolate(coarse.detach().float()[:, None], images.shape[2:], mode="bilinear",
                               align_corners=False)
            maps.append(_stretched(fine[:, 0]).cpu().numpy())
    return np.concatenate(maps) if maps else np.zeros((0, *images.shape[2:]), np.float32)


def methods_of(model: torch.nn.Module) -> tuple[str, ...]:
    """The methods that fit a model, the default first."""
    return OF_TRANSFORMERS if _attention_layers(model) else ("gradcam",)


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """An image with its map, of the same size and in 0..1, laid over -> RGB image.

    Both must show the same part of the eye, that which the model saw. Colour and
    opacity both grow with the map, so that a 0 leaves the image as it is and a 1 (yellow) covers two thirds
    of it.
    """
    import matplotlib

    colours = 255 * matplotlib.colormaps[COLOURS](heat)[..., :3]
    opacity = STRONGEST * heat[..., None]
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    return Image.fromarray(np.rint((1 - opacity) * pixels + opacity * colours).astype(np.uint8))


def write_overlays(paths: Sequence[str | os.PathLike], maps: np.ndarray, folder: str | os.PathLike,
                   pictures: Sequence[Image.Image]) -> dict[str, str]:
    """Write an overlay an image to folder/*.png and its name into folder/heatmaps.json -> {absolute path:
    file name}.

    paths: B images' files; maps (B, h, w) in 0..1; pictures: what the model saw of each.
    An overlay is named after its image and a digest of the whole path, so that images of one name in several
    folders don't meet and a second run writes the same files. What heatmaps.json holds already stays; several
    processes may write to one folder. Raises InputError where the folder can't be written or its
    heatmaps.json is not one, RunError for a full disk.
    """
    folder, names = Path(folder), {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, heat, picture in zip(paths, maps, pictures, strict=True):
            path = os.path.abspath(path)
            names[path] = _overlay_name(path)
            with replacing(folder / names[path]) as temporary:
                overlay(picture, heat).save(temporary, "PNG")
        with open(folder / ".lock", "w") as lock:  # which goes with the process that holds it
            fcntl.flock(lock, fcntl.LOCK_EX)
            index = read_index(folder) | names
            write_whole(folder / INDEX_FILE, json.dumps(index, indent=1, sort_keys=True) + "\n")
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InputError(f"heat maps can't be written to {folder}: name another folder ({error})") from error
    except OSError as error:
        raise RunError(f"writing heat maps to {folder} failed: {error}") from error
    return names


def read_index(folder: str | os.PathLike) -> dict[str, str]:
    """{absolute path of an image: its overlay's file name}, {} where nothing was written; InputError for
    another file."""
    path = Path(folder) / INDEX_FILE
    if not path.exists():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): remove it, and the overlays are listed "
                         "anew") from error
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise InputError(f"{path} does not list overlays by their images' paths: remove it, and it is "
                         "written anew")
    return index


def _overlay_name(path: str) -> str:
    stem = re.sub(r"[^\w.-]+", "_", Path(path).stem)[:LONGEST_STEM]
    if len(stem.encode()) > 2 * LONGEST_STEM:  # letters of three and four bytes each
        stem = stem[:LONGEST_STEM // 2]
    return f"{stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:10]}.png"


def _score(model: torch.nn.Module, outputs: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """The outputs (B, C) of a pass -> the number of each image that its map explains, (B,)."""
    is_regression = hasattr(model, "regression_head")
    if targets is None:
        targets = torch.zeros(len(outputs)) if is_regression else outputs.argmax(dim=1)
    score = outputs.gather(1, targets.long().to(outputs.device)[:, None])[:, 0]
    # a regression's outputs are standardised: 0 is the mean of the training set
    return score * score.detach().sign() if is_regression else score


def _backbone(model: torch.nn.Module) -> torch.nn.Module:
    return model.backbone if hasattr(model, "regression_head") else model


def _outputs(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The model's outputs. Its `forward` is called, not itself, so that a compiled model isn't compiled anew
    for our hooks."""
    made_in_inference_mode = {name: tensor.clone()
                              for name, tensor in [*model.named_parameters(), *model.named_buffers()]
                              if tensor.is_inference()}
    if made_in_inference_mode:
        return torch.func.functional_call(model, made_in_inference_mode, tuple(inputs))
    return model.forward(*inputs)


@contextmanager
def _laid_open(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode, with attention that can be listened to and activations that stay; afterwards as
    found.

    timm's attention layers pass their softmax through `attn_drop`, unless `fused_attn` hides it inside of one
    operation.
    """
    found = [(module, name, vars(module)[name]) for module in model.modules()
             for name in ("training", "fused_attn", "grad_checkpointing") if name in vars(module)]
    try:
        for module, name, _ in found:
            setattr(module, name, False)
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


@contextmanager
def _listened(modules: Iterable[torch.nn.Module], hook: Callable[..., object]) -> Iterator[None]:
    """Each module's outputs are shown to a forward hook."""
    with ExitStack() as handles:
        for module in modules:
            handles.enter_context(module.register_forward_hook(hook))
        yield


def _attention_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The attention of each block of a plain vision transformer of timm's, first block first; [] for another
    model."""
    backbone, layers = _backbone(model), []
    if not hasattr(backbone, "patch_embed") or not hasattr(backbone, "num_prefix_tokens"):
        return []
    for block in getattr(backbone, "blocks", []):
        inside = [module for module in block.modules()
                  if hasattr(module, "fused_attn")
                  and isinstance(getattr(module, "attn_drop", None), torch.nn.Module)]
        if len(inside) != 1:
            return []
        layers += inside
    return layers


def _patch_grid(backbone: torch.nn.Module, images: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of patches."""
    embed = backbone.patch_embed
    if getattr(backbone, "dynamic_img_size", False) or not getattr(embed, "grid_size", None):
        patch = embed.patch_size if isinstance(embed.patch_size, Sequence) else (embed.patch_size,) * 2
        return images.shape[2] // patch[0], images.shape[3] // patch[1]
    return tuple(embed.grid_size)


def _num_tokens(model: torch.nn.Module, images: torch.Tensor) -> int:
    rows, columns = _patch_grid(_backbone(model), images)
    return _backbone(model).num_prefix_tokens + rows * columns


def _attended(model: torch.nn.Module, inputs: Sequence[torch.Tensor]
              ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Outputs (B, C), the attention (B, heads, N, N) of each block, first block first, and of an attentive
    head (else []) the shares (B, P) that it gives the patches."""
    attention, shares, layers, head = [], [], _attention_layers(model), wide_head(model)
    attentive = [head.shares] if isinstance(head, AttentiveHead) else []
    with (_listened((layer.attn_drop for layer in layers), lambda module, given, out: attention.append(out)),
          _listened(attentive, lambda module, given, out: shares.append(out))):
        outputs = _outputs(model, inputs)
    tokens = _num_tokens(model, inputs[0])
    if [weights.shape[-2:] for weights in attention] != [(tokens, tokens)] * len(layers):
        raise InputError(f"heat maps of {type(_backbone(model)).__name__} can't be made: its blocks don't "
                         f"attend from each of {tokens} tokens to each")
    return outputs, attention, shares


def _rows_read(backbone: torch.nn.Module, attention: torch.Tensor) -> list[torch.Tensor]:
    """The share (B, 1, N) that each token has in the feature, before any attention: of the last block's
    tokens first, then of the blocks before it, as far as the head reads them."""
    head, prefix = wide_head(backbone), backbone.num_prefix_tokens
    of_class, of_mean = torch.zeros_like(attention[:, :1, 0]), torch.zeros_like(attention[:, :1, 0])
    # a distilled model reads two tokens
    classes = 2 if head is None and getattr(backbone, "dist_token", None) is not None else 1
    of_class[..., :classes] = 1 / classes
    if head is None and getattr(backbone, "pool_include_prefix", False):
        prefix = 0
    of_mean[..., prefix:] = 1 / (of_mean.shape[-1] - prefix)
    if head is None:
        # the mean; where a largest value or an attention pools, still the tokens that it chooses from
        return [of_class if backbone.global_pool == "token" else of_mean]
    if head.kind == "cls":
        return [of_class]
    blocks = head.in_features // backbone.embed_dim - 1  # beside the mean
    return [(of_class + of_mean) / (blocks + 1), *[of_class / (blocks + 1)] * (blocks - 1)]


def _on_patches(model: torch.nn.Module, shares: torch.Tensor) -> torch.Tensor:
    """(B, P) of the patches -> (B, 1, N) of all tokens."""
    return torch.nn.functional.pad(shares, (_backbone(model).num_prefix_tokens, 0))[:, None]


def _row_to_grid(backbone: torch.nn.Module, row: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return row[:, 0, backbone.num_prefix_tokens:].unflatten(1, _patch_grid(backbone, images))


# Both methods multiply matrices of the blocks, the last block's leftmost, and one row of the product is read:
# so the row is multiplied from the left, which costs N^2 a block, not N^3.

def _rollout(model: torch.nn.Module, inputs: Sequence[torch.Tensor],
             targets: torch.Tensor | None) -> torch.Tensor:
    with torch.no_grad():
        _, attention, shares = _attended(model, inputs)
        rows = [_on_patches(model, shares[0])] if shares else _rows_read(_backbone(model), attention[0])
        row, *earlier = rows
        for weights, of_block in itertools.zip_longest(reversed(attention), earlier):
            row = (row @ weights.mean(dim=1) + row) / 2
            row = row if of_block is None else row + of_block
    return _row_to_grid(_backbone(model), row, inputs[0])


def _gradient(model: torch.nn.Module, inputs: Sequence[torch.Tensor],
              targets: torch.Tensor | None) -> torch.Tensor:
    inputs[0].requires_grad_()  # so that a frozen model keeps what gradients need, too
    with torch.enable_grad():
        outputs, attention, shares = _attended(model, inputs)
        *gradients, of_last = torch.autograd.grad(_score(model, outputs, targets).sum(),
                                                   [*attention, *shares])
    # the row is kept apart from what the blocks add to it: a mean over patches is so much larger that it
    # would drown it
    if shares:  # a query's shares are attention, too
        added = _on_patches(model, (shares[0].detach() * of_last).relu())
        pooled, *earlier = [torch.zeros_like(added)]
    else:
        gradients.append(of_last)
        pooled, *earlier = _rows_read(_backbone(model), attention[0])
        added = torch.zeros_like(pooled)
    for weights, gradient, of_block in itertools.zip_longest(reversed(attention), reversed(gradients),
                                                             earlier):
        added = added + (pooled + added) @ (weights.detach() * gradient).relu().mean(dim=1)
        pooled = pooled if of_block is None else pooled + of_block
    return _row_to_grid(_backbone(model), added, inputs[0])


def _gradcam(model: torch.nn.Module, inputs: Sequence[torch.Tensor],
             targets: torch.Tensor | None) -> torch.Tensor:
    from captum.attr import LayerGradCam

    # captum takes channels first: the feature map is shown to it through a layer that does nothing
    channels_last = getattr(_backbone(model), "output_fmt", "NCHW") == "NHWC"
    order, back = ((0, 3, 1, 2), (0, 2, 3, 1)) if channels_last else ((0, 1, 2, 3),) * 2
    shown = torch.nn.Identity()

    def show(module: torch.nn.Module, given: tuple, features: torch.Tensor) -> torch.Tensor:
        return shown(features.permute(order)).permute(back)

    def score(images: torch.Tensor) -> torch.Tensor:
        return _score(model, _outputs(model, [images, *inputs[1:]]), targets)

    layer = _last_map(model, inputs, channels_last)
    inputs[0].requires_grad_()
    with _listened([layer], show), torch.enable_grad():
        return LayerGradCam(score, shown).attribute(inputs[0], relu_attributions=True)[:, 0]


def _last_map(model: torch.nn.Module, inputs: Sequence[torch.Tensor], channels_last: bool) -> torch.nn.Module:
    """The layer that gives out the last feature map, the one that is pooled; InputError where there is
    none."""
    backbone, given_out = _backbone(model), []
    parts = [module for module in backbone.modules() if module is not backbone]
    with torch.no_grad(), _listened(parts, lambda module, given, out: given_out.append((module, out))):
        last = backbone.forward_features(inputs[0][:1]) if hasattr(backbone, "forward_features") else None
    is_map = isinstance(last, torch.Tensor) and last.ndim == 4
    if not is_map or min(last.shape[1:3] if channels_last else last.shape[2:]) < 2:
        raise InputError(f"heat maps of {type(backbone).__name__} can't be made: it is no vision transformer "
                         "whose tokens all attend to each other, and its last features are no map of "
                         "several places")
    return next(module for module, features in reversed(given_out)
                if isinstance(features, torch.Tensor) and features.shape == last.shape)


_COMPUTE = {"gradient": _gradient, "rollout": _rollout, "gradcam": _gradcam}


def _stretched(maps: torch.Tensor) -> torch.Tensor:
    """(B, S, S) -> the same in 0..1 an image; 0 where a map is the same everywhere."""
    if not maps.isfinite().all():
        raise RunError("a heat map is not finite: the model's weights or the images are not, or its "
                       "activations are too large")
    least, most = (bound[:, None, None] for bound in (maps.flatten(1).amin(1), maps.flatten(1).amax(1)))
    # rounding alone makes differences of some 1e-7 of the values; a map of these would be noise
    flat = most - least <= 1e-6 * most.abs()
    return torch.where(flat, 0, (maps - least) / torch.where(flat, 1, most - least)).clamp(0, 1)
