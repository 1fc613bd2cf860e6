"""Checkpoints trained with the original scripts score here: names, Namespace, fc_norm twice, full
decoding."""

import argparse

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

import models_vit
from tests import parity
from tests.conftest import write_pictures


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A small test set of JPEGs whose full and scaled decoding differ."""
    folder = write_pictures(tmp_path_factory.mktemp("photographs"), numbers=(1, 1, 1))
    for path in list(folder.rglob("*.png")):
        Image.open(path).resize((1500, 1200), Image.Resampling.NEAREST).save(
            path.with_suffix(".jpg"), quality=92
        )
        path.unlink()
    return folder


def logits_by_hand(model, folder):
    """The documented evaluation on full images, written out once more with torchvision alone."""
    transform = T.Compose([T.Resize(256, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(224),
                           T.ToTensor(),
                           T.Normalize(models_vit.IMAGENET_MEAN, models_vit.IMAGENET_STD)])
    paths = sorted((folder / "test").rglob("*.jpg"))
    with torch.inference_mode():
        return model(torch.stack([transform(Image.open(path).convert("RGB"))
                                  for path in paths])).numpy(), paths


def score(start, tmp_path, photographs, *words):
    code, out, err = start("--eval", "--task", "o", "--nb_classes", 3, "--batch_size", 4, "--num_workers", 0,
                           "--device", "cpu", *words, data=photographs, small=False)
    assert code == 0, err
    return out, pd.read_csv(tmp_path / "output_dir/o/predictions_test.csv").filter(like="logit_").to_numpy()


def test_dinov2_in_timm_names(start, tmp_path, photographs):
    torch.manual_seed(0)
    model = models_vit.build_model(models_vit.find_backbone("Dinov2", "dinov2_vits14"), 3, 224).eval()
    torch.nn.init.normal_(model.head.weight)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            # at timm's start, 1e-5, a block changes nothing and no difference shows
            torch.nn.init.ones_(parameter)
    arguments = argparse.Namespace(model="Dinov2", model_arch="dinov2_vits14", nb_classes=3, input_size=224,
                                   lr=1e-3)
    torch.save({"model": model.state_dict(), "epoch": 9, "args": arguments}, tmp_path / "checkpoint-best.pth")
    out, found = score(start, tmp_path, photographs, "--resume", tmp_path / "checkpoint-best.pth")
    assert "is a checkpoint of the original scripts (model Dinov2, epoch 9)" in out
    assert "decoding full" in out and "precision fp32" in out
    expected, _ = logits_by_hand(model, photographs)
    assert np.allclose(found, expected, atol=1e-4)
    _, scaled = score(start, tmp_path, photographs, "--resume", tmp_path / "checkpoint-best.pth", "--decode",
                      "scaled")
    assert not np.allclose(scaled, expected, atol=1e-4)  # the flag acts, so the default above was full


def test_dinov3_in_metas_names(start, tmp_path, photographs):
    path = parity.weight_file(tmp_path / "w.pth", "dinov3_vits16", periods="bf16", bias_mask="zeros")
    content = torch.load(path, weights_only=True)
    torch.manual_seed(0)
    content |= {"head.weight": torch.randn(3, 384), "head.bias": torch.randn(3)}
    arguments = argparse.Namespace(model="Dinov3", model_arch="dinov3_vits16", nb_classes=3, input_size=224)
    torch.save({"model": content, "epoch": 2, "args": arguments}, tmp_path / "checkpoint-best.pth")
    _, found = score(start, tmp_path, photographs, "--resume", tmp_path / "checkpoint-best.pth")
    backbone = models_vit.find_backbone("Dinov3", "dinov3_vits16")
    model = models_vit.build_model(backbone, 3, 224).eval()
    models_vit.load_backbone(model, backbone, str(path), "")
    model.head.load_state_dict({"weight": content["head.weight"], "bias": content["head.bias"]})
    assert np.allclose(found, logits_by_hand(model, photographs)[0], atol=1e-3)


@pytest.mark.parametrize("said, passes", [("RETFound_mae", 2), ("vit_large_patch16", 1)])
def test_mae_with_fc_norm(start, tmp_path, photographs, monkeypatch, said, passes):
    """The present code of the original applies fc_norm twice, its first release once (a ViT-L cut to two
    blocks)."""
    build = models_vit.build_model
    monkeypatch.setattr(models_vit, "build_model", lambda *a, **k: build(*a, **k, depth=2))
    torch.manual_seed(0)
    model = models_vit.build_model(models_vit.find_backbone("RETFound_mae"), 3, 224).eval()
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.fc_norm.weight)
    # the original's parser stores its default of --model_arch whatever the model
    arguments = argparse.Namespace(model=said, model_arch="dinov3_vits16", nb_classes=3, input_size=224,
                                   global_pool=True)
    torch.save({"model": model.state_dict(), "epoch": 1, "args": arguments}, tmp_path / "checkpoint-best.pth")
    out, found = score(start, tmp_path, photographs, "--resume", tmp_path / "checkpoint-best.pth")
    assert ("fc_norm applied twice" in out) == (passes == 2)
    norm = model.fc_norm
    model.fc_norm = torch.nn.Sequential(*[norm] * passes)
    expected, _ = logits_by_hand(model, photographs)
    assert np.allclose(found, expected, atol=1e-3)
    _, other = score(start, tmp_path, photographs, "--resume", tmp_path / "checkpoint-best.pth",
                     "--fc_norm_passes", 3 - passes)
    assert not np.allclose(other, expected, atol=1e-2)


def test_training_does_not_go_on_from_one(start, tmp_path, photographs):
    torch.save({"model": {"head.weight": torch.ones(3, 4)}, "args": argparse.Namespace()}, tmp_path / "x.pth")
    code, _, err = start("--resume", tmp_path / "x.pth", data=photographs)
    assert code == 2 and "was not written by this program" in err


def test_without_a_threshold_of_vals_there_are_no_operating_points(start, tmp_path):
    """They would be chosen on the very images that they are told of."""
    data = write_pictures(tmp_path / "two", numbers=(2, 2, 4), classes=("healthy", "ill"))
    torch.manual_seed(0)
    model = models_vit.build_model(models_vit.find_backbone("timm", "test_vit"), 2, 32).eval()
    torch.save({"model": model.state_dict(), "epoch": 9}, tmp_path / "foreign.pth")
    code, out, err = start("--eval", "--task", "two", "--resume", tmp_path / "foreign.pth", "--nb_classes", 2,
                           data=data)
    assert code == 0, err
    assert out.count("sensitivity at 90 % specificity and its like are left "
                     "out") == 1 and "val's threshold" not in out
    run = tmp_path / "output_dir" / "two"
    assert "_at_" not in (run / "metrics_test.json").read_text()
    assert "threshold chosen on val" not in (run / "report.html").read_text()
    # a run of our own has them
    code, out, err = start("--task", "own", "--nb_classes", 2, "--epochs", 1, data=data)
    assert code == 0 and "with val's threshold for ill" in out and "left out" not in out, err
