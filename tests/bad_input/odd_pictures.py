"""Images that are odd and simply work; names that are odd."""

import os
import shutil

import numpy as np
from PIL import Image

from tests.bad_input import picture_bytes as made
from tests.bad_input.pictures import (
    FRAMES,
    NAMES,
    NOT_TEXT,
    ODD,
    TABLE,
    WORKS,
)
from tests.bad_input.place import TRAINING, Place, predicting, train
from tests.bad_input.table import Row

# ---- what works --------------------------------------------------------------------------------------------

steps = np.arange(made.SIDE**2).reshape(made.SIDE, made.SIDE)
KINDS = {
    **{f"png of mode {mode}": ("png", made.png(mode=mode)) for mode in ("L", "LA", "P", "RGBA", "1")},
    "palette with transparency": ("png", made.encoded(made.noise(mode="P"), "PNG", transparency=0)),
    "16-bit png": ("png", made.encoded(Image.fromarray((steps * 100).astype(np.uint16)), "PNG")),
    "16-bit tiff": ("tif", made.tiff((steps * 100).astype(np.uint16))),
    "32-bit tiff": ("tif", made.tiff((steps * 99).astype(np.int32))),
    "float tiff": ("tif", made.floats(0, 0.5, 1)),
    "float tiff with NaN": ("tif", made.floats(np.nan, np.inf, 0.5)),
    "float tiff of NaN alone": ("tif", made.floats(np.nan)),
    "float tiff below zero": ("tif", made.floats(-5, -1)),
    "cmyk jpeg": ("jpg", made.jpeg(mode="CMYK")),
    "cmyk tiff": ("tif", made.encoded(made.noise(mode="CMYK"), "TIFF")),
    "grey jpeg": ("jpg", made.jpeg(mode="L")),
    "lab tiff": ("tif", made.encoded(made.noise(mode="LAB"), "TIFF")),
}
ODDITIES = {
    "jpeg called png": ("png", made.jpeg()),
    "png called JPG": ("JPG", made.png()),
    "gif called png": ("png", made.encoded(made.noise(mode="P"), "GIF")),
    "gif": ("gif", made.encoded(made.noise(mode="P"), "GIF")),
    "jpeg called jfif": ("jfif", made.jpeg()),
    "jpeg 2000": ("jp2", made.encoded(made.noise((64, 64)), "JPEG2000")),
    "ppm": ("ppm", made.encoded(made.noise(), "PPM")),
    "jpeg with bytes behind its end": ("jpg", made.jpeg() + b"more" * 99),
    "png with bytes behind its end": ("png", made.png() + bytes(99)),
    "exif says turn": ("jpg", made.rotated()),
    "one pixel": ("png", made.png((1, 1))),
    "one pixel jpeg": ("jpg", made.jpeg((1, 1))),
    "1 x 60000": ("png", made.png((1, 60000))),
    "60000 x 1": ("png", made.png((60000, 1))),
    "jpeg of 3 x 9000": ("jpg", made.jpeg((3, 9000))),
    "interlaced": ("png", made.png(interlace=1)),
    "thousands of comments": ("png", made.many_texts()),
    "progressive jpeg": ("jpg", made.jpeg((64, 64), progressive=True)),
    "jpeg in a tiff": ("tif", made.encoded(made.noise(), "TIFF", compression="jpeg")),
}
MANY_FRAMES = {
    "animated gif": ("png", made.animated("GIF")),
    "animated gif with its own ending": ("gif", made.animated("GIF")),
    "animated png": ("png", made.animated("PNG")),
    "animated webp": ("webp", made.animated("WEBP")),
    "tiff of three pages": ("tif", made.animated("TIFF")),
    "two jpegs in one (mpo)": ("jpg", made.encoded(made.noise(), "MPO", save_all=True,
                                                   append_images=[made.noise()])),
}
ODD_NAMES = {
    "a line end": "a\nb.png",
    "quotes and commas": "a, \"b\"; 'c'.png",
    "spaces at its ends": " a .png",
    "a tab": "a\tb.png",
    "Chinese": "眼底.png",
    "an emoji": "👁.png",
    "250 letters": "a" * 250 + ".png",
    "percent and braces": "%s{0}$HOME.png",
    "terminal colours": "\x1b[31mred.png",
    "a dash first": "-rf.png",
    "a formula": "=1+1.png",
    "upper-case ending": "A.PNG",
}


def _works(row: Row, name: str, ending: str, content: bytes) -> None:
    def make(place: Place):
        folder = place.some_pictures()
        place.write(f"pictures/odd.{ending}", content)
        place.pictures = 4
        return predicting(place, folder)

    TABLE.add(row, name, make, program="predict.py")


for row, files in ((WORKS, KINDS), (ODD, ODDITIES), (FRAMES, MANY_FRAMES)):
    for name, (ending, content) in files.items():
        _works(row, name, ending, content)
for name, file in ODD_NAMES.items():

    def make(place: Place, file=file):
        place.some_pictures()
        place.write(f"pictures/{file}", made.png())
        place.pictures = 4
        return predicting(place, "pictures")

    TABLE.add(NAMES, name, make, program="predict.py")


@TABLE.case(NAMES, "links to images and to a folder", program="predict.py")
def _(place: Place):
    folder = place.some_pictures()
    (folder / "link.png").symlink_to("dry0.png")
    os.link(folder / "dry0.png", folder / "hard.png")
    (folder / "more").symlink_to(place.kit.data / "val/wet")
    (folder / "round").symlink_to(folder)
    place.pictures = 7
    return predicting(place, folder)


@TABLE.case(NAMES, "a folder with an image's name", program="predict.py")
def _(place: Place):
    folder = place.some_pictures()
    place.write("pictures/folder.png/0.png", made.png())
    place.pictures = 4
    return predicting(place, folder)


@TABLE.case(NAMES, "odd names while training")
def _(place: Place):
    data = place.data()
    for number, file in enumerate(ODD_NAMES.values()):
        (data / ("test" if number % 2 else "train") / "dry" / file).write_bytes(made.png())
    place.pictures = 4 + len(ODD_NAMES) // 2
    return [*TRAINING, "--data_path", "data", "--task", "t"]


def _all_kinds(place: Place):
    data = place.data()
    for number, (ending, content) in enumerate([*KINDS.values(), *ODDITIES.values(), *MANY_FRAMES.values()]):
        for split in ("train", "test"):
            (data / split / "dry" / f"odd{number}.{ending}").write_bytes(content)
    place.pictures = 4 + len(KINDS) + len(ODDITIES) + len(MANY_FRAMES)
    return [*TRAINING, "--data_path", "data", "--task", "t"]


TABLE.add(WORKS, "all at once, decoded no finer than needed", _all_kinds)
TABLE.add(WORKS, "all at once, decoded in full", lambda place: [*_all_kinds(place), "--decode", "full"])
TABLE.add(WORKS, "all at once, kept in a cache", lambda place: [*_all_kinds(place), "--image_cache", "cache"])
TABLE.add(WORKS, "all at once, as features", lambda place: [*_all_kinds(place), "--adaptation", "lp"])


@TABLE.case(NOT_TEXT, "in training", "\\xff")
def _(place: Place):
    shutil.copy(place.data() / "train/dry/0.png", os.fsencode(place.folder) + b"/data/train/dry/\xff.png")
    return train(place, "--data_path", "data")


@TABLE.case(NOT_TEXT, "beside a name with a line end", "\\xe9t", program="predict.py")
def _(place: Place):
    folder = place.some_pictures()
    shutil.copy(folder / "dry0.png", folder / "a\nb.png")
    shutil.copy(folder / "dry0.png", os.fsencode(folder) + b"/\xe9t\xe9.png")
    return predicting(place, folder)


@TABLE.case(NOT_TEXT, "of a class folder", "\\xff")
def _(place: Place):
    data = place.data()
    for split in ("train", "val", "test"):
        os.rename(data / split / "dry", os.fsencode(data) + f"/{split}/".encode() + b"dry\xff")
    return train(place, "--data_path", "data")
