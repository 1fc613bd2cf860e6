"""How long it takes until something happens: --help, and the first training step of the demo."""

import subprocess
import sys
from pathlib import Path

from benchmarks.timing import Row, compare
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
    flags = ["--model", "timm", "--model_arch", "efficientvit_m0", "--input_size", "128", "--data_path", str(demo),
             "--task", "t", "--output_dir", str(folder / "out"), "--log_dir", str(folder / "logs"), "--batch_size", "32"]

    def imports():
        run("-c", "import torch, timm", folder=ROOT)

    def first_step():
        run("-c", FIRST_STEP, *flags, folder=ROOT)
    start = compare("start-up: importing torch and timm, and until the first training step of the demo", imports, first_step,
                    pairs, "<= 2.5 times the imports (ratio >= 0.4x)", unit="s", scale=1)
    help_text = compare("--help, against importing torch and timm", imports,
                        lambda: run("main_finetune.py", "--help", folder=ROOT), pairs, "<= 2 s", unit="s", scale=1)
    return [start, help_text]
