"""What `--fundus_crop auto` found, for a look: a table of all images, and a sheet of some with their circles drawn."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from util.core.run_files import write_whole
from util.data.csv_columns import some
from util.data.images.as_shown import AS_SHOWN, Reading
from util.data.images.files import ImageError, ImageSource
from util.data.images.fundus import Field, small_image
from util.data.images.fundus_fields import Fields
from util.report.fonts import image_font

SHOWN, COLUMNS = 24, 6
SIDE, CAPTION, FONT = 240, 18, 10  # pixels of a place on the sheet
MOST_WHOLE = 8  # of those shown
CIRCLE, SQUARE, WHOLE, PAPER, INK = (255, 220, 40), (90, 200, 255), (255, 90, 70), (255, 255, 255), (20, 20, 20)


def report(fields: Fields, paths: list[str], csv_file: Path | None, sheet: Path | None) -> list[str]:
    """Write the table of these files (path, x, y, radius; empty where an image stays whole) and the sheet, where they have a
    place -> lines. Raises OSError."""
    table = fields.table(list(dict.fromkeys(paths)))
    whole = list(table["path"][table["radius"].isna()])
    found = len(table) - len(whole)
    line = f"fundus     the round field was found in {found:,} of {len(table):,} images"
    line += f"; {len(whole):,} stay whole: {some(whole)}" if whole else ""
    lines = [line]
    if csv_file is not None and sheet is not None:
        write_whole(csv_file, table.to_csv(index=False, float_format="%.1f"))
        of_fonts = write_sheet(table, sheet, fields.reading)
        lines.append(f"           {csv_file} lists them, {sheet.name} shows {min(SHOWN, len(table))}: look at their circles")
        lines += of_fonts
    if found < len(table) / 2:
        lines.append("warning: most of these images have no round field: --fundus_crop off, if they are no fundus photographs")
    return lines


def write_sheet(table: pd.DataFrame, file: Path, reading: Reading = AS_SHOWN) -> list[str]:
    """A PNG of up to 24 images, some of those that stay whole among them, spread evenly over the table; a line where no
    font draws their names."""
    whole = table["radius"].isna().to_numpy()
    left = _spread(np.flatnonzero(whole), min(MOST_WHOLE, SHOWN))
    rows = _spread(np.flatnonzero(~whole), SHOWN - len(left))
    rows = np.concatenate([rows, _spread(np.flatnonzero(whole), SHOWN - len(rows))])
    chosen = [(row.path, None if np.isnan(row.radius) else Field(row.x, row.y, row.radius))
              for row in table.iloc[rows].itertuples()]
    pictures = [_marked(ImageSource(path, reading), field) for path, field in chosen]
    height = max(picture.height for picture in pictures) + CAPTION + 8  # of a line
    paper = Image.new("RGB", (COLUMNS * SIDE, -(-len(rows) // COLUMNS) * height), PAPER)
    lines = []
    for number, (picture, (path, _)) in enumerate(zip(pictures, chosen, strict=True)):
        left, bottom = number % COLUMNS * SIDE, (number // COLUMNS + 1) * height - CAPTION
        paper.paste(picture, (left + (SIDE - picture.width) // 2, bottom - picture.height - 2))
        font, name, of_fonts = image_font(_short(Path(path).name), FONT)
        ImageDraw.Draw(paper).text((left + 6, bottom), name, fill=INK, font=font)
        lines += of_fonts
    partial = file.with_name(f".{file.name}.partial")
    paper.save(partial, "PNG", optimize=True)
    partial.replace(file)
    return lines


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)] if len(rows) and most else rows[:0]


def _marked(source: ImageSource, field: Field | None) -> Image.Image:
    """An image with its circle and the square that is cut out, or with a red frame where it stays whole."""
    room = SIDE - 8
    try:
        pixels, factor = small_image(source)
    except ImageError:  # left out of the table of a run, but not with --skip_file_check
        return Image.new("RGB", (room, room), INK)
    scale = room / max(pixels.shape[:2])
    picture = Image.fromarray(pixels).resize([max(1, round(side * scale)) for side in pixels.shape[1::-1]])
    pen = ImageDraw.Draw(picture)
    if field is None:
        pen.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=WHOLE, width=3)
        pen.text((8, 6), "whole", fill=WHOLE)
        return picture
    of_file = scale / factor
    left, top, side = (value * of_file for value in field.square)
    pen.rectangle((left, top, left + side, top + side), outline=SQUARE)
    circle = field.times(of_file)
    pen.ellipse((circle.x - circle.radius, circle.y - circle.radius, circle.x + circle.radius, circle.y + circle.radius),
                outline=CIRCLE, width=2)
    return picture


def _short(name: str) -> str:
    return name if len(name) <= 36 else name[:17] + "…" + name[-18:]
