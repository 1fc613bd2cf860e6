"""Kinds of features against timm's own ways of reading tokens, and heads that stand in a model's own head's
place."""

import copy

import pytest
import timm
import torch

import models_vit
from util.model.feature_kinds import KindsReader, averaged, put_wide_head, wide_features, wide_head
from util.options.adaptation import ATTENTIVE, POOLED

SIZE = 64


def model_of(name="vit_tiny_patch16_224", **options):
    """A timm model whose weights all differ from their start."""
    torch.manual_seed(0)
    options = ({"img_size": SIZE, "depth": 5} if name.startswith("vit") else {}) | options
    model = timm.create_model(name, num_classes=3, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def images_of(number=3, size=SIZE):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def reader_of(model, size=SIZE):
    return KindsReader(model, models_vit.final_linear(model), size)


@torch.no_grad()
def test_kinds_of_a_vision_transformer_are_what_timm_gives_out():
    model, images = model_of("vit_tiny_patch16_224"), images_of()
    reader = reader_of(model)
    reader.with_tokens = True
    assert list(reader.kinds) == [POOLED, "cls_mean", "last4"]  # the class token is what its own head reads
    rows = reader(images)
    found = {kind: rows[:, columns] for kind, columns in reader.kinds.items()}
    blocks = model.get_intermediate_layers(images, n=4, norm=True, return_prefix_tokens=True)
    patches, prefix = blocks[-1]
    torch.testing.assert_close(found[POOLED],
                               model.forward_head(model.forward_features(images), pre_logits=True))
    torch.testing.assert_close(found["cls_mean"], torch.cat([prefix[:, 0], patches.mean(dim=1)], dim=1))
    by_hand = torch.cat([*(block[1][:, 0] for block in blocks), patches.mean(dim=1)], dim=1)
    torch.testing.assert_close(found["last4"], by_hand)
    assert reader.tokens == (16, 192) and found["last4"].shape == (3, 5 * 192)
    torch.testing.assert_close(rows[:, reader.columns:].view(3, 16, 192), patches)


@torch.no_grad()
def test_where_the_norm_follows_the_pooling_each_part_passes_it():
    model, images = model_of(global_pool="avg"), images_of()
    reader = reader_of(model)
    assert list(reader.kinds) == [POOLED, "cls", "cls_mean", "last4"]
    rows, tokens = reader(images), model.forward_features(images)
    assert isinstance(model.norm, torch.nn.Identity)
    torch.testing.assert_close(rows[:, reader.kinds[POOLED]], model.fc_norm(tokens[:, 1:].mean(dim=1)))
    torch.testing.assert_close(rows[:, reader.kinds["cls"]], model.fc_norm(tokens[:, 0]))
    first = model.get_intermediate_layers(images, n=4, return_prefix_tokens=True)[0][1][:, 0]
    torch.testing.assert_close(rows[:, reader.kinds["last4"]][:, :192], model.fc_norm(first))
    torch.testing.assert_close(wide_features(model, images, ATTENTIVE), model.fc_norm(tokens[:, 1:]))


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("name, tokens, size",
                         [("resnet18", (4, 512), 64), ("swin_tiny_patch4_window7_224", (49, 768), 224),
                                                ("efficientvit_m0", (4, 192), 128),
                                                ("mobilenetv3_small_050", (4, 288), 64)])
def test_other_models_have_what_their_head_reads_and_the_places_of_their_last_map(name, tokens, size):
    model, images = model_of(name), images_of(size=size)
    reader = reader_of(model, size)
    assert list(reader.kinds) == [POOLED] and reader.tokens == tokens
    read = []
    models_vit.final_linear(model).register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    model(images)
    own = read[0]
    torch.testing.assert_close(reader(images), own)
    if name == "resnet18":
        torch.testing.assert_close(wide_features(model, images, ATTENTIVE).mean(dim=1), own)


@torch.no_grad()
def test_models_without_patch_tokens_or_of_few_blocks_have_fewer_kinds():
    pit = timm.create_model("pit_ti_224", num_classes=3).eval()
    reader = reader_of(pit, 224)
    assert list(reader.kinds) == [POOLED] and reader.tokens is None
    assert list(reader_of(model_of(depth=1)).kinds) == [POOLED, "cls_mean"]
    three = reader_of(model_of(depth=3))
    assert three.kinds["last4"] == slice(0, 4 * 192)


@torch.no_grad()
def test_a_model_whose_head_reads_something_else_keeps_that():
    model = model_of()
    model.forward_head = lambda features, pre_logits=False: model.head(features[:, 1])
    images = images_of()
    own = model.forward_features(images)[:, 0]
    model.forward = lambda images: model.head(model.forward_features(images)[:, 0])
    reader = reader_of(model)
    assert list(reader.kinds) == [POOLED] and reader.tokens is None
    torch.testing.assert_close(reader(images), own)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["cls", "cls_mean", "last4", ATTENTIVE])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3_qkvb"])
def test_a_model_with_a_wide_head_gives_out_what_the_head_makes_of_the_features(name, kind):
    model, images = model_of(name, **({"img_size": SIZE, "depth": 5} if "vit" in name else {})), images_of()
    names, width = set(model.state_dict()), {"cls": 1, "cls_mean": 2, "last4": 5,
                                             ATTENTIVE: 1}[kind] * model.num_features
    features = wide_features(model, images, kind)
    put_wide_head(model, "head", kind, width, 3)
    head = wide_head(model)
    for parameter in head.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    if kind == ATTENTIVE:
        shares = torch.softmax((features * head.query).sum(dim=2), dim=1)
        features = (shares[..., None] * features).sum(dim=1)
    torch.testing.assert_close(model(images), features @ head.weight.T + head.bias, rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == names | ({"head.query"} if kind == ATTENTIVE else set())
    assert models_vit.head_names(model) == ("head",) and models_vit.final_linear(model) is head
    copied = copy.deepcopy(model)
    copied.head.bias.add_(1)
    torch.testing.assert_close(copied(images), model(images) + 1)


@torch.no_grad()
def test_heads_run_in_fp32_whatever_the_precision():
    model = model_of()
    put_wide_head(model, "head", ATTENTIVE, 192, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images_of()).dtype == torch.float32


def test_the_reader_leaves_the_model_as_it_was():
    model = model_of().train()
    reader = reader_of(model)
    assert model.training and "forward" not in vars(model)
    before = model.eval()(images_of())
    reader(images_of())
    assert "forward" not in vars(model)
    torch.testing.assert_close(model(images_of()), before)


def test_a_query_of_nothing_takes_the_mean():
    tokens = torch.randn(2, 5, 7)
    torch.testing.assert_close(averaged(tokens, torch.zeros(7)), tokens.mean(dim=1))
