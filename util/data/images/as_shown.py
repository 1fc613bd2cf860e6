"""A PIL image of any kind -> 8-bit RGB as a viewer shows it, and what kind it was.

Three things change how a file comes out, and a loader that is not told passes over them in silence: values of
10, 12 or 14 bits in a type of 16 (nearly black over the type's range), colours that are hidden under
transparency, and an orientation that stands in the file's EXIF block. `Reading` says what is done about them.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

# TIFF 6.0; EXIF has 274
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION, _MAX_SAMPLE, _SAMPLE_FORMAT = 258, 262, 274, 281, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2  # TIFF 6.0: values of the photometric tag and of the sample format
# an orientation -> what brings the image upright
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270,
         7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
SIDEWAYS = (5, 6, 7, 8)  # orientations by which width and height change places
DEPTHS = (8, 10, 12, 14, 16, 32)  # bits that cameras and OCT devices fill
_FLOAT_WHITES = (1, 255, 1023, 4095, 16383, 65535)


@dataclass(frozen=True)
class Reading:
    """How a file becomes 8-bit RGB; the transform's settings say it (`Reading.of`).

    reduced: which files may come with fewer pixels where these are enough. "colour": JPEGs that show colour,
    to a level of what the whole image gives. Without colour they are OCT scans or angiograms, whose speckle
    would change (by 7 levels, measured), and other kinds are decoded whole in any case, so that nothing is
    saved. "any": as checkpoints of before were trained, every JPEG, and every other file averaged over
    squares.

    shown: as an image viewer shows it: turned as its EXIF orientation says, transparent parts over black, and
    values of more than 8 bits over the range that is used. Off, as the original project's loader: the
    orientation of TIFF files alone (Pillow applies it), the colours under transparency, the full range of the
    file's type.

    bits, floats: that range, of whole numbers and of floats; None: the file's own largest value says it
    (`bits_of`, `white_of`). A file that says its range itself is read by that: a TIFF of 12 bits a sample, or
    a MaxSampleValue of 4095.
    """

    reduced: str = "colour"
    shown: bool = True
    bits: int | None = None
    floats: float | None = None

    @classmethod
    def of(cls, settings: dict) -> "Reading":
        """Of a transform's settings; absent entries mean what they meant before there were any."""
        return cls(settings.get("reduced", "any"), settings.get("read_images") == "as_shown",
                   settings.get("bits"), settings.get("floats"))


AS_SHOWN = Reading()


class Facts(NamedTuple):
    """What a file turned out to be, besides its pixels."""

    kind: int = 0  # what its values are
    largest: float = 0.0  # of them, where they are no plain 8 bits
    flags: int = 0
    width: int = 0  # in pixels, once it is upright
    height: int = 0


PNG_HEADER = 25  # bytes: the signature, then of IHDR length, name, width, height and, last, the bits
# kinds; the second and third do not say their range themselves
EIGHT_BITS, WHOLE_NUMBERS, FLOATS, DEEP_COLOURS = range(4)
# flags; late: a PNG says so after its pixels
TRANSPARENT, PAGES, TURNED, TURNED_TIFF, TURNED_LATE = 1, 2, 4, 8, 16


def bits_of(largest: float) -> int:
    """Bits of whole numbers up to `largest`, the least of `DEPTHS` that hold them."""
    return next((bits for bits in DEPTHS if largest < 2**bits), DEPTHS[-1])


def white_of(largest: float) -> float:
    """The value of white where floats go up to `largest`: 1, 255 or the largest of 10 to 16 bits, where they
    fill at least an eighth of that; else `largest` itself."""
    white = next((white for white in _FLOAT_WHITES if largest <= white), largest)
    return white if largest >= white / 8 else largest or 1.0


def to_rgb(image: Image.Image, reading: Reading) -> Image.Image:
    """PIL image of any mode, loaded -> PIL RGB: grey, palette, CMYK and 1 bit are converted."""
    if _is_deep(image):
        return Image.fromarray(_scaled_to_8_bits(image, reading)).convert("RGB")
    if reading.shown and image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] < 255:
            black = Image.new("RGB", image.size)
            black.paste(image.convert("RGBA").convert("RGB"), mask=alpha)
            return black
    if "transparency" in image.info:  # convert("RGB") drops it anyway, but warns first
        image = image.copy()
        del image.info["transparency"]
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow gives one channel of more than 8 bits; colours of 16 bits it reads by their upper 8."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _scaled_to_8_bits(image: Image.Image, reading: Reading) -> np.ndarray:
    """Grey PIL image of mode I;16*, I or F -> (H, W) uint8. Negative values and NaN are black.

    Shown: from the range that the file says, else `reading`, else the file's largest value; what is above is
    white. Else from the full range of the type: unsigned 16 bits by 1/257 (12 bits: from 4095, signed 16
    bits: from 32767), 32-bit integers as 16 bits where nothing exceeds 65535, else from 32 bits; floats up to
    1 as 0…1, up to 255 as 0…255, up to 65535 as 16 bits, above as 0…maximum.
    """
    tags, values = getattr(image, "tag_v2", {}), _values_of(image)
    largest, said = values.max(), _range_said(image, reading.shown)
    stored = _sample(tags, _BITS_PER_SAMPLE, 16), _sample(tags, _SAMPLE_FORMAT, 1)
    of_16 = 32767 if stored == (16, _SIGNED) else 65535
    if image.mode == "F":
        white = next((white for white in (1, 255, 65535) if largest <= white), largest)
        if reading.shown:
            white = reading.floats or white_of(largest)
    elif said:
        white = said
    else:
        bits = (reading.bits or bits_of(largest)) if reading.shown else 16 if largest <= of_16 else 32
        of_32 = 2**31 - 1 if stored[1] == _SIGNED else 2**32 - 1
        white = {16: of_16, 32: of_32}.get(bits, 2**bits - 1)
    hidden = values == image.info["transparency"] if reading.shown and "transparency" in image.info else False
    grey = np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8)
    # Pillow turns "white is zero" round for 8 bits but not for more.
    grey = 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey
    grey[hidden] = 0
    return grey


def _values_of(image: Image.Image) -> np.ndarray:
    """The values of a deep PIL image, (H, W) int64 or float64; NaN and infinite ones are 0."""
    if image.mode == "F":
        return np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})  # a TIFF's; nothing else says more than the mode does
    if _sample(tags, _BITS_PER_SAMPLE, 16) == 32 and _sample(tags, _SAMPLE_FORMAT, 1) != _SIGNED:
        values &= 0xFFFFFFFF  # Pillow keeps unsigned 32 bits in signed ones
    return values


def _range_said(image: Image.Image, shown: bool = True) -> int | None:
    """The value of white that a TIFF says itself, or None: by fewer bits a sample than 16; shown: also by the
    largest sample where that is all of a number of bits (what it is otherwise is only the largest value of
    this image)."""
    tags = getattr(image, "tag_v2", {})
    bits, most = _sample(tags, _BITS_PER_SAMPLE, 16), _sample(tags, _MAX_SAMPLE, 0)
    if bits < 16:
        return 2**bits - 1
    return most if shown and most in {2**bits - 1 for bits in range(9, 16)} else None


def _sample(tags: Mapping[int, Any], number: int, default: int) -> Any:
    """A tag of the first channel; most are tuples, a value a channel."""
    value = tags.get(number, default)
    return value[0] if isinstance(value, tuple) else value


# ---- what a file is besides its pixels ---------------------------------------------------------------------

def flags_before(image: Image.Image) -> int:
    """Flags that are known before the pixels are loaded; a TIFF forgets its orientation then."""
    flags = PAGES if getattr(image, "n_frames", 1) > 1 else 0
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return flags | (TURNED_TIFF if image.tag_v2.get(_ORIENTATION) in TURNS else 0)
    return flags | (TURNED if orientation_of(image.info.get("exif")) in TURNS else 0)


def facts_of(image: Image.Image, start: bytes, flags: int) -> Facts:
    """Facts but for the size of a PIL image that is loaded; start: the first `PNG_HEADER` bytes of its
    file."""
    if (not flags & (TURNED | TURNED_TIFF) and isinstance(image, PngImagePlugin.PngImageFile)
            and orientation_of(image.info.get("exif")) in TURNS):
        flags |= TURNED_LATE
    kind, largest = kind_of(image, start), 0.0
    if _is_deep(image):
        values = _values_of(image)
        largest = float(values.max())
        if "transparency" in image.info and (values == image.info["transparency"]).any():
            flags |= TRANSPARENT
    elif image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        flags |= TRANSPARENT
    if kind == DEEP_COLOURS:
        largest = float(max(most for _, most in image.convert("RGB").getextrema()))
    return Facts(kind, largest, flags)


def kind_of(image: Image.Image, start: bytes) -> int:
    """What the values of a PIL image are; arguments as of `facts_of`."""
    if _is_deep(image):
        return FLOATS if image.mode == "F" else EIGHT_BITS if _range_said(image) else WHOLE_NUMBERS
    return DEEP_COLOURS if _bits_a_channel(image, start) > 8 else EIGHT_BITS


def _bits_a_channel(image: Image.Image, start: bytes) -> int:
    """Of a PNG or TIFF, as the file says; 8 of others."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _sample(image.tag_v2, _BITS_PER_SAMPLE, 8)
    return start[PNG_HEADER - 1] if isinstance(image, PngImagePlugin.PngImageFile) else 8


def exif_of(jpeg: bytes) -> bytes:
    """The EXIF block of a JPEG, without its name; b"" where it has none before its pixels."""
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF and jpeg[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(jpeg[place + 2:place + 4], "big")
        if jpeg[place + 1] == 0xE1 and jpeg[place + 4:place + 10] == b"Exif\0\0":
            return jpeg[place + 4:end]
        place = end
    return b""


def orientation_of(exif: bytes | None) -> int:
    """The orientation in an EXIF block, 1 where it has none or can't be read: the pixels are whole all the
    same."""
    if not exif:
        return 1
    block = Image.Exif()
    try:
        block.load(exif)
        return block.get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        return 1
