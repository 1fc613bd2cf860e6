"""Which images show the same photograph: resized, recompressed, mirrored or cropped round the centre.

Two stages, because neither does the job alone on retinas, which all look alike.

1. A sieve: dHash (signs of the differences of neighbouring pixels of a copy of 17 x 16) of several views of
   each image: the whole, centre crops, the part within black margins; each also mirrored. All images of one
   split are compared with all of another by a matrix product. Distinct retinas differ in 25 of the 256 bits
   or more, cropped copies in up to 35: no threshold on bits alone parts them. dHash and pHash of 8 x 8 bits
   part them worse still.
2. A confirmation of the pairs that pass: the correlation of the two views once local mean and contrast are
   divided out and black is masked, so that vessels and lesions are compared and not the field, its shading or
   the camera's colours. Among half a million pairs distinct images reached 0.56 at most, and copies had 0.66
   or more. Alone it would cost nine times the sieve's products.

benchmarks/leakage.py measures both kinds of error: on 3000 images all copies are found, and none of 1000
distinct ones is taken for a copy. The thresholds were chosen on the images of util/data/public/demo.py, also
with all discs, maculas and lights at one place, as one camera and one protocol make them.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import minimum_filter, uniform_filter

from util.data.images.as_shown import Reading
from util.data.images.files import ImageFile, ImageSource

DECODED = 128  # pixels that the shorter side is decoded to at least
# pixels a side of what is kept of an image, whatever its shape, and of what is compared
THUMBNAIL, VIEW = 64, 48
HASH_SIZE = 16  # bits a side
CROPS = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the side; those in between are recognised by the nearest
TRIMMED = len(CROPS)  # the number of the view without black margins
# (view of one image, view of the other): either may be the crop
PAIRS = ((0, 0), *((0, crop) for crop in range(1, len(CROPS))), *((crop, 0) for crop in range(1, len(CROPS))),
         (TRIMMED, TRIMMED))
MOST_BITS = 40  # of 256 that differ
MOST_CANDIDATES = 20  # nearest images whose correlation is computed, for each image
LEAST_SIMILARITY = 0.62
NEIGHBOURHOOD = 7  # pixels of a view over which mean and contrast are local
DARK = 0.12  # of the image's bright parts: black round the field
NOISE = 4.0  # grey levels that are added to the local contrast, so that flat parts stay flat
LEAST_CONTRAST = 1.0  # grey levels, local: an image with less shows nothing to recognise it by
BLOCK, CHUNK = 256, 4096  # images whose distances are computed together: 4 MB a matrix

VERSION = 2  # raise it when other fingerprints are computed of the same image
FINGERPRINT = np.dtype([("width", "<i4"), ("height", "<i4"), ("contrast", "<f4"),
                        ("bits", "u1", (2, TRIMMED + 1, HASH_SIZE * HASH_SIZE // 8)),
                        ("thumbnail", "u1", (THUMBNAIL, THUMBNAIL))])


def fingerprint(file: str | ImageFile) -> np.ndarray:
    """What is compared of an image, by its path or its file: () of FINGERPRINT. Raises ImageError.

    What is decoded of the file already is taken, else no more than is needed. A finer scale changes a
    thumbnail by a grey level or two, which similarity does not notice (`benchmarks/leakage.py`). Images
    without contrast are looked up by equal thumbnails (util/data/leakage/search.py), so that theirs are
    always made of the same scale.
    """
    source, least = ImageSource(file, Reading("any")), (DECODED, DECODED)  # it needs no more than a fast look
    found = fingerprint_of(source.at_least(least), source.size)
    if found["contrast"] < LEAST_CONTRAST:
        return fingerprint_of(Image.fromarray(source.part(None, least)), source.size)
    return found


def fingerprint_of(image: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
    """The same of a PIL image; size: (width, height) of its file, where the image is a coarser one."""
    filter = Image.Resampling.BOX if min(image.size) >= THUMBNAIL else Image.Resampling.BICUBIC
    thumbnail = image.convert("L").resize((THUMBNAIL, THUMBNAIL), filter)
    found = np.zeros((), FINGERPRINT)
    found["width"], found["height"] = size or image.size
    found["thumbnail"] = np.asarray(thumbnail)
    for number in range(TRIMMED + 1):
        view = _view(thumbnail, number)
        if number == 0:
            found["contrast"] = _local(np.asarray(view, np.float32)[None])[1].mean()
        small = np.asarray(view.resize((HASH_SIZE + 1, HASH_SIZE), Image.Resampling.LANCZOS))
        left, right = small[:, :-1], small[:, 1:]
        found["bits"][0, number] = np.packbits(right > left)
        found["bits"][1, number] = np.packbits((left > right)[:, ::-1])  # of the mirror image
    return found


def _view(thumbnail: Image.Image, number: int) -> Image.Image:
    """View `number` of a thumbnail: grey, VIEW x VIEW pixels."""
    if number == TRIMMED:
        grey = np.asarray(thumbnail, np.float32)
        level = DARK * np.percentile(grey, 99)
        (left, right), (top, bottom) = (_ends(grey.max(axis=axis), level) for axis in (0, 1))
    else:
        left = top = THUMBNAIL * (1 - CROPS[number]) / 2
        right = bottom = THUMBNAIL - left
    return thumbnail.resize((VIEW, VIEW), Image.Resampling.BICUBIC, box=(left, top, right, bottom))


def _ends(profile: np.ndarray, level: float) -> tuple[float, float]:
    """Where a profile rises above a level and falls below it for good, to a part of a pixel."""
    above = np.flatnonzero(profile > level)
    if not len(above):
        return 0.0, float(len(profile))

    def inside(edge: int, before: int) -> float:
        """The part of the pixel before the edge that is inside: its brightness over the edge's."""
        return float(profile[before] / profile[edge]) if 0 <= before < len(profile) else 0.0
    first, last = above[0], above[-1]
    return float(first - inside(first, first - 1)), float(last + 1 + inside(last, last + 1))


def _local(views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local mean and standard deviation of (N, VIEW, VIEW) float32."""
    window = (1, NEIGHBOURHOOD, NEIGHBOURHOOD)
    mean = uniform_filter(views, window)
    return mean, np.sqrt(np.maximum(uniform_filter(views * views, window) - mean * mean, 0))


def _patterns(pictures: np.ndarray, places: np.ndarray, numbers: np.ndarray,
              mirrored: np.ndarray) -> np.ndarray:
    """(K, VIEW * VIEW) float32 of length 1: vessels and lesions of a view of the images at K places, light
    and colour taken out. What is asked for several times is computed once."""
    (places, numbers, mirrored), again = np.unique(np.stack([places, numbers, mirrored]), axis=1,
                                                   return_inverse=True)
    mirrored = mirrored.astype(bool)
    views = np.stack([np.asarray(_view(Image.fromarray(pictures["thumbnail"][place]), number), np.float32)
                      for place, number in zip(places, numbers, strict=True)])
    views[mirrored] = views[mirrored, :, ::-1]
    mean, deviation = _local(views)
    bright = np.percentile(views, 99, axis=(1, 2), keepdims=True)
    inside = minimum_filter(views >= DARK * bright, (1, 5, 5))  # without the rim, which all images share
    patterns = np.where(inside, (views - mean) / (deviation + NOISE), 0)
    patterns -= (patterns.sum(axis=(1, 2), keepdims=True)
                 / np.maximum(inside.sum(axis=(1, 2), keepdims=True), 1))
    patterns = np.where(inside, patterns, 0).reshape(len(views), -1)
    patterns /= np.maximum(np.linalg.norm(patterns, axis=1, keepdims=True), 1e-6)
    return patterns[again.reshape(-1)]


@dataclass
class Matches:
    """The most similar image among others, for each of N images."""

    place: np.ndarray  # among the others; -1 where none is similar enough
    similarity: np.ndarray  # the correlation, 0…1
    mirrored: np.ndarray  # whether it is the mirror image that is similar


def nearest(pictures: np.ndarray, others: np.ndarray) -> Matches:
    """For each of (N,) fingerprints the most similar of (M,) others, where it is similar enough to be a copy.

    Time grows with N * M, memory with N + M.
    """
    found = Matches(np.full(len(pictures), -1), np.zeros(len(pictures), np.float32),
                    np.zeros(len(pictures), bool))
    usable = np.flatnonzero(others["contrast"] >= LEAST_CONTRAST)
    for start in range(0, len(pictures), BLOCK):
        block = start + np.flatnonzero(pictures["contrast"][start:start + BLOCK] >= LEAST_CONTRAST)
        if len(block) and len(usable):
            _search(pictures, block, others, usable, found)
    return found


def _search(pictures: np.ndarray, block: np.ndarray, others: np.ndarray, usable: np.ndarray,
            found: Matches) -> None:
    """`nearest` of the images at the places `block` among the others at the places `usable`, into `found`."""
    ours = _signs(pictures["bits"][block])
    candidates = [_sieve(ours, _signs(others["bits"][chunk][:, :1]), chunk)
                  for chunk in np.split(usable, range(CHUNK, len(usable), CHUNK))]
    row, place, bits, pair, mirrored = (np.concatenate(part) for part in zip(*candidates, strict=True))
    order = np.lexsort((bits, row))
    rank = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    kept = order[rank < MOST_CANDIDATES]
    row, place, pair, mirrored = (part[kept] for part in (row, place, pair, mirrored))
    views = np.array(PAIRS)[pair]
    for start in range(0, len(row), CHUNK):
        part = slice(start, start + CHUNK)
        one = _patterns(others, place[part], views[part, 0], np.zeros(len(row[part]), bool))
        two = _patterns(pictures, block[row[part]], views[part, 1], mirrored[part])
        similarity = (one * two).sum(axis=1)
        for k in np.flatnonzero(similarity >= LEAST_SIMILARITY):
            picture = block[row[part][k]]
            if similarity[k] > found.similarity[picture]:
                found.place[picture], found.similarity[picture] = place[part][k], min(1.0, similarity[k])
                found.mirrored[picture] = mirrored[part][k]


def _signs(bits: np.ndarray) -> np.ndarray:
    """Packed bits (…, 32) -> +1 and -1, (…, 256) float32."""
    return np.unpackbits(bits, axis=-1).astype(np.float32) * 2 - 1


def _sieve(ours: np.ndarray, theirs: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, ...]:
    """Pairs that differ in few bits: (our row, the other's place, bits, number in PAIRS, mirrored), each
    (K,)."""
    kinds = 2 * len(PAIRS)
    best = np.full((len(ours), len(theirs)), -np.inf, np.float32)
    for number, (other, own) in enumerate(PAIRS):
        for mirrored in (0, 1):
            # bits that agree minus bits that differ, times the number of kinds, plus a number that tells the
            # kind and is highest for the first: the largest of all then says both
            kind = np.full((len(ours), 1), kinds - 1 - (2 * number + mirrored), np.float32)
            one = np.concatenate([ours[:, mirrored, own] * np.float32(kinds), kind], axis=1)
            two = np.concatenate([theirs[:, 0, other], np.ones((len(theirs), 1), np.float32)], axis=1)
            np.maximum(best, one @ two.T, out=best)
    row, column = np.nonzero(best >= kinds * (HASH_SIZE**2 - 2 * MOST_BITS))
    agreement, kind = np.divmod(best[row, column].astype(np.int64), kinds)
    kind = kinds - 1 - kind
    return row, places[column], (HASH_SIZE**2 - agreement) / 2, kind // 2, kind % 2 == 1
