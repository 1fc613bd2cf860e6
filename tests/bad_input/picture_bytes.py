"""Bytes of images, sound and broken, that no camera writes twice."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

SIDE = 24


def noise(size=(SIDE, SIDE), mode="RGB") -> Image.Image:
    values = np.random.default_rng(7).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(size=(SIDE, SIDE), mode="RGB", **options) -> bytes:
    return encoded(noise(size, mode), "PNG", **options)


def jpeg(size=(SIDE, SIDE), mode="RGB", **options) -> bytes:
    return encoded(noise(size, mode), "JPEG", quality=90, **options)


def tiff(values: np.ndarray, **options) -> bytes:
    return encoded(Image.fromarray(values), "TIFF", **options)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    """A PNG's chunk."""
    crc = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png_of(width: int, height: int, body: bytes, *before: bytes) -> bytes:
    """A PNG with a header that says any size, and any body."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(before)
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def bad_crc() -> bytes:
    content = bytearray(png())
    content[content.index(b"IDAT") + 30] ^= 255
    return bytes(content)


def text_bomb() -> bytes:
    """100 MB of text in a compressed chunk of 100 kB."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    return png_of(SIDE, SIDE, zlib.compress(b"\0" * (SIDE * 3 + 1) * SIDE), text)


def too_little_data() -> bytes:
    return png_of(SIDE, SIDE, zlib.compress(b"\0" * 100))


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header says any size."""
    content = bytearray(jpeg())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def gif_of(width: int, height: int) -> bytes:
    content = bytearray(encoded(noise(mode="P"), "GIF"))
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def bmp_of(width: int, height: int) -> bytes:
    content = bytearray(encoded(noise(), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def tiff_of(width: int, height: int, strips: int = 0) -> bytes:
    """A TIFF of one deflated strip whose directory says any size. strips: an offset beyond the end
    instead."""
    body = zlib.compress(bytes(1000))
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, strips or 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(body)),
    ]
    return _tiff(body, tags)


def tiff_with_a_tag_that_lies() -> bytes:
    """Two thousand million strips."""
    body = bytes(SIDE * SIDE)
    tags = [
        (256, 4, SIDE),
        (257, 4, SIDE),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (277, 3, 1),
        (278, 4, SIDE),
        (279, 4, len(body)),
    ]
    return _tiff(body, tags, [(273, 4, 2_000_000_000, 8)])


def _tiff(body: bytes, tags: list, odd: list = ()) -> bytes:
    entries = sorted([(tag, kind, 1, value) for tag, kind, value in tags] + list(odd))
    directory = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack("<HHI", tag, kind, count) + (
            struct.pack("<HH", value, 0) if kind == 3 and count == 1 else struct.pack("<I", value)
        )
    body += bytes(len(body) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + bytes(4)


def webp_of(width: int, height: int) -> bytes:
    """A lossless WebP whose header says any size up to 16384."""
    content = bytearray(encoded(noise(), "WEBP", lossless=True))
    place = content.index(b"VP8L") + 9
    bits = struct.unpack("<I", content[place : place + 4])[0] & 0xF0000000
    content[place : place + 4] = struct.pack("<I", bits | (width - 1) | (height - 1) << 14)
    return bytes(content)


def scan_bomb(scans: int = 4000) -> bytes:
    """A progressive JPEG that reads its whole image again for each of thousands of tiny scans."""
    content = encoded(Image.new("L", (4096, 4096)), "JPEG", progressive=True, quality=10)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + b"\xff\xd9"


def animated(kind: str) -> bytes:
    frames = [noise(), noise().rotate(90), noise().rotate(180)]
    options = {} if kind == "TIFF" else {"duration": 100}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6  # turn a quarter
    return jpeg((SIDE, 2 * SIDE), exif=exif)


def many_texts() -> bytes:
    info = PngImagePlugin.PngInfo()
    for number in range(2000):
        info.add_text(f"key{number}", "x" * 20)
    return png(pnginfo=info)


def floats(*values: float) -> bytes:
    return tiff(np.resize(np.array(values, np.float32), (SIDE, SIDE)))
