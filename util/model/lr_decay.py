"""Parameter groups with layer-wise learning rates.

A layer near the input keeps more of what it learned in pre-training: its learning rate is the run's times
layer_decay ** (layers - layer) (Clark et al., ELECTRA 2020; Bao et al., BEiT 2021; MAE's fine-tuning).
"""

import torch
from timm.models import group_parameters


def is_plain_vit(model: torch.nn.Module) -> bool:
    """Whether a model cuts patches once and sends them through a row of blocks, as a vision transformer
    without stages."""
    blocks = getattr(model, "blocks", None)
    return hasattr(model, "patch_embed") and isinstance(blocks, torch.nn.Sequential | torch.nn.ModuleList)


def layer_of_parameters(model: torch.nn.Module) -> tuple[dict[str, int], int]:
    """({parameter name: layer}, number of layers): 0 = embeddings, the last = what follows the blocks.

    Vision transformers: embeddings, class, register and position tokens are layer 0, block i is layer i + 1,
    norms and head the last. Other models (ResNet, EfficientNet, ConvNeXt, Swin): timm's own order of their
    stages, the head last; where timm names none, the order of the model's own parts. A model with a
    `backbone` and a head of its own: the backbone's layers, the head in the last.
    """
    if hasattr(model, "backbone"):
        inside, last = layer_of_parameters(model.backbone)
        outside = {name: last for name, _ in model.named_parameters() if not name.startswith("backbone.")}
        return {f"backbone.{name}": layer for name, layer in inside.items()} | outside, last
    names = [name for name, _ in model.named_parameters()]
    # built without a classifier: a head of ours stands where that would
    if hasattr(model, "layers_with_head"):
        layer_of, last = model.layers_with_head
        return {name: layer_of[name] for name in names}, last
    if is_plain_vit(model):
        layers = len(model.blocks) + 1
        return {name: _vit_layer(name, layers) for name in names}, layers
    if not hasattr(model, "group_matcher"):
        parts = {name.split(".")[0]: None for name in names}  # in the order of the model
        return {name: list(parts).index(name.split(".")[0]) for name in names}, len(parts) - 1
    matched = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    last = max(matched.values())
    return {name: int(matched.get(name, last)) for name in names}, int(last)


def _vit_layer(name: str, layers: int) -> int:
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    if name.split(".")[0] in ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre", "mask_token"):
        return 0
    return layers


def parameter_groups(model: torch.nn.Module, weight_decay: float, layer_decay: float) -> list[dict]:
    """Groups for an optimizer, one a layer and kind, of the parameters that are trained.

    Each holds `params`, `weight_decay` (0 for 1-D parameters and what the model names in no_weight_decay())
    and `lr_scale`, which util/model/lr_schedule.py multiplies the learning rate with; `names` for reading.
    """
    layer_of, layers = layer_of_parameters(model)
    # what the model, or a part of it, wants without weight decay
    parts = ("", "backbone", "regression_head", "covariate_head")
    exempt = {f"{part}.{name}" if part else name for part, module in model.named_modules()
              if part in parts and hasattr(module, "no_weight_decay")
              for name in module.no_weight_decay()}
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of[name]
        decay = 0.0 if parameter.ndim <= 1 or name in exempt else weight_decay
        group = groups.setdefault((layer, decay > 0), {
            "params": [], "names": [], "weight_decay": decay, "lr_scale": layer_decay ** (layers - layer),
            "layer": layer})
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]
