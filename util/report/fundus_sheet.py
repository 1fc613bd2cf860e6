"""What `--fundus_crop auto` found, for a look: a table of all images, and a sheet of some with their circles
drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from util.core.run_files import write_whole
from util.data.csv_columns import some
from util.data.images.as_shown import AS_SHOWN, Reading
from util.data.images.files import ImageError, ImageSource
from util.data.images.fundus import Field, small_image
from util.data.images.fundus_fields import Fields
from util.report.charts import INK, empty_figure, own_style, save_figure
from util.report.fonts import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN, COLUMNS = 24, 6
SIDE, CAPTION, GAP = 1.6, 0.12, 0.03  # inches of a place on the sheet
MOST_WHOLE = 8  # of those shown
CIRCLE, SQUARE, WHOLE = "#ffdc28", "#5ac8ff", "#ff5a46"


def report(fields: Fields, paths: list[str], csv_file: Path | None, sheet: Path | None) -> list[str]:
    """Write the table of these files (path, x, y, radius; empty where an image stays whole) and the sheet,
    where they have a place -> lines. Raises OSError."""
    table = fields.table(list(dict.fromkeys(paths)))
    whole = list(table["path"][table["radius"].isna()])
    found = len(table) - len(whole)
    stay = f"; {len(whole):,} stay whole: {some(whole)}" if whole else ""
    lines = [f"fundus     the round field was found in {found:,} of {len(table):,} images{stay}"]
    if csv_file is not None and sheet is not None:
        write_whole(csv_file, table.to_csv(index=False, float_format="%.1f"))
        lines += [f"           {csv_file} lists them, {sheet.name} shows {min(SHOWN, len(table))}: look at "
                  "their circles", *write_sheet(table, sheet, fields.reading)]
    if found < len(table) / 2:
        lines.append("warning: most of these images have no round field: --fundus_crop off, if they are no "
                     "fundus photographs")
    return lines


@own_style()
def write_sheet(table: pd.DataFrame, file: Path, reading: Reading = AS_SHOWN) -> list[str]:
    """A PNG of up to 24 images, some of those that stay whole among them, spread evenly over the table; a
    line where no font draws their names."""
    whole = table["radius"].isna().to_numpy()
    left = _spread(np.flatnonzero(whole), min(MOST_WHOLE, SHOWN))
    rows = _spread(np.flatnonzero(~whole), SHOWN - len(left))
    rows = np.concatenate([rows, _spread(np.flatnonzero(whole), SHOWN - len(rows))])
    width, height = COLUMNS * SIDE, -(-len(rows) // COLUMNS) * (SIDE + CAPTION)
    figure = empty_figure(width, height)
    for number, row in enumerate(table.iloc[rows].itertuples()):
        left, top = number % COLUMNS * SIDE, height - number // COLUMNS * (SIDE + CAPTION)
        axes = figure.add_axes(((left + GAP) / width, (top - SIDE) / height,
                                (SIDE - 2 * GAP) / width, (SIDE - GAP) / height))
        axes.set(xticks=[], yticks=[], anchor="S")
        axes.spines[:].set_visible(False)
        field = None if np.isnan(row.radius) else Field(row.x, row.y, row.radius)
        _draw(axes, ImageSource(row.path, reading), field)
        figure.text((left + GAP) / width, (top - SIDE - GAP) / height, _short(one_line(Path(row.path).name)),
                    va="top", fontsize=5, color=INK, parse_math=False)
    return save_figure(figure, file, (0, 0, width, height))


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    return rows[np.linspace(0, max(0, len(rows) - 1), min(most, len(rows))).astype(int)]


def _draw(axes: "Axes", source: ImageSource, field: Field | None) -> None:
    """An image with its circle and the square that is cut out, or with a red frame where it stays whole."""
    from matplotlib.patches import Circle, Rectangle

    try:
        pixels, factor = small_image(source)
    except ImageError:  # left out of the table of a run, but not with --skip_file_check
        axes.set_facecolor(INK)
        return
    height, width = (side * factor for side in pixels.shape[:2])
    axes.imshow(pixels, extent=(0, width, height, 0))
    if field is None:
        axes.spines[:].set(visible=True, color=WHOLE, linewidth=1.5)
        axes.text(0.03, 0.97, "whole", transform=axes.transAxes, va="top", fontsize=5, color=WHOLE)
        return
    left, top, side = field.square
    axes.add_patch(Rectangle((left, top), side, side, fill=False, color=SQUARE, linewidth=0.5))
    axes.add_patch(Circle((field.x, field.y), field.radius, fill=False, color=CIRCLE))


def _short(name: str) -> str:
    return name if len(name) <= 36 else name[:17] + "…" + name[-18:]
