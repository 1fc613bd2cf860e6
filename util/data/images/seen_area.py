"""How much of the images evaluation looks at: a line at the start, and a warning where it is little."""

import statistics
from collections.abc import Sequence

import numpy as np

from util.data.images.files import ImageError, ImageSource
from util.data.images.fundus_fields import Fields
from util.data.images.remembered import entries_of, identities
from util.data.images.transforms import seen_share

LOOKED_AT = 300  # images, spread evenly
ENOUGH = 2 / 3


def describe(paths: Sequence[str], settings: dict, fields: Fields | None, facts: np.ndarray) -> list[str]:
    """Lines about the images of a run, read by the settings of an evaluation's transform. fields: with
    --fundus_crop auto. facts: `ImageFacts.of` these images; the headers of those that it lacks are read."""
    paths = paths[::max(1, len(paths) // LOOKED_AT)]
    entries, known = entries_of(np.sort(facts, order="identity"), identities(paths))
    sizes = [(int(entry["width"]), int(entry["height"])) if is_known else None
             for entry, is_known in zip(entries, known, strict=True)]
    shares = [share for path, size in zip(paths, sizes, strict=True)
              if (share := _share(path, size, settings, fields)) is not None]
    if not shares:
        return []
    share = statistics.median(shares)
    lines = [f"           evaluation sees {share:.0%} of an image's area (median of {len(shares):,}; "
             f"--resize {settings.get('fit', 'crop')})"]
    if share < ENOUGH:
        lines.append("warning: what lies outside the centre of these images is not looked at: --resize pad "
                     "or --resize squash shows all of it"
                     + ("" if fields is not None else ", --fundus_crop auto cuts photographs to their field"))
    return lines


def _share(path: str, size: tuple[int, int] | None, settings: dict, fields: Fields | None) -> float | None:
    try:
        field = fields(path) if fields is not None else None
        return seen_share((1, 1) if field is not None else size or ImageSource(path).size, settings)
    except ImageError:  # whoever reads it says so
        return None
