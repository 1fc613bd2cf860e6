"""A vision transformer written out in float64 from the definitions of its makers: the second way of computing
by which tests/test_other_makers.py checks weights that no author's numbers are at hand for.

Definitions: Dosovitskiy et al. 2021 (the transformer), Oquab et al. 2023 and Darcet et al. 2024 (LayerScale,
SwiGLU, registers), He et al. 2022 (MAE). tests/test_other_makers.py holds it to numbers that Meta's and MAE's
own code computed. It takes tensors under the names that those authors' files have.
"""

import math

import torch

EPS = 1e-6


def cubic(distance: torch.Tensor, a: float) -> torch.Tensor:
    """Keys' kernel: (any shape) -> the same."""
    x = distance.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resizing_matrix(old: int, new: int, antialias: bool, offset: float = 0.0) -> torch.Tensor:
    """(new, old): what each new point takes of each old one, along one side. Without antialias a is -0.75 and
    points beyond the edge are the edge's; with it a is -0.5, the kernel is as wide as the step, and its parts
    beyond the edge are left out. offset: DINOv2's, see util/weights/position_embeddings.py."""
    step = old / (new + offset)
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) * step - 0.5
    if antialias:
        wide = max(step, 1.0)
        shares = cubic((torch.arange(old) - centre[:, None]) / wide, -0.5)
        return shares / shares.sum(dim=1, keepdim=True)
    matrix = torch.zeros(new, old, dtype=torch.float64)
    first = centre.floor().long()
    for tap in range(-1, 3):
        place = first + tap
        matrix[torch.arange(new), place.clamp(0, old - 1)] += cubic(place - centre, -0.75)
    return matrix


def resized(position: torch.Tensor, side: int, antialias: bool, offset: float = 0.0) -> torch.Tensor:
    """(1, n * n, D) position embeddings -> (1, side * side, D)."""
    old = math.isqrt(position.shape[1])
    if old == side:
        return position
    matrix = resizing_matrix(old, side, antialias, offset)
    grid = torch.einsum("ip,jq,pqd->ijd", matrix, matrix, position.view(old, old, -1))
    return grid.reshape(1, side * side, -1)


def norm(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + EPS).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attention(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str, heads: int) -> torch.Tensor:
    q, k, v = linear(x, weights, f"{name}.qkv").unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    shares = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
    return linear((shares @ v).transpose(1, 2).flatten(2), weights, f"{name}.proj")


def feed_forward(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str, heads: int) -> torch.Tensor:
    if f"{name}.w12.weight" in weights:
        gate, value = linear(x, weights, f"{name}.w12").chunk(2, dim=-1)
        return linear(gate * torch.sigmoid(gate) * value, weights, f"{name}.w3")
    hidden = linear(x, weights, f"{name}.fc1")
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return linear(hidden, weights, f"{name}.fc2")


def last_tokens(weights: dict[str, torch.Tensor], images: torch.Tensor, heads: int, antialias: bool = False,
                offset: float = 0.0) -> torch.Tensor:
    """(B, 3, S, S) images -> (B, 1 + registers + patches, D) after the last block, before the final norm."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    kernel = weights["patch_embed.proj.weight"]
    patch = kernel.shape[-1]
    pieces = images.double().unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, p, p)
    side = pieces.shape[2]
    x = torch.einsum("bcijpq,dcpq->bijd", pieces, kernel).flatten(1, 2) + weights["patch_embed.proj.bias"]
    position = weights["pos_embed"]
    x = x + resized(position[:, 1:], side, antialias, offset)
    first = (weights["cls_token"] + position[:, :1]).expand(len(x), -1, -1)
    registers = weights.get("register_tokens", x.new_zeros(1, 0, x.shape[-1])).expand(len(x), -1, -1)
    x = torch.cat([first, registers, x], dim=1)
    for number in range(sum(name.endswith(".norm1.weight") and name.startswith("blocks.")
                            for name in weights)):
        block = f"blocks.{number}"
        for part, before, name, scale in ((attention, "norm1", "attn", "ls1"),
                                          (feed_forward, "norm2", "mlp", "ls2")):
            given = norm(x, weights, f"{block}.{before}")
            made = part(given, weights, f"{block}.{name}", heads)
            x = x + made * weights.get(f"{block}.{scale}.gamma", 1.0)
    return x
