"""Weights of other makers, in the names that their own code gives them: every tensor is used, and the
features are those of a second computation (tests/written_out_vit.py).

Their files themselves are not here: weights are the recipe's (tests/parity.py), names and shapes those of
their makers' code, as docs/weights.md says.
"""

import argparse
import re
import zipfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import checkpoint_filter_fn

import models_vit
from jobs.data import normalisation
from models_vit import BACKBONES, build_model, find_backbone, load_backbone, resolve_input_size
from tests import parity, written_out_vit
from tests.documents import weights_table
from tests.parity import row
from tests.written_out_vit import last_tokens, norm
from util.core.errors import InputError
from util.weights.fitting import fit, read_weights

TOLERANCE = 1e-4
REGISTERS = tuple(backbone.arch for backbone in BACKBONES if backbone.family == "dinov2_reg")
WITHOUT = {arch: arch.removesuffix("_reg4") for arch in REGISTERS}  # the same size, without registers
HEADS = {"retfound_green": 6, "urfound": 12, "deretfound": 16, "visionfm_fundus": 12, "visionfm_oct": 12,
         "visionfm_ffa": 12, **dict(zip(REGISTERS, (6, 12, 16, 24), strict=True))}


def timm_shapes(arch: str, depth: int | None, size: int) -> dict[str, tuple[int, ...]]:
    changes = {} if depth is None else {"depth": depth}
    with torch.device("meta"):
        model = timm.create_model(row(arch).timm_name, num_classes=0, img_size=size, **changes)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def shapes_of(arch: str, depth: int | None = None) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a maker's file, without its wrapper; depth: so many blocks alone."""
    if arch in REGISTERS:
        shapes = {name: tuple(shape) for name, shape, _ in parity.manifest(WITHOUT[arch])["tensors"]}
        shapes["register_tokens"] = (1, 4, shapes["cls_token"][-1])
    elif arch == "deretfound":
        shapes = {name: tuple(shape) for name, shape, _ in parity.manifest("retfound_mae")["tensors"]}
    elif arch == "retfound_green":
        shapes = timm_shapes(arch, depth, 392)
    else:
        shapes = timm_shapes(arch, depth, 224)
    if arch == "urfound":
        shapes |= {"mask_token": (1, 1, 768), "decoder_pos_embed": (1, 197, 768),
                   "decoder_embed.weight": (768, 768), "decoder_blocks.0.norm1.weight": (768,),
                   "decoder_pred.weight": (3072, 768), "bert_mlp.weight": (384, 768),
                   "bert_encoder.model.bert.embeddings.word_embeddings.weight": (9, 384)}
    if arch.startswith("visionfm"):
        shapes = {f"backbone.{name}": shape for name, shape in shapes.items()}
        shapes |= {"head.mlp.0.weight": (16, 768), "head.mlp.0.bias": (16,),
                   "head.last_layer.weight_g": (8, 1), "head.last_layer.weight_v": (8, 4)}
    blocks = re.compile(r"(?:backbone\.)?blocks\.(\d+)\.")
    return {name: shape for name, shape in shapes.items()
            if depth is None or not blocks.match(name) or int(blocks.match(name)[1]) < depth}


def whole_file(arch: str, tensors: dict[str, torch.Tensor]) -> dict:
    """What its maker's code saves around the tensors."""
    arguments = argparse.Namespace(lr=1e-3, model="x")
    if arch in ("urfound", "deretfound"):
        return {"model": tensors, "optimizer": {"state": {}}, "epoch": 3, "scaler": {}, "args": arguments}
    if arch.startswith("visionfm"):
        student = {f"module.{name}": tensor + 1 for name, tensor in tensors.items()}
        return {"student": student | {"module.backbone.masked_embed": torch.ones(1, 768)}, "teacher": tensors,
                "optimizer": {"state": {}}, "epoch": 400, "args": arguments,
                "ibot_loss": {"center": torch.zeros(1, 8)}}
    return tensors


def in_metas_names(arch: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the second computation takes of a maker's tensors."""
    flat = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    if arch == "retfound_green":  # timm's names: no position of the class token
        flat["register_tokens"] = flat.pop("reg_token")
        flat["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), flat["pos_embed"]], dim=1)
    return flat


def wanted_features(arch: str, tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """(B, D) what the maker's own code gives out for an image."""
    weights = in_metas_names(arch, tensors)
    registers = 4 if "register_tokens" in weights else 0
    x = last_tokens(weights, images, HEADS[arch], antialias=bool(registers))
    if row(arch).family == "mae":  # fc_norm is new: as a layer norm starts
        mean = x[:, 1:].mean(dim=1)
        return (mean - mean.mean(1, keepdim=True)) / (mean.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    x = norm(x, {name: tensor.double() for name, tensor in weights.items()}, "norm")
    return x[:, 1 + registers:].mean(dim=1) if arch == "retfound_green" else x[:, 0]


def images_of(side: int) -> torch.Tensor:
    drawn = np.random.RandomState(side).standard_normal((2, 3, side, side))
    return torch.from_numpy(drawn.astype(np.float32))


# sides in pixels; the first of each maker's is that of its files
CASES = {"dinov2_vits14_reg4": (518, 224), "dinov2_vitb14_reg4": (70,), "dinov2_vitl14_reg4": (70,),
         "dinov2_vitg14_reg4": (70,), "retfound_green": (392, 224), "urfound": (224, 96),
         "deretfound": (224,), "visionfm_fundus": (224, 96), "visionfm_oct": (48,), "visionfm_ffa": (48,)}


@pytest.mark.long
@pytest.mark.parametrize(("arch", "sides"), CASES.items())
@torch.no_grad()
def test_features_are_those_of_a_second_computation(tmp_path, arch, sides):
    depth = 2 if row(arch).parameters < 1e8 else 1
    tensors = parity.made(shapes_of(arch, depth), gain=4.0)
    path = tmp_path / "maker.pth"
    torch.save(whole_file(arch, tensors), path)
    for side in sides:
        model = build_model(row(arch), 0, side, depth=depth).eval()
        loaded = load_backbone(model, row(arch), str(path), "")
        assert loaded["used"] == loaded["expected"] and "PARTIAL" not in loaded["text"]
        images = images_of(side)
        wanted = wanted_features(arch, tensors, images)
        assert (model(images).double() - wanted).abs().max() < TOLERANCE, side


def test_every_row_that_says_so_is_compared_with_a_second_computation():
    assert {backbone.arch for backbone in BACKBONES if backbone.compared == models_vit.SECOND} == {
        *CASES} - {"deretfound"}
    # the last has the same code as RETFound_mae
    authors = {*parity.WITH_REFERENCE, "retfound_mae", "deretfound"}
    assert {backbone.arch for backbone in BACKBONES if backbone.compared == models_vit.AUTHORS} == authors


# ---- the second computation itself -------------------------------------------------------------------------

@pytest.mark.long
@pytest.mark.parametrize(("arch", "depth", "heads"), [("dinov2_vits14", 12, 6), ("dinov2_vitg14", 2, 24)])
@torch.no_grad()
def test_the_second_computation_is_metas(arch, depth, heads):
    """With DINOv2's offset, at 224 of 518 pixels; with peaked attention; the giant's gated layers."""
    gain = parity.manifest(arch)["ref"]["sharp_gain"]
    weights = parity.made({name: shape for name, shape, _ in parity.manifest(arch)["tensors"]
                           if not name.startswith("blocks.") or int(name.split(".")[1]) < depth}, gain)
    x = last_tokens(weights, parity.images(224)[:1], heads, offset=0.1)
    tokens = norm(x, {name: tensor.double() for name, tensor in weights.items()}, "norm")
    wanted = parity.reference(arch)
    assert abs(tokens[:, 0].numpy() - wanted["sharp_cls_224"][:1]).max() < TOLERANCE
    assert abs(tokens[:, 1:].mean(dim=1).numpy() - wanted["sharp_patchmean_224"][:1]).max() < TOLERANCE


@pytest.mark.long
@torch.no_grad()
def test_the_second_computation_is_maes():
    tensors = parity.manifest("mae_vitl16_finetune_cls")["tensors"]
    weights = parity.made({name: shape for name, shape, _ in tensors
                           if not name.startswith("blocks.") or int(name.split(".")[1]) < 2}, 2.5)
    tokens = norm(last_tokens(weights, parity.images(336), 16),
                  {name: tensor.double() for name, tensor in weights.items()}, "norm")
    assert abs(tokens[:, 0].numpy() - parity.reference("mae_vitl16")["sharp_cls_336"]).max() < TOLERANCE


@pytest.mark.parametrize("side", [16, 28, 50])
def test_its_resize_with_antialias_is_pillows(side):
    grid = np.random.RandomState(0).standard_normal((37, 37)).astype(np.float32)
    wanted = np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))
    matrix = written_out_vit.resizing_matrix(37, side, antialias=True)
    found = matrix @ torch.from_numpy(grid).double() @ matrix.T
    assert abs(found.numpy() - wanted).max() < 1e-5


# ---- DINOv2 with registers ---------------------------------------------------------------------------------

@torch.no_grad()
def test_registers_as_timm_converts_metas_file(tmp_path):
    """timm's own converter, at a size of another grid."""
    arch, tensors = "dinov2_vits14_reg4", parity.made(shapes_of("dinov2_vits14_reg4", depth=3), 1.0)
    torch.save(tensors, tmp_path / "meta.pth")
    model = build_model(row(arch), 0, 98, depth=3).eval()
    loaded = load_backbone(model, row(arch), str(tmp_path / "meta.pth"), "")
    assert "not needed: mask token 1" in loaded["text"]
    other = timm.create_model(row(arch).timm_name, num_classes=0, img_size=98, depth=3).eval()
    other.load_state_dict(checkpoint_filter_fn(dict(tensors), other))
    assert torch.allclose(model(images_of(98)), other(images_of(98)), atol=1e-5)
    # and what timm's names hold is loaded as it is: nothing is added twice
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    again = build_model(row(arch), 0, 98, depth=3)
    load_backbone(again, row(arch), str(tmp_path / "timm.pth"), "")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("arch", HEADS)
def test_names_of_a_whole_file_fit(arch):
    tensors = {name.removeprefix("backbone."): torch.empty(shape, device="meta")
               for name, shape in shapes_of(arch).items()}
    with torch.device("meta"):
        model = build_model(row(arch), 5, 2 * row(arch).patch)
    fitted = fit(model, tensors, row(arch).family, ("head",), with_head=False)
    assert fitted.complete and len(fitted.used) == len(fitted.expected), fitted.problems()


# ---- what a row says ---------------------------------------------------------------------------------------

def test_constants_and_sizes():
    green = find_backbone("retfound_green")
    assert resolve_input_size(green, None) == 392 and resolve_input_size(green, 224) == 224
    assert normalisation(green, "backbone") == ((0.5,) * 3, (0.5,) * 3,
                                                "its maker's, by which retfound_green was trained")
    assert normalisation(find_backbone("UrFound"), "backbone")[2].startswith("ImageNet's, by which urfound")
    kinds = [normalisation(find_backbone("VisionFM", f"visionfm_{kind}"), "backbone")[0]
             for kind in ("fundus", "oct", "ffa")]
    assert [round(mean[0], 3) for mean in kinds] == [0.424, 0.211, 0.202]
    with pytest.raises(InputError, match="pass --model_arch, one of visionfm_fundus, visionfm_oct"):
        find_backbone("VisionFM")


def test_the_table_says_where_each_file_is():
    for backbone in BACKBONES:
        assert (backbone.on_hub or backbone.weights[0].startswith("hf:")
                or backbone.model in weights_table.PUBLISHERS), backbone.arch
        assert backbone.on_hub or backbone.model in models_vit.HOW_TO_GET, backbone.arch


@pytest.mark.parametrize(("file_of", "given_to", "says"), [
    ("dinov2_vits14_reg4", "dinov2_vits14", "1 taken by nothing: register_tokens"),
    ("dinov2_vits14_reg4", "retfound_green", "1 missing: reg_token"),
    ("retfound_green", "dinov2_vits14", "1 taken by nothing: reg_token"),
    ("urfound", "visionfm_fundus", "taken by nothing: mask_token, decoder_pos_embed"),
    ("visionfm_fundus", "deretfound", "of another shape: cls_token (file 1 x 1 x 768, model 1 x 1 x 1024)"),
])
def test_a_file_of_another_maker_is_one_line(tmp_path, file_of, given_to, says):
    torch.save(whole_file(file_of, parity.made(shapes_of(file_of, depth=1), 1.0)), tmp_path / "w.pth")
    model = build_model(row(given_to), 0, 2 * row(given_to).patch, depth=1)
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        load_backbone(model, row(given_to), str(tmp_path / "w.pth"), "")
    assert "\n" not in str(caught.value) and f"--model {row(given_to).model}" in str(caught.value)


def test_a_file_that_is_not_there_says_where_it_is_to_be_had():
    for arch, says in (("retfound_green", "github.com/justinengelmann/RETFound_Green"),
                       ("deretfound", "unpack PreTraining.zip of zenodo.org/records/13340936")):
        with pytest.raises(InputError, match=re.escape(says)):
            load_backbone(torch.nn.Identity(), row(arch), row(arch).weights[0], "nowhere")


def test_an_archive_that_was_not_unpacked_says_what_is_in_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "PreTraining.zip", "w") as archive:
        archive.writestr("PreTraining/checkpoint-best.pth", b"0" * 100)
    with pytest.raises(InputError, match=r"files in it \(PreTraining/checkpoint-best.pth\): unpack it"):
        read_weights(tmp_path / "PreTraining.zip")


def test_a_fine_tuned_visionfm_gives_its_backbone(tmp_path):
    teacher = parity.made(shapes_of("visionfm_oct", depth=1), 1.0)
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in teacher.items()
               if name.startswith("backbone.")}
    torch.save({"epoch": 7, "classifier_state_dict": {"linear.weight": torch.ones(3, 8)},
                "visionfm_state_dict": tensors, "best_auc": 0.9}, tmp_path / "best.pth")
    file = read_weights(tmp_path / "best.pth")
    assert file.tensors.keys() == tensors.keys() and file.rest["epoch"] == 7


@pytest.mark.long
def test_a_run_says_what_it_reads_and_by_which_numbers(start, tmp_path):
    torch.save(parity.made(shapes_of("retfound_green"), 1.0), tmp_path / "retfoundgreen_statedict.pth")
    code, out, err = start("--model", "RETFound_Green", "--finetune", "retfoundgreen_statedict.pth",
                           "--weights_dir", tmp_path, "--nb_classes", 3, "--input_size", 28,
                           "--batch_size", 4, "--dry_run", "--device", "cpu", "--num_workers", 0, "--cls_token", small=False)
    assert code == 0, err
    assert "RETFound_Green retfound_green" in out and "reads the mean of the patch tokens" in out
    assert "normalised by mean 0.5 0.5 0.5" in out and "175/175 tensors" in out
    assert "--cls_token changes nothing: retfound_green reads the mean of the patch tokens anyway" in out
