"""Decode once, read many times: every image is brought to a size that its crops need, and kept there as
pixels.

What is kept is decided by the transform's settings (`kept`, the short side in pixels, `decode`,
`fundus_crop`, `fit`), not by whether there is a cache: `kept_pixels` gives the same numbers, and a run
without room for a cache ends with the same metrics, only later.

A folder of the cache holds segments: NAME.pixels, 8-bit RGB of one image after the other, row by row, so that
reading a crop touches the rows of that crop alone; and NAME.npy, where each image stands in it and what it
was made of (place, size and time of change of its file). Segments are mapped into memory, so that all
processes of a machine share what they read. A segment is written under another name and renamed when it is
whole; a launch that is killed loses at most the one that it was writing. Images that no segment has are added
in a new one, by one process at a time, when a launch reads them for whatever else it lacks (`Filling`).
"""

import contextlib
import fcntl
import hashlib
import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from util.core.errors import RunError
from util.core.machine import available_bytes
from util.core.run_lock import try_lock
from util.data.images.as_shown import AS_SHOWN, FLOATS, WHOLE_NUMBERS, Reading
from util.data.images.files import ImageFile, ImageSource, resized
from util.data.images.fundus_fields import VERSION as FIELDS_VERSION
from util.data.images.fundus_fields import Fields, SquareSource, source_of
from util.data.images.reading_pass import read_images
from util.data.images.remembered import entries_of, file_identity

VERSION = 2  # raise it when other pixels are kept
# kept pixels for each pixel of the input: evaluation resizes to 1.14, and twice resized it wants a margin
LEAST_SPARE = 1.75
MOST_SPARE = 16 / 7  # 512 at an input of 224
ROOM_TO_SPARE = 1.1  # free space for each byte that is expected
JUDGED_BY = 100  # images, or all where there are fewer, say how much room the others need
IN_MEMORY = 1 / 8  # of what is free: so much is read from the disk before it is asked for
SEGMENT_BYTES = 4 * 2**30
ENTRY = np.dtype([("identity", "<u8"), ("check", "<u8"), ("offset", "<i8"), ("width", "<i4"),
                  ("height", "<i4")])


def lossless_side(input_size: int, crop_scale: tuple[float, float], crop_ratio: tuple[float, float]) -> int:
    """Pixels of a kept image's short side at which the smallest crop of a square image still has `input_size`
    of its own."""
    narrowest = min(crop_ratio[0], 1 / crop_ratio[1])
    smallest_crop = math.sqrt(crop_scale[0] * narrowest)  # its shorter side, of the image's side
    return math.ceil(input_size * max(LEAST_SPARE, 1 / smallest_crop))


def default_side(input_size: int, crop_scale: tuple[float, float], crop_ratio: tuple[float, float]) -> int:
    """The short side that images are kept at: `lossless_side`, but at most 16/7 of the input, 512 pixels at
    224.

    There a crop of a fifth of the image's area still has a pixel for each of the input's; smaller ones, an
    eighth of those that timm's recipe draws, are magnified. Beyond it the cache grows faster than the crops
    sharpen.
    """
    return min(lossless_side(input_size, crop_scale, crop_ratio), math.ceil(MOST_SPARE * input_size))


def kept_pixels(source: ImageSource | SquareSource, side: int, decode: str) -> np.ndarray:
    """The image that a source reads with a short side of at most `side` pixels, (H, W, 3) uint8. Raises
    ImageError."""
    width, height = source.size
    scale = min(1.0, side / min(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if decode == "full":
        image = source.decode()
        return np.array(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))
    pixels, covers = source.whole(size)
    return np.ascontiguousarray(resized(pixels, size, covers=covers))


class KeptSource:
    """A kept image, in the place of util/data/images/files.py's ImageSource: its size is that at which it is
    kept."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        return self._pixels.shape[1], self._pixels.shape[0]

    def part(self, box: tuple[int, int, int, int] | None = None,
             resolution: tuple[int, int] | None = None) -> np.ndarray:
        left, top, right, bottom = box or (0, 0, *self.size)
        return np.array(self._pixels[top:bottom, left:right])  # copied: a map of the file can't be written to

    def whole(self, resolution: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        return self.part(), self.size

    def decode(self) -> Image.Image:
        return Image.fromarray(self.part())


class ImageCache:
    """Kept images by path: a `KeptSource` for those that a segment has, the path itself for others. Made by
    `open_cache`."""

    def __init__(self, segments: list[tuple[Path, np.ndarray]], paths: Sequence[str],
                 identities: np.ndarray) -> None:
        self._files = [file for file, _ in segments]
        known = np.concatenate([np.empty(0, ENTRY), *(index for _, index in segments)])
        numbers = np.repeat(np.arange(len(segments)), [len(index) for _, index in segments])
        order = np.argsort(known["identity"], kind="stable")
        known = np.rec.fromarrays([known["identity"][order], known[order], numbers[order]],
                                  names="identity,entry,segment")
        found, same = entries_of(known, identities[:, 0])
        self.has = same & (found["entry"]["check"] == identities[:, 1])  # which of `paths` are kept
        # by a hash of the path, in arrays: a dict of a million would be copied into every worker as it counts
        hashes = np.fromiter((_path_hash(path) for path in paths), np.uint64, len(paths))[self.has]
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._entries, self._numbers = (found[name][self.has][order] for name in ("entry", "segment"))
        self._map()

    def _map(self) -> None:
        maps = [_mapped(file) for file in self._files]
        if sum(map(len, maps)) <= IN_MEMORY * available_bytes():
            for one in maps:  # read from the disk at once, in the background, and shared by all processes
                one.madvise(mmap.MADV_WILLNEED)
        self._pixels = [np.frombuffer(one, np.uint8) for one in maps]

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

    side: int | None  # None: images are not brought to a size first
    decode: str
    reading: Reading = AS_SHOWN
    fundus_crop: str = "off"
    padded: bool = False
    fields: Fields | None = field(default=None, compare=False)

    @classmethod
    def of(cls, settings: dict, fields: Fields | None = None) -> "Kept":
        """Of a transform's settings; absent entries mean what they meant before there were any."""
        return cls(settings.get("kept"), settings["decode"], Reading.of(settings),
                   settings.get("fundus_crop", "off"), settings.get("fit", "crop") == "pad", fields)

    @property
    def folder(self) -> str:
        reading = self.reading
        ranges = "".join(f"-{value:g}{kind}"
                         for value, kind in ((reading.bits, "bits"), (reading.floats, "white")) if value)
        return (f"{self.side}-{self.decode}-{VERSION}"
                + ("" if reading.reduced == "any" else f"-{reading.reduced}")
                + (f"-shown{ranges}" if reading.shown else "")
                + ("" if self.fundus_crop == "off" else f"-fundus{FIELDS_VERSION}")
                + ("-padded" if self.padded else ""))

    def pixels(self, file: str | os.PathLike | ImageFile) -> np.ndarray:
        """(H, W, 3) uint8 of a file, or of that at a path. Raises ImageError."""
        return kept_pixels(self.source(file), self.side, self.decode)

    def source(self, file: str | os.PathLike | ImageFile) -> ImageSource | SquareSource:
        """What its pixels are made of. Raises ImageError."""
        return source_of(file, self.reading, self.fundus_crop, self.padded, self.fields)

    def hangs_on_range(self, file: ImageFile) -> bool:
        """Whether a file's pixels depend on a range of values that is not known yet. Raises ImageError."""
        reading, kind = self.reading, file.kind()
        return reading.shown and ((kind == WHOLE_NUMBERS and not reading.bits)
                                  or (kind == FLOATS and not reading.floats))


class Filling:
    """The images that a cache lacks, brought into it by whoever reads them: a `Reader` of
    util/data/images/reading_pass.py.

    final: off where files of more than 8 bits are left out, because their pixels depend on the range of all
    (util/data/images/scan.py), which is known once all are read; `open_cache` adds them. `count` images were
    added, `left` were left out; `error`: what ended it early. What was written by then is kept.
    """

    def __init__(self, folder: str | os.PathLike, kept: Kept, say: Callable[[str], None],
                 final: bool = True) -> None:
        self.folder, self.kept, self.final = Path(folder) / kept.folder, kept, final
        self.count, self.left, self.error = 0, 0, None
        self.segments: list[Path] = []  # written by it
        self._say, self._lock = say, contextlib.ExitStack()
        self._todo, self._bytes = 0, 0  # images asked for, and bytes of those that were added
        self._stream, self._index = None, []

    def absent(self, paths: Sequence[str], identities: np.ndarray | None = None) -> np.ndarray:
        """(N,) bool: which of these files no segment has."""
        known = _identities(paths) if identities is None else identities
        return ~ImageCache(_read_segments(self.folder), paths, known).has

    def lacks(self, paths: Sequence[str]) -> np.ndarray:
        """As a `Reader`. From here on until `save` no other process fills this cache."""
        identities = _identities(paths)
        found = self.absent(paths, identities)
        if found.any():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock.enter_context(_one_at_a_time(self.folder / "lock", self._say))
                _remove_unfinished(self.folder)
                found = self.absent(paths, identities)  # another launch may have added them meanwhile
            except OSError as error:
                self.error = error
        self._todo = np.count_nonzero(found)
        return found & (self.error is None)

    def look(self, file: ImageFile) -> tuple[np.ndarray, np.ndarray] | None:
        """(identity, pixels), or None for what is left out."""
        if self.error or (not self.final and self.kept.hangs_on_range(file)):
            return None
        return _identities([file.path])[0], self.kept.pixels(file)

    def take(self, paths: Sequence[str], found: Sequence[tuple[np.ndarray, np.ndarray] | None]) -> None:
        added = [one for one in found if one is not None]
        self.left += len(found) - len(added)
        try:
            if self.error is None:
                self._require_room([pixels.size for _, pixels in added])
                self._write(added)
        except OSError as error:
            self._give_up(error)

    def save(self) -> None:
        try:
            self._finish()
        except OSError as error:
            self._give_up(error)
        self._lock.close()

    def adopt(self, other: "Filling") -> None:
        """Count what another one has written of these pixels; of a folder that is named otherwise, link it
        here."""
        self.count, self.left = other.count, other.left
        if other.folder == self.folder or not other.segments:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _one_at_a_time(self.folder / "lock", self._say):
                for segment in other.segments:
                    for ending in (".pixels", ".npy"):
                        with contextlib.suppress(FileExistsError):
                            os.link(segment.with_suffix(ending), self.folder / (segment.name + ending))
        except OSError as error:
            self._say(f"image cache: {self.folder}: {error.strerror or error}; what was decoded is decoded "
                      "again")
            self.count = 0

    def _require_room(self, sizes: list[int]) -> None:
        """OSError where the disk has no room for what is still to be added, judged by a hundred images or
        more."""
        count = self.count + len(sizes)
        if not sizes or count < min(JUDGED_BY, self._todo - self.left):
            return
        mean = (self._bytes + sum(sizes)) / count
        needed = ROOM_TO_SPARE * mean * (self._todo - self.left - self.count)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(f"{needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB free")

    def _write(self, added: list[tuple[np.ndarray, np.ndarray]]) -> None:
        for identity, pixels in added:
            if self._stream is None:
                self._segment = self.folder / identity.tobytes().hex()
                self._stream = open(_partial(self._segment), "wb")  # noqa: SIM115  # over several calls
            self._stream.write(pixels.data)
            self._index.append((*identity, self._stream.tell() - pixels.size, pixels.shape[1],
                                pixels.shape[0]))
            self.count, self._bytes = self.count + 1, self._bytes + pixels.size
            if self._stream.tell() >= SEGMENT_BYTES:
                self._finish()

    def _finish(self) -> None:
        """The segment that is being written is whole."""
        if self._stream is None:
            return
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        partial = _partial(self._segment)
        os.replace(partial, self._segment.with_suffix(".pixels"))
        with open(partial, "wb") as stream:
            np.save(stream, np.array(self._index, ENTRY))
        os.replace(partial, self._segment.with_suffix(".npy"))
        self.segments.append(self._segment)
        self._stream, self._index = None, []

    def _give_up(self, error: OSError) -> None:
        self.error = error
        if self._stream is not None:
            with contextlib.suppress(OSError):  # what it still held has no room either
                self._stream.close()
            _partial(self._segment).unlink(missing_ok=True)
            self.count -= len(self._index)
            self._stream, self._index = None, []


def open_cache(folder: str | os.PathLike, paths: list[str], kept: Kept, workers: int,
               say: Callable[[str], None], fill: bool = True, filled: Filling | None = None) -> ImageCache:
    """The cache of these images, filled with those that it lacks (unless `fill` is off).

    filled: what this launch has added already, which is said here. Where there is no room, or the folder
    can't be written, a line says so and the images are decoded whenever they are read, to the same numbers.
    RunError for an image that can't be read.
    """
    paths = list(dict.fromkeys(paths))
    filling = Filling(folder, kept, say)
    if fill:
        if filled is not None:
            filling.adopt(filled)
        bad = read_images([(filling, paths)], workers)
        if bad:
            raise RunError("an image that was there at the start cannot be read any more: "
                           f"{': '.join(bad[0])}")
    cache = ImageCache(_read_segments(filling.folder), paths, _identities(paths))
    if fill and filling.error is not None:
        say(f"image cache: {filling.folder}: {filling.error.strerror or filling.error}; "
            f"{(~cache.has).sum():,} of {len(paths):,} images are decoded whenever they are read, which is "
            "slower and gives the same figures")
    elif filling.count:
        size = sum(file.stat().st_size for file in cache._files)
        again = (f"; {filling.left:,} of more than 8 bits were read again, over the range of all"
                 if filling.left else "")
        say(f"images     {filling.count:,} decoded once to {filling.folder} (short side at most {kept.side}, "
            f"{size / 2**20:,.0f} MiB in all){again}")
    elif fill:
        say(f"images     {len(paths):,} found decoded in {filling.folder} (short side at most {kept.side})")
    return cache


def _mapped(file: Path) -> mmap.mmap:
    with open(file, "rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _partial(segment: Path) -> Path:
    return segment.with_name(f".{segment.name}.partial")


def _path_hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")


def _identities(paths: Sequence[str]) -> np.ndarray:
    """(N, 2) uint64: 128 bits of place, size and time of change of each file; 0 for one that is not there."""
    here = os.getcwd()
    files = (os.path.normpath(os.path.join(here, path)) for path in paths)
    return np.frombuffer(b"".join(file_identity(file, 16) for file in files), "<u8").reshape(-1, 2)


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
        if not try_lock(file, fcntl.flock):
            say(f"image cache: another start is filling {lock.parent}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_unfinished(folder: Path) -> None:
    """What killed launches left; called by the one process that may write."""
    for file in [*folder.glob(".*.partial"), *folder.glob("*.pixels")]:
        if _read_index(file.with_suffix(".npy")) is None:
            file.unlink()
