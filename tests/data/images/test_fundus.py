"""util/data/images/fundus.py: fields that were drawn, fields that were marked by hand, and images that have
none."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from tests.drawn_fields import KINDS, draw_field, draw_scan, overlap
from tests.shared_data import shared_data
from util.data.images.as_shown import Reading
from util.data.images.files import ImageSource
from util.data.images.fundus import Field, find_field, small_image

# Of IDRiD's test photographs, 4288 x 2848: number, centre and radius in pixels, marked by hand on the rim at
# 1/4 of the size.
MARKS = {1: (1980, 1419, 1705), 2: (1996, 1413, 1704), 5: (1990, 1412, 1705), 8: (1981, 1420, 1704),
         13: (1981, 1423, 1704),
         17: (1979, 1421, 1704), 21: (1979, 1421, 1705), 29: (1980, 1420, 1705), 33: (1980, 1420, 1705),
         38: (1979, 1421, 1704),
         42: (1981, 1423, 1704), 47: (1967, 1418, 1704), 55: (1977, 1425, 1705), 58: (1976, 1422, 1704),
         64: (1976, 1422, 1704),
         70: (1989, 1417, 1705), 77: (1978, 1422, 1705), 84: (1978, 1422, 1704), 90: (1991, 1413, 1705),
         95: (1979, 1424, 1704)}


def circle(field):
    return field.x, field.y, field.radius


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_drawn_fields(kind):
    """benchmarks/fundus.py looks at more of them; all of these had an intersection over union of 0.985 or
    more."""
    for seed in range(100, 108):
        pixels, drawn = draw_field(seed, kind)
        field = find_field(pixels)
        assert field is not None, (kind, seed)
        assert overlap(drawn, circle(field), pixels.shape) > 0.98, (kind, seed)


def test_marked_photographs():
    folder = shared_data("idrid_original")
    found = {int(path.stem.split("_")[-1]): path for path in folder.rglob("*.jpg")}
    assert found.keys() == MARKS.keys()
    for number, path in found.items():
        pixels, factor = small_image(ImageSource(path))
        marked = tuple(value / factor for value in MARKS[number])
        assert overlap(marked, circle(find_field(pixels)), pixels.shape) >= 0.97, path


def test_every_photograph_of_a_set_has_its_field():
    paths = sorted(shared_data("idrid_512").rglob("*.jpg"))[::8]
    radii = [find_field(small_image(ImageSource(path))[0]).radius for path in paths]
    assert len(radii) == 65 and max(abs(np.array(radii) / 203.6 - 1)) < 0.01  # one camera


def crops(image, number, rng):
    """Random parts of a photograph, a short side of 300 pixels."""
    height, width = image.shape[:2]
    for _ in range(number):
        tall, wide = (int(side * rng.uniform(0.3, 1)) for side in (height, width))
        top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
        part = Image.fromarray(image[top:top + tall, left:left + wide])
        scale = 300 / min(part.size)
        yield np.asarray(part.resize([round(side * scale) for side in part.size], Image.Resampling.BICUBIC))


@pytest.mark.long
def test_images_without_a_field_have_none():
    digits = [np.asarray(Image.fromarray((values * 255
                                          / 16).astype(np.uint8)).convert("RGB").resize((size, size), how))
              for values in load_digits().images[::6]
              for size, how in ((64, Image.Resampling.BICUBIC), (280, Image.Resampling.NEAREST))]
    scans = [draw_scan(seed) for seed in range(150)]
    rng = np.random.default_rng(3)
    photographs = [part for image in load_sample_images().images for part in crops(image, 75, rng)]
    for name, images in (("digits", digits), ("scans", scans), ("photographs", photographs)):
        wrong = sum(find_field(pixels) is not None for pixels in images)
        assert wrong <= 0.005 * len(images), f"{wrong} of {len(images)} {name}"


@pytest.mark.parametrize("pixels", [np.zeros((300, 400, 3), np.uint8), np.full((300, 400, 3), 255, np.uint8),
                                    np.zeros((1, 1, 3), np.uint8), np.zeros((3, 4000, 3), np.uint8)])
def test_an_image_of_nothing_has_none(pixels):
    assert find_field(pixels) is None


def test_a_moved_and_enlarged_image_has_its_field_moved_and_enlarged():
    pixels, _ = draw_field(4, "margins")
    field = find_field(pixels)
    padded = np.pad(pixels, ((20, 0), (40, 0), (0, 0)))
    moved = find_field(padded)
    assert overlap((field.x + 40, field.y + 20, field.radius), circle(moved), padded.shape) > 0.99
    twice = find_field(np.asarray(Image.fromarray(pixels).resize((2 * pixels.shape[1], 2 * pixels.shape[0]))))
    assert overlap(circle(field), circle(twice.times(0.5)), pixels.shape) > 0.985


@pytest.mark.parametrize(("field", "square"), [
    (Field(100.2, 80, 50), (50, 30, 100)),  # whole pixels
    (Field(1980, 1419, 1705), (272, -288, 3408)),  # blocks of a JPEG
    (Field(10, 10, 30.4), (-20, -20, 61)),  # beyond the image
])
def test_square(field, square):
    assert field.square == square
    left, top, side = square
    assert (
        abs(left + side / 2 - field.x) <= 4.5
        and abs(top + side / 2 - field.y) <= 4.5
        and abs(side / 2 - field.radius) <= 4
    )


def test_small_image_is_the_same_for_every_way_of_decoding(tmp_path):
    pixels, _ = draw_field(1, "plain")
    large = Image.fromarray(pixels).resize((2400, 1700))
    large.save(tmp_path / "x.jpg", quality=92)
    for reduced in ("any", "colour"):
        small, factor = small_image(ImageSource(str(tmp_path / "x.jpg"), Reading(reduced)))
        assert small.shape == (425, 600, 3) and factor == 4
    large.save(tmp_path / "x.png")
    small, factor = small_image(ImageSource(str(tmp_path / "x.png")))
    assert factor == 6 and 250 <= min(small.shape[:2]) < 500
