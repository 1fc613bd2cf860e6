"""Position embeddings resized to another grid, each family in the way of its authors.

The differences are not cosmetic: with an antialiased resize, or without DINOv2's offset, the features of a
DINOv2 backbone move by 0.01 to 0.5 (tests/test_models_vit.py compares with the authors' own numbers).
"""

import math

import torch
import torch.nn.functional as F

# DINOv2's own code scales by (new grid + 0.1) / old grid, to keep a rounding error from losing a row
# (facebookresearch/dinov2, interpolate_pos_encoding). It moves every sampling point, so it is part of the
# weights.
DINOV2_OFFSET = 0.1


def resize_position_embedding(pos_embed: torch.Tensor, side: int, prefix: int, rule: str) -> torch.Tensor:
    """Position embeddings (1, prefix + n*n, D) for a grid of `side` x `side` patches: (1, prefix + side*side,
    D).

    `prefix` tokens (class, registers) stay as they are. `rule` names the authors:
    "mae"     bicubic to the size, no antialias (He et al., util/pos_embed.py)
    "dinov2"  bicubic by the factor (side + 0.1) / n, no antialias
    "timm"    bicubic with antialias (timm.layers.resample_abs_pos_embed)
    ValueError where the given embeddings are not a square grid.
    """
    num_patches = pos_embed.shape[1] - prefix
    old = math.isqrt(num_patches)
    if old * old != num_patches:
        raise ValueError(f"{num_patches} position embeddings do not make a square grid")
    if old == side:
        return pos_embed
    tokens, patches = pos_embed[:, :prefix], pos_embed[:, prefix:]
    grid = patches.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    how = {"mae": {"size": (side, side)}, "timm": {"size": (side, side), "antialias": True},
           "dinov2": {"scale_factor": (side + DINOV2_OFFSET) / old}}
    grid = F.interpolate(grid, mode="bicubic", **how[rule])
    assert grid.shape[-2:] == (side, side)
    patches = grid.permute(0, 2, 3, 1).reshape(1, side * side, -1).to(pos_embed.dtype)
    return torch.cat([tokens, patches], dim=1)
