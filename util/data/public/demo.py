"""Fundus-like images drawn by the program: for the first run, the tests, the benchmarks.

    python -m util.demo_data demo_data               # 2000 images in train, val and test folders
    python -m util.demo_data demo_data --pictures 600 --size 160 --seed 1

An image shows a round field on black, a bright optic disc on the nasal side, vessels that leave it in arcades
round a darker macula, and lesions (dark red haemorrhages, yellowish exudates). The NUMBER of lesions makes
the grade, their sizes and kinds do not, so that a model has to find and count them. What the drawing decided
comes with the image as facts, true targets for regression. The same (seed, index) gives the same image,
whoever else draws.
"""

import json
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from util.core.errors import InputError, RunError
from util.core.machine import usable_cores
from util.core.run_files import write_whole
from util.data.splits import SPLITS
from util.options.parsing import OneLineParser

GRADE_NAMES = ("0_no", "1_mild", "2_moderate", "3_severe", "4_proliferative")
LESIONS_PER_GRADE = ((0, 0), (1, 2), (3, 5), (6, 9), (10, 14))  # fewest and most of a grade, both included
FACT_NAMES = ("grade", "lesion_count", "lesion_area", "vessel_width", "disc_radius", "disc_x", "disc_y",
              "brightness")
FIELD_RADIUS = 0.485  # of the image's side; every other length here is in units of this radius
# a lesion's centre lies within this radius, so that a centre crop of 0.875 cuts none away
LESION_REACH = 0.80
DRAWING_VERSION = 1  # raise it when images change, so that folders drawn earlier are drawn again
SETTINGS_FILE = "demo.json"
TABLE_FILE = "demo.csv"
FEWEST_PATIENTS = len(GRADE_NAMES)  # of a split: five patients in a row hold every grade twice
_PICTURE = re.compile(f"({'|'.join(SPLITS)})/({'|'.join(GRADE_NAMES)})/"
                      r"(p\d{4,}_[LR]\.jpg|\.p\d{4,}_[LR]\.jpg\.\d+\.part)")


@dataclass(frozen=True)
class Lesion:
    """A lobed spot in field radii: centre, outline r(t) = radius * (1 + depth * cos(lobes * t + phase))."""

    x: float
    y: float
    radius: float
    lobes: int
    depth: float
    phase: float
    exudate: bool  # yellowish; otherwise a dark red haemorrhage

    def area(self) -> float:
        """Area inside the outline, in squared field radii: the integral of r(t)^2 / 2 over the full turn."""
        return math.pi * self.radius**2 * (1 + self.depth**2 / 2)


@dataclass(frozen=True)
class Plan:
    """What an image will show, at any size. Lengths in field radii, origin at the field's centre, x right, y
    down."""

    grade: int
    lesions: tuple[Lesion, ...]
    vessel_width: float
    disc_x: float
    disc_y: float
    disc_radius: float
    macula_x: float
    macula_y: float
    brightness: float

    def facts(self) -> dict[str, float]:
        """The numbers behind the image, by FACT_NAMES.

        lesion_area: percent of the field's area. vessel_width (the veins' calibre where they leave the disc),
        disc_radius, disc_x and disc_y: percent of the field's radius; disc_x > 0 is the image's right side,
        where a right eye has its disc, so a mirrored image changes its sign. brightness: percent of full
        illumination.
        """
        lesion_area = 100 * sum(lesion.area() for lesion in self.lesions) / math.pi
        shares = (self.vessel_width, self.disc_radius, self.disc_x, self.disc_y, self.brightness)
        percents = (round(percent, 4) for percent in (lesion_area, *(100 * share for share in shares)))
        return dict(zip(FACT_NAMES, (self.grade, len(self.lesions), *percents), strict=True))


def grade_of(index: int) -> int:
    """The grade of image `index`: each grade twice in ten images, and a patient's eyes differ by 1 at
    most."""
    patient, left = divmod(index, 2)
    return ((0, 1, 2, 3, 4), (1, 0, 2, 4, 3))[left][patient % 5]


def plan(seed: int, index: int, grade: int | None = None) -> Plan:
    """Decide what image `index` shows: even indices are right eyes, odd ones left eyes, two in a row one
    patient.

    grade 0-4, or None for `grade_of(index)`. Raises ValueError for a negative seed or index and for another
    grade.
    """
    grade = grade_of(index) if grade is None else grade
    if grade not in range(len(GRADE_NAMES)):
        raise ValueError(f"grade {grade!r} is none of 0-{len(GRADE_NAMES) - 1}")
    rng = np.random.default_rng((seed, index, 0))
    nasal = 1 if index % 2 == 0 else -1
    disc_x, disc_y = nasal * rng.uniform(0.46, 0.62), rng.uniform(-0.10, 0.06)
    disc_radius = rng.uniform(0.115, 0.175)
    macula_x, macula_y = disc_x - nasal * rng.uniform(0.52, 0.60), disc_y + rng.uniform(0.02, 0.10)
    vessel_width, brightness = rng.uniform(0.022, 0.050), rng.uniform(0.70, 1.0)
    fewest, most = LESIONS_PER_GRADE[grade]
    lesions = _place_lesions(rng, int(rng.integers(fewest, most + 1)), (disc_x, disc_y, 1.25 * disc_radius))
    return Plan(grade, lesions, vessel_width, disc_x, disc_y, disc_radius, macula_x, macula_y, brightness)


def _place_lesions(rng: np.random.Generator, count: int,
                   disc: tuple[float, float, float]) -> tuple[Lesion, ...]:
    """`count` lesions that touch neither each other nor the disc (x, y, radius): what can't be counted is no
    target."""
    lesions, taken = [], [disc]
    while len(lesions) < count:
        radius = rng.uniform(0.030, 0.070)
        distance, angle = LESION_REACH * math.sqrt(rng.uniform()), rng.uniform(0, 2 * math.pi)
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        lobes, phase, exudate = int(rng.integers(2, 5)), rng.uniform(0, 2 * math.pi), rng.uniform() < 0.45
        depth = rng.uniform(0.1, 0.45) / lobes
        if all(math.hypot(x - other_x, y - other_y) > 1.3 * (radius + reach)
               for other_x, other_y, reach in taken):
            lesions.append(Lesion(x, y, radius, lobes, depth, phase, exudate))
            taken.append((x, y, radius))
    return tuple(lesions)


def draw(seed: int, index: int, size: int, grade: int | None = None) -> tuple[Image.Image, dict[str, float]]:
    """Image `index` of `seed` and its facts.

    Returns an RGB PIL.Image of (size, size) pixels and a dict by FACT_NAMES (units: `Plan.facts`). Raises
    ValueError for a negative seed or index, another grade than 0-4, or a size below 32 pixels.
    """
    drawn = plan(seed, index, grade)
    return render(drawn, seed, index, size), drawn.facts()


def render(drawn: Plan, seed: int, index: int, size: int) -> Image.Image:
    """The image of a `Plan`: RGB PIL.Image of (size, size) pixels. Textures and vessels follow (seed,
    index)."""
    if size < 32:
        raise ValueError(f"size {size} is below 32 pixels: the lesions would vanish")
    look, tree, grain = (np.random.default_rng((seed, index, stream)) for stream in (1, 2, 3))
    axis = (((np.arange(size) + 0.5) / size - 0.5) / FIELD_RADIUS).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    radius = np.sqrt(x * x + y * y)
    picture = _background(look, drawn, x, y)  # (3, size, size): planes are several times faster than pixels
    _paint_disc(look, picture, drawn, x, y)
    arteries, veins = _vessel_masks(tree, drawn, size)
    picture *= (1 - arteries * _colour(0.16, 0.46, 0.44)) * (1 - veins * _colour(0.32, 0.64, 0.60))
    for lesion in drawn.lesions:
        _paint_lesion(picture, lesion, axis, size)
    picture *= drawn.brightness * (1 - 0.30 * radius**2 - 0.25 * np.clip((radius - 0.85) / 0.15, 0, 1) ** 2)
    picture += 0.010 * grain.standard_normal((size, size), np.float32)
    picture *= np.clip((1 - radius) * FIELD_RADIUS * size + 0.5, 0, 1)  # one pixel of soft rim, then black
    pixels = (255 * np.clip(picture, 0, 1) + 0.5).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _colour(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def _texture(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise (size, size) with mean about 0 and standard deviation about 1, from a grid of cells x
    cells values."""
    grid = Image.fromarray(rng.normal(0, 1.5, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _background(rng: np.random.Generator, drawn: Plan, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The retina without disc, vessels and lesions: (3, size, size) float32. Hue varies, luminance is
    kept."""
    hue = _colour(rng.uniform(0.80, 0.92), rng.uniform(0.38, 0.48), rng.uniform(0.16, 0.26))
    # so that `brightness` alone sets the level
    hue *= 0.52 / float((hue * _colour(0.299, 0.587, 0.114)).sum())
    shade = 1 + rng.uniform(-0.06, 0.06) * x + rng.uniform(-0.06, 0.06) * y
    shade += 0.020 * _texture(rng, 6, len(x)) + 0.020 * _texture(rng, 24, len(x))
    distance2 = (x - drawn.macula_x) ** 2 + (y - drawn.macula_y) ** 2
    pigment = rng.uniform(0.30, 0.42) * np.exp(-distance2 / 0.17**2) + 0.10 * np.exp(-distance2 / 0.40**2)
    reflex = 0.10 * np.exp(-distance2 / 0.022**2)
    # The macula's pigment takes more of green and blue than of red.
    return hue * (shade * (1 - pigment * _colour(0.55, 1.0, 0.8)) + reflex)


def _paint_disc(rng: np.random.Generator, picture: np.ndarray, drawn: Plan, x: np.ndarray,
                y: np.ndarray) -> None:
    """The optic disc with its cup and a faint halo, onto `picture` in place."""
    # discs are a little taller than wide; the area stays that of disc_radius
    stretch = rng.uniform(1.0, 1.10)
    from_disc = np.sqrt((x - drawn.disc_x) ** 2 * stretch
                        + (y - drawn.disc_y) ** 2 / stretch) / drawn.disc_radius
    disc = np.clip((1 - from_disc) / 0.14 + 0.5, 0, 1)
    cup = np.clip((rng.uniform(0.30, 0.55) - from_disc) / 0.25 + 0.5, 0, 1)
    picture *= 1 + 0.16 * np.exp(-((from_disc / 1.6) ** 2))
    picture += 0.88 * disc * (_colour(1.00, 0.80, 0.50) + cup * _colour(0.08, 0.14, 0.22) - picture)


def _paint_lesion(picture: np.ndarray, lesion: Lesion, axis: np.ndarray, size: int) -> None:
    """One lesion onto `picture` in place: a window of it, with an edge of one pixel and a half."""
    reach = 1.3 * lesion.radius + 3 / size
    columns = slice(*np.searchsorted(axis, (lesion.x - reach, lesion.x + reach)))
    rows = slice(*np.searchsorted(axis, (lesion.y - reach, lesion.y + reach)))
    x, y = np.meshgrid(axis[columns] - lesion.x, axis[rows] - lesion.y)
    outline = lesion.radius * (1 + lesion.depth * np.cos(lesion.lobes * np.arctan2(y, x) + lesion.phase))
    cover = np.clip((outline - np.sqrt(x * x + y * y)) * FIELD_RADIUS * size / 1.5 + 0.5, 0, 1)
    window = picture[:, rows, columns]
    if lesion.exudate:
        window += 0.85 * cover * (_colour(1.05, 0.95, 0.50) - window)
    else:
        window -= 0.95 * cover * window * _colour(0.50, 0.80, 0.78)


def _vessel_masks(rng: np.random.Generator, drawn: Plan, size: int) -> list[np.ndarray]:
    """Arteries and veins as two masks (size, size) in 0-1, drawn three times finer and averaged."""
    fine, temporal = 3, -1 if drawn.disc_x > 0 else 1
    sheets = [Image.new("L", (size * fine, size * fine)) for _ in range(2)]
    for up in (-1, 1):
        for sheet, calibre, lead in zip(sheets, (0.75, 1.0), rng.permutation((-7.0, 7.0)), strict=True):
            width = calibre * drawn.vessel_width
            # Angles in degrees from the temporal direction; an arcade leaves steeply and bends round the
            # macula.
            arcade = (rng.uniform(82, 100) + lead, rng.uniform(-12, 4) + lead / 2, rng.uniform(0.38, 0.48))
            nasal = (rng.uniform(115, 135) + 2 * lead, rng.uniform(140, 165) + lead, rng.uniform(0.3, 0.6))
            start = (drawn.disc_x + rng.uniform(-0.02, 0.02), drawn.disc_y + rng.uniform(-0.02, 0.02))
            for course, share in ((arcade, 1.0), (nasal, 0.7)):
                _grow(rng, sheet, drawn, start, (*course, share * width), (temporal, up), 0)
    return [np.asarray(sheet.reduce(fine), np.float32) / 255 for sheet in sheets]


def _grow(rng: np.random.Generator, sheet: Image.Image, drawn: Plan, start: tuple[float, float],
          course: tuple[float, float, float, float], mirror: tuple[int, int], order: int) -> None:
    """Draw one vessel and its branches (orders 0-2). course: first angle, last angle (degrees), bending
    length, and width."""
    step, (leave, end, bend, width) = 0.04, course
    length = (2.2, 0.7, 0.35)[order] * rng.uniform(0.8, 1.1)
    steps = int(length / step)
    (x, y), wind, path = start, 0.0, []  # path: x, y, angle and width at every step
    for number, gust in enumerate(rng.normal(0, 3.5, steps).tolist()):
        wind = 0.95 * wind + gust
        angle = end + (leave - end) * math.exp(-number * step / bend) + wind
        path.append((x, y, angle, width * (1 - 0.55 * number / steps)))
        x += mirror[0] * step * math.cos(math.radians(angle))
        y += mirror[1] * step * math.sin(math.radians(angle))
        if math.hypot(x - drawn.macula_x, y - drawn.macula_y) < 0.15 or math.hypot(x, y) > 1.02:
            break  # the fovea has no vessels, and the field ends
    pen, side = ImageDraw.Draw(sheet), sheet.width
    points = [(side * (0.5 + FIELD_RADIUS * x), side * (0.5 + FIELD_RADIUS * y)) for x, y, _, _ in path]
    piece = (2, 4, 8)[order]  # steps drawn at one thickness
    for first in range(0, len(path) - 1, piece):
        thickness = max(1, round(path[first][3] * FIELD_RADIUS * side))
        pen.line(points[first:first + piece + 1], 255, thickness, "curve" if thickness > 5 else None)
    if order == 2:
        return
    away, at = rng.choice((-1, 1)), rng.integers(4, 8)
    while at < len(path) - 2:
        x, y, angle, width_here = path[at]
        branch = (angle + away * rng.uniform(30, 55), angle + away * rng.uniform(0, 35),
                  rng.uniform(0.2, 0.5), 0.6 * width_here)
        _grow(rng, sheet, drawn, (x, y), branch, mirror, order + 1)
        away, at = -away, at + rng.integers(5, 11)


def make_demo(folder: str | os.PathLike, pictures: int = 2000, size: int = 160, seed: int = 0,
              splits: Sequence[float] = (0.65, 0.125, 0.225), workers: int | None = None) -> Path:
    """Fill `folder` with {train,val,test}/<grade>/p0012_L.jpg and demo.csv, unless these very images are
    there.

    pictures: how many images altogether, an even number (two eyes a patient) from 30 on; size: their side in
    pixels, 32-4096; splits: the shares of train, val and test, which are rounded to fives of patients, so
    that grades stay balanced; workers: processes that draw (default: one a core). demo.csv has the columns
    path, label, split, patient, eye and FACT_NAMES. demo.json, written first, says what is being drawn;
    demo.csv, written last, that all of it is there. An interrupted call is completed by the next, other
    settings are drawn anew. Returns the folder as a Path. Raises InputError for settings out of range and for
    a folder that holds files this program did not make or may not be written, RunError for a full disk.
    """
    started, folder = time.monotonic(), Path(folder)
    _check_settings(pictures, size, seed, splits)
    settings = {"drawing": DRAWING_VERSION, "pictures": pictures, "size": size, "seed": seed,
                "splits": list(splits)}
    paths = _paths(pictures, splits)
    same = _read_settings(folder) == settings
    missing = [(index, path) for index, path in enumerate(paths) if not same or not (folder / path).exists()]
    if same and not missing and (folder / TABLE_FILE).exists():
        print(f"demo images: {pictures} in {folder} already drawn")
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # first, so that no reader takes a half-changed folder for whole
        (folder / TABLE_FILE).unlink(missing_ok=True)
        if not same:
            _remove_pictures(folder)
            write_whole(folder / SETTINGS_FILE, json.dumps(settings) + "\n")
        for place in {(folder / path).parent for path in paths}:
            place.mkdir(parents=True, exist_ok=True)
        _draw_all(partial(_draw_to_file, folder, seed, size), missing, workers)
        rows = [_row(seed, index, path) for index, path in enumerate(paths)]
        write_whole(folder / TABLE_FILE, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    except PermissionError as error:
        raise InputError(f"demo images: no right to write to {folder}: name another folder "
                         f"({error})") from error
    except OSError as error:
        raise RunError(f"demo images: writing to {folder} failed: {error}") from error
    print(f"demo images: {len(missing)} of {pictures} drawn to {folder} in {time.monotonic() - started:.0f} "
          "s")
    return folder


def _check_settings(pictures: int, size: int, seed: int, splits: Sequence[float]) -> None:
    fewest = 2 * FEWEST_PATIENTS * len(SPLITS)
    if pictures % 2 or pictures < fewest:
        raise InputError(f"--pictures {pictures}: must be an even number (two eyes a patient), {fewest} or "
                         "more")
    if not 32 <= size <= 4096 or seed < 0:
        raise InputError(f"--size {size} --seed {seed}: size must be 32-4096 pixels, seed 0 or more")
    if len(splits) != len(SPLITS) or min(splits) <= 0 or abs(sum(splits) - 1) > 1e-6:
        raise InputError(f"splits {tuple(splits)}: must be three positive shares (train, val, test) that add "
                         "up to 1")


def _paths(pictures: int, splits: Sequence[float]) -> list[str]:
    """The path of every image by its index, relative to the folder. Patients in order: none is in two
    splits."""
    patients = pictures // 2
    val, test = (FEWEST_PATIENTS * max(1, round(share * patients / FEWEST_PATIENTS)) for share in splits[1:])
    train = patients - val - test
    if train < FEWEST_PATIENTS:
        raise InputError(f"splits {tuple(splits)} of {pictures} images leave too few for training: draw more")
    split_of = ["train"] * train + ["val"] * val + ["test"] * test
    names = ((index, f"p{index // 2:04d}_{'RL'[index % 2]}.jpg") for index in range(pictures))
    return [f"{split_of[index // 2]}/{GRADE_NAMES[grade_of(index)]}/{name}" for index, name in names]


def _read_settings(folder: Path) -> object:
    """What the folder was drawn with; None where nothing was drawn. InputError where other files lie
    there."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder for the demo images")
    marker = folder / SETTINGS_FILE
    if marker.exists():
        try:
            return json.loads(marker.read_text())
        except ValueError as error:
            raise InputError(f"{marker} is not what this program wrote: remove it, or name another "
                             "folder") from error
    if any(folder.iterdir()):
        raise InputError(f"{folder} holds other files: name a new or an empty folder for the demo images")
    return None


def _remove_pictures(folder: Path) -> None:
    """Remove earlier demo images and half-written ones; a name that is not ours stays."""
    for path in list(folder.glob("*/*/*")):
        if _PICTURE.fullmatch(path.relative_to(folder).as_posix()):
            path.unlink()


def _row(seed: int, index: int, path: str) -> dict[str, str | float]:
    """Of demo.csv."""
    split, label, name = path.split("/")
    patient, eye = name.removesuffix(".jpg").split("_")
    return {"path": path, "label": label, "split": split, "patient": patient, "eye": eye,
            **plan(seed, index).facts()}


def _draw_to_file(folder: Path, seed: int, size: int, picture: tuple[int, str]) -> None:
    index, name = picture
    path = folder / name
    if not path.exists():
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        draw(seed, index, size)[0].save(part, "JPEG", quality=92)
        part.replace(path)


def _draw_all(draw_one: Callable[[tuple[int, str]], None], missing: list[tuple[int, str]],
              workers: int | None) -> None:
    """Draw on all cores; in this process where that is not worth it or where processes cannot be started."""
    if workers is None:  # starting processes costs about as much as drawing 50 images
        workers = min(usable_cores(), len(missing) // 50)
    if workers > 1:
        try:
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                list(pool.map(draw_one, missing, chunksize=8))
            return
        except (BrokenProcessPool, ImportError, NotImplementedError, OSError) as error:
            # no semaphores, or a main program that can't be imported again; a full disk is met again below
            print(f"demo images: going on in one process ({error})")
    for picture in missing:
        draw_one(picture)


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m util.demo_data", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder to fill: new, empty, or one filled by this command")
    for flag, default, meaning in (
        ("--pictures", 2000, "images in all splits together"),
        ("--size", 160, "side of an image in pixels"),
        ("--seed", 0, "another seed draws other images"),
    ):
        parser.add_argument(flag, type=int, default=default, help=meaning)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line: see the module's docstring."""
    options = make_parser().parse_args(argv)
    make_demo(options.folder, options.pictures, options.size, options.seed)
    return 0
