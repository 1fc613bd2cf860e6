"""util/options/starts.py: which defaults a kind of backbone and a kind of start have, and how the head begins."""

import math
from argparse import Namespace

import pytest
import torch

import models_vit
from util.options import starts


def options(**changes):
    return Namespace(**{"finetune": "weights.pth", "adaptation": "finetune", "lp_views": 1, "layer_decay": 0.65,
                        "drop_path": 0.2, "crop_scale": [0.08, 1.0], "blr": 5e-3, "lr": None} | changes)


def test_pretrained_vision_transformers_keep_the_flags_defaults():
    mine = options()
    assert starts.settle(mine, set(), plain_vit=True, regression=False) == [] and mine == options()


def test_other_backbones_and_random_weights_have_their_own_and_what_is_typed_wins():
    mine = options()
    (line,) = starts.settle(mine, set(), plain_vit=False, regression=False)
    assert mine.layer_decay == 1 and mine.crop_scale == [0.3, 1.0] and mine.drop_path == 0.2
    assert "--layer_decay 1 instead of 0.65" in line and "--crop_scale 0.3 1 instead of 0.08 1" in line
    mine = options()
    assert starts.settle(mine, {"layer_decay"}, plain_vit=False, regression=True) == [] and mine == options()
    mine = options(finetune="")
    (line,) = starts.settle(mine, {"crop_scale"}, plain_vit=True, regression=False)
    assert mine == options(finetune="", layer_decay=1.0, drop_path=0.0) and "random weights" in line
    for lr, blr in ((None, 5e-3), (1e-3, 2e-3)):  # beside --lr it would do nothing
        mine = options(finetune="", blr=2e-3, lr=lr)
        assert starts.settle(mine, set(), plain_vit=False, regression=True) and mine.blr == blr
        assert mine.crop_scale == [0.08, 1.0]  # a regression's own
    mine = options(adaptation="lp")
    assert starts.settle(mine, set(), plain_vit=False, regression=False) == [] and mine == options(adaptation="lp")


def test_a_stored_run_keeps_the_defaults_of_its_time():
    mine = options()
    starts.as_stored(mine, set(), {"layer_decay": 1.0, "crop_scale": [0.3, 1.0]}, (starts.PRETRAINED_OTHER,))
    assert mine == options(layer_decay=1.0, crop_scale=[0.3, 1.0])
    mine = options()  # of before there was the table, or of choices that somebody typed: compared as they are
    starts.as_stored(mine, set(), {"layer_decay": 0.65, "crop_scale": [0.2, 1.0]}, (starts.PRETRAINED_OTHER,))
    assert mine == options()
    mine = options()
    starts.as_stored(mine, {"layer_decay"}, {"layer_decay": 1.0}, (starts.PRETRAINED_OTHER,))
    assert mine == options()


@pytest.mark.parametrize(("arch", "plain"), [("vit_tiny_patch16_224", True), ("tf_efficientnet_lite0", False),
                                             ("swin_tiny_patch4_window7_224", False), ("test_resnet", False)])
def test_which_backbones_are_plain_vision_transformers(arch, plain):
    assert models_vit.has_plain_vit(models_vit.find_backbone("timm", arch)) == plain


def test_the_head_starts_next_to_zero_for_pretrained_weights_alone():
    backbone = models_vit.find_backbone("timm", "test_vit")
    small, own = (models_vit.build_model(backbone, 5, 32, pretrained=pretrained).head for pretrained in (True, False))
    assert math.isclose(float(small.weight.detach().std()), 2e-5, rel_tol=0.3)
    assert float(own.weight.detach().std()) > 5e-3  # timm's
    assert all(isinstance(head, models_vit.ExactLinear) for head in (small, own)) and torch.equal(own.bias, torch.zeros(5))
