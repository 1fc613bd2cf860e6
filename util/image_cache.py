"""Decode once, read many times: a search's trials read every picture from one file of pixels.

The file holds 8-bit RGB, each picture no larger than its crops need, and is mapped into memory, so that all processes of
a machine share what they read. It is named after the pictures (place, size, time of change) and the size that they are
kept at: a later start with the same ones finds it, any other makes its own. It is written under another name, then
renamed, so a start that is killed leaves nothing that could be taken for whole.
"""

import hashlib
import math
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from util.errors import RunError
from util.images import ImageError, ImageSource

EVAL_SPARE = 1.75  # kept pixels for each pixel of the input, at least: evaluation resizes to 1.14, with a margin of 1.5
ROOM_TO_SPARE = 1.1  # free space for each byte that is expected


def kept_side(input_size: int, crop_scale: tuple[float, float], crop_ratio: tuple[float, float]) -> int:
    """Pixels of a kept picture's short side: the smallest crop of a square picture still has `input_size` of its own."""
    narrowest = min(crop_ratio[0], 1 / crop_ratio[1])
    smallest_crop = math.sqrt(crop_scale[0] * narrowest)  # the shorter side of the smallest crop, of the picture's side
    return math.ceil(input_size * max(EVAL_SPARE, 1 / smallest_crop))


class CachedSource:
    """A kept picture, in the place of util/images.py's ImageSource: its size is that at which it is kept."""

    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        return self._pixels.shape[1], self._pixels.shape[0]

    def decode_scaled(self, minimum_size=None) -> tuple[Image.Image, int]:
        return Image.fromarray(np.ascontiguousarray(self._pixels)), 1


class ImageCache:
    """The pictures of a table, by path. Made by `make_cache`."""

    def __init__(self, file: Path, index: np.ndarray, paths: list[str]):
        self.file, self.index = file, index
        self._place = {path: number for number, path in enumerate(paths)}
        self._pixels = np.memmap(file, dtype=np.uint8, mode="r")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pixels": None}  # a worker that is not forked maps the file itself

    def __call__(self, path: str) -> CachedSource:
        if self._pixels is None:
            self._pixels = np.memmap(self.file, dtype=np.uint8, mode="r")
        offset, width, height = (int(number) for number in self.index[self._place[path]])
        return CachedSource(self._pixels[offset:offset + 3 * width * height].reshape(height, width, 3))


def make_cache(folder: Path, paths: list[str], side: int, workers: int, say: Callable[[str], None]) -> ImageCache | None:
    """The cache of these pictures with a short side of at most `side` pixels, made unless it is there.

    None, and a line, where there is no room for it or it can't be written: pictures are then read from their files.
    RunError for a picture that can't be read.
    """
    paths = list(dict.fromkeys(paths))
    file = Path(folder) / f"{_key(paths, side)}.pixels"
    index = _read_index(file, len(paths))
    if index is not None:
        say(f"pictures   {len(paths):,} found decoded in {file}")
        return ImageCache(file, index, paths)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        needed = ROOM_TO_SPARE * _expected_bytes(paths, side)
        free = shutil.disk_usage(file.parent).free
        if needed > free:
            say(f"pictures are read from their files in every trial: keeping them decoded takes {needed / 2**30:.1f} GiB, and "
                f"{file.parent} has {free / 2**30:.1f} GiB free")
            return None
        index = _write(file, paths, side, workers)
    except ImageError as error:
        raise RunError(f"a picture that was there at the start cannot be read any more: {error}") from error
    except OSError as error:
        say(f"pictures are read from their files in every trial: {file.parent} can't be written ({error.strerror})")
        return None
    say(f"pictures   {len(paths):,} decoded once to {file} (short side at most {side}, {file.stat().st_size / 2**20:,.0f} MiB)")
    return ImageCache(file, index, paths)


def _key(paths: list[str], side: int) -> str:
    digest = hashlib.blake2b(str(side).encode(), digest_size=16)
    for path in paths:
        status = os.stat(path)
        digest.update(f"\n{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read_index(file: Path, pictures: int) -> np.ndarray | None:
    """The index beside a cache's file, (N, 3) of offset, width, height; None where the two are not there and whole."""
    try:
        index = np.load(file.with_suffix(".npy"), allow_pickle=False)
        whole = index.shape == (pictures, 3) and file.stat().st_size == (3 * index[:, 1] * index[:, 2]).sum()
    except (OSError, ValueError, EOFError):
        return None
    return index if whole else None


def _expected_bytes(paths: list[str], side: int) -> int:
    """Of all pictures, judged by a hundred of them."""
    some = paths[::max(1, len(paths) // 100)]
    total = 0
    for path in some:
        width, height = ImageSource(path).size
        scale = min(1.0, side / min(width, height))
        total += 3 * math.ceil(width * scale) * math.ceil(height * scale)
    return total * len(paths) // len(some)


def _decode(path: str, side: int) -> np.ndarray:
    """A picture with a short side of at most `side`, (H, W, 3) uint8. No RunError here: it runs in a thread."""
    source = ImageSource(path)
    width, height = source.size
    scale = min(1.0, side / min(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image, _ = source.decode_scaled(None if scale == 1 else size)
    return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))


def _write(file: Path, paths: list[str], side: int, workers: int) -> np.ndarray:
    partial, index, offset = file.with_name(f".{file.name}.{os.getpid()}.partial"), np.zeros((len(paths), 3), np.int64), 0
    try:
        with open(partial, "wb") as stream, ThreadPoolExecutor(max(1, workers)) as pool, tqdm(
                total=len(paths), desc="decoding pictures", disable=not sys.stderr.isatty(), leave=False) as bar:
            for start in range(0, len(paths), 256):  # groups: decoded pictures that wait take memory
                group = paths[start:start + 256]
                for number, pixels in enumerate(pool.map(lambda path: _decode(path, side), group), start):
                    stream.write(pixels.tobytes())
                    index[number] = offset, pixels.shape[1], pixels.shape[0]
                    offset += pixels.size
                    bar.update()
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
        with open(partial, "wb") as stream:
            np.save(stream, index)
        os.replace(partial, file.with_suffix(".npy"))
    finally:
        partial.unlink(missing_ok=True)
    return index
