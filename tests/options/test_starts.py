"""util/options/starts.py: which defaults a kind of backbone and a kind of start have, and how the head
begins."""

import math

import pytest
import torch

import models_vit
from util.options import starts
from util.options.flag import FINETUNE
from util.options.groups import Options


def asked(*typed, **values):
    return Options.of(FINETUNE, {"finetune": "weights.pth"} | values, typed)


def test_pretrained_vision_transformers_keep_the_flags_defaults():
    assert starts.settled(asked(), plain_vit=True, regression=False) == (asked(), [])


def test_other_backbones_and_random_weights_have_their_own_and_what_is_typed_wins():
    options, (line,) = starts.settled(asked(), plain_vit=False, regression=False)
    assert options == asked(layer_decay=1.0, crop_scale=[0.3, 1.0], fundus_crop="auto")
    assert options.model.drop_path == 0.2 and "--layer_decay 1 instead of 0.65" in line
    assert "--crop_scale 0.3 1 instead of 0.08 1, --fundus_crop auto instead of off" in line
    assert starts.settled(asked("layer_decay"), plain_vit=False, regression=True) == (
        asked("layer_decay"),
        [],
    )
    options, (line,) = starts.settled(asked("crop_scale", finetune="", blr=5e-3), plain_vit=True,
                                      regression=False)
    assert options == asked("crop_scale", finetune="", blr=2e-3, layer_decay=1.0, drop_path=0.0,
                            aa="none") and "random weights" in line
    assert "--blr 0.002 instead of 0.005" in line and "--aa none instead of rand-m9-mstd0.5-inc1" in line
    for lr, blr in ((None, 5e-3), (1e-3, 2e-3)):  # beside --lr it would do nothing
        options, lines = starts.settled(asked(finetune="", blr=2e-3, lr=lr), plain_vit=False, regression=True)
        assert lines and options.training.blr == blr
        # a regression's own
        assert options.images.crop_scale == [0.08, 1.0] and options.images.aa == asked().images.aa
    # a probe reads as a fine-tune does, and has no learning rates of layers; crops of random views alone
    for views, found in ((1, {}), (2, {"crop_scale": [0.3, 1.0]})):
        probe = asked(adaptation="lp", lp_views=views)
        options, _ = starts.settled(probe, plain_vit=False, regression=False)
        assert options == asked(adaptation="lp", lp_views=views, fundus_crop="auto", **found)
        assert starts.settled(probe, plain_vit=True, regression=False) == (probe, [])


def test_a_stored_run_keeps_the_defaults_of_its_time():
    rows = (starts.PRETRAINED_OTHER,)
    assert starts.as_stored(asked(), {"layer_decay": 1.0, "crop_scale": [0.3, 1.0]}, rows) == asked(
        layer_decay=1.0, crop_scale=[0.3, 1.0])
    # of before there was the table, or of choices that somebody typed: compared as they are
    assert starts.as_stored(asked(), {"layer_decay": 0.65, "crop_scale": [0.2, 1.0]}, rows) == asked()
    assert starts.as_stored(asked("layer_decay"), {"layer_decay": 1.0}, rows) == asked("layer_decay")


@pytest.mark.parametrize(("arch", "plain"), [("vit_tiny_patch16_224", True), ("tf_efficientnet_lite0", False),
                                             ("swin_tiny_patch4_window7_224", False), ("test_resnet", False)])
def test_which_backbones_are_plain_vision_transformers(arch, plain):
    assert models_vit.has_plain_vit(models_vit.find_backbone("timm", arch)) == plain


def test_the_head_starts_next_to_zero_for_pretrained_weights_alone():
    backbone = models_vit.find_backbone("timm", "test_vit")
    small, own = (models_vit.build_model(backbone, 5, 32, pretrained=pretrained).head
                  for pretrained in (True, False))
    assert math.isclose(float(small.weight.detach().std()), 2e-5, rel_tol=0.3)
    assert float(own.weight.detach().std()) > 5e-3  # timm's
    assert all(isinstance(head, models_vit.ExactLinear)
               for head in (small, own)) and torch.equal(own.bias, torch.zeros(5))
