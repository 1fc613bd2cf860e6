"""Fundus photographs with a field whose circle is known, and images that have none: drawn for
the tests of util/data/images/fundus.py."""

import functools
import io

import numpy as np
from PIL import Image, ImageDraw

from util.data.public import demo

KINDS = ("plain", "cut top and bottom", "cut left and right", "cut on four sides", "margins", "off-centre",
         "glare", "flare",
         "dark periphery", "marks", "noisy ground", "jpeg")


@functools.lru_cache
def _retina(index: int) -> np.ndarray:
    """The square around a drawn field, without its soft rim: (400, 400, 3) float, also in the corners."""
    pixels = np.asarray(demo.draw(7, index, 400)[0], np.float32)
    axis = (np.arange(400) + 0.5) / 400 - 0.5
    radius = np.hypot(axis, axis[:, None])
    outside = radius > 0.97 * demo.FIELD_RADIUS
    # a pixel outside takes the colour of the rim in its direction
    scale = np.minimum(1, 0.96 * demo.FIELD_RADIUS / radius)
    rows, columns = (((place * scale + 0.5) * 400).astype(int) for place in (axis[:, None], axis))
    return np.where(outside[..., None], pixels[rows, columns], pixels)


def _size(rng, kind):
    """(width, height), (x, y, radius) of a drawn photograph."""
    radius = rng.uniform(110, 300)
    if kind == "cut top and bottom":
        height, width = 2 * radius * rng.uniform(0.75, 0.97), 2 * radius * rng.uniform(1.03, 1.5)
    elif kind == "cut left and right":
        height, width = 2 * radius * rng.uniform(1.03, 1.3), 2 * radius * rng.uniform(0.75, 0.97)
    elif kind == "cut on four sides":
        height = width = 2 * radius * rng.uniform(0.8, 0.95)
    elif kind == "margins":
        height, width = 2 * radius * rng.uniform(1.0, 1.8, 2)
    else:
        height, width = 2 * radius * rng.uniform(1.0, 1.15), 2 * radius * rng.uniform(1.0, 1.6)
    x, y = width / 2 + rng.uniform(-0.03, 0.03) * radius, height / 2 + rng.uniform(-0.03, 0.03) * radius
    if kind == "off-centre":
        x, y = width * rng.uniform(0.3, 0.7), height * rng.uniform(0.35, 0.65)
    return (round(width), round(height)), (x, y, radius)


def draw_field(seed: int, kind: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    """-> ((h, w, 3) uint8, (x, y, radius) of its field); every kind also has the others' faults with a
    smaller chance."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    has = {name: name == kind or rng.random() < 0.25 for name in KINDS[6:]}
    (width, height), (x, y, radius) = _size(rng, kind)
    across, down = (np.arange(width) + 0.5 - x) / radius, ((np.arange(height) + 0.5 - y) / radius)[:, None]
    distance, angle = np.hypot(across, down), np.arctan2(down, across)
    retina = _retina(int(rng.integers(12)))
    rows, columns = (((place + 1) * 200).clip(0, 399).astype(int)
                     for place in (down + 0 * across, across + 0 * down))
    field = retina[rows, columns] * rng.uniform(0.35, 1.1) * rng.uniform(0.8, 1.1, 3)
    if has["dark periphery"]:
        towards = np.cos(angle - rng.uniform(-np.pi, np.pi))
        field *= np.exp(-rng.uniform(0.8, 2.0) * distance**3 * (0.6 + 0.4 * towards))[..., None]
    if has["glare"]:  # a crescent along the rim, inside
        place, wide = rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 1.2)
        strength = np.exp(-((distance - 1) / rng.uniform(0.03, 0.15)) ** 2
                          - (np.sin((angle - place) / 2) * 2 / wide) ** 2)
        field += (
            strength[..., None]
            * rng.uniform(60, 180)
            * np.array([1, rng.uniform(0.7, 1), rng.uniform(0.5, 1)])
        )
    ground = np.zeros((height, width, 3))
    if has["noisy ground"]:
        ground += rng.uniform(4, 20, 3) if rng.random() < 0.5 else rng.uniform(4, 20)
        ground += rng.normal(0, rng.uniform(0.5, 4), ground.shape)
    soft = rng.uniform(0.7, 2.5)  # pixels of the rim's edge
    cover = np.clip((1 - distance) * radius / soft + 0.5, 0, 1)[..., None]
    picture = ground + (field + 4) * cover  # what lights the ground lights the field, too
    if has["flare"]:  # light that spreads over the rim into the margin
        place = rng.uniform(-np.pi, np.pi)
        near = np.hypot(across - np.cos(place) * 0.95, down - np.sin(place) * 0.95) / rng.uniform(0.1, 0.35)
        picture += np.exp(-near**2)[..., None] * rng.uniform(10, 60) * np.array([1, 0.8, 0.6])
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    if has["marks"]:
        _write_marks(rng, image, (x, y, radius))
    if has["jpeg"] or rng.random() < 0.5:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=int(rng.integers(60, 96)))
        image = Image.open(stream)
    return np.asarray(image.convert("RGB")), (x, y, radius)


def _write_marks(rng, image, circle):
    """Letters in two corners of the margin and a notch at the rim, as cameras add them."""
    pen, (x, y, radius) = ImageDraw.Draw(image), circle
    for corner in rng.choice(4, 2, replace=False):
        place = (4 if corner % 2 else image.width - 70, 4 if corner < 2 else image.height - 16)
        if min(np.hypot(place[0] + w - x, place[1] + h - y) for w in (0, 66) for h in (0, 12)) > radius:
            pen.text(place, "OD 2021-03", fill=(255, 255, 255))
    towards = rng.uniform(-np.pi, np.pi)
    notch = np.array([x + radius * np.cos(towards), y + radius * np.sin(towards)])
    size = radius * rng.uniform(0.02, 0.06)
    pen.polygon([(notch[0] + size * a, notch[1] + size * b) for a, b in ((-1, -1), (1, -1), (0, 1))],
                fill=(0, 0, 0) if rng.random() < 0.5 else (200, 200, 190))


def draw_scan(seed: int) -> np.ndarray:
    """An OCT-like scan, (h, w, 3) uint8: bright layers with speckle, flat, tilted or curved, on dark
    noise."""
    rng = np.random.default_rng([seed, 99])
    height, width = (int(value) for value in rng.uniform((250, 250), (500, 760)))
    across = np.linspace(-1, 1, width)
    surface = (rng.uniform(0.3, 0.6) + rng.uniform(-0.2, 0.2) * across + rng.uniform(-0.25, 0.25) * across**2
               + rng.uniform(0, 0.1) * np.exp(-((across - rng.uniform(-0.4, 0.4)) / 0.15) ** 2))
    depth = (np.arange(height)[:, None] / height - surface) / rng.uniform(0.15, 0.35)
    level = np.zeros((height, width))
    for _ in range(rng.integers(4, 8)):
        level += rng.uniform(40, 150) * np.exp(-((depth - rng.uniform(0, 1)) / rng.uniform(0.02, 0.1)) ** 2)
    level += np.where(depth > 1, rng.uniform(20, 100) * np.exp(-(depth - 1).clip(0) / rng.uniform(0.3, 1)), 0)
    level += np.where((depth > 0) & (depth < 1), rng.uniform(20, 60), rng.uniform(2, 15))
    speckled = level * rng.gamma(rng.uniform(1, 4), 1 / 2, level.shape)
    if rng.random() < 0.5:  # an averaged scan
        speckled = 0.25 * (speckled + np.roll(speckled, 1, 0) + np.roll(speckled, 1, 1)
                           + np.roll(speckled, (1, 1), (0, 1)))
    return np.repeat(speckled.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def overlap(one, other, shape) -> float:
    """Intersection over union of two discs (x, y, radius), counted in the pixels of an image of `shape` (h,
    w)."""
    y, x = (np.arange(size) + 0.5 for size in shape[:2])
    first, second = (((x - cx) ** 2 + ((y - cy) ** 2)[:, None]) < radius**2
                     for cx, cy, radius in (one, other))
    return (first & second).sum() / max(1, (first | second).sum())
