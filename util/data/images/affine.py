"""Shears and translations of an image, as Pillow computes them with its bicubic filter, in half of the time.

Pillow weighs 4 x 4 pixels for every pixel of the result, at a place that it computes anew for each. A shear
or a translation along x moves every row by one number of pixels, so that all pixels of a row have the same
four weights, and those of the rows above and below are zero. What is left is one cubic a channel (Keys 1981,
a = -1, as in Pillow), over whole arrays.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image
from timm.data import auto_augment

CHANNELS = 3


def _downwards(operation: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    """The same operation along y."""
    def run(image: Image.Image, *how: object, **more: object) -> Image.Image:
        turned = operation(image.transpose(Image.Transpose.TRANSPOSE), *how, **more)
        return turned.transpose(Image.Transpose.TRANSPOSE)
    return run


def shear_x(image: Image.Image, factor: float, resample: int, fillcolor: tuple[int, ...]) -> Image.Image:
    """PIL RGB -> PIL RGB, like timm's operation of that name with the bicubic filter; one number of some
    hundreds is a grey level off."""
    return _along_x(image, factor * (np.arange(image.height) + 0.5), fillcolor)


def translate_x_abs(image: Image.Image, pixels: float, resample: int,
                    fillcolor: tuple[int, ...]) -> Image.Image:
    """As `shear_x`: the image moves to the left by a number of pixels, not only a whole one."""
    return _along_x(image, np.full(image.height, float(pixels)), fillcolor)


def translate_x_rel(image: Image.Image, pct: float, resample: int,
                    fillcolor: tuple[int, ...]) -> Image.Image:
    """As `shear_x`: the image moves to the left by a part of its width."""
    return translate_x_abs(image, pct * image.width, resample, fillcolor)


shear_y = _downwards(shear_x)
translate_y_abs = _downwards(translate_x_abs)
translate_y_rel = _downwards(translate_x_rel)
_OURS: dict[Callable[..., Image.Image], Callable[..., Image.Image]] = {
    auto_augment.shear_x: shear_x,
    auto_augment.shear_y: shear_y,
    auto_augment.translate_x_abs: translate_x_abs,
    auto_augment.translate_y_abs: translate_y_abs,
    auto_augment.translate_x_rel: translate_x_rel,
    auto_augment.translate_y_rel: translate_y_rel,
}


def use_in(operation: auto_augment.AugmentOp) -> None:
    """Let a timm AugmentOp do its work by a function of this file, where one does the same."""
    if operation.kwargs.get("resample") == Image.Resampling.BICUBIC:
        operation.aug_fn = _OURS.get(operation.aug_fn, operation.aug_fn)


def _along_x(image: Image.Image, shifts: np.ndarray, fill: tuple[int, ...]) -> Image.Image:
    """shifts: (H,), pixels to the right of a place in the result at which its content stands in `image`."""
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    shifts = np.clip(shifts, -width - 1, width + 1)  # beyond, a row is empty all the same
    whole = np.floor(shifts).astype(int)
    between = (shifts - whole).astype(np.float32)[:, None]

    # Every row starts where its first four neighbours do. Past two pixels beside the edge nothing is looked
    # at: it is filled.
    before, after = 1 + max(1, -whole.min()), 2 + max(0, whole.max())
    wide = np.zeros((height, before + width + after, CHANNELS), np.uint8)
    wide[:, before:before + width] = pixels
    wide[:, before - 2:before] = pixels[:, :1]
    wide[:, before + width:before + width + 2] = pixels[:, -1:]
    starts = np.arange(height) * wide.shape[1] + before + whole - 1
    row = CHANNELS * (width + 3)
    # a window for every start
    windows = np.ndarray((wide[..., 0].size - width - 2, row), np.uint8, wide, strides=(CHANNELS, 1))
    values = windows[starts].astype(np.float32)  # the neighbours of a number lie 0, 3, 6 and 9 numbers on

    steps = values[:, CHANNELS:] - values[:, :-CHANNELS]
    first, second, third = steps[:, :-2 * CHANNELS], steps[:, CHANNELS:-CHANNELS], steps[:, 2 * CHANNELS:]
    bend = first + third
    result = bend * (between - 1)
    result -= first
    result *= between
    result += first
    result += second
    result *= between
    result += values[:, CHANNELS:-2 * CHANNELS]
    result = result.clip(0, 255, out=result).astype(np.uint8)  # rounded down, as Pillow does

    first_inside = np.ceil(-0.5 - shifts).astype(np.int32)[:, None]
    places = np.arange(width, dtype=np.int32).repeat(CHANNELS) - first_inside
    outside = places.view(np.uint32) >= width  # also those below zero
    np.copyto(result, np.tile(np.uint8(fill), width), where=outside)
    return Image.fromarray(result.reshape(height, width, CHANNELS))
