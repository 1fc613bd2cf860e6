"""One picture file, read right: 8-bit RGB whatever the file holds, and a check that a file decodes at all.

Cameras and OCT devices export grey, palette, CMYK and 16-bit files. Pillow's plain `convert("RGB")` clips 16-bit
values to white, so that an OCT volume trains as blank pictures without a word; here they are scaled. A file that is
cut short always raises: half a picture padded with grey would be a sample like any other to the model.
"""
import errno
import functools
import hashlib
import math
import os
import stat
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import simplejpeg
import torch
from PIL import Image, JpegImagePlugin, UnidentifiedImageError
from tqdm import tqdm

# Named, so that a file's content never reaches Pillow's other plugins: EPS, for one, starts an outside program.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
DCT_DENOMINATORS = (8, 4, 2, 1)  # the scales at which libjpeg can decode: 1/8, 1/4, 1/2 and 1

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF 6.0 tag numbers
_WHITE_IS_ZERO, _SIGNED = 0, 2  # TIFF 6.0: values of the last two
_JPEG_MAGIC = b"\xff\xd8\xff"
MOST_SCANS = 500  # of a progressive JPEG (libjpeg-turbo's own bound); real ones have some ten, and each costs a whole pass
# Pillow warns of pictures of half its limit and of odd tags; what matters of that is an error here, and the rest is noise.
warnings.filterwarnings("ignore", module=r"PIL\.")
_START_OF_SCAN = b"\xff\xda"
_JPEG_COLOURS = ("YCbCr", "Gray", "RGB")  # CMYK is often stored inverted, which Pillow knows


class ImageError(ValueError):
    """A picture that cannot be read; `path` says which, `reason` why, in a few words."""

    def __init__(self, path, reason):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self):
        return f"{self.path}: {self.reason}"


class ImageSource:
    """A picture file that is opened when it is first asked for something.

    Orientation in EXIF is ignored, as the loader of the original project does (its checkpoints were trained that way)
    and because fundus cameras do not set it; a TIFF's own orientation tag is applied by Pillow itself.

    reduced: which files may come with fewer pixels where these are enough. "colour": JPEGs that show colour, to a level
    of what the whole picture gives. Without colour they are OCT scans or angiograms, whose speckle would change (by 7
    levels, measured), and other kinds are decoded whole in any case, so that nothing is saved. "any": as checkpoints of
    before were trained, every JPEG, and every other file averaged over squares.
    """

    def __init__(self, path, reduced="colour"):
        self.path = path
        self.reduced = reduced
        self._size = None
        self._opened = None
        self._jpeg = None
        self._grey = False  # a JPEG of one channel

    @property
    def size(self):
        """(width, height) in pixels of the whole picture, from the header. Raises ImageError."""
        if self._size is None:
            self._look()
        return self._size

    def part(self, box=None, resolution=None):
        """The pixels in a box, decoded no finer than is needed: (h, w, 3) uint8, writable.

        box: (left, top, right, bottom) in pixels of the file; None: all. resolution: (width, height) that the part has
        at least, unless the file has less; None: the file's own. The box is rounded to the pixels that are decoded.
        JPEGs are decoded by libjpeg-turbo at 1/2, 1/4 or 1/8 (the same numbers as Pillow's draft, sooner), where
        `reduced` allows it; others are decoded whole. Raises ImageError, as `decode_scaled`.
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
        if coarsest > 1 and self.reduced == "any":
            image = image.reduce(coarsest, box=(left, top, right, bottom))
        elif box is not None:
            image = image.crop((left, top, right, bottom))
        return np.array(image)

    def whole(self, resolution):
        """All of the picture, decoded as by `part` -> ((h, w, 3) uint8, writable; (width, height) that it covers).

        Where a pixel is the mean of 8 x 8 of the file, a picture of 2300 pixels covers 287.5, and the last of its 288 is
        half empty: `resized` wants to know, or the picture would be stretched.
        """
        coarsest = _coarsest(self.size, resolution)
        pixels, factor = self._jpeg_at(coarsest) or (None, coarsest if self.reduced == "any" else 1)
        if pixels is None:
            image = self.decode()
            pixels = np.array(image.reduce(factor) if factor > 1 else image)
        return pixels, (self.size[0] / factor, self.size[1] / factor)

    def _jpeg_at(self, coarsest):
        """All of a JPEG at the coarsest scale allowed -> (pixels, by how much it is reduced), once after `_look`; or None."""
        jpeg, self._jpeg = self._jpeg, None
        if jpeg is None:
            return None
        factor = next(d for d in DCT_DENOMINATORS if d <= coarsest)
        if self._grey and self.reduced == "colour":
            factor = 1
        width, height = self.size
        try:
            pixels = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=-(-height // factor), min_width=-(-width // factor))
            if factor > 1 and self.reduced == "colour" and not shows_colour(pixels):
                return simplejpeg.decode_jpeg(jpeg, "RGB"), 1
            return pixels, factor
        except ValueError:
            return None  # Pillow decodes it all the same, or says in its words what is wrong

    def _look(self):
        """Find out the size: of a plain JPEG from its first bytes, of anything else by Pillow."""
        try:
            jpeg = _jpeg_file(self.path)
        except OSError as error:
            raise ImageError(self.path, _reason(error)) from error
        if jpeg:
            try:
                height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg)
            except ValueError:
                colours = None  # damaged: Pillow says how
            if colours in _JPEG_COLOURS and width * height <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
                self._size, self._jpeg, self._grey = (width, height), jpeg, colours == "Gray"
                return
        self._opened = self._open()

    def decode(self, minimum_size=None):
        """The picture as PIL RGB; arguments and errors as `decode_scaled`."""
        return self.decode_scaled(minimum_size)[0]

    def decode_scaled(self, minimum_size=None):
        """Decode, a JPEG at a reduced scale where that is enough.

        minimum_size: pixels, a number or (width, height), that the result must still have in both axes; only JPEGs
        are reduced, and only by 2, 4 or 8 (libjpeg computes fewer DCT coefficients). None: the full picture.
        Returns (PIL RGB image, denominator): a pixel of the result covers denominator² pixels of the file.
        Raises ImageError when the file is absent, cut short, damaged, too large (Pillow's limit) or no picture.
        """
        image, self._opened = self._opened or self._open(), None
        denominator = 1
        try:
            with image:
                self._refuse_many_scans(image)
                if minimum_size is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
                    denominator = dct_denominator(image.size, minimum_size)
                    image.draft(None, tuple(edge // denominator for edge in image.size))
                image.load()
                return _to_rgb(image), denominator
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # a damaged file makes Pillow's plugins raise nearly anything (struct.error, …)
            raise ImageError(self.path, _reason(error)) from error

    def _open(self):
        try:
            if file_status(self.path).st_size == 0:
                raise ImageError(self.path, "empty file")
            image = Image.open(self.path, formats=FORMATS)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # as in decode_scaled
            raise ImageError(self.path, _reason(error)) from error
        self._size = image.size
        return image

    def _refuse_many_scans(self, image):
        """ImageError for a progressive JPEG of so many scans that decoding it is a trap: minutes for a few kilobytes."""
        if image.info.get("progressive") and isinstance(image, JpegImagePlugin.JpegImageFile):
            with open(self.path, "rb") as stream:
                scans = stream.read().count(_START_OF_SCAN)
            if scans > MOST_SCANS:
                raise ImageError(self.path, f"a JPEG of {scans} scans, where {MOST_SCANS} are read at most")


def shows_colour(pixels):
    """Whether a tenth of the (h, w, 3) pixels differs by more than 16 levels between red and blue.

    A fundus photograph does in nearly all of its field (IDRiD: at least three fifths of the picture); a scan saved as RGB does
    not, also with a coloured mark or two.
    """
    some = pixels[::2, ::2].astype(np.int16)
    return np.count_nonzero(np.abs(some[..., 0] - some[..., 2]) > 16) > some.shape[0] * some.shape[1] / 10


def _jpeg_file(path):
    """The bytes of a file that begins as a JPEG does, b"" of another. OSError, also for a pipe, which would wait for its
    writer, or a device. By the system's own calls: python's file objects take twice as long."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        _refuse_no_file(status)
        if os.pread(descriptor, len(_JPEG_MAGIC), 0) != _JPEG_MAGIC:
            return b""
        content = os.read(descriptor, status.st_size)
        while len(content) < status.st_size and (more := os.read(descriptor, status.st_size - len(content))):
            content += more
        return content
    finally:
        os.close(descriptor)


def _coarsest(size, resolution):
    """By how much a part of `size` may be reduced so that `resolution` (None: its own) is left of it; (width, height)."""
    return 1 if resolution is None else max(1, min(size[0] // resolution[0], size[1] // resolution[1]))


def file_status(path):
    """os.stat of a regular file; ImageError with the reason for anything else (pipe, socket, device, folder) or nothing."""
    try:
        status = os.stat(path)
        _refuse_no_file(status)
    except OSError as error:
        raise ImageError(path, _reason(error)) from error
    return status


def _refuse_no_file(status):
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for name, holds in (("folder", stat.S_ISDIR), ("pipe", stat.S_ISFIFO), ("socket", stat.S_ISSOCK))
                     if holds(status.st_mode)), "device")
        raise OSError(errno.EINVAL, f"no file but a {kind}")


def read_image(path, minimum_size=None):
    """The picture at `path` as PIL RGB, 8 bits a channel; arguments and errors as `ImageSource.decode_scaled`.

    Grey, palette, CMYK and 1-bit are converted, alpha is dropped, of several frames or pages the first is taken.
    Grey with more than 8 bits is scaled from the full range of its type: unsigned 16 bits by 1/257 (12 bits: from
    4095, signed 16 bits: from 32767), 32-bit integers as 16 bits where nothing exceeds 65535, else from 32 bits.
    Floats: a maximum of at most 1 is read as 0…1, at most 255 as 0…255, at most 65535 as 16 bits, anything above
    as 0…maximum. Negative values and NaN are black; nothing is clipped to white.
    """
    return ImageSource(path).decode(minimum_size)


def resized(pixels, size, box=None, covers=None, within=1 / 512):
    """(h, w, 3) uint8 -> (height, width, 3) uint8 of `size` (width, height), or the part of it in a box.

    Bicubic with antialiasing, to a level or two what Pillow computes, in a fraction of its time. box: (left, top, right,
    bottom) in pixels of the result; no more pixels are read than it needs. within: the part of a pixel by which its place
    may be missed (1/64 changes noise by a level and more where a picture nearly keeps its size). covers: (width, height) of
    the picture in `pixels`, whose last row and column it may fill in part; None: all.
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
        _needed(*one, within) for one in ((covers[1], size[1], top, bottom), (covers[0], size[0], left, right)))
    part = tensor[:, :, rows, columns].contiguous(memory_format=torch.channels_last)
    result = torch.nn.functional.interpolate(part, scale_factor=(up, along), mode="bicubic", antialias=True)[0]
    return result[:, above:above + bottom - top, before:before + right - left].permute(1, 2, 0).numpy()


@functools.lru_cache(maxsize=256)  # pictures of one camera are of one size
def _needed(have, want, first, last, within):
    """What of an axis that `have` pixels cover, resized to `want`, gives its pixels first to last: the slice to resize,
    where `first` stands in its result, and the factor."""
    pixels = have / want
    margin = math.ceil(2 * max(pixels, 1) / pixels) + 1  # bicubic looks at two pixels of the coarser grid
    # the part starts where pixels of both grids begin together
    start = next((k for k in range(first - margin, 0, -1) if abs(k * pixels - round(k * pixels)) <= within), 0)
    # PyTorch rounds the length of its result down: a millionth of a pixel more, lest 305 · (256 / 305) be 255
    factor = (want + 1e-6) / have
    return slice(round(start * pixels), min(math.ceil(have), math.ceil((last + margin) * pixels))), first - start, factor


def dct_denominator(size, minimum_size):
    """The largest of 1, 2, 4, 8 by which a JPEG of `size` (width, height) may be divided, see `decode_scaled`."""
    if not isinstance(minimum_size, (tuple, list)):
        minimum_size = (minimum_size, minimum_size)
    width, height = minimum_size
    return next((d for d in DCT_DENOMINATORS if size[0] // d >= width and size[1] // d >= height), 1)


def _to_rgb(image):
    """PIL image of any mode, loaded -> PIL RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_scaled_to_8_bits(image)).convert("RGB")
    image.info.pop("transparency", None)  # convert("RGB") drops it anyway, but warns first
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy


def _scaled_to_8_bits(image):
    """Grey PIL image of mode I;16*, I or F -> (H, W) uint8, as `read_image` describes."""
    tags = getattr(image, "tag_v2", {})  # a TIFF's; nothing else says more than the mode does
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        top = values.max()
        white = next((white for white in (1, 255, 65535) if top <= white), top)
    else:
        values = np.asarray(image).astype(np.int64)
        if bits == 32 and not signed:
            values &= 0xFFFFFFFF  # Pillow keeps unsigned 32 bits in signed ones
        white = {12: 4095, 16: 32767 if signed else 65535}.get(bits, 65535)
        if values.max() > white:
            white = 2**31 - 1 if signed else 2**32 - 1
    grey = np.rint(values.clip(min=0) * (255 / white)).astype(np.uint8)
    # Pillow turns "white is zero" round for 8 bits but not for more.
    return 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def _reason(error):
    """A few words, in one line and without the path, for what Pillow or the system raised."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that can be read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


class Remembered:
    """What was found of files before, kept in a file, so that a second start looks at new ones alone.

    A file is its absolute path, size and time of change (ns), of which 8 bytes of a hash are kept; entries are sorted by
    them. `note` says so (else it is "") when the file was not usable; it is then written anew.
    """

    dtype = np.dtype("<u8")
    again = ""  # what the next start does where it can't be kept

    def __init__(self, file):
        self.file, self.note = file, ""
        self._known, self._new = np.empty(0, self.dtype), []
        try:
            known = np.load(file, allow_pickle=False)
            if known.dtype != self.dtype or known.ndim != 1:
                raise ValueError("not a list of what is remembered of files")
            self._known = known
        except FileNotFoundError:
            pass  # the first start
        except (OSError, ValueError, EOFError, AttributeError) as error:  # AttributeError: np.load gave an archive
            self.note = f"{file} is not usable ({_reason(error)}): {self.again}"

    def unknown(self, paths):
        """(N,) bool: which of `paths` nothing is remembered of, or have changed since."""
        return ~np.isin(identities(paths), self._keys(self._known))

    def save(self):
        """Write the file, under another name first, then renamed; where that fails, `note` says so."""
        everything = np.concatenate([self._known, *self._new])
        self._known = everything[np.unique(self._keys(everything), return_index=True)[1]]
        self._new = []
        partial = f"{self.file}.{os.getpid()}.partial"
        try:
            os.makedirs(os.path.dirname(self.file) or ".", exist_ok=True)
            with open(partial, "wb") as stream:
                np.save(stream, self._known)
            os.replace(partial, self.file)
        except OSError as error:
            self.note = f"{self.file} cannot be written ({_reason(error)}): the next time {self.again}"
        finally:
            if os.path.exists(partial):
                os.remove(partial)

    @staticmethod
    def _keys(entries):
        return entries["identity"] if entries.dtype.names else entries


class KnownGood(Remembered):
    """Which files have decoded before."""

    again = "all pictures are checked again"

    def add(self, paths):
        """Remember that these files decode; `save` makes it last."""
        found = identities(paths)
        self._new.append(found[found != 0])


def identities(paths):
    """(N,) uint64: `file_identity` of each."""
    folder = os.getcwd()
    return np.fromiter((file_identity(os.path.join(folder, path)) for path in paths), np.uint64, len(paths))


def file_identity(path):
    """64-bit number of a file as it is now; 0, which is never remembered, when it cannot be looked at."""
    try:
        stat = os.stat(path)
    except OSError:
        return 0  # the check itself will name it with its reason
    text = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def check_images(paths, workers, known=None, progress=True, fields=None):
    """Decode every file once, in `workers` threads (Pillow decodes outside the interpreter's lock).

    JPEGs are decoded at 1/8 of their size, which still reads every bit of the file but computes little.
    known: a `KnownGood` whose files are passed over, and into which those that decode are entered (also when the check
    is interrupted). fields: a `util.fundus_fields.Fields`, which in the same pass looks for those that it lacks; without
    `known` only files that it lacks are decoded. progress: a bar, if stderr is a terminal. Returns [(path, reason)] of the
    bad ones, in order.
    """
    paths = list(paths)
    memories = [memory for memory in (known, fields) if memory]
    todo = np.flatnonzero(np.any([memory.unknown(paths) for memory in memories], 0)) if memories else np.arange(len(paths))
    Image.init()  # plugins loaded once, here, and not by several threads at a time
    bad = {}
    pool = ThreadPoolExecutor(max(1, workers))
    # Groups: a million futures would take more memory than the pictures in flight.
    groups = [todo[start : start + 64] for start in range(0, len(todo), 64)]
    bar = tqdm(total=len(todo), desc="checking pictures", disable=not (progress and sys.stderr.isatty()), leave=False)
    try:
        with bar:
            futures = {pool.submit(_check_group, [paths[i] for i in group], fields): group for group in groups}
            for future in as_completed(futures):
                reasons, group = future.result(), futures[future]
                bad.update((i, reason) for i, reason in zip(group, reasons, strict=True) if reason)
                if known:
                    known.add([paths[i] for i, reason in zip(group, reasons, strict=True) if not reason])
                bar.update(len(group))
    finally:
        pool.shutdown(cancel_futures=True)
        for memory in memories:
            if len(todo) or memory.note:
                memory.save()
    return [(paths[i], bad[i]) for i in sorted(bad)]


def _check_group(paths, fields):
    """[why this file is bad, or None]: one a path."""
    reasons = []
    for path in paths:
        try:
            if fields is None:
                read_image(path, minimum_size=1)
            else:
                fields.look(path)
            reasons.append(None)
        except ImageError as error:
            reasons.append(error.reason)
    return reasons
