"""Thumbnails of the images that a model got most wrong, with their heat map where there is one; of a case
those of its images that weigh most."""

import base64
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from util.report.run_data import Run, Split, worst_first

MOST = 24
RIGHT = 6  # cases that are shown though they are predicted right
OF_A_CASE = 3  # images of a case
SIDE = 224  # pixels of a thumbnail's longer side: sharp on a phone's screen, some 8 kB
QUALITY = 80
WORKERS = 4


def mistakes(run: Run, split: Split) -> tuple[list[dict[str, object]], int, list[str]]:
    """(the images in order, how many mistakes there are in all, lines about images that cannot be shown): see
    `shown`."""
    rows, total = worst_first(run, split, MOST)
    found, lines = shown(run, split, rows)
    return found, total, lines


def right_ones(run: Run, split: Split) -> list[int]:
    """Rows of cases of other classes than the first that are predicted right, the most confident first."""
    table = split.table
    if split.unit == "images" or run.kind != "classification":
        return []
    chance = 1 - table[f"prob_{run.names[0]}"].to_numpy(np.float64)
    rows = np.flatnonzero((table["true_class"] == table["predicted_class"])
                          & (table["true_class"] != run.names[0]))
    return rows[np.argsort(-chance[rows], kind="stable")[:RIGHT]].tolist()


def shown(run: Run, split: Split, rows: list[int]) -> tuple[list[dict[str, object]], list[str]]:
    """(what is shown of rows of a split's table, lines about images that cannot be shown).

    Of a row: row; path; thumbnail, heat_map: a data: URL and its width and height, or None; why: what was in
    the way. Of a case those of its image of the largest weight, `more`, the thumbnails of the next ones, and
    `weights`, of all that are shown.
    """
    if not rows:
        return [], []
    from PIL import Image

    Image.init()  # plugins loaded once, here, and not by several threads at a time
    images = [_images_of(split, row) for row in rows]
    with ThreadPoolExecutor(min(WORKERS, len(rows))) as pool:  # decoding leaves the interpreter's lock
        found = list(pool.map(lambda pair: _mistake(run, *pair), zip(rows, images, strict=True)))
    lost = [mistake for mistake in found if mistake["thumbnail"] is None]
    lines = [f"{len(lost)} of {len(found)} images of {split.name} cannot be shown as thumbnails (the first: "
             f"{mistake['path']}: {mistake['why']}); relative paths are looked for from the present folder "
             "and from those above the run's" for mistake in lost[:1]]
    return found, lines


def _images_of(split: Split, row: int) -> list[tuple[str, float]]:
    """Paths and weights of the images that are shown of a row."""
    of_row = split.table.iloc[row]
    if split.images_of_cases is None:
        return [(of_row["path"], 1.0)]
    images = split.images_of_cases
    weights = images["weight"][images["case"] == of_row["case"]].astype(float)
    first = weights.sort_values(ascending=False, kind="stable")[:OF_A_CASE]
    return list(zip(images["path"][first.index], first, strict=True)) or [(of_row["path"], 1.0)]


def find_picture(path: str, folder: Path) -> Path:
    """Where an image of the table is: as its path says, or, where that is relative, below a folder above the
    run's (the program is mostly started in one of them). The path itself where it is nowhere."""
    plain = Path(path)
    if plain.is_absolute() or plain.exists():
        return plain
    return next((above / plain for above in folder.resolve().parents if (above / plain).exists()), plain)


def _mistake(run: Run, row: int, images: list[tuple[str, float]]) -> dict[str, object]:
    (path, _), *others = images
    place = find_picture(path, run.folder)
    thumbnail, why = thumbnail_of(place)
    overlay = run.heat_maps.get(os.path.abspath(place)) or run.heat_maps.get(os.path.realpath(place))
    heat_map, problem = thumbnail_of(overlay) if overlay else (None, "")
    more = [thumbnail_of(find_picture(other, run.folder))[0] for other, _ in others]
    return {"row": row, "path": path, "thumbnail": thumbnail, "heat_map": heat_map,
            "more": list(filter(None, more)), "weights": [weight for _, weight in images],
            "why": why or (f"its heat map: {problem}" if problem else "")}


def thumbnail_of(path: Path) -> tuple[tuple[str, int, int] | None, str]:
    """((a small JPEG as a data: URL, width, height), "") or (None, why there is none)."""
    from PIL import Image

    from util.data.images.files import ImageError, ImageSource  # reads 16-bit and grey files as training does

    if not path.exists():
        return None, "not there"
    try:
        source = ImageSource(str(path))
        width, height = source.size
        scale = min(1.0, SIDE / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = Image.fromarray(source.part(resolution=size)).resize(size, Image.Resampling.BILINEAR)
    except ImageError as error:
        return None, error.reason
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=QUALITY)
    return (f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode('ascii')}", *size), ""
