"""Which image has which round field, found once and remembered; and an image cut to the square around it.

`--fundus_crop auto` is an entry of the stored transform, and the field is found on the same small copy of the
image whatever else that says: a file has the same field in training, evaluation, features and predictions,
with and without a cache. Reading goes: crop to the field, resize (or bring to the kept size), random crop.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from util.data.images.as_shown import Reading
from util.data.images.files import ImageFile, ImageSource
from util.data.images.fundus import Field, find_field, small_image
from util.data.images.remembered import Remembered

FUNDUS_CROPS = ("off", "auto")
# raise it when another field is found in the same file; then also READING in util/data/images/transforms.py
VERSION = 1


class Fields(Remembered):
    """The fields of image files: path -> Field in pixels of the file, or None where it has none. Each is
    looked for once a file as it is now, and remembered by `save`.

    shown: whether images are read as they are shown (`Reading`): a turned image has its field in another
    place. Deep images are looked at over their own range, whatever that of the run.
    """

    # radius 0: no field
    dtype = np.dtype([("identity", "<u8"), ("x", "<f4"), ("y", "<f4"), ("radius", "<f4")])
    again = "fields are looked for again in all images"

    def __init__(self, file: Path | None, shown: bool = True) -> None:
        """file: None keeps them in this process alone; images as they are stored have a file of their own
        beside it."""
        self.reading = Reading(shown=shown)
        self._fresh: dict[str | os.PathLike, Field | None] = {}  # of the files that the pass is reading
        super().__init__(file if shown or file is None else file.with_stem(f"{file.stem}_as_stored"))

    def look(self, file: ImageFile) -> tuple[float, float, float]:
        field = self._fresh[file.path] = _found(ImageSource(file, self.reading))
        return (0, 0, 0) if field is None else (field.x, field.y, field.radius)

    def take(self, paths: Sequence[str], found: Sequence[tuple]) -> None:
        super().take(paths, found)
        for path in paths:
            del self._fresh[path]

    def table(self, paths: list[str]) -> pd.DataFrame:
        """path, x, y, radius of what is remembered of these files; NaN where they have no field."""
        entries, known = self._entries(paths)
        has = known & (entries["radius"] > 0)
        return pd.DataFrame({"path": paths} | {name: np.where(has, entries[name], np.nan)
                                               for name in ("x", "y", "radius")})

    def any_of(self, paths: list[str]) -> bool:
        """Whether one of these files is remembered to have a field."""
        return bool(self.table(paths)["radius"].notna().any())

    def __call__(self, file: str | os.PathLike | ImageFile) -> Field | None:
        """The field of a file, or of that at a path. Raises ImageError where it is not remembered and the
        file can't be read."""
        path = file.path if isinstance(file, ImageFile) else file
        if path in self._fresh:
            return self._fresh[path]
        (entry,), known = self._entries([path])
        if not known[0]:
            return _found(ImageSource(file, self.reading))
        _, x, y, radius = entry.tolist()
        return Field(x, y, radius) if radius else None


def _found(source: ImageSource) -> Field | None:
    pixels, factor = small_image(source)
    field = find_field(pixels)
    if field is None:
        return None
    field = field.times(factor)
    return Field(*(float(np.float32(value)) for value in (field.x, field.y, field.radius)))  # as remembered


class SquareSource:
    """A square of an image, (left, top, side) in its pixels, in the place of the image that `source` is;
    black where it reaches beyond that."""

    def __init__(self, source: ImageSource, square: tuple[int, int, int]) -> None:
        self._source = source
        self._left, self._top, self._side = square

    @property
    def size(self) -> tuple[int, int]:
        return self._side, self._side

    def part(self, box: tuple[int, int, int, int] | None = None,
             resolution: tuple[int, int] | None = None) -> np.ndarray:
        """As ImageSource.part, of the square's pixels."""
        left, top, right, bottom = box or (0, 0, *self.size)
        left, top, right, bottom = left + self._left, top + self._top, right + self._left, bottom + self._top
        width, height = self._source.size
        inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        across, down = inside[2] - inside[0], inside[3] - inside[1]
        if across <= 0 or down <= 0:  # a random crop beside the image
            across, down = resolution or (right - left, bottom - top)
            return np.zeros((down, across, 3), np.uint8)
        if inside == (left, top, right, bottom):
            return self._source.part(inside, resolution)
        if resolution is not None:
            resolution = (-(-resolution[0] * across // (right - left)),
                          -(-resolution[1] * down // (bottom - top)))
        pixels = self._source.part(inside, resolution)
        factor = max(1, round(across / pixels.shape[1]))
        canvas = np.zeros((-(-(bottom - top) // factor), -(-(right - left) // factor), 3), np.uint8)
        row, column = (round(distance / factor) for distance in (inside[1] - top, inside[0] - left))
        room = canvas[row:row + pixels.shape[0], column:column + pixels.shape[1]]
        room[:] = pixels[:room.shape[0], :room.shape[1]]
        return canvas

    def whole(self, resolution: tuple[int, int]) -> tuple[np.ndarray, tuple[float, float]]:
        """As ImageSource.whole."""
        pixels = self.part(None, resolution)
        factor = max(1, round(self._side / pixels.shape[1]))
        return pixels, (self._side / factor, self._side / factor)

    def decode(self) -> Image.Image:
        """As ImageSource.decode, at full resolution: Pillow fills with black what lies outside."""
        return self._source.decode().crop((self._left, self._top, self._left + self._side,
                                           self._top + self._side))


def source_of(file: str | os.PathLike | ImageFile, reading: Reading, fundus_crop: str, padded: bool,
              fields: Fields | None = None) -> ImageSource | SquareSource:
    """What the transforms read of a file: all of it; with "auto" the square around its field, where it has
    one; padded: an image that is no square gets black beside its longer sides until it is one.

    fields: that are known already; None: the field is looked for here. Raises ImageError.
    """
    file = file if isinstance(file, ImageFile) else ImageFile(file)
    source, field = ImageSource(file, reading), None
    if fundus_crop == "auto":
        field = fields(file) if fields else _found(ImageSource(file, Reading(shown=reading.shown)))
    if field is not None:
        return SquareSource(source, field.square)
    width, height = source.size
    if padded and width != height:
        side = max(width, height)
        return SquareSource(source, ((width - side) // 2, (height - side) // 2, side))
    return source
