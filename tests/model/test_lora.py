"""Adapters: every one learns, on every backbone; merged they are the same model; what is saved is what is
trained."""

import copy
import sys

import pytest
import timm
import torch

import models_vit
from jobs.model import choose_part, describe_part
from jobs.tasks.classification import Classification
from jobs.tasks.regression import Regression
from models_vit import BACKBONES, build_model
from tests.conftest import needs_package
from tests.parity import row
from util.core.errors import InputError
from util.model import lora
from util.model.lr_decay import layer_of_parameters, parameter_groups
from util.options.flag import FINETUNE
from util.options.groups import Options
from util.weights.fitting import WeightFile

OPTIONS = {"adaptation": "lora", "lora_rank": 4, "lora_alpha": 8.0, "lora_dropout": 0.0,
           "lora_targets": "attention",
           "select_metric": "loss"}


def adapted(model, backbone, **changes):
    needs_package("peft")
    kind = Regression if isinstance(model, models_vit.Regressor) else Classification
    choose_part(kind(Options.of(FINETUNE, OPTIONS | changes)), model, backbone)
    return model


def on_meta(arch: str, regression: bool = False):
    with torch.device("meta"):
        body = build_model(row(arch), 0 if regression else 3, 2 * row(arch).patch, depth=2)
        return models_vit.Regressor(body, torch.nn.Linear(body.num_features, 2)) if regression else body


@torch.no_grad()
def disturb(model) -> None:
    """Adapters as after training, in a model whose layers all count (LayerScale starts at 1e-5 and would hide
    them)."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "head" in name:
            parameter.normal_(std=0.05)
        elif name.endswith(("gamma", "gamma_1", "gamma_2")):
            parameter.fill_(1.0)


MLP = {"dinov3_vit7b16": "fc1_g fc1_x fc2",
       "dinov3_vits16plus": "fc1_g fc1_x fc2", "dinov3_vith16plus": "fc1_g fc1_x fc2"}


@pytest.mark.long
@pytest.mark.parametrize("arch", [backbone.arch for backbone in BACKBONES])
def test_every_adapter_of_every_backbone_has_a_gradient(arch):
    backbone = row(arch)
    model = adapted(on_meta(arch), backbone)
    blocks = [f"blocks.{number}." for number in range(2)]
    assert lora.adapted_layers(model) == [f"{block}attn.{name}" for block in blocks
                                          for name in ("qkv", "proj")]
    lora.require_gradients(model, 2 * backbone.patch, arch)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"head.weight", "head.bias"} | (
        {"fc_norm.weight", "fc_norm.bias"} if backbone.family == "mae" else set())

    model = adapted(on_meta(arch, regression=True), backbone, lora_targets="attention+mlp")
    names = [f"{block}{name}" for block in blocks for name in
             ("attn.qkv", "attn.proj", *(f"mlp.{layer}" for layer in MLP.get(arch, "fc1 fc2").split()))]
    assert lora.adapted_layers(model.backbone) == names
    lora.require_gradients(model.backbone, 2 * backbone.patch, arch)
    assert {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name} >= {
        "regression_head.weight", "regression_head.bias"}


@pytest.mark.long
def test_an_adapter_that_is_never_called_is_refused():
    """DINOv3's attention multiplies with qkv.weight itself unless it is told to keep its biases apart."""
    model = adapted(on_meta("dinov3_vits16"), row("dinov3_vits16"))
    for block in model.blocks:
        assert block.attn.qkv_bias_separate
        block.attn.qkv_bias_separate = False
    with pytest.raises(InputError, match=r"does not call blocks.0.attn.qkv, blocks.1.attn.qkv as layers"):
        lora.require_gradients(model, 32, "dinov3_vits16")


@pytest.mark.long
@pytest.mark.parametrize("arch", ["retfound_mae", "dinov2_vits14", "dinov3_vits16", "dinov3_vits16plus"])
def test_merged_is_the_same_model_and_loads_in_timm(arch):
    backbone, size = row(arch), 2 * row(arch).patch
    torch.manual_seed(0)
    plain = build_model(backbone, 3, size, depth=2).eval()
    disturb(plain)
    before, images = copy.deepcopy(plain), torch.randn(2, 3, size, size)
    model = adapted(plain, backbone, lora_targets="attention+mlp").eval()
    with torch.no_grad():
        assert torch.allclose(model(images), before(images), atol=1e-5)  # B is 0: nothing has changed yet
        disturb(model)
        outputs = model(images)
        assert (outputs - before(images)).abs().max() > 0.01
        lora.merge(model)
        assert (model(images) - outputs).abs().max() < 1e-5 * outputs.abs().max()
    assert list(model.state_dict()) == list(before.state_dict()) and not lora.adapted_layers(model)
    before.load_state_dict(model.state_dict())
    assert torch.equal(before(images), model(images))


def test_groups_of_the_optimizer_follow_the_layers_of_the_adapters():
    for regression in (False, True):
        model = adapted(on_meta("dinov3_vits16", regression), row("dinov3_vits16"))
        prefix = "backbone." if regression else ""
        groups = parameter_groups(model, 0.05, 0.5)
        scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
        assert scale[f"{prefix}blocks.0.attn.qkv.lora_A.default.weight"] == 0.25
        assert scale[f"{prefix}blocks.1.attn.proj.lora_B.default.weight"] == 0.5
        assert scale["regression_head.weight" if regression else "head.weight"] == 1
        assert set(scale) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_what_is_saved_is_what_is_trained_and_fits_nothing_else():
    model = adapted(timm.create_model("test_vit", num_classes=3, img_size=32),
                    models_vit.find_backbone("timm", "test_vit"))
    other = copy.deepcopy(model)
    disturb(model)
    state = lora.trained_state(model)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert len(state) == 2 * 12 + 2 and sum(map(torch.numel, state.values())) < 0.04 * whole
    assert lora.put_in(other, state, "a.pth") == 26
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
    state.pop("head.bias")
    with pytest.raises(InputError, match="a.pth holds an adapter that does not fit this model .head.bias"):
        lora.put_in(other, state, "a.pth")


def test_layers_that_are_named_and_those_that_are_not_there():
    model = timm.create_model("test_vit", num_classes=3)
    named = {targets: lora.layers_to_adapt(model, targets, ("head",), "test_vit")
             for targets in ("attention", "attn.qkv,fc2", r"blocks\.[45]\.mlp\.fc1", ".*", "proj")}
    assert len(named["attention"]) == 12 and named[r"blocks\.[45]\.mlp\.fc1"] == [
        "blocks.4.mlp.fc1",
        "blocks.5.mlp.fc1",
    ]
    assert named["attn.qkv,fc2"][:2] == ["blocks.0.attn.qkv",
                                         "blocks.0.mlp.fc2"] and len(named["attn.qkv,fc2"]) == 12
    assert "patch_embed.proj" in named[".*"] and "head" not in named[".*"]
    assert "patch_embed.proj" not in named["proj"] + named["attention"]
    with pytest.raises(InputError, match="resnet18 has no such layers; its layers' names end in conv1, "
                                         ".*--lora_targets"):
        lora.layers_to_adapt(timm.create_model("resnet18"), r"attn\..*", ("fc",), "resnet18")
    with pytest.raises(InputError, match="resnet18 has no such layers"):
        lora.layers_to_adapt(timm.create_model("resnet18"), "attention", ("fc",), "resnet18")
    with pytest.raises(InputError, match="--lora_rank 65 is above 64, the smaller side of blocks.0.attn.qkv"):
        adapted(model, models_vit.find_backbone("timm", "test_vit"), lora_rank=65)


def test_a_convolution_can_be_named():
    model = timm.create_model("resnet18", num_classes=3).eval()
    adapted(model, models_vit.find_backbone("timm", "resnet18"), lora_targets=r"layer4\..*conv\d")
    lora.require_gradients(model, 64, "resnet18")
    disturb(model)
    images = torch.randn(2, 3, 64, 64)
    outputs = model(images)
    lora.merge(model)
    assert torch.allclose(model(images), outputs, rtol=1e-4, atol=1e-5)


def test_pefts_own_format(tmp_path):
    """PeftModel.from_pretrained on timm's model with the base weights is the merged model."""
    peft = needs_package("peft")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    base = copy.deepcopy(model)
    adapted(model, models_vit.find_backbone("timm", "test_vit"))
    disturb(model)
    lora.write_peft(tmp_path / "adapter", model, ["head"], lora.tensors_of_peft(model, ["head"]), "base.pth")
    assert {path.name for path in tmp_path.glob("adapter/*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    images = torch.randn(2, 3, 32, 32)
    outputs = model(images)
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert torch.allclose(again(images), outputs, atol=1e-6)


def test_without_peft_one_line_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError,
                       match=r"^--adaptation lora needs PEFT, .*: pip install -r requirements-lora.txt$"):
        lora.require()


def test_a_file_that_does_not_say_how_its_adapter_was_made(tmp_path):
    made = {"rank": 8, "alpha": 16.0, "dropout": 0, "targets": "attention"}
    rest = {"adapter": made, "weights": {"name": "a", "path": "b", "sha256": "c"}, "options": {}}
    assert lora.Settings.stored_in(WeightFile(tmp_path / "x.pth", {},
                                              rest=rest)) == lora.Settings(8, 16.0, 0, "attention")
    for wrong in ({"adapter": None}, {"adapter": made | {"rank": "8"}}, {"adapter": made | {"rank": 0}},
                  {"weights": None},
                  {"adapter": made | {"targets": "("}}, {"weights": {"name": "a", "path": "b"}},
                  {"options": 3}):
        with pytest.raises(InputError, match="is damaged: it does not say how its adapter was made"):
            lora.Settings.stored_in(WeightFile(tmp_path / "x.pth", {}, rest=rest | wrong))


# ---- the last blocks ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("arch", [backbone.arch for backbone in BACKBONES])
def test_last_blocks_of_every_backbone(arch):
    for regression in (False, True):
        model = on_meta(arch, regression)
        options = Options.of(FINETUNE, {"select_metric": "loss", "train_last_blocks": 1})
        choose_part((Regression if regression else Classification)(options), model, row(arch))
        trained = {name.removeprefix("backbone.") for name, p in model.named_parameters() if p.requires_grad}
        norms = {"fc_norm"} if row(arch).family == "mae" else {"norm"}
        assert {name.split(".")[0] for name in trained} == {
            "blocks",
            *norms,
            "regression_head" if regression else "head",
        }
        assert {name.split(".")[1] for name in trained if name.startswith("blocks")} == {"1"}
        assert "the last 1 blocks" in describe_part(options, model)[0]


def test_last_blocks_of_other_models_are_timms_steps():
    backbone = models_vit.find_backbone("timm", "resnet18")
    model = timm.create_model("resnet18", num_classes=3)
    _, last = layer_of_parameters(model)
    options = Options.of(FINETUNE, {"train_last_blocks": 2})
    choose_part(Classification(options), model, backbone)
    assert {".".join(name.split(".")[:2]) for name, p in model.named_parameters() if p.requires_grad} == {
        "layer4.0", "layer4.1", "fc.weight", "fc.bias"}
    with pytest.raises(InputError, match=f"--train_last_blocks {last}, but resnet18 has {last - 1} blocks"):
        choose_part(Classification(options.having(train_last_blocks=last)), model, backbone)
