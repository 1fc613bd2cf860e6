"""Weights by recipe and the authors' own features for them: what tests/test_models_vit.py compares with.

tests/fixtures/parity holds numbers that Meta's and MAE's own model code computed in fp32 on a CPU from
synthetic weights; its recipe.py makes the same weights again from the tensors' names (numpy alone).

    python -m tests.parity          prints the largest difference of each architecture at 224 and 336 pixels
"""

import argparse
import functools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from models_vit import BACKBONES, build_model, load_backbone

FIXTURES = Path(__file__).parent / "fixtures" / "parity"
sys.path.insert(0, str(FIXTURES))

from recipe import (  # noqa: E402
    load_manifest,
    make_input,
    make_special,
    make_state_dict,
    make_tensor,
    wrap,
)

SIZES = (224, 336)
RECIPES = {  # prefix of the reference's keys -> how the recipe made the weights
    "": {},
    "sharp_": {"sharp": True},
    "bf16p_sharp_": {"sharp": True, "periods": "bf16"},
    "pub_sharp_": {"sharp": True, "periods": "bf16", "bias_mask": "zeros"},
}
MAE_FILES = {"gp": "mae_vitl16_finetune_gp", "cls": "mae_vitl16_finetune_cls", "pretrain_gp": "retfound_mae"}
WITH_REFERENCE = ("retfound_dinov2", "dinov2_vits14", "dinov2_vitl14", "dinov2_vitg14", "dinov3_vits16",
                  "dinov3_vits16plus", "dinov3_vitl16", "dinov3_vith16plus", "dinov3_vit7b16")


def row(arch: str):
    return next(row for row in BACKBONES if row.arch == arch)


def manifest(arch: str) -> dict:
    return load_manifest(FIXTURES / "manifests" / f"{arch}.json.gz")


def reference(arch: str):
    return np.load(FIXTURES / "refs" / f"{arch}.npz")


@functools.lru_cache(maxsize=1)
def _base_weights(arch: str, depth: int | None) -> dict[str, np.ndarray]:
    """The recipe's weights without a gain; drawing them is what costs time, so the last ones are kept."""
    return make_state_dict(manifest(arch), depth)


def weight_file(path: Path, arch: str, depth: int | None = None, original_checkpoint: bool = False,
                gain: float = 1.0,
                periods: str = "fp32", bias_mask: str = "k_mask") -> Path:
    """Write the recipe's weights of `arch` as its authors' files hold them (wrapper key, names) and return
    the path."""
    man = manifest(arch)
    tensors = {}
    for name, value in _base_weights(arch, depth).items():
        if name.endswith("attn.qkv.weight"):
            value = value * np.float32(gain)
        elif name == "rope_embed.periods" and periods == "bf16":
            value = make_special(man["periods_published"], value.shape)
        elif name.endswith("bias_mask") and bias_mask == "zeros":
            value = np.zeros_like(value)
        tensors[name] = torch.from_numpy(value)
    content = wrap(man, tensors)
    if original_checkpoint:
        content["epoch"] = 3
        content["args"] = argparse.Namespace(model="RETFound_mae", nb_classes=1000, input_size=224)
    torch.save(content, path)
    return path


def made(shapes: dict[str, tuple[int, ...]], gain: float = 1.0) -> dict[str, torch.Tensor]:
    """The recipe's tensors under any names; queries, keys and values times the gain."""
    tensors = {name: torch.from_numpy(make_tensor(name, tuple(shape))) for name, shape in shapes.items()}
    return {name: tensor * gain if name.endswith("attn.qkv.weight") else tensor
            for name, tensor in tensors.items()}


def images(size: int) -> torch.Tensor:
    return torch.from_numpy(make_input(size))


def difference(tokens: torch.Tensor, prefix: int, arch: str, size: int, tag: str = "") -> float:
    """Largest difference between features (B, N, D) and the authors': class token, patch tokens, patch
    mean."""
    ref = reference(arch)
    tokens = tokens.numpy()
    classes, patches = tokens[:, 0], tokens[:, prefix:]
    wanted = ref[f"{tag}cls_{size}"]
    found = [abs(classes[: len(wanted)] - wanted).max()]
    if f"{tag}patchmean_{size}" in ref:
        wanted = ref[f"{tag}patchmean_{size}"]
        found.append(abs(patches.mean(1)[: len(wanted)] - wanted).max())
    if f"{tag}patch_{size}" in ref:
        wanted = ref[f"{tag}patch_{size}"]
        found.append(abs(patches[: wanted.shape[0], : wanted.shape[1]] - wanted).max())
    return float(max(found))


def depth_of(arch: str) -> int:
    """Blocks of the reference: the large architectures are cut to 1 or 2, all names being those of the whole
    model."""
    return manifest(arch)["ref"]["depth"]


def recipe_file(folder: Path, arch: str, tag: str = "", file_arch: str | None = None) -> Path:
    recipe = dict(RECIPES[tag])
    if recipe.pop("sharp", False):
        recipe["gain"] = manifest(arch)["ref"]["sharp_gain"]
    return weight_file(folder / f"{arch}.pth", file_arch or arch, depth_of(arch), **recipe)


def build_and_load(path: Path, arch: str, size: int):
    model = build_model(row(arch), num_classes=0, input_size=size, depth=depth_of(arch))
    loaded = load_backbone(model, row(arch), str(path), "")
    return model.eval(), loaded


@torch.no_grad()
def measured(arch: str, folder: Path) -> dict[int, float]:
    """{size: largest difference from the authors' features, over all recipes}; the head has to read the class
    token."""
    found = dict.fromkeys(SIZES, 0.0)
    for tag in RECIPES:
        if f"{tag}cls_224" not in reference(arch):
            continue
        path = recipe_file(folder, arch, tag)
        for size in SIZES:
            model, _ = build_and_load(path, arch, size)
            tokens = model.forward_features(images(size)[: len(reference(arch)[f"{tag}cls_{size}"])])
            # the documented command lines pass --global_pool to all families, and all but MAE's read the
            # class token
            assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 0])
            found[size] = max(found[size], difference(tokens, model.num_prefix_tokens, arch, size, tag))
    return found


@torch.no_grad()
def measured_mae(kind: str, folder: Path) -> dict[int, float]:
    """The same for RETFound_mae's three kinds of file: fine-tuned with either pooling, and pre-trained."""
    wanted, found = reference("mae_vitl16"), dict.fromkeys(SIZES, 0.0)
    for tag, gain in (("", 1.0), ("sharp_", 2.5)):
        path = weight_file(folder / "mae.pth", MAE_FILES[kind], depth=2, gain=gain)
        for size in SIZES:
            model = build_model(row("retfound_mae"), 0, size, global_pool=kind != "cls", depth=2).eval()
            load_backbone(model, row("retfound_mae"), str(path), "")
            tokens = model.forward_features(images(size))
            features = model.forward_head(tokens, pre_logits=True).numpy()
            found[size] = max(found[size], float(abs(features - wanted[f"{tag}{kind}_{size}"]).max()))
            if kind == "cls" and not tag:
                found[size] = max(found[size],
                                  float(abs(tokens[:, 1:9].numpy() - wanted[f"patch_{size}"]).max()))
    return found


if __name__ == "__main__":
    print(f"{'architecture':<24} {'blocks':>6} {'224':>10} {'336':>10}")
    with tempfile.TemporaryDirectory() as place:
        for arch in WITH_REFERENCE:
            largest = measured(arch, Path(place))
            print(f"{arch:<24} {depth_of(arch):>6} {largest[224]:>10.1e} {largest[336]:>10.1e}", flush=True)
        for kind in MAE_FILES:
            largest = measured_mae(kind, Path(place))
            print(f"{'retfound_mae, ' + kind:<24} {2:>6} {largest[224]:>10.1e} "
                  f"{largest[336]:>10.1e}", flush=True)
