"""util/data/images/files.py: every kind of file is read as it looks, and every damaged one is found and
named."""
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from util.data.images import files as images
from util.data.images.as_shown import Reading
from util.data.images.files import ImageError, ImageSource, dct_denominator

RAMP = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
COLOURS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


AS_STORED = Reading(shown=False)


def read_image(path, minimum_size=None):
    return ImageSource(path, AS_STORED).decode(minimum_size)


def pixels(path, **options):
    image = read_image(str(path), **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def smooth(width, height):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 40), np.cos(y / 30), np.sin((x + y) / 50)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


def write_tiff(path, values, sample_format, photometric=1):
    """A grey, uncompressed, little-endian TIFF of one strip, written by hand: Pillow writes only some
    kinds."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, values.dtype.itemsize * 8), (259, 3, 1),
            (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(data)), (339, 3, sample_format)]
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in tags
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + b"\0\0\0\0")


@pytest.mark.parametrize("name", ["ramp.png", "ramp.tif"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, name):
    Image.fromarray(RAMP).save(tmp_path / name)
    grey = pixels(tmp_path / name)[..., 0]
    assert np.abs(grey - RAMP / 257).max() <= 0.5
    assert grey.min() == 0 and grey.max() == 255 and (grey == 255).mean() < 0.01


def test_16_bits_big_endian_and_white_is_zero(tmp_path):
    Image.frombytes("I;16B", RAMP.shape, RAMP.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    assert np.abs(pixels(tmp_path / "big.tif")[..., 0] - RAMP / 257).max() <= 0.5
    write_tiff(tmp_path / "inverted.tif", RAMP, sample_format=1, photometric=0)
    assert np.abs(pixels(tmp_path / "inverted.tif")[..., 0] - (65535 - RAMP) / 257).max() <= 0.5


def test_16_bit_colours_keep_their_high_byte(tmp_path):
    # Written by hand, as Pillow cannot: PNG with bit depth 16 and colour type 2.
    rows = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)),
              (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c))
                    for t, c in chunks)
    (tmp_path / "rgb16.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert np.abs(pixels(tmp_path / "rgb16.png") - rows.astype(int) / 257).max() <= 1


@pytest.mark.parametrize(
    ("values", "sample_format", "expected"),
    [
        (RAMP.astype(np.int32), 2, RAMP / 257),  # 16 bits kept in 32
        (RAMP.astype(np.int32) * 32768, 2, RAMP.astype(float) * 32768 * 255 / (2**31 - 1)),
        (RAMP.astype(np.uint32) * 65537, 1, RAMP / 257),  # uses the highest bit
        ((RAMP.astype(np.int32) - 32768).astype(np.int16), 2,
         (RAMP.astype(float) - 32768).clip(0) * 255 / 32767),
        ((RAMP / 65535).astype(np.float32), 3, RAMP / 257),
        ((RAMP / 257).astype(np.float32), 3, RAMP / 257),
        (RAMP.astype(np.float32), 3, RAMP / 257),
        (RAMP.astype(np.float32) * 100, 3, RAMP / 257),
    ],
    ids=["int32 low", "int32", "uint32", "int16", "float 1", "float 255", "float 65535", "float above"],
)
def test_signed_32_bit_and_float_tiffs(tmp_path, values, sample_format, expected):
    write_tiff(tmp_path / "deep.tif", values, sample_format)
    assert np.abs(pixels(tmp_path / "deep.tif")[..., 0] - expected).max() <= 0.51


def test_not_a_number_is_black(tmp_path):
    values = np.full((8, 8), 0.5, np.float32)
    values[0, 0], values[1, 1] = np.nan, np.inf
    write_tiff(tmp_path / "nan.tif", values, sample_format=3)
    grey = pixels(tmp_path / "nan.tif")[..., 0]
    assert grey[0, 0] == grey[1, 1] == 0 and grey[4, 4] == 128


def test_8_bit_modes_are_what_pillow_makes_of_them(tmp_path):
    colours = Image.fromarray(COLOURS)
    alpha = Image.fromarray(COLOURS[..., 0])
    for mode in ("L", "1", "RGB"):
        colours.convert(mode).save(tmp_path / "a.png")
        assert (pixels(tmp_path / "a.png") == np.asarray(colours.convert(mode).convert("RGB"))).all(), mode
    transparent = colours.copy()
    transparent.putalpha(alpha)
    transparent.save(tmp_path / "rgba.png")
    assert (pixels(tmp_path / "rgba.png") == COLOURS).all()
    grey = colours.convert("L")
    grey.putalpha(alpha)
    grey.save(tmp_path / "la.png")
    assert (pixels(tmp_path / "la.png") == np.asarray(colours.convert("L"))[..., None]).all()


def test_palette_with_transparency_keeps_its_colours_and_warns_of_nothing(tmp_path):
    palette = Image.fromarray(COLOURS).quantize(32)
    for transparency in (bytes(range(0, 256, 8)), 3):
        palette.save(tmp_path / "p.png", transparency=transparency)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert (pixels(tmp_path / "p.png") == np.asarray(palette.convert("RGB"))).all()


def test_cmyk_jpeg_and_tiff(tmp_path):
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    for name in ("red.jpg", "red.tif"):
        red.save(tmp_path / name)
        colour = pixels(tmp_path / name).reshape(-1, 3).mean(axis=0)
        assert colour[0] > 240 and colour[1] < 15 and colour[2] < 15, name


@pytest.mark.parametrize("name", ["frames.webp", "frames.png", "pages.tif", "frames.gif"])
def test_of_several_frames_the_first(tmp_path, name):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if name.endswith("webp") else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as written:
        assert written.n_frames == 3
    image = read_image(str(tmp_path / name))
    assert (np.asarray(image.resize((4, 4))) == (250, 0, 0)).all()


def test_exif_orientation_is_ignored_as_stored(tmp_path):
    picture = smooth(40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    picture.save(tmp_path / "plain.jpg", quality=95)
    assert (pixels(tmp_path / "turned.jpg") == pixels(tmp_path / "plain.jpg")).all()


def test_jpegs_are_decoded_at_the_coarsest_scale_that_is_enough(tmp_path):
    path = tmp_path / "a.jpg"
    smooth(801, 603).save(path, quality=95)
    for minimum, size in ((1, (101, 76)), (75, (101, 76)), (76, (201, 151)), (150, (201, 151)),
                          (151, (401, 302))):
        assert read_image(str(path), minimum_size=minimum).size == size
    assert read_image(str(path), minimum_size=302).size == (801, 603)
    assert read_image(str(path), minimum_size=9999).size == (801, 603)
    assert read_image(str(path), minimum_size=(400, 20)).size == (401, 302)
    image, denominator = ImageSource(str(path)).decode_scaled(150)
    means = np.asarray(smooth(801, 603).crop((0, 0, 800, 600)).reduce(4), dtype=float)
    assert denominator == 4 and np.abs(np.asarray(image)[:150, :200] - means).mean() < 1
    smooth(801, 603).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png"), minimum_size=1).size == (801, 603)


def test_dct_denominator_agrees_with_what_pillow_decodes(tmp_path):
    for width, height in ((9, 17), (15, 15), (63, 64), (257, 1000)):
        Image.new("RGB", (width, height)).save(tmp_path / "a.jpg")
        for minimum in (1, 2, 3, 7, 8, 9, 31, 64, 100):
            image, denominator = ImageSource(str(tmp_path / "a.jpg")).decode_scaled(minimum)
            assert denominator == dct_denominator((width, height), minimum)
            assert image.size == (-(-width // denominator), -(-height // denominator))


def test_a_part_is_what_pillow_decodes_at_the_coarsest_scale_that_is_enough(tmp_path):
    smooth(800, 600).save(tmp_path / "a.jpg", quality=95)
    path = str(tmp_path / "a.jpg")
    for resolution, factor in ((None, 1), ((800, 600), 1), ((400, 300), 2), ((401, 20), 1), ((200, 150), 4),
                               ((1, 1), 8)):
        whole, denominator = ImageSource(path).decode_scaled((800 // factor, 600 // factor))
        found = ImageSource(path).part(None, resolution)
        assert denominator == factor and found.flags.writeable and np.array_equal(found, np.asarray(whole))
    crop = ImageSource(path).part((10, 20, 210, 220), (50, 50))
    # 2.5 to the even number
    assert np.array_equal(crop, ImageSource(path).part(None, (200, 150))[5:55, 2:52])


def test_parts_of_other_formats_are_averaged_over_squares_for_checkpoints_of_before(tmp_path):
    smooth(801, 603).save(tmp_path / "a.png")
    path, whole = str(tmp_path / "a.png"), np.asarray(smooth(801, 603)).astype(int)
    assert np.array_equal(ImageSource(path).part((5, 7, 105, 57), (50, 25)), whole[7:57, 5:105])
    assert ImageSource(path).whole((100, 100))[1] == (801, 603)
    assert np.array_equal(ImageSource(path).part(), whole)
    assert np.array_equal(ImageSource(path).part((5, 7, 105, 57), (60, 50)), whole[7:57, 5:105])
    squares = whole[7:57, 5:105].reshape(25, 2, 50, 2, 3).mean(axis=(1, 3))
    assert np.abs(ImageSource(path, Reading("any")).part((5, 7, 105, 57), (50, 25)) - squares).max() <= 1


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_a_part_of_a_jpeg_has_the_colours_that_pillow_finds(tmp_path, mode):
    smooth(300, 200).convert(mode).save(tmp_path / "a.jpg", quality=95, progressive=mode == "RGB")
    found = ImageSource(str(tmp_path / "a.jpg")).part().astype(int)
    assert np.abs(found - pixels(tmp_path / "a.jpg")).max() <= 1


def test_a_damaged_jpeg_says_of_its_part_what_it_says_of_the_whole(tmp_path):
    smooth(300, 200).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    for content in (whole[:-40], whole[:60], whole[:2], b"", whole[:400] + b"\xff" * 40 + whole[440:900]):
        (tmp_path / "b.jpg").write_bytes(content)
        reasons = []
        for read in (lambda source: source.part(None, (20, 20)), lambda source: source.decode()):
            with pytest.raises(ImageError) as caught:
                read(ImageSource(str(tmp_path / "b.jpg")))
            reasons.append(caught.value.reason)
        assert reasons[0] == reasons[1]
    with pytest.raises(ImageError, match="no such file"):
        ImageSource(str(tmp_path / "c.jpg")).part()


def test_a_part_of_a_picture_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    smooth(300, 200).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="exceeds limit"):
        ImageSource(str(tmp_path / "a.jpg")).part(None, (10, 10))


def test_resizing_agrees_with_pillow():
    picture = smooth(333, 257)
    found = images.resized(np.array(picture), (100, 90)).astype(int)
    assert np.abs(found - np.asarray(picture.resize((100, 90), Image.Resampling.BICUBIC))).max() <= 2


@pytest.mark.parametrize(("pixels", "size"),
                         [((512, 512), (256, 256)), ((536, 356), (385, 256)), ((281, 257), (279, 256)),
                                              ((120, 100), (307, 256)), ((256, 256), (256, 256)),
                                              ((224, 224), (224, 224))])
def test_a_part_of_a_resized_picture_is_that_of_the_whole_one(pixels, size):
    # where a shift would show most
    noise = np.random.RandomState(0).randint(0, 256, (*pixels[::-1], 3), dtype=np.uint8)
    left, top = ((side - 224) // 2 for side in size)
    box = (left, top, left + 224, top + 224)
    found = images.resized(noise, size, box).astype(int)
    whole = images.resized(noise, size)[top:top + 224, left:left + 224]
    assert found.shape == whole.shape == (224, 224, 3)
    assert np.abs(found - whole).mean() < 3  # of 255; a whole pixel beside its place it would be some 80



def test_size_is_known_without_decoding_and_decode_works_twice(tmp_path):
    path = tmp_path / "a.jpg"
    smooth(200, 100).save(path)
    source = ImageSource(str(path))
    assert source.size == (200, 100) and source.size == (200, 100)
    assert (
        source.decode(10).size == (25, 13)
        and source.decode().size == (200, 100)
        and source.size == (200, 100)
    )
    cut = path.read_bytes()[:700]
    path.write_bytes(cut)
    source = ImageSource(str(path))
    assert source.size == (200, 100)
    with pytest.raises(ImageError):
        source.decode()


def damaged_files(folder):
    """{path: words of the reason} of files that must not pass."""
    noisy = Image.fromarray(np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    files = {}
    for name, share, kind, options in (
        ("half.jpg", 0.5, "JPEG", {}),
        ("nearly.jpg", 0.98, "JPEG", {}),
        ("progressive.jpg", 0.9, "JPEG", {"progressive": True}),
        ("half.png", 0.5, "PNG", {}),
        ("nearly.png", 0.98, "PNG", {}),
        ("half.tif", 0.5, "TIFF", {}),
        ("half.webp", 0.5, "WEBP", {}),
        ("half.bmp", 0.5, "BMP", {}),
    ):
        buffer = io.BytesIO()
        noisy.save(buffer, kind, **options)
        (folder / name).write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
        files[name] = ""
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    (folder / "folder.png").mkdir()
    (folder / "script.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto\n"
    )
    files |= {"empty.jpg": "empty", "text.jpg": "not an image", "script.jpg": "not an image",
              "folder.png": ""}
    files["absent.jpg"] = "no such file"
    return {str(folder / name): words for name, words in files.items()}


def test_every_damaged_file_raises_and_is_named(tmp_path):
    for path, words in damaged_files(tmp_path).items():
        for minimum_size in (None, 1):
            with pytest.raises(ImageError, match=words or None) as caught:
                read_image(path, minimum_size)
            assert (
                caught.value.path == path
                and "\n" not in str(caught.value)
                and str(caught.value).startswith(path)
            )


def test_a_picture_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 // 2 - 1)
    with pytest.raises(ImageError, match="exceeds limit"):
        read_image(str(tmp_path / "large.png"))
