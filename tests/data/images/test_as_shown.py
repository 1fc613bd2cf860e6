"""--read_images: images are read as a viewer shows them, the range of deep ones is that of the data set, and
all is counted."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.conftest import SMALL
from tests.data.images.test_files import AS_STORED, smooth, write_tiff
from util.data.images import scan as image_facts
from util.data.images.as_shown import DEEP_COLOURS, FLOATS, WHOLE_NUMBERS, Reading, bits_of, white_of
from util.data.images.cache import Kept
from util.data.images.files import ImageSource
from util.data.images.reading_pass import read_images
from util.data.images.scan import ImageFacts
from util.data.images.transforms import EvalTransform, eval_settings, with_depth
from util.options.model import ModelOptions

HALF = (0.5, 0.5, 0.5)
RNG = np.random.default_rng(0)


def shown(path, **reading):
    return np.asarray(ImageSource(str(path), Reading(**reading)).decode()).astype(int)


def scan(most, size=(64, 48)):
    return RNG.integers(0, most + 1, size, dtype=np.uint16)


def png_of_16_bits(path, values, colour_type, extra=()):
    """A PNG of 16 bits a channel, (H, W) or (H, W, C), written by hand: Pillow writes grey alone."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks))


def facts_of(folder, paths):
    memory = ImageFacts(folder / "facts.npy")
    assert read_images([(memory, [str(path) for path in paths])], 1) == []
    return memory.of([str(path) for path in paths])


# ---- the range of deep images ------------------------------------------------------------------------------

@pytest.mark.parametrize(("largest", "bits"),
                         [(0, 8), (255, 8), (256, 10), (1023, 10), (3912, 12), (4096, 14), (16384, 16),
                                               (65535, 16), (65536, 32)])
def test_bits_that_hold_a_value(largest, bits):
    assert bits_of(largest) == bits


@pytest.mark.parametrize(("largest", "white"),
                         [(0, 1), (0.05, 0.05), (0.9, 1), (1, 1), (3.7, 3.7), (200, 255), (900, 1023),
                                                (4000, 4095), (1e6, 1e6)])
def test_white_of_floats(largest, white):
    assert white_of(largest) == white


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_the_data_set_says_the_bits_of_16_bit_files(tmp_path, bits, name):
    """A bright and a dark image keep their difference; each alone would be stretched."""
    bright, dark = scan(2**bits - 1), scan(2**(bits - 3))
    for values, folder in ((bright, "b"), (dark, "d")):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / name)
    facts = facts_of(tmp_path, [tmp_path / "b" / name, tmp_path / "d" / name])
    assert image_facts.depth(facts) == (bits, None)
    for values, folder in ((bright, "b"), (dark, "d")):
        assert np.abs(shown(tmp_path / folder / name,
                            bits=bits)[..., 0] - values * 255.0 / (2**bits - 1)).max() <= 0.51
        assert np.abs(np.asarray(ImageSource(str(tmp_path / folder / name), AS_STORED).decode())[..., 0]
                      - values / 257).max() <= 0.51


def test_a_tiff_that_says_its_range_is_read_by_that(tmp_path):
    values = scan(900)
    Image.fromarray(values).save(tmp_path / "said.tif", tiffinfo={281: 4095})
    # that of this image alone
    Image.fromarray(values).save(tmp_path / "largest.tif", tiffinfo={281: int(values.max())})
    facts = facts_of(tmp_path, [tmp_path / "said.tif"])
    assert image_facts.depth(facts) == (None, None)
    assert np.abs(shown(tmp_path / "said.tif", bits=10)[..., 0] - values * 255.0 / 4095).max() <= 0.51
    assert np.abs(shown(tmp_path / "largest.tif", bits=10)[..., 0] - values * 255.0 / 1023).max() <= 0.51
    assert facts_of(tmp_path, [tmp_path / "largest.tif"])["kind"][0] == WHOLE_NUMBERS


def test_signed_numbers_and_floats(tmp_path):
    values = RNG.integers(-50, 3000, (20, 30)).astype(np.int16)
    write_tiff(tmp_path / "signed.tif", values, 2)
    assert np.abs(shown(tmp_path / "signed.tif",
                        bits=12)[..., 0] - values.clip(0) * 255.0 / 4095).max() <= 0.51
    high = values.astype(np.int16) * 10
    write_tiff(tmp_path / "high.tif", high, 2)
    assert np.abs(shown(tmp_path / "high.tif", bits=16)[..., 0] - high.clip(0) * 255.0 / 32767).max() <= 0.51
    floats = [RNG.uniform(0, most, (20, 30)).astype(np.float32) for most in (3.7, 0.4)]
    for number, one in enumerate(floats):
        write_tiff(tmp_path / f"{number}.tif", one, 3)
    facts = facts_of(tmp_path, [tmp_path / "0.tif", tmp_path / "1.tif"])
    assert list(facts["kind"]) == [FLOATS, FLOATS]
    bits, white = image_facts.depth(facts)
    assert bits is None and white == pytest.approx(floats[0].max())
    assert np.abs(shown(tmp_path / "1.tif", floats=white)[..., 0] - floats[1] * 255 / white).max() <= 0.51


def test_what_goes_beyond_the_stored_range_is_white_and_said(tmp_path):
    Image.fromarray(scan(4095)).save(tmp_path / "a.png")
    facts = facts_of(tmp_path, [tmp_path / "a.png"])
    settings = with_depth(eval_settings(32, HALF, HALF, "full"), *image_facts.depth(facts))
    assert settings["bits"] == 12 and with_depth({**settings, "bits": 10}, 12, None)["bits"] == 10
    assert image_facts.describe(facts, settings)[1] == []
    (note,), (warning,) = image_facts.describe(facts, {**settings, "bits": 10})
    assert "read from 0 to 1,023 (10 bits)" in note and "1 of them go beyond 1,023" in warning
    assert shown(tmp_path / "a.png", bits=10).max() == 255
    (note,), (warning,) = image_facts.describe(facts, {**settings, "read_images": "as_stored"})
    assert "full range of their type" in note and "12 bits and come out nearly black" in warning


def test_colours_of_16_bits_that_fill_12_are_said_to_come_out_black(tmp_path):
    values = scan(4095, (16, 20, 3))
    png_of_16_bits(tmp_path / "low.png", values, 2)
    png_of_16_bits(tmp_path / "full.png", values * 16, 2)
    settings = eval_settings(32, HALF, HALF, "full")
    for name, lines in (("low.png", 1), ("full.png", 0)):
        facts = facts_of(tmp_path, [tmp_path / name])
        assert facts["kind"][0] == DEEP_COLOURS
        notes, warnings = image_facts.describe(facts, settings)
        assert "of which the upper 8 are read" in notes[0] and len(warnings) == lines


# ---- transparency ------------------------------------------------------------------------------------------

def transparent_images(folder):
    """Pairs of files that look alike and have other colours under their transparency: RGBA, grey, palette, a
    key colour."""
    alpha = RNG.integers(0, 256, (24, 32)).astype(np.uint8)
    alpha[:12] = 0
    for number in range(2):
        colours = (
            RNG.integers(0, 256, (24, 32, 4)).astype(np.uint8)
            if number
            else np.full((24, 32, 4), 90, np.uint8)
        )
        colours[12:] = np.random.default_rng(5).integers(0, 256, (12, 32, 4))
        colours[..., 3] = alpha
        image = Image.fromarray(colours)
        image.save(folder / f"rgba{number}.png")
        image.save(folder / f"rgba{number}.tif")
        image.save(folder / f"rgba{number}.webp", lossless=True, exact=True)
        grey = image.convert("L")
        grey.putalpha(Image.fromarray(alpha))
        grey.save(folder / f"la{number}.png")
    return [folder / f"{name}0.{kind}"
            for name, kind in (("rgba", "png"), ("rgba", "tif"), ("rgba", "webp"), ("la", "png"))]


def test_two_files_that_look_alike_are_read_alike(tmp_path):
    for path in transparent_images(tmp_path):
        other = path.with_name(path.name.replace("0", "1"))
        one, two = shown(path), shown(other)
        alpha = np.asarray(Image.open(path).convert("RGBA"))[..., 3:].astype(int)
        by_hand = np.asarray(Image.open(path).convert("RGBA"))[..., :3] * alpha / 255
        assert (one == two)[:12].all() and (one[:12] == 0).all() and np.abs(one - by_hand).max() <= 1
        assert not (np.asarray(ImageSource(str(path), AS_STORED).decode())
                    == np.asarray(ImageSource(str(other), AS_STORED).decode()))[:12].all()


def test_palettes_and_key_colours_that_are_transparent(tmp_path):
    palette = Image.fromarray(RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)).quantize(16)
    palette.save(tmp_path / "p.png", transparency=3)
    key = np.asarray(palette) == 3
    assert key.any() and (shown(tmp_path / "p.png")[key] == 0).all()
    assert (shown(tmp_path / "p.png")[~key] == np.asarray(palette.convert("RGB"))[~key]).all()
    colours = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "rgb.png", transparency=tuple(map(int, colours[3, 4])))
    found = shown(tmp_path / "rgb.png")
    assert (found[3, 4] == 0).all() and (found[5, 6] == colours[5, 6]).all()
    values = scan(4095, (24, 32))
    png_of_16_bits(tmp_path / "deep.png", values, 0, [(b"tRNS", struct.pack(">H", int(values[2, 2])))])
    found = shown(tmp_path / "deep.png", bits=12)[..., 0]
    assert found[2, 2] == 0 and abs(found[7, 7] - values[7, 7] * 255.0 / 4095) <= 0.51
    facts = facts_of(tmp_path, [tmp_path / name for name in ("p.png", "rgb.png", "deep.png")])
    assert image_facts.describe(facts, eval_settings(32, HALF, HALF, "full") | {"bits": 12})[0][-1] == (
        "images with transparent parts (read as black): 3")


def test_an_alpha_channel_that_hides_nothing_changes_nothing(tmp_path):
    colours = smooth(40, 20)
    colours.putalpha(255)
    colours.save(tmp_path / "a.png")
    assert (shown(tmp_path / "a.png") == np.asarray(smooth(40, 20))).all()
    assert facts_of(tmp_path, [tmp_path / "a.png"])["flags"][0] == 0


# ---- orientation and pages ---------------------------------------------------------------------------------

def turned(folder, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if name.endswith("jpg") else {"lossless": True} if name.endswith("webp") else {}
    smooth(61, 40).save(folder / name, exif=exif, **options)
    return folder / name


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_kind_is_that_of_pillows_own_turning(tmp_path, name, orientation):
    path = turned(tmp_path, name, orientation)
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert ImageSource(str(path)).size == upright.size == ((40, 61) if orientation > 4 else (61, 40))
    assert np.abs(shown(path) - np.asarray(upright)).max() <= (1 if name == "a.jpg" else 0)
    part = ImageSource(str(path)).part((3, 5, 33, 35))
    assert np.abs(part.astype(int) - np.asarray(upright)[5:35, 3:33]).max() <= 2
    whole, covers = ImageSource(str(path)).whole((10, 10))
    assert covers == tuple(side / round(upright.size[0] / whole.shape[1]) for side in upright.size)
    full, scaled = (EvalTransform(eval_settings(32, HALF, HALF, decode))(str(path))
                    for decode in ("full", "scaled"))
    assert (full - scaled).abs().mean() < 0.02
    kept = Kept.of(eval_settings(16, HALF, HALF, "scaled", 32)).pixels(str(path))
    assert kept.shape[:2] == ((49, 32) if orientation > 4 else (32, 49))


def test_pages_orientations_and_what_is_not_applied_are_counted(tmp_path):
    pages = [smooth(20, 10), smooth(20, 12)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "frames.webp", save_all=True, append_images=[smooth(20, 10).rotate(90)])
    paths = [tmp_path / "pages.tif", tmp_path / "frames.webp", turned(tmp_path, "a.jpg", 6),
             turned(tmp_path, "b.tif", 3),
             turned(tmp_path, "c.jpg", 1)]
    late = turned(tmp_path, "late.png", 8).read_bytes()
    place = late.index(b"eXIf") - 4
    chunk = late[place:place + 12 + int.from_bytes(late[place:place + 4], "big")]
    (tmp_path / "late.png").write_bytes(late.replace(chunk, b"")[:-12] + chunk + late[-12:])
    assert (
        ImageSource(str(tmp_path / "late.png")).decode().size
        == ImageSource(str(tmp_path / "late.png")).size
        == (61, 40)
    )
    facts = facts_of(tmp_path, [*paths, tmp_path / "late.png"])
    (note,), _ = image_facts.describe(facts, eval_settings(32, HALF, HALF, "full"))
    assert note == ("images of several pages or frames (the first is read): 2; turned as their EXIF "
                    "orientation says: 1; TIFF files turned as their orientation says: 1; with an "
                    "orientation after their pixels (not applied): 1")
    (note,), _ = image_facts.describe(facts, eval_settings(32, HALF, HALF, "full",
                                                         model=ModelOptions(read_images="as_stored")))
    assert "with an EXIF orientation (not applied: --read_images as_shown): 1" in note


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk",
                                  b"junk"])
def test_damaged_exif_leaves_the_image_as_it_stands(tmp_path, exif):
    smooth(61, 40).save(tmp_path / "a.jpg", exif=exif)
    assert ImageSource(str(tmp_path / "a.jpg")).part().shape == (40, 61, 3)
    assert ImageSource(str(tmp_path / "a.jpg")).decode().size == (61, 40)


# ---- the programs ------------------------------------------------------------------------------------------

@pytest.fixture
def scans(tmp_path):
    """Two classes of 12-bit scans in 16-bit PNGs, 8 a split; the second is brighter."""
    for split in ("train", "val", "test"):
        for label in range(2):
            for number in range(8):
                path = tmp_path / "data" / split / f"c{label}" / f"{split}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(scan(2000 + 1800 * label, (40, 40))).save(path)
    return tmp_path / "data"


def test_the_range_is_stored_and_used_by_every_program(start, scans, tmp_path, monkeypatch, capsys):
    import latent_feature
    import predict

    flags = ("--nb_classes", 2, "--epochs", 1)
    code, out, err = start(*flags, "--task", "a", data=scans)
    assert code == 0, err
    assert (
        "48 images of whole numbers of more than 8 bits, up to 3,800, read from 0 to 4,095 (12 bits)" in out
    )
    best = tmp_path / "output_dir/a/checkpoint-best.pth"
    stored = torch.load(best, weights_only=True)["transform"]["eval"]
    assert (stored["read_images"], stored["bits"], stored["floats"]) == ("as_shown", 12, None)
    assert "read from 0 to 4,095" in " ".join(
        json.loads((tmp_path / "output_dir/a/run.json").read_text())["data"]["notes"]
    )

    dark = tmp_path / "dark"  # of a darker camera: the stored range holds, not that of these files
    dark.mkdir()
    Image.fromarray(scan(900, (40, 40))).save(dark / "a.png")
    monkeypatch.chdir(tmp_path)
    assert predict.main(["--resume", str(best), "--input", str(dark), "--output", "p.csv", "--device",
                         "cpu"]) == 0
    assert (
        "1 images of whole numbers of more than 8 bits, up to 900, read from 0 to 4,095 (12 bits)"
        in capsys.readouterr().out
    )
    words = ["--random_weights", *SMALL[:6], "--input", str(dark), "--output", "f.npz", "--device", "cpu"]
    assert latent_feature.main(words) == 0
    assert "up to 900, read from 0 to 1,023 (10 bits)" in capsys.readouterr().out

    code, out, err = start(*flags, "--task", "b", "--eval", "--resume", best, "--read_images", "as_stored",
                           data=scans)
    assert code == 0 and "--read_images as_shown -> as_stored" in out and "come out nearly black" in out, err
    code, out, err = start(*flags, "--task", "c", "--skip_file_check", "--dry_run", data=scans)
    assert code == 0 and "48 files that are no JPEG were looked at" in out and "(12 bits)" in out, err
