"""Decode once, read many times: every image is brought to a size that its crops need, and kept there as pixels.

What is kept is decided by the transform's settings (`kept`, the short side in pixels, `decode`, `fundus_crop`, `fit`), not
by whether there is a cache: `kept_pixels` gives the same numbers, and a run without room for a cache ends with the same
figures, only later.

A folder of the cache holds segments: NAME.pixels, 8-bit RGB of one image after the other, row by row, so that reading a
crop touches the rows of that crop alone; and NAME.npy, where each image stands in it and what it was made of (place, size
and time of change of its file). Segments are mapped into memory, so that all processes of a machine share what they read.
A segment is written under another name and renamed when it is whole; a start that is killed loses at most the one that it
was writing. Images that no segment has are added in a new one, by one process at a time.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from util.core.errors import RunError
from util.data.images.as_shown import AS_SHOWN, Reading
from util.data.images.files import ImageError, ImageSource, resized
from util.data.images.fundus_fields import VERSION as FIELDS_VERSION
from util.data.images.fundus_fields import Fields, SquareSource, source_of

VERSION = 2  # raise it when other pixels are kept
LEAST_SPARE = 1.75  # kept pixels for each pixel of the input: evaluation resizes to 1.14, and twice resized it wants a margin
MOST_SPARE = 16 / 7  # 512 at an input of 224
ROOM_TO_SPARE = 1.1  # free space for each byte that is expected
SEGMENT_BYTES = 4 * 2**30
ENTRY = np.dtype([("identity", "<u8"), ("check", "<u8"), ("offset", "<i8"), ("width", "<i4"), ("height", "<i4")])


def lossless_side(input_size: int, crop_scale: tuple[float, float], crop_ratio: tuple[float, float]) -> int:
    """Pixels of a kept image's short side at which the smallest crop of a square image still has `input_size` of its
    own."""
    narrowest = min(crop_ratio[0], 1 / crop_ratio[1])
    smallest_crop = math.sqrt(crop_scale[0] * narrowest)  # the shorter side of the smallest crop, of the image's side
    return math.ceil(input_size * max(LEAST_SPARE, 1 / smallest_crop))


def default_side(input_size: int, crop_scale: tuple[float, float], crop_ratio: tuple[float, float]) -> int:
    """The short side that images are kept at: `lossless_side`, but at most 16/7 of the input, 512 pixels at 224.

    There a crop of a fifth of the image's area still has a pixel for each of the input's; smaller ones, an eighth of
    those that timm's recipe draws, are magnified. Beyond it the cache grows faster than the crops sharpen.
    """
    return min(lossless_side(input_size, crop_scale, crop_ratio), math.ceil(MOST_SPARE * input_size))


def kept_pixels(source: ImageSource | SquareSource, side: int, decode: str) -> np.ndarray:
    """The image that a source reads with a short side of at most `side` pixels, (H, W, 3) uint8. Raises ImageError."""
    width, height = source.size
    scale = min(1.0, side / min(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if decode == "full":
        image = source.decode()
        return np.array(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))
    pixels, covers = source.whole(size)
    return np.ascontiguousarray(resized(pixels, size, covers=covers))


class KeptSource:
    """A kept image, in the place of util/data/images/files.py's ImageSource: its size is that at which it is kept."""

    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        return self._pixels.shape[1], self._pixels.shape[0]

    def part(self, box=None, resolution=None) -> np.ndarray:
        left, top, right, bottom = box or (0, 0, *self.size)
        return np.array(self._pixels[top:bottom, left:right])  # copied: a map of the file can't be written to

    def whole(self, resolution) -> tuple[np.ndarray, tuple[int, int]]:
        return self.part(), self.size

    def decode(self) -> Image.Image:
        return Image.fromarray(self.part())


class ImageCache:
    """Kept images by path: a `KeptSource` for those that a segment has, the path itself for others. Made by `open_cache`."""

    def __init__(self, segments: list[tuple[Path, np.ndarray]], paths: list[str], identities: np.ndarray):
        self._files = [file for file, _ in segments]
        entries = np.concatenate([index for _, index in segments] or [np.empty(0, ENTRY)])
        numbers = np.repeat(np.arange(len(segments)), [len(index) for _, index in segments])
        order = np.argsort(entries["identity"], kind="stable")
        entries, numbers = entries[order], numbers[order]
        places = np.minimum(np.searchsorted(entries["identity"], identities[:, 0]), max(0, len(entries) - 1))
        self.has = np.zeros(len(paths), bool)  # which of `paths` are kept
        if len(entries):
            self.has = (entries["identity"][places] == identities[:, 0]) & (entries["check"][places] == identities[:, 1])
        # by a hash of the path, in arrays: a dict of a million paths would be copied into every worker as it is counted
        hashes = np.fromiter((_path_hash(path) for path in paths), np.uint64, len(paths))[self.has]
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._entries, self._numbers = (values[places[self.has]][order] for values in (entries, numbers))
        self._map()

    def _map(self) -> None:
        self._pixels = [np.memmap(file, dtype=np.uint8, mode="r") for file in self._files]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pixels": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map()  # a worker that is not forked maps the files itself

    def __call__(self, path: str) -> KeptSource | str:
        wanted = np.uint64(_path_hash(path))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            return path
        entry = self._entries[place]
        offset, width, height = int(entry["offset"]), int(entry["width"]), int(entry["height"])
        pixels = self._pixels[self._numbers[place]][offset:offset + 3 * width * height]
        return KeptSource(pixels.reshape(height, width, 3))


@dataclass(frozen=True)
class Kept:
    """What the kept pixels of an image depend on, besides its file; fields: that are known already
        (util/data/images/fundus_fields.py)."""

    side: int
    decode: str
    reading: Reading = AS_SHOWN
    fundus_crop: str = "off"
    padded: bool = False
    fields: Fields | None = field(default=None, compare=False)

    @classmethod
    def of(cls, settings: dict, fields: Fields | None = None) -> "Kept":
        """Of a transform's settings; absent entries mean what they meant before there were any."""
        return cls(settings["kept"], settings["decode"], Reading.of(settings), settings.get("fundus_crop", "off"),
                   settings.get("fit", "crop") == "pad", fields)

    @property
    def folder(self) -> str:
        reading = self.reading
        ranges = "".join(f"-{value:g}{kind}" for value, kind in ((reading.bits, "bits"), (reading.floats, "white")) if value)
        return (f"{self.side}-{self.decode}-{VERSION}" + ("" if reading.reduced == "any" else f"-{reading.reduced}")
                + (f"-shown{ranges}" if reading.shown else "")
                + ("" if self.fundus_crop == "off" else f"-fundus{FIELDS_VERSION}") + ("-padded" if self.padded else ""))

    def source(self, path: str) -> ImageSource | SquareSource:
        return source_of(path, self.reading, self.fundus_crop, self.padded, self.fields)

    def pixels(self, path: str) -> np.ndarray:
        return kept_pixels(self.source(path), self.side, self.decode)


def open_cache(folder: Path, paths: list[str], kept: Kept, workers: int, say: Callable[[str], None],
               fill: bool = True) -> ImageCache:
    """The cache of these images, filled with those that it lacks (unless `fill` is off).

    Where there is no room, or the folder can't be written, a line says so and the images are decoded whenever they are
    read, to the same numbers. RunError for an image that can't be read.
    """
    paths = list(dict.fromkeys(paths))
    folder = Path(folder) / kept.folder
    identities = _identities(paths)
    cache = ImageCache(_read_segments(folder), paths, identities)
    if not fill or cache.has.all():
        if fill:
            say(f"images     {len(paths):,} found decoded in {folder} (short side at most {kept.side})")
        return cache
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder / "lock", say):
            _remove_unfinished(folder)
            cache = ImageCache(_read_segments(folder), paths, identities)  # another start may have added them meanwhile
            todo = np.flatnonzero(~cache.has)
            _require_room(folder, [paths[number] for number in todo], kept)
            _add(folder, [paths[number] for number in todo], identities[todo], kept, workers)
        cache = ImageCache(_read_segments(folder), paths, identities)
    except ImageError as error:
        raise RunError(f"an image that was there at the start cannot be read any more: {error}") from error
    except OSError as error:
        cache = ImageCache(_read_segments(folder), paths, identities)
        say(f"image cache: {folder}: {error.strerror or error}; {(~cache.has).sum():,} of {len(paths):,} images are decoded "
            "whenever they are read, which is slower and gives the same figures")
        return cache
    size = sum(file.stat().st_size for file in cache._files)
    say(f"images     {len(todo):,} decoded once to {folder} (short side at most {kept.side}, {size / 2**20:,.0f} MiB in all)")
    return cache


def _path_hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")


def _identities(paths: list[str]) -> np.ndarray:
    """(N, 2) uint64: 128 bits of place, size and time of change of each file."""
    here, found = os.getcwd(), np.empty((len(paths), 2), np.uint64)
    for number, path in enumerate(paths):
        status = os.stat(path)
        text = f"{os.path.normpath(os.path.join(here, path))}\0{status.st_size}\0{status.st_mtime_ns}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        found[number] = np.frombuffer(digest, "<u8")
    return found


def _read_segments(folder: Path) -> list[tuple[Path, np.ndarray]]:
    """(pixels' file, index) of every segment that is whole."""
    return [(file.with_suffix(".pixels"), index) for file in sorted(folder.glob("*.npy"))
            if (index := _read_index(file)) is not None]


def _read_index(file: Path) -> np.ndarray | None:
    try:
        index = np.load(file, allow_pickle=False)
        if index.dtype != ENTRY or index.ndim != 1:
            return None
        size = (3 * index["width"].astype(np.int64) * index["height"]).sum()
        return index if file.with_suffix(".pixels").stat().st_size == size else None
    except (OSError, ValueError, EOFError):
        return None  # damaged or gone: its images are decoded again


@contextlib.contextmanager
def _one_at_a_time(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    """The system frees the lock when its holder dies, so that none is ever left behind."""
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"image cache: another start is filling {lock.parent}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_unfinished(folder: Path) -> None:
    """What killed starts left; called by the one process that may write."""
    for file in [*folder.glob(".*.partial"), *folder.glob("*.pixels")]:
        if _read_index(file.with_suffix(".npy")) is None:
            file.unlink()


def _require_room(folder: Path, paths: list[str], kept: Kept) -> None:
    """OSError where the disk has no room for these images, judged by a hundred of them."""
    some = paths[::max(1, len(paths) // 100)]
    total = 0
    for path in some:
        width, height = kept.source(path).size
        scale = min(1.0, kept.side / min(width, height))
        total += 3 * math.ceil(width * scale) * math.ceil(height * scale)
    needed, free = ROOM_TO_SPARE * total * len(paths) / max(1, len(some)), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB free")


def _add(folder: Path, paths: list[str], identities: np.ndarray, kept: Kept, workers: int) -> None:
    """Decode images into new segments, in `workers` threads (the decoders work outside the interpreter's lock)."""
    with ThreadPoolExecutor(max(1, workers)) as pool, tqdm(
            total=len(paths), desc="decoding images", disable=not sys.stderr.isatty(), leave=False) as bar:
        start = 0
        while start < len(paths):
            name = hashlib.blake2b(identities[start:].tobytes(), digest_size=8).hexdigest()
            start += _write_segment(folder / name, paths[start:], identities[start:], kept, pool, bar)


def _write_segment(file: Path, paths, identities, kept: Kept, pool: ThreadPoolExecutor, bar: tqdm) -> int:
    """One segment, of as many of these images as fit -> their number."""
    partial, index, offset = file.with_name(f".{file.name}.partial"), np.zeros(len(paths), ENTRY), 0
    try:
        with open(partial, "wb") as stream:
            done = 0
            while done < len(paths) and offset < SEGMENT_BYTES:
                group = paths[done:done + 256]  # groups: decoded images that wait take memory
                for pixels in pool.map(kept.pixels, group):
                    stream.write(pixels.data)
                    index[done] = (*identities[done], offset, pixels.shape[1], pixels.shape[0])
                    offset, done = offset + pixels.size, done + 1
                    bar.update()
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file.with_suffix(".pixels"))
        with open(partial, "wb") as stream:
            np.save(stream, index[:done])
        os.replace(partial, file.with_suffix(".npy"))
    finally:
        partial.unlink(missing_ok=True)
    return done
