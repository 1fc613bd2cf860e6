"""Layer-wise rates: the rule of BEiT and MAE for vision transformers, timm's order of stages for the rest."""

import pytest
import timm
import torch

from util.model.lr_decay import layer_of_parameters, parameter_groups


@pytest.mark.parametrize("name, layers", [("vit_tiny_patch16_224", 13), ("vit_small_patch16_dinov3_qkvb", 13),
                                          ("vit_small_patch14_dinov2", 13)])
def test_vision_transformers(name, layers):
    model = timm.create_model(name, num_classes=3)
    layer_of, found = layer_of_parameters(model)
    assert found == layers
    assert {layer_of[name] for name in layer_of
            if name.startswith(("patch_embed", "cls_token", "pos_embed"))} == {0}
    assert layer_of["blocks.0.norm1.weight"] == 1 and layer_of["blocks.11.norm1.weight"] == 12
    assert layer_of["head.weight"] == layer_of["norm.weight"] == 13
    if "dinov3" in name:
        assert layer_of["reg_token"] == 0
    scales = {name: group["lr_scale"] for group in parameter_groups(model, 0.05, 0.65)
              for name in group["names"]}
    assert scales["head.weight"] == 1.0
    assert scales["blocks.11.attn.proj.weight"] == pytest.approx(0.65)
    assert scales["cls_token"] == pytest.approx(0.65**13)


@pytest.mark.parametrize("name, first, last", [
    ("resnet18", "conv1.weight", "fc.weight"),
    ("efficientnet_b0", "conv_stem.weight", "classifier.weight"),
    ("convnext_atto", "stem.0.weight", "head.fc.weight"),
    ("swin_tiny_patch4_window7_224", "patch_embed.proj.weight", "head.fc.weight"),
])
def test_other_models_rise_from_stem_to_head(name, first, last):
    model = timm.create_model(name, num_classes=3)
    layer_of, layers = layer_of_parameters(model)
    assert set(layer_of) == {name for name, _ in model.named_parameters()}
    assert layer_of[first] == 0 and layer_of[last] == layers and layers >= 4
    assert len(set(layer_of.values())) > 3


def test_every_trained_parameter_is_in_one_group_and_weight_decay_spares_vectors():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    model.blocks[0].requires_grad_(False)
    groups = parameter_groups(model, 0.05, 0.65)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert "blocks.1.attn.qkv.weight" in decayed and "head.weight" in decayed
    assert not decayed & {"cls_token", "pos_embed", "head.bias", "norm.weight"}  # 1-D, or named by the model


def test_no_decay_gives_one_rate():
    model = timm.create_model("resnet18", num_classes=3)
    assert {group["lr_scale"] for group in parameter_groups(model, 0.05, 1.0)} == {1.0}


def test_a_model_without_timms_order_is_taken_part_by_part():
    with torch.device("meta"):
        model = timm.create_model("poolformer_s12", num_classes=2)
    layers, last = layer_of_parameters(model)
    assert layers["stem.conv.weight"] == 0 and layers["head.fc.weight"] == last
    assert {layers[name] for name in layers if name.startswith("stages.")} == {1}
