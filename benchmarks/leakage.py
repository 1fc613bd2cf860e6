"""What the leakage check finds of planted copies, what it takes for a copy by mistake, and how long it takes.

    python benchmarks/leakage.py                          # 3000 images, some 5 minutes on two cores
    python benchmarks/leakage.py --pictures 600 --quick   # that it runs, not how well
    python benchmarks/leakage.py --json leakage.json      # also as rows {what, ...}

Images are drawn in two ways: as the demo's, whose eyes differ in where disc and macula lie, in light and in
colour; and as from one camera and one protocol, right eyes alone with all of that at one place, which look
more alike than anything real. Two thirds of them are train, the rest test. Copies of a tenth are planted in
test, of each kind, and looked up as a run does; then the same the other way round, the copies in train. False
alarms are counted in images of test that have no copy in train. The time is that of a first launch on
photographs of 2048 x 2048 pixels, files hashed, decoded and compared, and of a second.
"""

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402

from benchmarks.pictures import photographs  # noqa: E402
from util.core.machine import usable_cores  # noqa: E402
from util.data.leakage import near_duplicates  # noqa: E402
from util.data.leakage.fingerprints import Fingerprints  # noqa: E402
from util.data.leakage.near_duplicates import FINGERPRINT, fingerprint_of, nearest  # noqa: E402
from util.data.leakage.search import check  # noqa: E402
from util.data.public.demo import plan, render  # noqa: E402

SIZE, SEED = 320, 5
ONE_PLACE = {"disc_x": 0.54, "disc_y": -0.02, "disc_radius": 0.145, "macula_x": -0.02, "macula_y": 0.04,
             "brightness": 0.85, "vessel_width": 0.036}


def jpeg(image: Image.Image, quality: int = 90) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def crop(image: Image.Image, share: float, right: float = 0.0, down: float = 0.0) -> Image.Image:
    width, height = (round(share * edge) for edge in image.size)
    left = round((image.width - width) / 2 + right * image.width)
    top = round((image.height - height) / 2 + down * image.height)
    return jpeg(image.crop((left, top, left + width, top + height)))


def smaller(image: Image.Image, quality: int = 90) -> Image.Image:
    return jpeg(image.resize((image.width // 4, image.height // 4), Image.Resampling.LANCZOS), quality)


def margins(image: Image.Image) -> Image.Image:
    wide = Image.new("RGB", (round(1.5 * image.width), image.height))
    wide.paste(image, (round(image.width / 4), 0))
    return jpeg(wide)


GOAL = ">= 95 %"
OTHER_CROPS = (0.975, 0.925, 0.88, 0.825, 0.78, 0.75, 0.7)
COPIES = {
    "the same file": (lambda image: image, "100 %"),
    "JPEG of quality 50": (partial(jpeg, quality=50), GOAL),
    "resized to a quarter": (smaller, GOAL),
    "centre crop to 95 % of the side": (partial(crop, share=0.95), GOAL),
    "centre crop to 90 %": (partial(crop, share=0.9), GOAL),
    "mirrored": (lambda image: jpeg(ImageOps.mirror(image)), GOAL),
    "mirrored, cropped to 95 %, JPEG 50": (lambda image: jpeg(crop(ImageOps.mirror(image), 0.95), 50), ""),
    "a quarter of the size, JPEG 50": (partial(smaller, quality=50), ""),
    "black margins left and right": (margins, ""),
    "brighter by 20 %": (lambda image: jpeg(image.point(lambda level: min(255, round(1.2 * level)))), ""),
    **{f"centre crop to {share:.1%}": (partial(crop, share=share), "") for share in OTHER_CROPS},
    "turned by 1 degree": (lambda image: jpeg(image.rotate(1, Image.Resampling.BICUBIC)), ""),
    "turned by 3 degrees": (lambda image: jpeg(image.rotate(3, Image.Resampling.BICUBIC)), ""),
    "turned by 6 degrees": (lambda image: jpeg(image.rotate(6, Image.Resampling.BICUBIC)), ""),
    "crop to 95 %, 1 % off the centre": (partial(crop, share=0.95, right=0.01, down=0.01), ""),
    "crop to 95 %, 2 % off the centre": (partial(crop, share=0.95, right=0.02, down=0.02), ""),
    "crop to 90 %, 5 % off the centre": (partial(crop, share=0.9, right=0.05, down=0.05), ""),
    "upside down": (lambda image: jpeg(ImageOps.flip(image)), ""),
}


def drawn(one_camera: bool, number: int) -> Image.Image:
    if one_camera:
        number *= 2  # right eyes alone
        return jpeg(render(replace(plan(SEED, number), **ONE_PLACE), SEED, number, SIZE), 92)
    return jpeg(render(plan(SEED, number), SEED, number, SIZE), 92)


def prints_of(one_camera: bool, number: int, copied: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """The image's fingerprint, and those of its copies."""
    image = drawn(one_camera, number)
    makers = [make for make, _ in COPIES.values()] if copied else []
    return fingerprint_of(image), [fingerprint_of(make(image)) for make in makers]


def errors(one_camera: bool, pictures: int, cores: int) -> list[dict]:
    """Recall by kind of copy, both ways round, and the share of distinct images taken for a copy."""
    copied = np.arange(0, pictures, 10)
    with ProcessPoolExecutor(cores) as pool:
        made = list(pool.map(partial(prints_of, one_camera), range(pictures),
                             np.isin(range(pictures), copied), chunksize=20))
    every = np.array([original for original, _ in made], FINGERPRINT)
    which, rows = "from one camera" if one_camera else "as the demo's", []
    for kind, (name, (_, goal)) in enumerate(COPIES.items()):
        copies = np.array([made[number][1][kind] for number in copied], FINGERPRINT)
        found = nearest(copies, every).place == copied
        back = nearest(every[copied], copies).place == np.arange(len(copied))
        rows.append({"what": f"{name}, {which}", "copies": len(copied), "found": float(found.mean()),
                     "found the other way round": float(back.mean()), "goal": goal})
    train = 2 * pictures // 3
    found = nearest(every[train:], every[:train])
    rows.append({"what": f"distinct images taken for copies, {which}", "pictures": pictures - train,
                 "among": train, "share": float((found.place >= 0).mean()),
                 "most similar": _most_similar(every, train), "goal": "< 1 %"})
    return rows


def _most_similar(every: np.ndarray, train: int) -> float:
    """The highest similarity of distinct images, so that one sees how far the threshold is away."""
    threshold = near_duplicates.LEAST_SIMILARITY
    try:
        near_duplicates.LEAST_SIMILARITY = 0.0
        return float(nearest(every[train:], every[:train]).similarity.max())
    finally:
        near_duplicates.LEAST_SIMILARITY = threshold


def times(folder: Path, pictures: int, size: int) -> list[dict]:
    """Seconds of a first and a second launch on files of their own (a few photographs, copied and made
    different)."""
    models = [Path(path) for path in photographs(folder / "models", (size, size), min(12, pictures))]
    rows = []
    for number in range(pictures):
        path = folder / f"{number:05d}.jpg"
        shutil.copyfile(models[number % len(models)], path)
        with open(path, "ab") as stream:  # past the image's end: other bytes, the same work
            stream.write(number.to_bytes(4, "little"))
        rows.append((str(path), "train" if number % len(models) < 2 * len(models) / 3 else "test", ""))
    table, known = pd.DataFrame(rows, columns=["path", "split", "patient"]), folder / "known.npy"
    found = []
    for start in ("first", "second"):
        begun, used = time.perf_counter(), time.process_time()
        check(table, Fingerprints(known), progress=False)
        found.append({"what": f"{start} start, {pictures:,} JPEGs of {size} x {size}",
                      "seconds": time.perf_counter() - begun, "core seconds": time.process_time() - used})
    return found


def search_time(pictures: int, distinct: int) -> dict:
    """Seconds of the comparison alone, which grows with the square: of distinct images, each there several
    times."""
    with ProcessPoolExecutor(usable_cores()) as pool:
        made = list(pool.map(partial(prints_of, True), range(distinct), [False] * distinct, chunksize=20))
    some = np.array([one for one, _ in made], FINGERPRINT)
    cut = 2 * distinct // 3
    in_train = 2 * pictures // 3
    train, test = np.resize(some[:cut], in_train), np.resize(some[cut:], pictures - in_train)
    begun, used = time.perf_counter(), time.process_time()
    nearest(test, train)
    return {"what": f"comparison alone, {len(test):,} x {len(train):,} images",
            "seconds": time.perf_counter() - begun, "core seconds": time.process_time() - used}


def _text(name: str, value: str | int | float) -> str:
    if not isinstance(value, float):
        return f"{value}"
    return f"{value:.1%}" if name.startswith(("found", "share")) else f"{value:.3g}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=3000, help="distinct images of each way of drawing")
    parser.add_argument("--files", type=int, default=2000, help="photographs whose reading is timed")
    parser.add_argument("--quick", action="store_true", help="time little: that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    options = parser.parse_args(argv)
    rows = [row for one_camera in (False, True)
            for row in errors(one_camera, options.pictures, usable_cores())]
    with tempfile.TemporaryDirectory(prefix="leakage-") as folder:
        rows += times(Path(folder), 24 if options.quick else options.files, 512 if options.quick else 2048)
    rows.append(search_time(*((200, 60) if options.quick else (10_000, 1200))))
    print(f"{usable_cores()} cores, {os.uname().machine}\n")
    for row in rows:
        print(row["what"] + ": " + ", ".join(f"{name} {_text(name, value)}" for name, value in row.items()
                                             if name != "what" and value != ""))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
