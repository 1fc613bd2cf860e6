"""One image file, read right: 8-bit RGB whatever the file holds.

Cameras and OCT devices export grey, palette, CMYK and 16-bit files. Pillow's plain `convert("RGB")` clips
16-bit values to white, so that an OCT volume trains as blank images without a word; here they are scaled. A
file that is cut short always raises: half an image padded with grey would be a sample like any other to the
model.
"""
import contextlib
import errno
import functools
import io
import math
import os
import stat
import warnings
from collections.abc import Iterator

import numpy as np
import simplejpeg
import torch
from PIL import Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from util.data.images.as_shown import (
    AS_SHOWN,
    EIGHT_BITS,
    PNG_HEADER,
    SIDEWAYS,
    TURNS,
    Facts,
    Reading,
    exif_of,
    facts_of,
    flags_before,
    kind_of,
    orientation_of,
    to_rgb,
)

# Named, so that a file's content never reaches Pillow's other plugins: EPS, for one, runs an outside program.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
DCT_DENOMINATORS = (8, 4, 2, 1)  # the scales at which libjpeg can decode: 1/8, 1/4, 1/2 and 1

# of a progressive JPEG (libjpeg-turbo's own bound); real ones have some ten, and each costs a whole pass
MOST_SCANS = 500
_JPEG_MAGIC, _START_OF_SCAN = b"\xff\xd8\xff", b"\xff\xda"
_JPEG_COLOURS = ("YCbCr", "Gray", "RGB")  # CMYK is often stored inverted, which Pillow knows
# Pillow warns of images of half its limit and of odd tags; what matters of that is an error here.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(ValueError):
    """An image that cannot be read; `path` says which, `reason` why, in a few words."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@contextlib.contextmanager
def _as_image_error(path: str | os.PathLike) -> Iterator[None]:
    """A damaged file makes Pillow's plugins raise nearly anything (struct.error, …): an ImageError."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(path, reason_of(error)) from error


class ImageFile:
    """An image file that is read once, whatever its `ImageSource`s ask for, and decoded once at each scale.

    A JPEG is read as bytes; of any other file Pillow reads what its first page or frame needs. What was
    decoded is kept as long as this object is.
    look: whether decoding finds what `facts` needs, too, which costs a look at every page.
    """

    def __init__(self, path: str | os.PathLike, look: bool = False) -> None:
        self.path, self._looks = path, look
        self._flags = 0
        self._stored: tuple[tuple[int, int], int] | None = None
        self._opened: Image.Image | None = None
        self._loaded: dict[int, Image.Image] = {}  # by Pillow, at 1/key of its size
        self._reduced: dict[int, np.ndarray | None] = {}  # by libjpeg-turbo; None: it can't

    @functools.cached_property
    def content(self) -> bytes:
        """All bytes of a JPEG, the first of another file. Raises ImageError."""
        with _as_image_error(self.path):
            return _content(self.path)

    @property
    def is_jpeg(self) -> bool:
        return self.content.startswith(_JPEG_MAGIC)

    @functools.cached_property
    def plain_jpeg(self) -> tuple[tuple[int, int], str] | None:
        """((width, height), colours) of a JPEG that libjpeg-turbo decodes as Pillow does; None: that is
        Pillow's work."""
        if not self.is_jpeg or self.content.count(_START_OF_SCAN) > MOST_SCANS:
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(self.content)
        except ValueError:
            return None  # damaged: Pillow says how
        small_enough = width * height <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
        return ((width, height), colours) if small_enough and colours in _JPEG_COLOURS else None

    def reduced(self, factor: int) -> np.ndarray | None:
        """A plain JPEG at 1/`factor`, (h, w, 3) uint8; None where it is Pillow that has to decode it, or to
        say in its words what is wrong."""
        if factor not in self._reduced:
            width, height = (-(-edge // factor) for edge in self.plain_jpeg[0])
            try:
                pixels = simplejpeg.decode_jpeg(self.content, "RGB", min_height=height, min_width=width)
            except ValueError:
                pixels = None
            self._reduced[factor] = pixels
        return self._reduced[factor]

    def at_hand(self, factor: int) -> Image.Image | None:
        """A plain JPEG at 1/`factor`, averaged from the coarsest finer scale that is decoded already; None
        where none is."""
        known = [one for one, pixels in self._reduced.items() if one <= factor and pixels is not None]
        return Image.fromarray(self._reduced[max(known)]).reduce(factor // max(known)) if known else None

    def stored(self) -> tuple[tuple[int, int], int]:
        """(width, height) as the pixels are stored, and the orientation that Pillow does not apply itself.
        Raises ImageError."""
        if self._stored is None:
            self._opened = self._open()
        return self._stored

    def loaded(self, denominator: int = 1) -> Image.Image:
        """Pillow's image in the file's own mode, of a JPEG at 1/`denominator`. Raises ImageError."""
        if denominator not in self._loaded:
            image, self._opened = self._opened or self._open(), None
            with _as_image_error(self.path), image:
                self._refuse_many_scans(image)
                self._flags = flags_before(image) if self._looks else 0
                if denominator > 1:
                    image.draft(None, tuple(edge // denominator for edge in image.size))
                image.load()
            self._loaded[denominator] = image
        return self._loaded[denominator]

    def facts(self) -> Facts:
        """What the file is besides its pixels. Raises ImageError, also for a file that is damaged anywhere:
        what nobody has decoded is decoded, a JPEG at 1/8 of its size, which still reads every bit but
        computes little."""
        (width, height), orientation = self.stored()
        if not self._loaded and self.plain_jpeg and (
                any(pixels is not None for pixels in self._reduced.values())
                or self.reduced(DCT_DENOMINATORS[0]) is not None):
            facts = Facts(flags=flags_before(self._opened))
        else:
            if not self._loaded:
                self.loaded(dct_denominator((width, height), 1) if self.is_jpeg else 1)
            with _as_image_error(self.path):
                facts = facts_of(next(iter(self._loaded.values())), self.content, self._flags)
        if orientation in SIDEWAYS:
            width, height = height, width
        return facts._replace(width=width, height=height)

    def kind(self) -> int:
        """`Facts.kind`, without a look at the values. Raises ImageError."""
        return EIGHT_BITS if self.is_jpeg else kind_of(self.loaded(), self.content)

    def _open(self) -> Image.Image:
        with _as_image_error(self.path):
            if file_status(self.path).st_size == 0:
                raise ImageError(self.path, "empty file")
            image = Image.open(io.BytesIO(self.content) if self.is_jpeg else self.path, formats=FORMATS)
        turned_by_pillow = isinstance(image, TiffImagePlugin.TiffImageFile)
        self._stored = image.size, 1 if turned_by_pillow else orientation_of(image.info.get("exif"))
        return image

    def _refuse_many_scans(self, image: Image.Image) -> None:
        """ImageError for a progressive JPEG of so many scans that decoding it is a trap: minutes for a few
        kilobytes."""
        if image.info.get("progressive") and isinstance(image, JpegImagePlugin.JpegImageFile):
            scans = self.content.count(_START_OF_SCAN)
            if scans > MOST_SCANS:
                raise ImageError(self.path, f"a JPEG of {scans} scans, where {MOST_SCANS} are read at most")


class ImageSource:
    """An image file as `reading` reads it; opened when it is first asked for something.

    file: a path, or an `ImageFile` that others read, too.
    """

    def __init__(self, file: str | os.PathLike | ImageFile, reading: Reading = AS_SHOWN) -> None:
        self.file = file if isinstance(file, ImageFile) else ImageFile(file)
        self.path, self.reading = self.file.path, reading

    @functools.cached_property
    def _plain(self) -> bool:
        """Whether libjpeg-turbo decodes it: turned ones are rare and not worth a second fast way."""
        return self.file.plain_jpeg is not None and not (
            self.reading.shown and orientation_of(exif_of(self.file.content)) in TURNS)

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the whole image, from the header. Raises ImageError."""
        if self._plain:
            return self.file.plain_jpeg[0]
        size, orientation = self.file.stored()
        return size[::-1] if self.reading.shown and orientation in SIDEWAYS else size

    def part(self, box: tuple[int, int, int, int] | None = None,
             resolution: tuple[int, int] | None = None) -> np.ndarray:
        """The pixels in a box, decoded no finer than is needed: (h, w, 3) uint8, writable.

        box: (left, top, right, bottom) in pixels of the file; None: all. resolution: (width, height) that the
        part has at least, unless the file has less; None: the file's own. The box is rounded to the pixels
        that are decoded. JPEGs are decoded by libjpeg-turbo at 1/2, 1/4 or 1/8 (the same numbers as Pillow's
        draft, sooner), where `reduced` allows it; others are decoded whole. Raises ImageError, as
        `decode_scaled`.
        """
        width, height = self.size
        left, top, right, bottom = box or (0, 0, width, height)
        coarsest = _coarsest((right - left, bottom - top), resolution)
        decoded = self._jpeg_at(coarsest)
        if decoded is not None:
            pixels, factor = decoded
            left, top, right, bottom = (round(edge / factor) for edge in (left, top, right, bottom))
            return np.ascontiguousarray(pixels[top:max(bottom, top + 1), left:max(right, left + 1)])
        image = self.decode()
        if coarsest > 1 and self.reading.reduced == "any":
            image = image.reduce(coarsest, box=(left, top, right, bottom))
        elif box is not None:
            image = image.crop((left, top, right, bottom))
        return np.array(image)

    def whole(self, resolution: tuple[int, int]) -> tuple[np.ndarray, tuple[float, float]]:
        """All of the image, decoded as by `part` -> ((h, w, 3) uint8, writable; (width, height) that it
        covers).

        Where a pixel is the mean of 8 x 8 of the file, an image of 2300 pixels covers 287.5, and the last of
        its 288 is half empty: `resized` wants to know, or the image would be stretched.
        """
        coarsest = _coarsest(self.size, resolution)
        pixels, factor = self._jpeg_at(coarsest) or (None, coarsest if self.reading.reduced == "any" else 1)
        if pixels is None:
            image = self.decode()
            pixels = np.array(image.reduce(factor) if factor > 1 else image)
        return pixels, (self.size[0] / factor, self.size[1] / factor)

    def at_least(self, resolution: tuple[int, int]) -> Image.Image:
        """All of the image as PIL RGB, with at least `resolution` (width, height) unless the file has less,
        as by `part`; a JPEG averaged from what is decoded already, where that is finer. Raises ImageError."""
        factor = dct_denominator(self.size, resolution)
        decoded = self.file.at_hand(factor) if self._plain else None
        if decoded is None:
            return Image.fromarray(self.part(None, resolution))
        return decoded.crop((0, 0, *(max(1, round(edge / factor)) for edge in self.size)))  # as `part` rounds

    def coarse(self, least: int) -> tuple[np.ndarray, int]:
        """All of the image, of a JPEG at the coarsest of libjpeg's scales that leaves `least` pixels a side,
        in full of another -> ((h, w, 3) uint8, the scale's denominator). Raises ImageError."""
        denominator = dct_denominator(self.size, least)
        pixels = self.file.reduced(denominator) if self._plain else None
        if pixels is not None:
            return pixels, denominator
        image, denominator = self.decode_scaled(least)
        return np.asarray(image), denominator

    def _jpeg_at(self, coarsest: int) -> tuple[np.ndarray, int] | None:
        """All of a JPEG at the coarsest scale allowed -> (pixels, by how much it is reduced), or None."""
        if not self._plain:
            return None
        factor = next(d for d in DCT_DENOMINATORS if d <= coarsest)
        if self.file.plain_jpeg[1] == "Gray" and self.reading.reduced == "colour":
            factor = 1
        pixels = self.file.reduced(factor)
        if (pixels is not None and factor > 1 and self.reading.reduced == "colour"
                and not shows_colour(pixels)):
            pixels, factor = self.file.reduced(1), 1
        return None if pixels is None else (pixels, factor)

    def decode(self, minimum_size: int | tuple[int, int] | None = None) -> Image.Image:
        """The image as PIL RGB; arguments and errors as `decode_scaled`."""
        return self.decode_scaled(minimum_size)[0]

    def decode_scaled(self, minimum_size: int | tuple[int, int] | None = None) -> tuple[Image.Image, int]:
        """Decode, a JPEG at a reduced scale where that is enough.

        minimum_size: pixels, a number or (width, height), that the result must still have in both axes; only
        JPEGs are reduced, and only by 2, 4 or 8 (libjpeg computes fewer DCT coefficients). None: the full
        image. Returns (PIL RGB image, denominator): a pixel of the result covers denominator² pixels of the
        file. Raises ImageError when the file is absent, cut short, damaged, too large (Pillow's limit) or no
        image.
        """
        _, orientation = self.file.stored()
        turn = TURNS.get(orientation) if self.reading.shown else None
        reduces = minimum_size is not None and self.file.is_jpeg
        denominator = dct_denominator(self.size, minimum_size) if reduces else 1
        image = self.file.loaded(denominator)
        with _as_image_error(self.path):
            rgb = to_rgb(image, self.reading)
            return rgb if turn is None else rgb.transpose(turn), denominator


def shows_colour(pixels: np.ndarray) -> bool:
    """Whether a tenth of the (h, w, 3) pixels differs by more than 16 levels between red and blue.

    A fundus photograph does in nearly all of its field (IDRiD: at least three fifths of the image); a scan
    saved as RGB does not, also with a coloured mark or two.
    """
    some = pixels[::2, ::2].astype(np.int16)
    return np.count_nonzero(np.abs(some[..., 0] - some[..., 2]) > 16) > some.shape[0] * some.shape[1] / 10


def _content(path: str | os.PathLike) -> bytes:
    """The bytes of a file that begins as a JPEG does, the first of another. OSError, also for a pipe, which
    would wait for its writer, or a device. By the system's own calls: python's file objects take twice as
    long."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        _refuse_no_file(status)
        start = os.pread(descriptor, PNG_HEADER, 0)
        if not start.startswith(_JPEG_MAGIC):
            return start
        content = os.read(descriptor, status.st_size)
        while len(content) < status.st_size and (more := os.read(descriptor, status.st_size - len(content))):
            content += more
        return content
    finally:
        os.close(descriptor)


def _coarsest(size: tuple[int, int], resolution: tuple[int, int] | None) -> int:
    """By how much a part of `size` may be reduced so that `resolution` (None: its own) is left of it; (width,
    height)."""
    return 1 if resolution is None else max(1, min(size[0] // resolution[0], size[1] // resolution[1]))


def file_status(path: str | os.PathLike) -> os.stat_result:
    """os.stat of a regular file; ImageError with the reason for anything else (pipe, socket, device, folder)
    or nothing."""
    with _as_image_error(path):
        status = os.stat(path)
        _refuse_no_file(status)
        return status


def _refuse_no_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for name, holds in (("folder", stat.S_ISDIR), ("pipe", stat.S_ISFIFO),
                                              ("socket", stat.S_ISSOCK))
                     if holds(status.st_mode)), "device")
        raise OSError(errno.EINVAL, f"no file but a {kind}")


def resized(pixels: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int] | None = None,
            covers: tuple[float, float] | None = None, within: float = 1 / 512) -> np.ndarray:
    """(h, w, 3) uint8 -> (height, width, 3) uint8 of `size` (width, height), or the part of it in a box.

    Bicubic with antialiasing, to a level or two what Pillow computes, in a fraction of its time. box: (left,
    top, right, bottom) in pixels of the result; no more pixels are read than it needs. within: the part of a
    pixel by which its place may be missed (1/64 changes noise by a level and more where an image nearly keeps
    its size). covers: (width, height) of the image in `pixels`, whose last row and column it may fill in
    part; None: all.
    """
    covers = pixels.shape[1::-1] if covers is None else covers
    if tuple(covers) == tuple(size):
        return pixels if box is None else pixels[box[1]:box[3], box[0]:box[2]]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    if box is None and covers == pixels.shape[1::-1]:
        result = torch.nn.functional.interpolate(tensor, size[::-1], mode="bicubic", antialias=True)[0]
        return result.permute(1, 2, 0).contiguous().numpy()
    left, top, right, bottom = box or (0, 0, *size)
    (rows, above, up), (columns, before, along) = (
        _needed(covers[1], size[1], top, bottom, within), _needed(covers[0], size[0], left, right, within))
    part = tensor[:, :, rows, columns].contiguous(memory_format=torch.channels_last)
    result = torch.nn.functional.interpolate(part, scale_factor=(up, along), mode="bicubic",
                                             antialias=True)[0]
    return result[:, above:above + bottom - top, before:before + right - left].permute(1, 2, 0).numpy()


@functools.lru_cache(maxsize=256)  # images of one camera are of one size
def _needed(have: float, want: int, first: int, last: int, within: float) -> tuple[slice, int, float]:
    """What of an axis that `have` pixels cover, resized to `want`, gives its pixels first to last: the slice
    to resize, where `first` stands in its result, and the factor."""
    pixels = have / want
    margin = math.ceil(2 * max(pixels, 1) / pixels) + 1  # bicubic looks at two pixels of the coarser grid
    # the part starts where pixels of both grids begin together
    start = next((k for k in range(first - margin, 0, -1) if abs(k * pixels - round(k * pixels)) <= within),
                 0)
    end = min(math.ceil(have), math.ceil((last + margin) * pixels))
    # PyTorch rounds the length of its result down: a millionth of a pixel more, lest 305 · (256 / 305) be 255
    return slice(round(start * pixels), end), first - start, (want + 1e-6) / have


def dct_denominator(size: tuple[int, int], minimum_size: int | tuple[int, int]) -> int:
    """The largest of 1, 2, 4, 8 by which a JPEG of `size` (width, height) may be divided, see
    `decode_scaled`."""
    if not isinstance(minimum_size, (tuple, list)):
        minimum_size = (minimum_size, minimum_size)
    width, height = minimum_size
    return next((d for d in DCT_DENOMINATORS if size[0] // d >= width and size[1] // d >= height), 1)


def reason_of(error: Exception) -> str:
    """A few words, in one line and without the path, for what Pillow or the system raised."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
