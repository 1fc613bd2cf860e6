"""Precision by device, and the memory estimate against what autograd really keeps."""

import pytest
import timm
import torch

from util.core.errors import InputError
from util.model.memory import need_of
from util.model.precision import Precision, cpu_has_bf16, resolve_precision

CPU = torch.device("cpu")


def test_precision_on_a_cpu():
    assert resolve_precision("auto", CPU,
                             "vit_large_patch16_224").name == ("bf16" if cpu_has_bf16() else "fp32")
    assert resolve_precision("bf16", CPU, "vit_small_patch16_dinov3_qkvb").name == "bf16"
    with pytest.raises(InputError, match="needs a GPU"):
        resolve_precision("fp16", CPU, "vit_large_patch16_224")


def test_fp16_is_refused_for_dinov3_with_the_reason():
    with pytest.raises(InputError, match="65504"):
        resolve_precision("fp16", torch.device("cuda"), "vit_small_patch16_dinov3")


def test_scaler_is_for_fp16_alone():
    assert not Precision("bf16", "cpu").scaler().is_enabled()
    assert Precision("fp16", "cpu").scaler().is_enabled()


def test_bf16_runs_matrix_products_in_bf16():
    with Precision("bf16", "cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with Precision("fp32", "cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_models_are_placed_with_channels_last_and_plain_attention_in_bf16():
    def fused(name, arch="test_vit", **options):
        model = Precision(name, "cpu").place(timm.create_model(arch, **options), CPU)
        return {module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")}

    assert fused("bf16") == {False} and fused("fp32") == {True}
    # 1024 patches: products would fill the memory
    assert fused("bf16", "vit_tiny_patch16_224", img_size=512) == {True}
    weight = Precision("fp32", "cpu").place(timm.create_model("test_resnet")).layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_plain_attention_is_no_further_from_fp32_than_the_fused_one():
    """Sharp attention: queries and keys large enough for the softmax to pick few patches."""
    torch.manual_seed(0)
    layer = timm.layers.Attention(64, num_heads=4)
    torch.nn.init.normal_(layer.qkv.weight, std=0.3)
    tokens = torch.randn(4, 50, 64)
    exact, errors = layer(tokens), []
    for layer.fused_attn in (True, False):
        with Precision("bf16", "cpu").autocast():
            errors.append((layer(tokens).float() - exact).norm() / exact.norm())
    assert errors[1] < 1.5 * errors[0] and errors[1] < 0.02


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["test_vit", "resnet10t"])
def test_activations_are_what_autograd_keeps(name, precision):
    model = timm.create_model(name, num_classes=5)
    size = 160
    estimate = need_of(model, 4, size, precision).on()
    owned = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in owned:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        Precision(precision, "cpu").autocast(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        output = model.train()(torch.randn(4, 3, size, size))
    assert output.shape == (4, 5)
    assert estimate.activations == pytest.approx(sum(kept.values()), rel=0.02)
    assert estimate.gradients == 4 * sum(p.numel() for p in model.parameters())
    assert estimate.optimizer == 2 * estimate.gradients


def test_a_frozen_backbone_needs_no_gradients_of_it():
    model = timm.create_model("test_vit", num_classes=5)
    full = need_of(model, 2, 160, "fp32").on()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    probe = need_of(model, 2, 160, "fp32").on()
    assert probe.gradients == 4 * (64 * 5 + 5)
    assert probe.activations < full.activations / 10
