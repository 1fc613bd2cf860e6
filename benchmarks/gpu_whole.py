"""The whole program on large JPEGs, for benchmarks/gpu.py: images a second, how much of the time the GPU
computes, and what is waited for."""

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

from benchmarks.gpu_setting import CLASSES, Setting
from benchmarks.gpu_watched import FILE
from benchmarks.pictures import photographs
from util.core.machine import usable_cores

EVERY_S = 0.2  # between two looks at the GPU
EPOCHS, UNIQUE = 4, 32  # photographs, each of which is linked several times
COUNTS = {"train": 1920, "val": 120, "test": 40}
TINY_COUNTS = {"train": 30, "val": 10, "test": 5}


class Meter:
    """What nvidia-smi says of the first GPU, in the background: rows of (time, percent of the time in which a
    kernel ran). No rows where there is no nvidia-smi."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def __enter__(self) -> "Meter":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def _read(self) -> None:
        command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._over.wait(EVERY_S):
            when = time.time()
            try:
                said = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
            except (OSError, subprocess.TimeoutExpired):
                return
            if said.isdecimal():
                self.rows.append((when, float(said)))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def share(self, began: float, ended: float) -> float | None:
        """The mean share in a stretch of time; None where nothing was read then."""
        inside = [percent for when, percent in self.rows if began <= when <= ended]
        return statistics.mean(inside) / 100 if inside else None


def _draw(folder: Path, side: int, number: int) -> str:
    return photographs(folder, (side, side), 1, noise=1 + number / 1000)[0]


def large_images(setting: Setting) -> Path:
    """A folder of classes with large photographs, drawn on all cores and linked as often as is needed."""
    folder, counts = setting.work / "large", setting.choose(TINY_COUNTS, COUNTS)
    draw = partial(_draw, setting.work / "photographs", setting.choose(128, 2048))
    # before CUDA is begun, so that a fork does no harm
    with ProcessPoolExecutor(usable_cores(), multiprocessing.get_context("fork")) as pool:
        paths = list(pool.map(draw, range(setting.choose(2, UNIQUE))))
    for split, count in counts.items():
        for number in range(count):
            place = folder / split / f"class{number % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            os.link(paths[number % len(paths)], place / f"{number:04}.jpg")
    return folder


def whole(setting: Setting) -> None:
    """As the documents have it, and with an image cache."""
    folder = large_images(setting)
    model = setting.choose(["--model", "timm", "--model_arch", "test_vit", "--input_size", 32],
                           ["--model", "RETFound_dinov2", "--finetune", ""])
    words = ["benchmarks/gpu_watched.py", *model, "--data_path", folder, "--nb_classes", CLASSES, "--epochs",
             setting.choose(2, EPOCHS), "--batch_size", setting.choose(8, 24), "--leakage", "off",
             "--skip_file_check", "--device", setting.device]
    kinds = {"as documented": [], "image cache": ["--image_cache", "cache"]}
    for name, more in list(kinds.items())[:setting.choose(1, 2)]:
        (setting.work / FILE).unlink(missing_ok=True)
        with Meter() as meter:
            setting.program(f"main_finetune.py, {name}", [*words, "--task", name.replace(" ", "_"), *more])
        if (setting.work / FILE).exists():
            rows = json.loads((setting.work / FILE).read_text(encoding="utf-8"))
            report(setting, name, rows, meter)
        shutil.rmtree(setting.work / "output_dir", ignore_errors=True)  # some GB of checkpoints


def report(setting: Setting, name: str, rows: list[dict], meter: Meter) -> None:
    """Write what each epoch's training came to, up to the beginning of its evaluation, and the waits for
    checkpoints."""
    number, images = 0, setting.choose(TINY_COUNTS, COUNTS)["train"]
    for row, after in zip(rows, rows[1:], strict=False):
        if row["what"] != f"epoch {number}" or not row["waits"]:
            continue
        took = after["began"] - row["began"]
        setting.put(f"{name}, epoch {number}", images_s=images / took, seconds=took,
                    gpu_busy=meter.share(row["began"], after["began"]), first_batch_s=row["waits"][0],
                    longest_other_wait_s=max(row["waits"][1:], default=0.0),
                    waited_for_loader=sum(row["waits"]) / took)
        number += 1
    waits = [row["waits"][0] for row in rows if row["what"] == "checkpoint"]
    if waits:
        setting.put(f"{name}, checkpoints", first_s=waits[0], median_s=statistics.median(waits),
                    most_s=max(waits), number=len(waits))
