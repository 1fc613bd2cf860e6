"""The round field of a fundus photograph: where it is, in a copy of the image at a few hundred pixels.

A fundus camera images a disc on a dark ground; how much ground it adds, and what of the disc it cuts off,
differs from camera to camera. `find_field` looks for the disc in four steps:
    1. the ground is what the two darkest corners show; levels above it are compared as logarithms, because a
       dark periphery differs from the ground by a factor and only by a few grey levels;
    2. along some rows and columns, the first pixels from outside that stay above a low and above a middle
       threshold are rim points, except those of letters, flares and dark peripheries;
    3. of the circles through three of these points each, the one that most points agree with (a fixed list of
       triples in the place of RANSAC's random ones: Fischler and Bolles, Commun. ACM 24:381, 1981) is moved
       to the steepest steps along rays from its centre, by least squares without the rays that disagree;
    4. the circle is a field if the rim is seen as a step on most rays and on opposite sides, the outside is
       dark and the inside is not.
An OCT scan, a digit or an ordinary photograph fails step 4, and so does a disc of which hardly any rim is in
the image.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from util.data.images.files import DCT_DENOMINATORS, ImageSource

LEAST_SIDE = 250  # pixels of the short side at which the field is looked for, unless the image has fewer
ENOUGH_SIDE = 100  # of these pixels every second or third is enough, where as many are left
SMALLEST_SIDE = 48  # below it a rim is too coarse to be told from a letter
BRIGHTEST_GROUND = 48  # grey levels, of any channel: grounds seen are below 25, walls and skies above
MOST_NOISE = 0.15  # of the brightest tenth's level, in the ground: more is no ground but an image
DARKEST_FIELD = 8  # grey levels above the ground, of the tenth of the pixels that is brightest
SMALLEST_DIAMETER = 0.4  # of the short side
LARGEST_RADIUS = 0.8  # of the long side
LINES = 20  # rows, and columns, in which rim points are looked for
TRIPLES = 40
RAYS = 60
STEP = 0.3  # natural logarithm by which a rim's levels above the ground differ, at least
ON_RIM = 0.015  # of the radius: how far from the circle a ray's step may be
LEAST_SEEN = 0.72  # of the rim in the image, by its steps
LEAST_RIM = 0.12  # of the whole circle
MOST_LIT = 0.3  # of the pixels outside: a flare's halo
MOST_BRIGHT = 0.12  # of the pixels outside: letters, the flare itself
MOST_DARK = 0.12  # of the pixels inside: shadows
LARGEST_GAP = 0.5  # of the circle, between two pieces of rim that are seen


@dataclass(frozen=True)
class Field:
    """Centre and radius in pixels of the image; (0, 0) is the outer corner of the first pixel, whose centre
    is (½, ½)."""

    x: float
    y: float
    radius: float

    def moved(self, by: float) -> "Field":
        return Field(self.x + by, self.y + by, self.radius)

    def times(self, factor: float) -> "Field":
        return Field(self.x * factor, self.y * factor, self.radius * factor)

    @property
    def square(self) -> tuple[int, int, int]:
        """(left, top, side) in whole pixels of the square around the circle; it may reach beyond the image.
        In a large image they are multiples of 8, the blocks of a JPEG, so that it is the same square at
        whatever scale that is decoded.

        Where the camera cut the disc off, the square is not cut: what lies outside the image is black when it
        is read. So a pixel has the same scale in x and y, a disc is as large in every image, cut or not, and
        the model sees the same black as in the margins. AutoMorph, which RETFound's authors use before
        training, likewise cuts out the disc's bounding box and adds black until it is square (Zhou et al.,
        TVST 11(7):12, 2022).
        """
        grid = next(g for g in DCT_DENOMINATORS if self.radius >= 64 * g or g == 1)
        side = grid * max(1, round(2 * self.radius / grid))
        return grid * round((self.x - side / 2) / grid), grid * round((self.y - side / 2) / grid), side


def small_image(source: ImageSource) -> tuple[np.ndarray, int]:
    """-> ((h, w, 3) uint8; how many pixels of the file one of them is wide): the same for every way of
    decoding.

    The short side has 250 to 499 pixels, unless the file has fewer: a JPEG is decoded at the coarsest of
    libjpeg's scales that leaves 250, any other file whole; what is still larger is averaged over squares.
    Raises ImageError.
    """
    pixels, factor = source.coarse(LEAST_SIDE)
    squares = min(pixels.shape[:2]) // LEAST_SIDE
    if squares > 1:
        pixels, factor = np.asarray(Image.fromarray(pixels).reduce(squares)), factor * squares
    return pixels, factor


def find_field(pixels: np.ndarray) -> Field | None:
    """The field in a small image, (h, w, 3) uint8, in its pixels; None where there is none."""
    short = min(pixels.shape[:2])
    if short < SMALLEST_SIDE:
        return None
    step = max(1, short // ENOUGH_SIDE)
    image = _Image.of(pixels[step // 2::step, step // 2::step])
    if image is None:
        return None
    circle = _agreed(image.rim_points(), *image.size)
    for reach, share in ((0.10, 0.04), (0.04, 0.015)):
        rim = circle and _Rim(image, circle, reach)
        circle = rim and rim.fitted(share)
    if not (circle and rim.is_seen() and image.is_dark_around(circle)):
        return None
    return circle.times(step).moved(step // 2 + 0.5 - step / 2)


class _Image:
    """The levels of an image above its ground, the largest of the three channels': (h, w) uint8."""

    @classmethod
    def of(cls, pixels: np.ndarray) -> "_Image | None":
        """None where no two corners, or all of the image, are dark."""
        side = max(3, min(pixels.shape[:2]) // 24)
        ends = (slice(None, side), slice(-side, None))
        corners = np.stack([pixels[rows, columns].reshape(-1, 3) for rows in ends for columns in ends])
        darkest = np.concatenate(corners[corners.sum((1, 2)).argsort()[:2]])
        ground = np.sort(darkest, 0)[len(darkest) // 2]
        if ground.max() > BRIGHTEST_GROUND:
            return None
        image = cls(_above(pixels, ground),
                    np.sort((np.maximum(darkest, ground) - ground).max(1))[-len(darkest) // 50])
        return (image if image.bright > DARKEST_FIELD and image.noise < max(12, MOST_NOISE * image.bright)
                else None)

    def __init__(self, levels: np.ndarray, noise: int) -> None:
        self.levels, self.noise = levels, int(noise)
        self.size = levels.shape[::-1]
        some = levels.ravel()[::levels.size // 1000 + 1]
        self.bright = int(np.partition(some, -len(some) // 10)[-len(some) // 10])
        self._softness = 4 + self.noise  # below it, levels are noise
        self.logarithms = np.log1p(np.arange(256) / self._softness).astype(np.float32)

    def level(self, part: float) -> int:
        """That lies, by logarithms, `part` of the way from the ground to the bright pixels, but out of the
        noise."""
        return int(max(self._softness * math.expm1(part * self.logarithms[self.bright]), self.noise + 1))

    def rim_points(self) -> np.ndarray:
        """(2, N) x and y where a row or a column first rises above a low, and above a middle threshold, from
        either end."""
        found, parts = [], np.array([[[self.level(0.25)]], [[self.level(0.6)]]], np.uint8)
        for across in (True, False):
            levels = self.levels if across else self.levels.T
            step = max(1, len(levels) // LINES)
            lines = np.ascontiguousarray(levels[step // 2::step])
            places = np.arange(step // 2, len(levels), step) + 0.5
            bright = (lines > parts).reshape(-1, lines.shape[1])  # of both thresholds, one after the other
            bright = bright[:, :-2] & bright[:, 1:-1] & bright[:, 2:]  # three in a row, which noise is not
            first, last = bright.argmax(1), bright.shape[1] - 1 - bright[:, ::-1].argmax(1)
            any_is = bright[np.arange(len(bright)), first]
            # a line that is bright from its first pixel on leaves the image inside the field
            from_start, from_end = any_is & (first > 0), any_is & (last < bright.shape[1] - 1)
            ends = np.concatenate([first[from_start], last[from_end] + 3])
            along = np.concatenate([places, places])
            found.append((ends, np.concatenate([along[from_start], along[from_end]]))[::1 if across else -1])
        return np.concatenate(found, 1)

    def is_dark_around(self, circle: Field) -> bool:
        """Whether hardly any pixel outside the circle is as bright as those inside, and hardly any inside as
        dark."""
        width, height = self.size
        step = max(1, min(self.size) // 40)
        start = step // 2
        x, y = (np.arange(start, width, step) + (0.5 - circle.x),
                np.arange(start, height, step) + (0.5 - circle.y))
        distance = (x * x + (y * y)[:, None]) / circle.radius**2
        levels = self.levels[start::step, start::step]
        inside, outside = levels[distance < 0.9**2], levels[distance > 1.04**2]
        if not len(outside) or not len(inside):
            return False
        return (np.count_nonzero(outside > max(12, 0.1 * self.bright)) < MOST_LIT * len(outside)
                and (np.count_nonzero(outside > max(2 * self.noise, 0.4 * self.bright))
                     < MOST_BRIGHT * len(outside))
                and (np.count_nonzero(inside <= max(2 * self.noise, 0.08 * self.bright))
                     < MOST_DARK * len(inside)))


_ANGLES = np.arange(RAYS) * (2 * math.pi / RAYS)
# (3, RAYS): by how much a ray's step moves outwards as the circle's x, y and radius grow by one
_DESIGN = np.stack([np.cos(_ANGLES), np.sin(_ANGLES), np.ones(RAYS)])
_DIRECTIONS = _DESIGN[:2, :, None].astype(np.float32)  # (2, RAYS, 1): x and y of a ray's direction
_LITTLE = 1e-6 * np.eye(3)  # so that three equations that are nearly one have an answer


class _Rim:
    """Where the levels fall most along rays from a circle's centre, within `reach` radii of the circle.

    Of each ray, (RAYS,): offset, pixels by which the steepest step lies outside the circle; step, its height;
    seen, whether the image holds the ray's piece of the circle; error, pixels from the fitted circle.
    """

    def __init__(self, image: _Image, circle: Field, reach: float) -> None:
        self.circle = circle
        wide = max(2, round(0.015 * circle.radius))  # pixels that are averaged on each side of a step
        half = math.ceil(reach * circle.radius) + wide
        distances = circle.radius + np.arange(-half, half + 1, dtype=np.float32)
        width, height = image.size
        # (2, RAYS, …)
        at = (_DIRECTIONS * distances + np.array([[[circle.x]], [[circle.y]]], np.float32)).astype(np.int32)
        inside = np.minimum(np.maximum(at, 0), np.array([[[width - 1]], [[height - 1]]], np.int32))
        self.seen = (inside[:, :, half + wide] == at[:, :, half + wide]).all(0)
        places = inside[1] * width + inside[0]
        sums = np.zeros((RAYS, places.shape[1] + 1), np.float32)
        np.cumsum(image.logarithms[image.levels.ravel()[places]], 1, out=sums[:, 1:])
        falls = 2 * sums[:, wide:-wide] - sums[:, :-2 * wide] - sums[:, 2 * wide:]
        best = falls.argmax(1)
        self.step = falls[np.arange(RAYS), best] / wide
        self.offset = best + (wide - half - 0.5)

    def fitted(self, share: float) -> Field | None:
        """The circle moved to the steps, without the rays that disagree by this share of its radius; None
        where too few agree."""
        used = self.seen & (self.step > STEP)
        if np.count_nonzero(used) < LEAST_RIM / 2 * RAYS:
            return None
        offsets = np.sort(self.offset[used])
        self.error = np.abs(self.offset - offsets[len(offsets) // 2])
        near = used & (self.error <= max(1.2, share * self.circle.radius))
        some = _DESIGN[:, near]
        moved = np.linalg.solve(some @ some.T + _LITTLE, some @ self.offset[near])
        self.error = np.abs(self.offset - moved @ _DESIGN)
        fitted = Field(float(self.circle.x + moved[0]), float(self.circle.y + moved[1]),
                       float(self.circle.radius + moved[2]))
        return fitted if fitted.radius > 1 else None

    def is_seen(self) -> bool:
        """Whether most rays that the image holds have their step on the circle, and some on opposite
        sides."""
        near = self.error <= max(1.2, ON_RIM * self.circle.radius)
        at = np.flatnonzero(self.seen & near & (self.step > STEP))
        if len(at) < max(LEAST_RIM * RAYS, LEAST_SEEN * np.count_nonzero(self.seen)):
            return False
        return max((at[1:] - at[:-1]).max(), at[0] + RAYS - at[-1]) <= LARGEST_GAP * RAYS


def _above(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 -> (…) uint8: the largest of the channels' levels above those of the ground."""
    result = None
    for channel in range(3):
        levels = np.ascontiguousarray(pixels[..., channel])
        # NumPy takes 15 times as long with a scalar
        np.maximum(levels, np.full_like(levels, ground[channel]), out=levels)
        levels -= ground[channel]
        result = levels if result is None else np.maximum(result, levels, out=result)
    return result


def _agreed(points: np.ndarray, width: int, height: int) -> Field | None:
    """The circle through three of the (2, N) rim points that most of the points agree with; None where there
    is none."""
    if points.shape[1] < 12:
        return None
    from_centre = points - points.mean(1, keepdims=True)
    points = points[:, np.arctan2(from_centre[1], from_centre[0]).argsort()].astype(np.float32)
    first, second, third = points[:, _triples(points.shape[1])].transpose(1, 0, 2)
    # the centre is as far from the first point as from the other two: two linear equations
    (ax, ay), (bx, by) = second - first, third - first
    a, b, area = ax * ax + ay * ay, bx * bx + by * by, 2 * (ax * by - ay * bx)
    area[area == 0] = 1e-9  # in a line: a circle that is too large
    x, y = (by * a - ay * b) / area, (ax * b - bx * a) / area
    radius = np.sqrt(x * x + y * y)
    x, y = x + first[0], y + first[1]
    fit = ((2 * radius > SMALLEST_DIAMETER * min(width, height))
           & (radius < LARGEST_RADIUS * max(width, height))
           & (x > 0) & (x < width) & (y > 0) & (y < height))
    if not fit.any():
        return None
    x, y, radius = x[fit], y[fit], radius[fit]
    dx, dy = points[0] - x[:, None], points[1] - y[:, None]
    error = np.abs(np.sqrt(dx * dx + dy * dy) / radius[:, None] - 1)
    best = np.minimum(error, 0.02).sum(1).argmin()
    return Field(float(x[best]), float(y[best]), float(radius[best]))


@functools.lru_cache(maxsize=256)
def _triples(count: int) -> np.ndarray:
    """(3, TRIPLES) numbers of points in the order of their angle, which lie far from each other, in several
    patterns."""
    starts = np.arange(TRIPLES) * count // TRIPLES
    patterns = ((0.33, 0.66), (0.25, 0.5), (0.1, 0.5), (0.2, 0.35))
    steps = np.array([patterns[number % len(patterns)] for number in range(TRIPLES)]).T * count
    return np.stack([starts, *((starts + step.astype(int)) % count for step in steps)])
