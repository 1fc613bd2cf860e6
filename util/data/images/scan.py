"""What the check of all files finds of them: whether they decode, and what decides how they are read.

No single file of a data set tells how many bits are used in it, so the range of values of more than 8 bits is
decided over all files (`depth`) and stored with the transform. What else a viewer does and a plain loader
does not (turning, transparency, pages) is counted in one note (`describe`).
"""

from collections.abc import Sequence

import numpy as np

from util.data.images import as_shown
from util.data.images.as_shown import Reading, bits_of, white_of
from util.data.images.files import ImageFile
from util.data.images.remembered import Remembered

JPEG_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif")  # 8 bits, opaque
LOOKED_AT = 100  # files of other kinds, spread evenly, where not all are checked
NEARLY_BLACK = 64  # of 256, the upper 8 bits of 16: what 14 bits fill


class ImageFacts(Remembered):
    """Files that have decoded, with `as_shown.Facts` of each."""

    dtype = np.dtype([("identity", "<u8"), ("kind", "u1"), ("largest", "<f8"), ("flags", "u1"),
                      ("width", "<i4"), ("height", "<i4")])
    again = "all images are checked again"

    def look(self, file: ImageFile) -> as_shown.Facts:
        """Raises ImageError for a file that is damaged anywhere."""
        return file.facts()

    def of(self, paths: Sequence[str]) -> np.ndarray:
        """Entries of those of these files that are remembered, once each."""
        entries, known = self._entries(list(dict.fromkeys(paths)))
        return entries[known]


NO_FACTS = np.empty(0, ImageFacts.dtype)


def some_to_look_at(paths: Sequence[str]) -> tuple[list[str], str]:
    """Where not all files are checked: some of those that may be of more than 8 bits, turned or transparent,
    and a note."""
    others = [path for path in dict.fromkeys(paths) if not path.lower().endswith(JPEG_ENDINGS)]
    others = others[::-(-len(others) // LOOKED_AT) or 1]
    return others, (f"{len(others):,} files that are no JPEG were looked at, not all (--skip_file_check)"
                    if others else "")


def depth(facts: np.ndarray) -> tuple[int | None, float | None]:
    """(bits of whole numbers, white of floats) over all files, as `Reading` has them; None where no file has
    any."""
    whole, floats = (facts["largest"][facts["kind"] == kind]
                     for kind in (as_shown.WHOLE_NUMBERS, as_shown.FLOATS))
    return (bits_of(whole.max()) if len(whole) else None,
            float(white_of(floats.max())) if len(floats) else None)


def describe(facts: np.ndarray, settings: dict) -> tuple[list[str], list[str]]:
    """(notes, warnings) about files that are read by the settings of an evaluation's transform."""
    reading = Reading.of(settings)
    notes, warnings = _ranges(facts, reading)
    counts = {flag: int(np.count_nonzero(facts["flags"] & flag)) for flag in (
        as_shown.TRANSPARENT, as_shown.PAGES, as_shown.TURNED, as_shown.TURNED_TIFF, as_shown.TURNED_LATE)}
    said = {
        as_shown.PAGES: "of several pages or frames (the first is read)",
        as_shown.TURNED: "turned as their EXIF orientation says",
        as_shown.TURNED_TIFF: "TIFF files turned as their orientation says",
        as_shown.TURNED_LATE: "with an orientation after their pixels (not applied)",
        as_shown.TRANSPARENT: "with transparent parts (read as black)",
    }
    if not reading.shown:
        said[as_shown.TURNED] = "with an EXIF orientation (not applied: --read_images as_shown)"
        said[as_shown.TRANSPARENT] = "with transparent parts (the colours under them are read)"
    parts = [f"{words}: {counts[flag]:,}" for flag, words in said.items() if counts[flag]]
    return notes + ([f"images {'; '.join(parts)}"] if parts else []), warnings


def _ranges(facts: np.ndarray, reading: Reading) -> tuple[list[str], list[str]]:
    """The same about values of more than 8 bits."""
    notes, warnings = [], []
    for kind, what, stored in ((as_shown.WHOLE_NUMBERS, "whole numbers of more than 8 bits", reading.bits),
                               (as_shown.FLOATS, "floats", reading.floats)):
        largest = facts["largest"][facts["kind"] == kind]
        if not len(largest):
            continue
        text = f"{len(largest):,} images of {what}, up to {largest.max():,.6g}"
        if not reading.shown:
            notes.append(f"{text}, read over the full range of their type")
            if kind == as_shown.WHOLE_NUMBERS and bits_of(largest.max()) < 16:
                warnings.append(f"warning: they fill {bits_of(largest.max())} bits and come out nearly "
                                "black; --read_images as_shown reads them over the range that they use")
            continue
        white = stored if kind == as_shown.FLOATS else 2**stored - 1
        notes.append(f"{text}, read from 0 to {white:,.6g}"
                     + (f" ({stored} bits)" if kind == as_shown.WHOLE_NUMBERS else ""))
        beyond = int(np.count_nonzero(largest > white))
        if beyond:
            warnings.append(f"warning: {beyond:,} of them go beyond {white:,.6g}, which the checkpoint reads "
                            "as white: so does what is above")
    colours = facts["largest"][facts["kind"] == as_shown.DEEP_COLOURS]
    if len(colours):
        notes.append(f"{len(colours):,} images of 16 bits a colour, of which the upper 8 are read")
        if colours.max() < NEARLY_BLACK:
            warnings.append("warning: their colours don't fill 16 bits and come out nearly black: save them "
                            "over the full range, or with 8 bits")
    return notes, warnings
