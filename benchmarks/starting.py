"""How long it takes until something happens: --help, the first training step of the demo, and one pass over
the images."""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.pictures import photographs
from benchmarks.timing import Measure, Row, compare
from util.data.images.cache import Filling, Kept
from util.data.images.fundus_fields import Fields
from util.data.images.reading_pass import Reader, read_images
from util.data.images.scan import ImageFacts
from util.data.leakage.fingerprints import Fingerprints
from util.data.public.demo import make_demo

ROOT = Path(__file__).resolve().parent.parent
FIRST_STEP = """
import os, sys
import engine_finetune
plain = engine_finetune._optimizer_step
def first(trainer):
    plain(trainer)
    os._exit(0)
engine_finetune._optimizer_step = first
import main_finetune
main_finetune.main(sys.argv[1:])
"""


def run(*words: str, folder: Path) -> None:
    subprocess.run([sys.executable, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL, env=None)


def rows(folder: Path, quick: bool) -> list[Row]:
    pairs, demo = 1 if quick else 5, folder / "demo"
    make_demo(demo, **({"pictures": 120} if quick else {}))
    flags = ["--model", "timm", "--model_arch", "efficientvit_m0", "--input_size", "128",
             "--data_path", str(demo), "--task", "t", "--output_dir", str(folder / "out"),
             "--log_dir", str(folder / "logs"), "--batch_size", "32"]

    def imports() -> None:
        run("-c", "import torch, timm", folder=ROOT)

    def first_step() -> None:
        run("-c", FIRST_STEP, *flags, folder=ROOT)

    start = compare("start-up: importing torch and timm, and until the first training step of the demo",
                    imports, first_step, pairs, "<= 2.5 times the imports (ratio >= 0.4x)",
                    measure=Measure("s"))
    help_text = compare("--help, against importing torch and timm", imports,
                        lambda: run("main_finetune.py", "--help", folder=ROOT), pairs, "<= 2 s",
                        measure=Measure("s"))
    return [start, help_text, one_pass(folder, quick, "off"), one_pass(folder, quick, "auto")]


def one_pass(folder: Path, quick: bool, crop: str) -> Row:
    """Check, cache and fingerprints (auto: and fields) of photographs by one pass, against a pass for each;
    one thread."""
    side, count = (256, 2) if quick else (2048, 20)
    paths = photographs(folder / "photographs", (side * 3 // 2, side), count)
    number = itertools.count()

    def readers() -> list[Reader]:
        fields = [Fields(None)] if crop == "auto" else []
        kept = Kept(512, "scaled", fundus_crop=crop, fields=fields[0] if fields else None)
        return [*fields, Filling(folder / f"{crop} {next(number)}", kept, print), Fingerprints(None),
                ImageFacts(None)]

    def apart() -> None:
        for reader in readers():
            read_images([(reader, paths)], 1)

    def together() -> None:
        read_images([(reader, paths) for reader in readers()], 1)

    return compare(f"first launch, {count} photographs of {3 * side // 2}x{side}, --fundus_crop {crop}: a "
                   "pass for each of check, cache and fingerprints, and one for all", apart, together,
                   1 if quick else 5, ">= 1.2x", measure=Measure("s", clock=cpu_seconds))


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
