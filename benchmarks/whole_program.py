"""The whole program, from its command to its report, on photographs as cameras write them, against a plain
training loop: the same images, model, epochs and precision, whatever each of them draws of the images. The
model is a small one, so that reading images decides, as it does on a GPU; with a larger one on a CPU both
spend their time in the same products.

    python -m benchmarks.whole_program                 # 20 drawn photographs of 4288 x 2848, 400 names
    python -m benchmarks.whole_program --images DIR    # JPEGs of your own instead
    python -m benchmarks.whole_program --model_arch tf_efficientnet_lite0

Each run begins with nothing kept of an earlier one.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from benchmarks.pictures import photographs
from benchmarks.starting import ROOT, run
from benchmarks.timing import Measure, Row, as_text, compare
from util.core.ending import exit_code_of
from util.core.errors import InputError
from util.model.precision import cpu_has_bf16

SHARES = {"train": 300, "val": 50, "test": 50}
GRADES = 5
SMALL = "efficientvit_m0"


def copied(paths: Sequence[str], folder: Path, shares: dict[str, int]) -> Path:
    """A folder of splits and grades with as many names as asked for, each a copy of one of the files."""
    number = count()
    for split, images in shares.items():
        for place in range(images):
            source, grade = paths[next(number) % len(paths)], folder / split / str(place % GRADES)
            grade.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, grade / f"{place:03d}{Path(source).suffix}")
    return folder


def rows(folder: Path, quick: bool, images: Sequence[str] = (), pairs: int = 2,
         arch: str = SMALL) -> list[Row]:
    """Seconds of three epochs; the row's limit says how many images of train a second that is."""
    shares = dict.fromkeys(SHARES, 10) if quick else SHARES
    size, epochs = (64, 1) if quick else (224, 3)
    precision = "bf16" if cpu_has_bf16() else "fp32"
    camera, files = ((600, 400), 2) if quick else ((4288, 2848), 20)
    taken = images or photographs(folder / "cameras", camera, files)
    data, number = copied(taken, folder / "named", shares), count()
    same = ["--model_arch", arch, "--finetune", "", "--data_path", str(data), "--epochs",
            str(epochs), "--batch_size", "10" if quick else "24", "--input_size", str(size), "--precision",
            precision]

    def plain() -> None:
        run("-m", "benchmarks.plain_training", *same, "--output", str(folder / f"plain{next(number)}"),
            folder=ROOT)

    def ours() -> None:
        place = folder / f"ours{next(number)}"
        run("main_finetune.py", "--model", "timm", *same, "--task", "run", "--output_dir", str(place),
            "--log_dir", str(place / "logs"), folder=ROOT)

    row = compare(f"the whole program, {arch}, {epochs} epochs of {shares['train']} photographs",
                  plain, ours, 1 if quick else pairs, ">= 4x", measure=Measure("s"))
    a_second = [epochs * shares["train"] / seconds for seconds in (row.plain, row.ours)]
    return [replace(row, limit="{:.1f} and {:.1f} images of train a second".format(*a_second))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, metavar="DIR", help="JPEGs to take instead of drawn ones")
    parser.add_argument("--model_arch", default=SMALL, help="a model of timm's")
    parser.add_argument("--pairs", type=int, default=2, help="runs of both, after one that is not counted")
    options = parser.parse_args(argv)
    images = sorted(map(str, options.images.glob("*.jpg"))) if options.images else []
    if options.images and not images:
        raise InputError(f"--images {options.images}: no .jpg there")
    with tempfile.TemporaryDirectory(prefix="whole-") as folder:
        print(as_text(rows(Path(folder), False, images, options.pairs, options.model_arch)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
