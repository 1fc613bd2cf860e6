"""Images that do not decode, images that are no files, bombs, and odd ones that simply work."""

import os
import socket

import numpy as np

from tests.bad_input import picture_bytes as made
from tests.bad_input.place import TRAINING, Place, predicting, train
from tests.bad_input.table import ACCEPTED, FAILED, SKIPPED, Row, Table

KIND = "Pictures"
TABLE = Table()
STOP = "… of … images cannot be read; mend or pass --bad_images skip: …"
MEND = "copy the named files again or convert them; or leave them out with `--bad_images skip`"
LEFT_OUT = "left out … of … images that cannot be read"

CUT = Row(KIND, "An image was cut short or damaged on its way", STOP, MEND)
OTHER = Row(
    KIND, "A file with an image's name is empty, or holds something else (a web page, a PDF, a DICOM or HEIC "
          "file)", STOP, MEND
)
BOMB = Row(
    KIND,
    "An image claims to be huge, or unpacks to far more than it is: nothing of it is decoded",
    STOP,
    "at most 178,956,970 pixels an image are read: save it smaller, or leave it out with `--bad_images skip`",
)
NO_FILE = Row(
    KIND,
    "An image's name is a broken or circular link, a pipe, a socket or a device",
    STOP,
    "put a file there, or remove the name",
)
NO_RIGHT = Row(
    KIND,
    "An image or its folder may not be read by this user",
    "…permission denied…",
    "`chmod -R u+rX DIR`, or copy the images to a folder of your own",
)
LEFT = Row(
    KIND,
    "An image cannot be read, and `--bad_images skip` is on",
    LEFT_OUT,
    "look at `skipped_images.csv` (or `FILE.skipped.csv` of predict.py), which lists each file with its "
    "reason",
    SKIPPED,
    "counts them, lists them, goes on with the others",
)
TOO_MANY = Row(
    KIND,
    "`--bad_images skip` would leave a class or a split without an image",
    "--bad_images skip leaves no readable image…",
    "mend the files of that class; nothing can be learned without them",
)
LATE = Row(
    KIND,
    "An image is damaged and `--skip_file_check` kept it from being found at the start",
    "an image that was there at the start cannot be read any more: …",
    "leave `--skip_file_check` out",
    FAILED,
)
WORKS = Row(
    KIND,
    "Grey, palette, transparent, CMYK, 1-bit, 16-bit, 32-bit and float images, also with NaN",
    "",
    "nothing to do: more than 8 bits are read over the range that all files together use, NaN, what is below "
    "0 and what is transparent are black",
    ACCEPTED,
    "all are read as 8-bit RGB",
)
FRAMES = Row(
    KIND,
    "Several frames, pages or images in one file",
    "",
    "split the file where another page is meant",
    ACCEPTED,
    "the first one is read; a note counts them",
)
ODD = Row(
    KIND,
    "Harmless oddities: another format than the extension says, bytes behind the end, an EXIF rotation, one "
    "pixel, a strip of 1 x 60,000",
    "",
    "nothing to do (EXIF's rotation is applied: `--read_images`)",
    ACCEPTED,
    "they are read",
)
NAMES = Row(
    KIND,
    "Names with spaces, commas, quotes, line ends, letters of any script, 250 letters; links to images",
    "",
    "nothing to do",
    ACCEPTED,
    "they are read, and stand in the tables as they are",
)
NOT_TEXT = Row(
    KIND,
    "A file name that is not UTF-8",
    "file name is not valid UTF-8: …; rename it",
    "rename it (`convmv` does whole folders)",
)

BROKEN = {
    "png cut short": ("png", made.half(made.png())),
    "jpeg cut short": ("jpg", made.half(made.jpeg())),
    "progressive jpeg cut short": ("jpg", made.half(made.jpeg((64, 64), progressive=True))),
    "jpeg without its end": ("jpg", made.jpeg((64, 64))[:-60]),
    "jpeg header alone": ("jpg", made.jpeg()[:400]),
    "tiff cut short": ("tif", made.half(made.encoded(made.noise(), "TIFF", compression="tiff_lzw"))),
    "bmp cut short": ("bmp", made.half(made.encoded(made.noise(), "BMP"))),
    "webp cut short": ("webp", made.half(made.encoded(made.noise(), "WEBP"))),
    "gif cut short": ("png", made.half(made.encoded(made.noise(mode="P"), "GIF"))),
    "jpeg 2000 cut short": ("png", made.half(made.encoded(made.noise((64, 64)), "JPEG2000"))),
    "png with a wrong checksum": ("png", made.bad_crc()),
    "png with too little data": ("png", made.too_little_data()),
    "png of no pixels": ("png", made.png_of(0, 0, b"")),
    "tiff whose strip is beyond the end": ("tif", made.tiff_of(24, 24, 10**9)),
    "png signature alone": ("png", made.png()[:8]),
    "tiff header alone": ("tif", b"II*\0\x08\0\0\0"),
}
NO_PICTURE = {
    "empty file": ("png", b""),
    "text": ("jpg", b"this is text\n" * 9),
    "a web page": ("png", b"<!DOCTYPE html><html>login</html>"),
    "a git lfs pointer": ("png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
    "a pdf": ("jpg", b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n"),
    "an svg": ("png", b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"),
    "an eps, which would start a program": (
        "tif",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch MARK) (w) file\n",
    ),
    "a dicom file": ("png", bytes(128) + b"DICM" + bytes(99)),
    "a heic file": ("jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)),
    "a zip archive": ("png", b"PK\x05\x06" + bytes(18)),
    "a video": ("jpg", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(99)),
    "a numpy file": ("tif", b"\x93NUMPY\x01\0v\0{'descr': '<f4'}"),
    "random bytes": ("png", np.random.default_rng(1).bytes(999)),
    "zeros": ("jpg", bytes(5000)),
}
BOMBS = {
    "png of 60000 x 60000": ("png", made.png_of(60000, 60000, b"x")),
    "jpeg of 60000 x 60000": ("jpg", made.jpeg_of(60000, 60000)),
    "gif of 60000 x 60000": ("png", made.gif_of(60000, 60000)),
    "bmp of 60000 x 60000": ("bmp", made.bmp_of(60000, 60000)),
    "tiff of 60000 x 60000": ("tif", made.tiff_of(60000, 60000)),
    "webp of 16384 x 16384": ("webp", made.webp_of(16384, 16384)),
    "ppm of 60000 x 60000": ("bmp", b"P6\n60000 60000\n255\n" + bytes(99)),
    "text chunk of 100 MB": ("png", made.text_bomb()),
    "tiff with a tag that lies": ("tif", made.tiff_with_a_tag_that_lies()),
    "jpeg of thousands of scans": ("jpg", made.scan_bomb()),
}


def _as_file(content):
    return lambda path: path.write_bytes(content)


def _socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's address may have 108 letters
    try:
        with socket.socket(socket.AF_UNIX) as made_here:
            made_here.bind(path.name)
    finally:
        os.chdir(here)


NOT_FILES = {
    "a broken link": lambda path: path.symlink_to("nowhere.png"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
}


def _stops(row: Row, name: str, ending: str, put, **more) -> None:
    """In training's folder: refused; in predict.py's with --bad_images skip: left out, counted and listed."""

    def in_training(place: Place):
        put(place.data() / "train/dry" / f"bad.{ending}")
        return train(place, "--data_path", "data")

    def in_prediction(place: Place):
        folder = place.some_pictures()
        put(folder / f"bad.{ending}")
        place.pictures, place.skipped = 3, [f"bad.{ending}"]
        return predicting(place, folder, "--bad_images", "skip")

    TABLE.add(row, name, in_training, f"bad.{ending}", **more)
    TABLE.add(LEFT, name, in_prediction, program="predict.py")


for row, files in ((CUT, BROKEN), (OTHER, NO_PICTURE), (BOMB, BOMBS)):
    for name, (ending, content) in files.items():
        _stops(row, name, ending, _as_file(content), real=name == "png of 60000 x 60000")
for name, put in NOT_FILES.items():
    _stops(NO_FILE, name, "png", put, real=name == "a pipe")


@TABLE.case(LEFT, "three kinds at once while training", "left out 3 of 14 images", real=True)
def _(place: Place):
    data = place.data()
    (data / "train/wet/0.png").write_bytes(b"")
    (data / "val/wet/0.png").write_bytes(made.bad_crc())
    (data / "test/dry/1.png").write_bytes(made.png_of(60000, 60000, b"x"))
    place.pictures, place.skipped = 3, ["train/wet/0.png", "val/wet/0.png", "test/dry/1.png"]
    return [*TRAINING, "--data_path", "data", "--task", "t", "--bad_images", "skip"]


@TABLE.case(LEFT, "in a table of numbers", "left out 1 of 14 images", program="main_regression.py")
def _(place: Place):
    place.data()
    lines = ["path,split,depth", *(f"{path},{split},{depth}" for path, _, split, depth in place.kit.rows)]
    place.write("d.csv", "\n".join(lines))
    (place.folder / "data/train/wet/0.png").write_bytes(b"x")
    place.pictures, place.skipped = 4, ["train/wet/0.png"]
    return [
        *TRAINING,
        "--csv_file",
        "d.csv",
        "--targets",
        "depth",
        "--finetune",
        "",
        "--head_depth",
        1,
        "--task",
        "t",
        "--bad_images",
        "skip",
    ]


@TABLE.case(TOO_MANY, "a class of train", "train")
def _(place: Place):
    for path in (place.data() / "train/wet").iterdir():
        path.write_bytes(b"")
    return train(place, "--data_path", "data", "--bad_images", "skip")


@TABLE.case(TOO_MANY, "all of test", "test")
def _(place: Place):
    for path in (place.data() / "test").rglob("*.png"):
        path.write_bytes(b"")
    return train(place, "--data_path", "data", "--bad_images", "skip")


@TABLE.case(TOO_MANY, "all of a prediction", "bad.png", program="predict.py")
def _(place: Place):
    place.write("pictures/bad.png", b"")
    return predicting(place, "pictures", "--bad_images", "skip")


@TABLE.case(LATE, "in training", "bad.png")
def _(place: Place):
    (place.data() / "train/dry/bad.png").write_bytes(made.bad_crc())
    return [*TRAINING, "--data_path", "data", "--task", "t", "--skip_file_check"]


GONE = Row(
    KIND,
    "A link is broken, or a pipe has an image's name, and `--skip_file_check` is on",
    "… cannot be read (…): mend or remove it",
    "mend the link or remove it",
)


@TABLE.case(GONE, "a broken link in training", "no such file or directory")
def _(place: Place):
    (place.data() / "train/dry/bad.png").symlink_to("nowhere")
    return train(place, "--data_path", "data", "--skip_file_check")


@TABLE.case(GONE, "two pipes in training", "bad.png", "no file but a pipe")
def _(place: Place):
    place.data()
    for split in ("train", "test"):
        os.mkfifo(place.folder / "data" / split / "dry/bad.png")
    return train(place, "--data_path", "data", "--skip_file_check")


@TABLE.case(GONE, "a broken link in prediction", "bad.png", program="predict.py")
def _(place: Place):
    (place.some_pictures() / "bad.png").symlink_to("nowhere")
    return predicting(place, "pictures", "--skip_file_check")


# ---- rights ------------------------------------------------------------------------------------------------


@TABLE.case(NO_RIGHT, "an image", "0.png")
def _(place: Place):
    place.as_nobody = True
    (place.data() / "train/dry/0.png").chmod(0)
    return train(place, "--data_path", "data")


@TABLE.case(NO_RIGHT, "a class folder", "train/dry")
def _(place: Place):
    place.as_nobody = True
    (place.data() / "train/dry").chmod(0)
    return train(place, "--data_path", "data")


@TABLE.case(NO_RIGHT, "the folder of splits", "data")
def _(place: Place):
    place.as_nobody = True
    place.data().chmod(0o111)
    (place.folder / "data/train").chmod(0)
    return train(place, "--data_path", "data")


@TABLE.case(NO_RIGHT, "a folder below the input", "hidden", program="predict.py")
def _(place: Place):
    place.as_nobody = True
    (place.some_pictures() / "hidden").mkdir(mode=0)
    place.folder.chmod(0o777)
    return predicting(place, "pictures")
