"""The backbones compute what their authors' own code computes, and nothing is loaded that does not fit."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import models_vit
from models_vit import BACKBONES, build_model, find_backbone, load_backbone, load_trained, resolve_input_size
from tests import parity
from tests.parity import build_and_load, recipe_file, row
from util.core.errors import InputError
from util.weights.fitting import read_weights

TOLERANCE = 1e-4


# in the slow tests: the small ones run the same code
LARGE = ("dinov2_vitg14", "dinov3_vith16plus", "dinov3_vit7b16")


@pytest.mark.long
@pytest.mark.parametrize("arch", [pytest.param(arch, marks=[pytest.mark.slow] if arch in LARGE else [])
                                  for arch in parity.WITH_REFERENCE])
def test_features_are_the_authors(tmp_path, arch):
    assert max(parity.measured(arch, tmp_path).values()) < TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("kind", parity.MAE_FILES)
def test_mae_features_are_the_authors(tmp_path, kind):
    assert max(parity.measured_mae(kind, tmp_path).values()) < TOLERANCE


@pytest.mark.long
def test_block_chunks_load_like_the_flat_file(tmp_path):
    flat, _ = build_and_load(recipe_file(tmp_path, "retfound_dinov2"), "retfound_dinov2", 224)
    path = recipe_file(tmp_path, "retfound_dinov2", file_arch="retfound_dinov2_chunks4")
    assert any(name.startswith("backbone.blocks.0.1.") for name in torch.load(path)["teacher"])
    chunked, loaded = build_and_load(path, "retfound_dinov2", 224)
    assert "DINO and iBOT heads" in loaded["text"]
    assert all(torch.equal(a, b) for a, b in zip(flat.parameters(), chunked.parameters(), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("arch", ["dinov2_vits14", "dinov3_vits16", "dinov3_vits16plus"])
def test_timm_names_and_safetensors_load_the_same(tmp_path, arch):
    from safetensors.torch import save_file

    model, _ = build_and_load(recipe_file(tmp_path, arch), arch, 224)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              tmp_path / "timm.safetensors")
    again = build_model(row(arch), 0, 224).eval()
    loaded = load_backbone(again, row(arch), str(tmp_path / "timm.safetensors"), "")
    assert loaded["used"] == loaded["expected"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.long
def test_timm_file_without_biases_means_zero_biases(tmp_path):
    import timm

    torch.manual_seed(0)
    plain = timm.create_model("vit_small_patch16_dinov3", num_classes=0, global_pool="token").eval()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = build_model(row("dinov3_vits16"), 0, 224).eval()
    loaded = load_backbone(model, row("dinov3_vits16"), str(tmp_path / "plain.pth"), "")
    assert "zero" in loaded["text"]
    with torch.no_grad():
        assert torch.allclose(model(parity.images(224)), plain(parity.images(224)), atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda t: t.pop("blocks.1.mlp.fc1.weight"), "1 missing: blocks.1.mlp.fc1.weight"),
        (
            lambda t: t.update({"blocks.99.norm1.weight": torch.ones(384)}),
            "1 taken by nothing: blocks.99.norm1.weight",
        ),
        (lambda t: t.update({"blocks.0.norm1.weight": torch.ones(7)}), "file 7, model 384"),
        (lambda t: t.update({"pos_embed": torch.ones(1, 99, 384)}), "pos_embed (file 1 x 99 x 384"),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, spoil, says):
    path = parity.weight_file(tmp_path / "w.pth", "dinov2_vits14")
    tensors = torch.load(path, weights_only=True)
    spoil(tensors)
    torch.save(tensors, path)
    model = build_model(row("dinov2_vits14"), 5, 224)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=re.escape(says)):
        load_backbone(model, row("dinov2_vits14"), str(path), "")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    loaded = load_backbone(model, row("dinov2_vits14"), str(path), "", allow_partial=True)
    assert "PARTIAL" in loaded["text"] and says in loaded["text"]


def test_weights_of_another_model_are_refused(tmp_path):
    path = parity.weight_file(tmp_path / "w.pth", "dinov3_vits16")
    model = build_model(row("dinov2_vits14"), 5, 224)
    with pytest.raises(InputError, match="does not fit --model Dinov2"):
        load_backbone(model, row("dinov2_vits14"), str(path), "")


@pytest.mark.long
def test_line_of_a_load(tmp_path):
    model, loaded = build_and_load(recipe_file(tmp_path, "dinov2_vits14"), "dinov2_vits14", 224)
    assert (loaded["used"], loaded["expected"]) == (174, 174)
    assert re.search(r"weights: \S+ +sha256 [0-9a-f]{64} +174/174 tensors, 21,628,800 parameters; "
                     r"not needed: mask token 1", loaded["text"])
    assert sum(p.numel() for p in model.parameters()) == 21_628_800


@pytest.mark.long
def test_name_with_a_sha256_is_held_to_it(tmp_path):
    path = parity.weight_file(tmp_path / "dinov2_vits14_pretrain-00000000.pth", "dinov2_vits14")
    model = build_model(row("dinov2_vits14"), 0, 224)
    with pytest.raises(InputError, match="not the file that its name says"):
        load_backbone(model, row("dinov2_vits14"), str(path), "")


@pytest.mark.long
@pytest.mark.parametrize("arch", [row.arch for row in BACKBONES])
def test_parameters_of_the_table(arch):
    with torch.device("meta"):
        model = build_model(row(arch), 0, 224)
    assert models_vit.count_parameters(model) == row(arch).parameters


@pytest.mark.long
@pytest.mark.parametrize("arch", ["dinov2_vitb14", "dinov3_vitb16", "dinov2_vitg14", "dinov3_vit7b16",
                                  "dinov3_vith16plus", "retfound_mae", "retfound_dinov2"])
def test_full_depth_names_fit_without_memory(arch):
    """Every tensor of the published manifest finds its place at full depth (on meta: nothing is computed)."""
    from util.weights.fitting import fit

    man = parity.manifest(arch)
    tensors = {re.sub(r"^backbone\.", "", name): torch.empty(shape, device="meta")
               for name, shape, _ in man["tensors"] if "bias_mask" not in name
               and not name.endswith("qkv.bias")}
    tensors |= {re.sub(r"^backbone\.", "", name): torch.zeros(shape) for name, shape, _ in man["tensors"]
                if "bias_mask" in name or name.endswith("qkv.bias")}
    with torch.device("meta"):
        model = build_model(row(arch), 5, 336)
    fitted = fit(model, tensors, row(arch).family, ("head",), with_head=False)
    assert fitted.complete, fitted.problems()
    assert len(fitted.used) == len(fitted.expected)


def test_rows():
    """SPEC: six RETFound files on the hub, six DINOv3, four DINOv2 and any timm model; then four DINOv2 with
    registers and six files of other makers."""
    assert sum(len(row.weights) for row in BACKBONES) + 1 == 17 + 4 + 6
    assert len(models_vit.HUB_FILES) == 6
    assert models_vit.HUB_FILES["RETFound_mae_meh"] == ("YukunZhou/RETFound_mae_meh", "RETFound_mae_meh.pth")


@pytest.mark.parametrize("model, arch, says", [
    ("RETFound", None, "--model RETFound is unknown"),
    ("Dinov3", None, "pass --model_arch, one of dinov3_vits16,"),
    ("Dinov2", "dinov3_vits16", "belongs to --model Dinov3"),
    ("RETFound_mae", "vit_large", "choose retfound_mae"),
    ("timm", None, "needs --model_arch"),
    ("timm", "efficientnet_b99", "did you mean"),
])
def test_wrong_model_names(model, arch, says):
    with pytest.raises(InputError, match=re.escape(says)):
        find_backbone(model, arch)


def test_names_without_regard_to_case_and_default_arch():
    assert find_backbone("RETFound_dinov2").arch == "retfound_dinov2"
    assert find_backbone("dinov3", "DINOv3_vitS16").arch == "dinov3_vits16"
    assert find_backbone("vit_large_patch16").arch == "retfound_mae"
    assert find_backbone("timm", "efficientnet_b4").timm_name == "efficientnet_b4"


def test_input_size():
    dinov2 = row("dinov2_vits14")
    assert resolve_input_size(dinov2, None) == 224
    assert resolve_input_size(dinov2, 392) == 392
    with pytest.raises(InputError, match="nearest sizes are 378 and 392"):
        resolve_input_size(dinov2, 384)
    assert resolve_input_size(find_backbone("timm", "efficientnet_b4"), None) == 320
    assert resolve_input_size(find_backbone("timm", "efficientnet_b4"), 381) == 381
    with pytest.raises(InputError, match="nearest sizes are 64 and 80"):
        resolve_input_size(find_backbone("timm", "vit_tiny_patch16_224"), 70)


@pytest.mark.long
@pytest.mark.parametrize("name, size", [("resnet18", 64), ("convnext_atto", 96), ("efficientnet_b0", 64),
                                        ("vit_tiny_patch16_224", 64), ("efficientvit_m0", 128),
                                        ("levit_128s", 96),
                                        ("swin_tiny_patch4_window7_224", 112)])
def test_timm_models_build_train_and_load(tmp_path, name, size):
    backbone = find_backbone("timm", name)
    torch.manual_seed(0)
    model = build_model(backbone, 3, resolve_input_size(backbone, size))
    assert model(torch.randn(2, 3, size, size)).shape == (2, 3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    other = build_model(backbone, 7, size)
    loaded = load_backbone(other, backbone, str(tmp_path / "w.pth"), "")
    heads = tuple(f"{name}." for name in models_vit.head_names(model))
    same = {name: torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items()
            if not name.startswith(heads)}
    assert all(same.values()) and loaded["used"] == len(same)


@pytest.mark.long
def test_two_passes_of_fc_norm(tmp_path):
    """The original's present code applies fc_norm twice; a second way of computing it here."""
    path = parity.weight_file(tmp_path / "mae.pth", "mae_vitl16_finetune_gp", depth=2,
                              original_checkpoint=True)
    logits = {}
    for passes in (1, 2):
        model = build_model(row("retfound_mae"), 1000, 224, fc_norm_passes=passes, depth=2).eval()
        file = read_weights(path)
        assert file.arguments["model"] == "RETFound_mae"
        load_trained(model, row("retfound_mae"), file)
        with torch.no_grad():
            logits[passes] = model(parity.images(224))
    with torch.no_grad():
        pooled = model.forward_features(parity.images(224))[:, 1:].mean(1)
        norm = torch.nn.LayerNorm(1024, eps=1e-6)
        norm.load_state_dict({"weight": file.tensors["fc_norm.weight"], "bias": file.tensors["fc_norm.bias"]})
        by_hand = torch.nn.functional.linear(norm(norm(pooled)), file.tensors["head.weight"],
                                             file.tensors["head.bias"])
    assert torch.allclose(logits[2], by_hand, atol=1e-5)
    assert (logits[1] - logits[2]).abs().max() > 1e-3


@pytest.mark.long
def test_original_checkpoint_in_metas_names_scores_here(tmp_path):
    """DINOv3 as the original saves it: Meta's names, head.*, args as a Namespace."""
    backbone_file = recipe_file(tmp_path, "dinov3_vits16", "bf16p_sharp_")
    model, _ = build_and_load(backbone_file, "dinov3_vits16", 224)
    content = torch.load(backbone_file, weights_only=True)
    content |= {"head.weight": torch.randn(4, 384), "head.bias": torch.randn(4)}
    path = tmp_path / "checkpoint-best.pth"
    torch.save({"model": content, "epoch": 7, "args": argparse.Namespace(model="Dinov3", lr=0.1)}, path)
    file = read_weights(path)
    trained = build_model(row("dinov3_vits16"), 4, 224).eval()
    load_trained(trained, row("dinov3_vits16"), file)
    with torch.no_grad():
        features = model.forward_features(parity.images(224))[:, 0]
        by_hand = torch.nn.functional.linear(features, content["head.weight"], content["head.bias"])
        assert torch.allclose(trained(parity.images(224)), by_hand, atol=1e-5)
    with pytest.raises(InputError, match="head.weight .file 4 x 384, model 5 x 384"):
        load_trained(build_model(row("dinov3_vits16"), 5, 224), row("dinov3_vits16"), file)
    with pytest.raises(InputError, match="has no classifier"):
        load_trained(trained, row("dinov3_vits16"), read_weights(backbone_file))


def test_head_starts_near_zero_and_probe_freezes_the_rest():
    model = build_model(row("dinov2_vits14"), 5, 224)
    assert 0 < model.head.weight.abs().max() < 1e-3
    models_vit.freeze_backbone(model)
    assert models_vit.count_parameters(model, trainable_only=True) == 384 * 5 + 5


@pytest.mark.long
def test_building_needs_no_network_and_no_weights():
    """All rows build on meta in a process whose sockets raise."""
    code = ("import socket\n"
            "def refuse(*a, **k): raise AssertionError('network')\n"
            "socket.socket.connect = refuse\n"
            "import torch, models_vit\n"
            "with torch.device('meta'):\n"
            "    for row in models_vit.BACKBONES: models_vit.build_model(row, 5, 224)\n"
            "print('built', len(models_vit.BACKBONES))")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         cwd=Path(__file__).parent.parent)
    assert run.stdout.strip() == f"built {len(BACKBONES)}", run.stderr


def test_rotary_periods_of_our_own_checkpoints_come_along(tmp_path):
    """A new run that starts from a trained DINOv3's weights keeps the periods that those were trained
    with."""
    row = parity.row("dinov3_vits16")
    first = build_model(row, 0, 224)
    load_backbone(first, row, str(parity.weight_file(tmp_path / "meta.pth", row.arch, periods="bf16")), "")
    assert not torch.equal(first.rope.periods, build_model(row, 0, 224).rope.periods)
    torch.save({"model": first.state_dict(), "buffers": {"rope.periods": first.rope.periods}, "format": 1,
                "options": {},
                "class_names": ["a", "b"]}, tmp_path / "ours.pth")
    second = build_model(row, 0, 224)
    load_backbone(second, row, str(tmp_path / "ours.pth"), "")
    assert torch.equal(second.rope.periods, first.rope.periods)


@pytest.mark.parametrize("arch", ["test_vit", "test_resnet", "test_convnext", "efficientvit_m0",
                                  "vit_tiny_patch16_224"])
def test_the_final_layer_of_what_the_reader_reads_is_the_models_output(arch):
    torch.manual_seed(0)
    backbone = models_vit.find_backbone("timm", arch)
    model = models_vit.build_model(backbone, 4, 64).eval()
    reader = models_vit.feature_reader(model, 64)
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        features = reader(images)[:, reader.kinds["pooled"]]
        assert features.shape == (3, models_vit.final_linear(model).in_features)
        torch.testing.assert_close(models_vit.final_linear(model)(features), model(images))


def test_a_model_of_two_classifiers_has_no_reader():
    model = models_vit.build_model(models_vit.find_backbone("timm", "deit_tiny_distilled_patch16_224"), 4, 64)
    assert models_vit.feature_reader(model, 64) is None


def test_a_model_that_does_more_than_its_last_layer_has_no_reader(monkeypatch):
    model = models_vit.build_model(models_vit.find_backbone("timm", "test_vit"), 4, 64)
    plain = model.forward
    monkeypatch.setattr(model, "forward", lambda images: plain(images) * 2)
    assert models_vit.feature_reader(model, 64) is None


def test_the_classifier_runs_in_fp32():
    model = models_vit.build_model(models_vit.find_backbone("timm", "test_vit"), 4, 64).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        features = model.forward_head(model.forward_features(torch.randn(2, 3, 64, 64)), pre_logits=True)
        logits = model.head(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, features.float() @ model.head.weight.T + model.head.bias)
