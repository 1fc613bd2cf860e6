"""Shears and translations against Pillow's own, by timm's operations."""

import random

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from util.data.images import affine
from util.data.images.transforms import TrainTransform, _augment_operations, train_settings
from util.options.data import ImageOptions

FILL = (124, 116, 104)
OPERATIONS = ("shear_x", "shear_y", "translate_x_abs", "translate_y_abs", "translate_x_rel",
              "translate_y_rel")
HOW = {"resample": Image.Resampling.BICUBIC, "fillcolor": FILL}


def noise(width: int, height: int) -> Image.Image:
    """Where a wrong weight or place shows most; flat on the left, where rounding down must not take a level
    away."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[:, :width // 3] = 77
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(224, 224), (97, 60), (40, 131), (1, 5), (3, 1)])
def test_an_operation_gives_what_pillow_gives(name, size):
    picture, pixel = noise(*size), name.endswith("_abs")
    amounts = [0, 0.3, -0.3, 0.013, -0.1234, 1 / 3, 1.0, -1.0, 7.5, -2.5]
    for amount in amounts + [random.Random(0).uniform(-0.5, 0.5) for _ in range(5)]:
        amount *= 31.3 if pixel else 1
        theirs = np.asarray(getattr(auto_augment, name)(picture, amount, **HOW)).astype(int)
        found = getattr(affine, name)(picture, amount, **HOW)
        assert found.mode == "RGB" and found.size == size
        difference = np.abs(np.asarray(found) - theirs)
        # a cubic that is a whole number but for its last digits is rounded down by one and not by the other:
        # by thirds of a pixel one number of a hundred
        assert difference.max() <= 1 and (difference > 0).mean() <= 0.02, amount


def test_what_comes_from_outside_is_filled():
    found = np.asarray(affine.translate_x_abs(noise(50, 20), 12.0, **HOW))
    assert (found[:, 38:] == FILL).all() and np.array_equal(found[:, :38], np.asarray(noise(50, 20))[:, 12:])
    for far in (50, -50, 1e6, -1e6):
        assert (np.asarray(affine.translate_y_rel(noise(50, 20), far, **HOW)) == FILL).all()


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "augmix-m3", "v0", "original"])
def test_scaled_training_shears_so_and_full_as_timm_does(aa):
    for decode in ("scaled", "full"):
        transform = TrainTransform(train_settings(32, (0.5,) * 3, (0.5,) * 3, decode, ImageOptions(aa=aa)))
        moved = [op for op in _augment_operations(transform._augment)
                 if op.name.startswith(("Shear", "Translate"))]
        home = affine if decode == "scaled" else auto_augment
        assert moved and {op.aug_fn.__module__ for op in moved} == {home.__name__}


def test_another_filter_is_left_to_pillow():
    operation = auto_augment.AugmentOp("ShearX", hparams={"interpolation": Image.Resampling.BILINEAR})
    affine.use_in(operation)
    assert operation.aug_fn is auto_augment.shear_x
