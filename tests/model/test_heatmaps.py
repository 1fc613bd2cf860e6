"""Maps equal what a second, plain way computes; a trained model's map lies on the one lesion that decides the
class."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import apply_rot_embed_cat
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from models_vit import (
    BACKBONES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Regressor,
    build_model,
    find_backbone,
    freeze_backbone,
)
from util.core.errors import InputError, RunError
from util.data.covariates import Covariate
from util.data.images.transforms import EvalTransform, eval_settings
from util.model.feature_kinds import put_wide_head, wide_head
from util.model.heatmaps import heat_maps, methods_of, overlay, read_index, write_overlays
from util.model.regression_head import RegressionHead
from util.options.model import HeadOptions


def small(arch: str, num_classes: int = 3, seed: int = 0) -> torch.nn.Module:
    """A row of the table at 4 x 4 patches, narrow and of two blocks, with weights that make its classes
    differ."""
    backbone = find_backbone(next(row.model for row in BACKBONES if row.arch == arch), arch)
    torch.manual_seed(seed)
    model = build_model(backbone, num_classes, 4 * backbone.patch, depth=2, embed_dim=48, num_heads=3)
    return shaken(model).eval()


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        # biases, class tokens and scales too, which start at 0, or next to it
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def tiny(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    settings = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    return shaken(timm.models.VisionTransformer(**settings | changes)).eval()


def images_for(model: torch.nn.Module, number: int = 2) -> torch.Tensor:
    size = getattr(model, "backbone", model).patch_embed.img_size
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(1))


def tiny_regressor(covariates=()) -> Regressor:
    model = tiny(num_classes=0)
    head = RegressionHead(8, 2, HeadOptions(head_embed_dim=8, head_depth=1, head_num_heads=2), covariates)
    return shaken(Regressor(model, head)).eval()


def plain_attention(layer: torch.nn.Module, tokens: torch.Tensor, rope: torch.Tensor | None):
    """Attention written out from a timm layer's weights -> what the layer gives out, its softmax (B, heads,
    N, N)."""
    if getattr(layer, "q_bias", None) is not None:
        bias = torch.cat([layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias])
    else:
        bias = layer.qkv.bias
    parts = F.linear(tokens, layer.qkv.weight, bias).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in parts)
    if rope is not None:
        first = layer.num_prefix_tokens
        q, k = (torch.cat([part[:, :, :first],
                           apply_rot_embed_cat(part[:, :, first:], rope, half=layer.rotate_half)], dim=2)
                for part in (q, k))
    weights = torch.einsum("bhid,bhjd->bhij", q, k).div(q.shape[-1] ** 0.5).softmax(dim=-1)
    mixed = torch.einsum("bhij,bhjd->bihd", weights, v).flatten(2)
    return layer.proj(layer.norm(mixed)), weights


def by_hand(monkeypatch, model, images, targets) -> dict[str, np.ndarray]:
    """Outputs, and the maps of both methods from attention written out and N x N matrices multiplied block by
    block."""
    backbone, seen = getattr(model, "backbone", model), []

    def written_out(layer):
        def forward(tokens, rope=None, attn_mask=None, is_causal=False):
            out, weights = plain_attention(layer, tokens, rope)
            weights.retain_grad()
            seen.append(weights)
            return out
        return forward

    with monkeypatch.context() as patch:
        for block in backbone.blocks:
            patch.setattr(block.attn, "forward", written_out(block.attn))
        outputs = model(images)
    outputs[range(len(images)), targets].sum().backward()
    model.zero_grad(set_to_none=True)
    tokens, prefix = seen[0].shape[-1], backbone.num_prefix_tokens
    pooled_from = 0 if getattr(backbone, "pool_include_prefix", False) else prefix
    rollout = gradient = torch.eye(tokens, dtype=images.dtype).expand(len(images), -1, -1)
    after = {"rollout": [], "gradient": []}  # each block
    for weights in seen:
        rollout = (0.5 * weights.mean(1) + 0.5 * torch.eye(tokens)) @ rollout
        gradient = gradient + (weights.grad * weights).clamp(min=0).mean(1) @ gradient
        after["rollout"].append(rollout)
        after["gradient"].append(gradient)
    if wide_head(backbone) is not None:
        found = {name: read_by_wide_head(backbone, matrices, images) for name, matrices in after.items()}
        return {"outputs": outputs.detach()} | {name: stretched(row, backbone, images)
                                                for name, row in found.items()}
    rows = slice(pooled_from, None) if backbone.global_pool == "avg" else slice(0, 1)
    found = {"rollout": rollout[:, rows, prefix:].mean(1), "gradient": gradient[:, rows, prefix:].mean(1)}
    if backbone.global_pool == "avg":
        # the identity that relevance starts from
        found["gradient"] = found["gradient"] - 1 / (tokens - pooled_from)
    return {"outputs": outputs.detach()} | {name: stretched(row, backbone, images)
                                            for name, row in found.items()}


def read_by_wide_head(model, matrices, images) -> torch.Tensor:
    """(B, P) of the patches: what the head reads of the matrices after each block. The constant that a mean
    starts from goes where a map is stretched."""
    head, prefix, last = wide_head(model), model.num_prefix_tokens, matrices[-1]
    if head.kind == "attentive":
        tokens = model.forward_features(images)[:, prefix:].detach().requires_grad_()
        shares = torch.softmax(tokens @ head.query, dim=1)
        if matrices[0].sum(dim=2).allclose(torch.ones(1)):  # a rollout: of rows that are shares, too
            return (shares[:, None] @ last[:, prefix:, prefix:])[:, 0].detach()
        outputs = (shares[:, None] @ tokens)[:, 0] @ head.weight.T
        gradient, = torch.autograd.grad(outputs[range(len(images)), [1] * len(images)].sum(), shares)
        return ((shares * gradient).clamp(min=0)[:, None] @ last[:, prefix:, prefix:])[:, 0].detach()
    found = last[:, 0, prefix:]
    if head.kind != "cls":
        found = found + last[:, prefix:, prefix:].mean(1)
    if head.kind == "last4":
        found = found + sum(matrix[:, 0, prefix:] for matrix in matrices[:-1])
    return found


def stretched(row: torch.Tensor, backbone: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    patch = backbone.patch_embed.patch_size[0]
    grid = row.detach().reshape(len(row), 1, *(side // patch for side in images.shape[2:]))
    fine = F.interpolate(grid, images.shape[2:], mode="bilinear")[:, 0].double().numpy()
    return np.stack([(one - one.min()) / (one.max() - one.min()) for one in fine])


@pytest.mark.parametrize("kind, width", [("cls", 8), ("cls_mean", 16), ("last4", 24), ("attentive", 8)])
def test_maps_of_a_head_that_reads_more(monkeypatch, kind, width):
    """last4 of two blocks reads the class tokens of both."""
    model = tiny(img_size=32)
    put_wide_head(model, "head", kind, width, 3)
    images = images_for(shaken(model))
    with torch.no_grad():
        for parameter in wide_head(model).parameters():
            parameter.mul_(10)
    expected = by_hand(monkeypatch, model, images, [1, 1])
    np.testing.assert_allclose(model(images).detach(), expected["outputs"], rtol=1e-4, atol=1e-5)
    for method in ("gradient", "rollout"):
        np.testing.assert_allclose(heat_maps(model, images, [1, 1], method), expected[method], rtol=1e-3,
                                   atol=1e-3)


@pytest.mark.parametrize("arch", [row.arch for row in BACKBONES])
def test_every_row_of_the_table_equals_attention_written_out(monkeypatch, arch):
    model = small(arch)
    images, targets = images_for(model), [2, 0]
    plain = by_hand(monkeypatch, model, images, targets)
    with torch.no_grad():
        assert torch.allclose(model(images), plain["outputs"], atol=1e-5)
    for method in ("rollout", "gradient"):
        assert np.abs(heat_maps(model, images, targets, method) - plain[method]).max() < 2e-3, method
    assert methods_of(model)[0] == "gradient"
    assert np.array_equal(heat_maps(model, images, targets), heat_maps(model, images, targets, "gradient"))


def test_gradients_equal_finite_differences():
    model, images = tiny().double(), images_for(tiny(), 1).double()
    layers = [block.attn for block in model.blocks]
    for layer in layers:
        layer.fused_attn = False
    change, seen = {}, {}

    def changed(layer):
        def hook(module, given, weights):
            seen[layer] = weights
            return weights + change[layer] if layer in change else weights
        return hook

    handles = [layer.attn_drop.register_forward_hook(changed(layer)) for layer in layers]
    relevance = torch.eye(5, dtype=torch.float64)
    with torch.no_grad():
        model(images)
        for layer, weights in [(layer, seen[layer]) for layer in layers]:
            gradient = torch.zeros_like(weights)
            for place in np.ndindex(*weights.shape):
                for step in (1e-5, -1e-5):
                    change[layer] = torch.zeros_like(weights)
                    change[layer][place] = step
                    gradient[place] += model(images)[0, 1] / (2 * step)
            change.clear()
            relevance = relevance + (gradient * weights).clamp(min=0).mean(1)[0] @ relevance
    for handle in handles:
        handle.remove()
    expected = stretched(relevance[:1, 1:], model, images)
    assert np.abs(heat_maps(model, images, [1]) - expected).max() < 1e-5


@pytest.mark.parametrize("changes", [
    {"img_size": (16, 40), "reg_tokens": 2}, {"dynamic_img_size": True},
    {"img_size": (16, 40), "reg_tokens": 2, "global_pool": "avg", "class_token": False},
    {"img_size": (16, 40), "reg_tokens": 2, "global_pool": "avg", "pool_include_prefix": True}])
def test_patches_lie_in_rows_and_columns(monkeypatch, changes):
    model = tiny(**changes)
    images = torch.randn(2, 3, 16, 40, generator=torch.Generator().manual_seed(1))
    plain = by_hand(monkeypatch, model, images, [1, 1])
    for method in ("rollout", "gradient"):
        maps = heat_maps(model, images, [1, 1], method)
        assert maps.shape == (2, 16, 40) and maps.dtype == np.float32
        assert np.abs(maps - plain[method]).max() < 1e-3


def test_the_predicted_class_is_explained_and_parts_of_a_batch_agree():
    model = tiny()
    images = images_for(model, 700)  # more tokens than one pass takes
    predicted = model(images).argmax(dim=1)
    assert len(predicted.unique()) > 1
    maps = heat_maps(model, images)
    assert np.array_equal(maps, heat_maps(model, images, predicted))
    assert np.abs(maps[690:] - heat_maps(model, images[690:])).max() < 1e-4
    other = heat_maps(model, images, (predicted + 1) % 3)
    assert np.abs(maps - other).mean() > 0.05  # another class, another map
    rollouts = [heat_maps(model, images[:3], [number] * 3, "rollout") for number in (0, 2)]
    assert np.array_equal(*rollouts)  # knows of no class
    assert heat_maps(model, images[:0]).shape == (0, 16, 16)


def test_regression(monkeypatch):
    model = tiny_regressor()
    images = images_for(model)
    assert (model(images)[:, 1] * model(images)[:, 0] != 0).all()
    plain, signs = by_hand(monkeypatch, model, images, [1, 1]), model(images)[:, 1].sign()
    maps = heat_maps(model, images, [1, 1])
    for one, expected, sign in zip(maps, plain["gradient"], signs, strict=True):
        assert (np.abs(one - expected).max() < 1e-3) == (sign > 0)
    assert np.array_equal(heat_maps(model, images), heat_maps(model, images, [0, 0]))
    assert not np.allclose(maps, heat_maps(model, images), atol=0.01)
    with torch.no_grad():  # what pulls down explains a low output as what pushes up explains a high one
        model.regression_head.read.weight.neg_()
        model.regression_head.read.bias.neg_()
    assert np.abs(maps - heat_maps(model, images, [1, 1])).max() < 1e-5


def test_a_regression_that_reads_covariates():
    model, missing = (
        tiny_regressor([Covariate("age"), Covariate("eye", ("L", "R"))]),
        torch.full((2, 2), torch.nan),
    )
    images, known = images_for(model), torch.tensor([[1.5, 1.0], [-2.0, 0.0]])
    assert np.array_equal(heat_maps(model, images), heat_maps(model, images, covariates=missing))
    assert not np.array_equal(heat_maps(model, images), heat_maps(model, images, covariates=known))


def state_of(model):
    return ([(module.training, vars(module).get("fused_attn"), vars(module).get("grad_checkpointing"),
              len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
            [(p.requires_grad, p.grad) for p in model.parameters()],
            [t.clone() for t in model.state_dict().values()])


@pytest.mark.parametrize("method", ["gradient", "rollout", "gradcam"])
def test_the_model_is_left_as_found(method):
    model = timm.create_model("test_resnet", num_classes=3) if method == "gradcam" else tiny()
    images = torch.randn(2, 3, 64, 64) if method == "gradcam" else images_for(model)
    model.train()
    list(model.children())[1].eval()
    next(model.parameters()).requires_grad_(False)
    model.set_grad_checkpointing()
    if method != "gradcam":
        model.blocks[0].attn.fused_attn = False  # as a run in bf16 on a CPU has it
    before = state_of(model)
    heat_maps(model, images, method=method)
    with pytest.raises(RunError, match="not finite"):
        heat_maps(model, images * torch.nan, [0, 0], method=method)
    if method != "rollout":
        with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
            heat_maps(model, images, [0, 7], method=method)
    after = state_of(model)
    assert before[:2] == after[:2]
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))


@pytest.mark.parametrize("make", [tiny, lambda: timm.create_model("test_resnet", num_classes=3).eval()])
def test_callers_of_all_kinds_get_the_same_map(make):
    torch.manual_seed(0)
    model = make()
    images = torch.randn(2, 3, *((16, 16) if hasattr(model, "blocks") else (64, 64)))
    maps = heat_maps(model, images)
    assert maps.max() == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(maps, heat_maps(model, images))
    with torch.no_grad():
        assert np.array_equal(maps, heat_maps(model, images))
    with torch.inference_mode():
        assert np.array_equal(maps, heat_maps(model, images.clone(), model(images).argmax(1)))
        torch.manual_seed(0)
        assert np.array_equal(maps, heat_maps(make(), images))  # even the weights were made in inference mode
    freeze_backbone(model)
    assert np.array_equal(maps, heat_maps(model, images))
    model.requires_grad_(False)
    assert np.array_equal(maps, heat_maps(model, images))
    model.compile(backend="eager")
    assert np.array_equal(maps, heat_maps(model, images))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name, changes, size", [
    ("test_resnet", {}, 96), ("test_efficientnet", {}, 96),
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2)},
     224)])
def test_gradcam_equals_its_formula(name, changes, size):
    torch.manual_seed(1)
    model = shaken(timm.create_model(name, num_classes=3, **changes)).eval()
    images = torch.randn(3, 3, size, size)
    features = model.forward_features(images)
    gradients = torch.autograd.grad(model.forward_head(features)[:, 2].sum(), features)[0]
    if name.startswith("swin"):
        features, gradients = features.permute(0, 3, 1, 2), gradients.permute(0, 3, 1, 2)
    coarse = (gradients.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
    fine = F.interpolate(coarse, (size, size), mode="bilinear")[:, 0].detach().numpy()
    maps = heat_maps(model, images, [2, 2, 2])
    for one, expected in zip(maps, fine, strict=True):
        spread = expected.max() - expected.min()
        assert np.abs(one - (expected - expected.min()) / (spread or 1)).max() < 1e-4
    assert maps.max() == 1


@pytest.mark.parametrize("name, changes, says", [
    ("mixer_s32_224", {}, "heat maps of MlpMixer can't be made"),
    ("cait_xxs24_224", {"depth": 1}, "heat maps of Cait can't be made"),
    ("xcit_nano_12_p16_224", {}, "heat maps of Xcit can't be made"),
])
def test_models_that_have_no_map(name, changes, says):
    model = timm.create_model(name, num_classes=2, **changes)
    with pytest.raises(InputError, match=says):
        heat_maps(model, torch.zeros(1, 3, 224, 224))


def test_methods_of_a_kind_of_model():
    assert methods_of(tiny()) == ("gradient", "rollout")
    assert methods_of(timm.create_model("test_resnet", num_classes=2)) == ("gradcam",)


# --- images ---

@pytest.mark.parametrize("decode", ["full", "scaled"])
def test_the_picture_is_what_the_model_saw(tmp_path, decode):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 14, 3), dtype=np.uint8))
    picture = coarse.resize((280, 180), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "a.png")
    seen = EvalTransform(eval_settings(112, IMAGENET_MEAN, IMAGENET_STD, decode)).pixels(tmp_path / "a.png")
    expected = TF.center_crop(TF.resize(picture, 128, TF.InterpolationMode.BICUBIC), 112)
    difference = np.abs(np.asarray(seen, float) - np.asarray(expected, float))
    assert difference.max() == 0 if decode == "full" else difference.mean() < 2


def test_overlay():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8))
    heat = np.zeros((8, 12), np.float32)
    heat[2, 9] = 1
    laid = np.asarray(overlay(picture, heat)).astype(int)
    changed = (laid != np.asarray(picture)).any(axis=2)
    assert changed.sum() == 1 and changed[2, 9]
    yellow = 0.35 * np.asarray(picture)[2, 9] + 0.65 * np.array([253, 231, 37])
    assert np.abs(laid[2, 9] - yellow).max() <= 1
    assert overlay(picture.convert("L"), heat).mode == "RGB"


def grey(number):
    return [Image.new("RGB", (6, 6), (90, 90, 90))] * number, np.full((number, 6, 6), 0.5, np.float32)


def test_overlays_are_written_and_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ["left/eye 1.jpg", "right/eye 1.jpg", "right/eye 1.png", tmp_path / "right" / ("目" * 70 + ".jpg"),
             "a" * 250 + ".png", b"right/\xff?.jpg".decode(errors="surrogateescape")]
    pictures, maps = grey(len(paths))
    names = write_overlays(paths, maps, tmp_path / "run" / "heatmaps", pictures)
    assert list(names) == [str(tmp_path / path) for path in paths] and len(set(names.values())) == len(paths)
    assert names[str(tmp_path / "left" / "eye 1.jpg")].startswith("eye_1_")
    folder = tmp_path / "run" / "heatmaps"
    for name in names.values():
        assert np.asarray(Image.open(folder / name)).shape == (6, 6, 3)
    assert json.loads((folder / "heatmaps.json").read_text()) == names == read_index(folder)
    more = write_overlays(["new.png"], maps[:1], folder, pictures[:1])
    again = write_overlays(paths[:1], maps[:1], folder, pictures[:1])
    assert again.items() <= names.items()
    assert read_index(folder) == names | more
    assert {path.name for path in folder.iterdir()} == {
        *names.values(),
        *more.values(),
        "heatmaps.json",
        ".lock",
    }


def test_many_writers_lose_nothing(tmp_path):
    pictures, maps = grey(1)
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda name: write_overlays([f"/eyes/{name}.png"], maps, tmp_path, pictures),
                                range(40)))
    assert len(read_index(tmp_path)) == len(written) == 40


def test_folders_that_cannot_be_used(tmp_path):
    pictures, maps = grey(1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name another folder"):
        write_overlays(["a.png"], maps, tmp_path / "file", pictures)
    for content, says in (("{", "is no JSON"), ("[1]", "does not list"), ('{"a": 1}', "does not list")):
        (tmp_path / "heatmaps.json").write_text(content)
        with pytest.raises(InputError, match=says):
            write_overlays(["a.png"], maps, tmp_path, pictures)
        assert (tmp_path / "heatmaps.json").read_text() == content
    assert read_index(tmp_path / "none") == {}
