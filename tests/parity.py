"""Weights by recipe and the authors' own features for them: what tests/test_models_vit.py compares with.

tests/fixtures/parity holds numbers that Meta's and MAE's own model code computed in fp32 on a CPU from synthetic
weights; its recipe.py makes the same weights again from the tensors' names (numpy alone).
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures" / "parity"
sys.path.insert(0, str(FIXTURES))

from recipe import load_manifest, make_input, make_special, make_state_dict, wrap  # noqa: E402

SIZES = (224, 336)


def manifest(arch: str) -> dict:
    return load_manifest(FIXTURES / "manifests" / f"{arch}.json.gz")


def reference(arch: str):
    return np.load(FIXTURES / "refs" / f"{arch}.npz")


@functools.lru_cache(maxsize=1)
def _base_weights(arch: str, depth: int | None) -> dict[str, np.ndarray]:
    """The recipe's weights without a gain; drawing them is what costs time, so the last ones are kept."""
    return make_state_dict(manifest(arch), depth)


def weight_file(path: Path, arch: str, depth: int | None = None, original_checkpoint: bool = False, gain: float = 1.0,
                periods: str = "fp32", bias_mask: str = "k_mask") -> Path:
    """Write the recipe's weights of `arch` as its authors' files hold them (wrapper key, names) and return the path."""
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


def images(size: int) -> torch.Tensor:
    return torch.from_numpy(make_input(size))


def difference(tokens: torch.Tensor, prefix: int, arch: str, size: int, tag: str = "") -> float:
    """Largest difference between features (B, N, D) and the authors': class token, patch tokens, patch mean."""
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
