"""The head by hand, its covariates, and the layer-wise rates of a model that has it."""

import pytest
import torch

import models_vit
from engine_finetune import RegressionLoss
from util.core.errors import InputError
from util.data.covariates import Covariate
from util.model.lr_decay import parameter_groups
from util.model.lr_schedule import learning_rate_at, set_learning_rate
from util.model.regression_head import RegressionHead
from util.options.model import HeadOptions


def attention_by_hand(layer, x, heads):
    """A pre-norm transformer layer written out (no dropout)."""
    normed = layer.norm1(x)
    q, k, v = torch.nn.functional.linear(normed, layer.self_attn.in_proj_weight,
                                         layer.self_attn.in_proj_bias).chunk(3, dim=-1)
    split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v)]
    weights = torch.softmax(split[0] @ split[1].transpose(-1, -2) / split[0].shape[-1] ** 0.5, dim=-1)
    x = x + layer.self_attn.out_proj((weights @ split[2]).transpose(1, 2).flatten(2))
    return x + layer.linear2(torch.nn.functional.gelu(layer.linear1(layer.norm2(x))))


@pytest.mark.parametrize("training", [True, False])
def test_head_by_hand(training):
    torch.manual_seed(0)
    head = RegressionHead(20, 3, HeadOptions(head_embed_dim=16, head_depth=2, head_num_heads=4,
                                             head_mlp_ratio=2.0, head_dropout=0.0)).train(training)
    torch.nn.init.normal_(head.read.weight)
    features = torch.randn(5, 20)
    tokens = head.project(features)[:, None] + head.target_tokens
    for layer in head.layers:
        tokens = attention_by_hand(layer, tokens, 4)
    with torch.no_grad():
        assert torch.allclose(head(features), head.read(head.norm(tokens))[..., 0], atol=1e-5)
    assert not torch.equal(head.layers[0].linear1.weight, head.layers[1].linear1.weight)


def test_head_starts_at_the_means_and_tells_targets_apart():
    torch.manual_seed(0)
    head = RegressionHead(32, 4, HeadOptions()).eval()
    assert head(torch.randn(2, 32)).abs().max() < 0.01
    torch.nn.init.normal_(head.read.weight)
    outputs = head(torch.randn(64, 32)).T
    assert torch.corrcoef(outputs).fill_diagonal_(0).max() < 0.99  # tokens of 0.02 give 0.99996


def test_covariates_and_missing_ones_act():
    torch.manual_seed(0)
    covariates = [Covariate("age", mean=0, sd=1), Covariate("eye", levels=("L", "R"))]
    head = RegressionHead(8, 2, HeadOptions(head_embed_dim=8), covariates).eval()
    torch.nn.init.normal_(head.read.weight)
    features, nan = torch.randn(1, 8), float("nan")
    found = [head(features, torch.tensor([row]))
             for row in ([0.5, 0.0], [0.5, 1.0], [0.5, nan], [nan, 1.0], [0.7, 1.0])]
    assert not any(torch.allclose(a, b) for i, a in enumerate(found) for b in found[:i])


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="--head_num_heads 4 does not divide the head's width 90"):
        RegressionHead(90, 1, HeadOptions())


def test_loss_masks_what_is_missing():
    outputs, nan = torch.tensor([[0.0, 3.0], [1.0, 1.0]], requires_grad=True), float("nan")
    losses = RegressionLoss(1.0, known_a_picture=1.5)(outputs, torch.tensor([[0.5, nan], [nan, 3.0]]))
    assert losses.tolist() == pytest.approx([0.125 / 1.5, 1.5 / 1.5])
    losses.sum().backward()
    assert outputs.grad[0, 1] == 0 and outputs.grad[1, 0] == 0 and outputs.grad.isfinite().all()


@pytest.mark.parametrize("arch, first, block", [
    ("test_vit", "backbone.patch_embed.proj.weight", "backbone.blocks.5.attn.proj.weight"),
    ("test_efficientnet", "backbone.conv_stem.weight", "backbone.blocks.3.0.conv_pw.weight"),
    ("test_convnext", "backbone.stem.0.weight", "backbone.stages.3.blocks.0.mlp.fc1.weight"),
    ("test_resnet", "backbone.conv1.0.weight", "backbone.layer4.0.conv1.weight"),
])
def test_rates_of_the_groups_over_a_run(arch, first, block):
    """Layer decay, warm-up and cosine, read from the optimizer's groups at given iterations."""
    backbone = models_vit.find_backbone("timm", arch)
    features = models_vit.build_model(backbone, 0, 32)
    model = models_vit.Regressor(features,
                                 RegressionHead(models_vit.feature_width(features), 2,
                                                HeadOptions(head_embed_dim=16)))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05, 0.5), lr=1.0)
    assert sorted(n for g in optimizer.param_groups
                  for n in g["names"]) == sorted(n for n, _ in model.named_parameters())

    def rates(position):
        set_learning_rate(
            optimizer, learning_rate_at(position, peak=1e-3, minimum=1e-6, warmup_epochs=2, epochs=10)
        )
        return {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}

    warm, peak, half, end = rates(1.0), rates(2.0), rates(6.0), rates(10.0)
    head = "regression_head.project.weight"
    assert warm[head] == pytest.approx(5e-4) and peak[head] == pytest.approx(1e-3)
    assert half[head] == pytest.approx((1e-3 + 1e-6) / 2) and end[head] == pytest.approx(1e-6)
    assert peak[first] < peak[block] < peak[head]
    layers = max(group["layer"] for group in optimizer.param_groups)
    assert peak[first] == pytest.approx(1e-3 * 0.5**layers)
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert decays["regression_head.target_tokens"] == 0 and decays[head] == 0.05
    assert decays["regression_head.project.bias"] == 0
