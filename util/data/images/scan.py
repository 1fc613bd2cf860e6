"""What the check of all files finds of them: whether they decode, and what decides how they are read.

No single file of a data set tells how many bits are used in it, so the range of values of more than 8 bits is decided over
all files (`depth`) and stored with the transform. What else a viewer does and a plain loader does not (turning, transparency,
pages) is counted in one note (`describe`).
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
from PIL import Image
from tqdm import tqdm

from util.data.images import as_shown
from util.data.images.as_shown import AS_SHOWN, Reading, bits_of, white_of
from util.data.images.files import ImageError, ImageSource
from util.data.images.fundus_fields import Fields
from util.data.images.remembered import Remembered, identities

JPEG_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif")  # 8 bits, opaque
LOOKED_AT = 100  # files of other kinds, spread evenly, where not all are checked
NEARLY_BLACK = 64  # of 256, the upper 8 bits of 16: what 14 bits fill


class ImageFacts(Remembered):
    """Files that have decoded, with `as_shown.Facts` of each."""

    dtype = np.dtype([("identity", "<u8"), ("largest", "<f8"), ("kind", "u1"), ("flags", "u1")])
    again = "all images are checked again"

    def add(self, paths: Sequence[str], found: Sequence[as_shown.Facts]) -> None:
        """Remember that these files decode; `save` makes it last."""
        entries = np.zeros(len(paths), self.dtype)
        entries["identity"] = identities(paths)
        for name in ("largest", "kind", "flags"):
            entries[name] = [getattr(facts, name) for facts in found]
        self._new.append(entries[entries["identity"] != 0])

    def of(self, paths: Sequence[str]) -> np.ndarray:
        """Entries of those of these files that are remembered, once each."""
        entries, known = self._entries(list(dict.fromkeys(paths)))
        return entries[known]


def check_images(paths: Sequence[str], workers: int, facts: ImageFacts | None = None, progress: bool = True,
                 fields: Fields | None = None) -> list[tuple[str, str]]:
    """Decode every file once, in `workers` threads (Pillow decodes outside the interpreter's lock).

    JPEGs are decoded at 1/8 of their size, which still reads every bit of the file but computes little.
    facts: files that it has are passed over, and those that decode are entered (also when the check is interrupted).
    fields: looked for in the same pass where they are lacking; without `facts` only files that it lacks are decoded.
    progress: a bar, if stderr is a terminal. Returns [(path, reason)] of the bad ones, in order.
    """
    paths = list(paths)
    memories = [memory for memory in (facts, fields) if memory]
    todo = np.flatnonzero(np.any([memory.unknown(paths) for memory in memories], 0)) if memories else np.arange(len(paths))
    Image.init()  # plugins loaded once, here, and not by several threads at a time
    bad: dict[int, str] = {}
    pool = ThreadPoolExecutor(max(1, workers))
    # Groups: a million futures would take more memory than the images in flight.
    groups = [todo[start:start + 64] for start in range(0, len(todo), 64)]
    bar = tqdm(total=len(todo), desc="checking images", disable=not (progress and sys.stderr.isatty()), leave=False)
    try:
        with bar:
            futures = {pool.submit(_check_group, [paths[i] for i in group], fields): group for group in groups}
            for future in as_completed(futures):
                results, group = future.result(), futures[future]
                good = [(i, found) for i, found in zip(group, results, strict=True) if not isinstance(found, str)]
                bad.update((i, found) for i, found in zip(group, results, strict=True) if isinstance(found, str))
                if facts:
                    facts.add([paths[i] for i, _ in good], [found for _, found in good])
                bar.update(len(group))
    finally:
        pool.shutdown(cancel_futures=True)
        for memory in memories:
            if len(todo) or memory.note:
                memory.save()
    return [(paths[i], bad[i]) for i in sorted(bad)]


def _check_group(paths: Sequence[str], fields: Fields | None) -> list[as_shown.Facts | str]:
    """What this file is, or why it is bad: one a path."""
    results: list[as_shown.Facts | str] = []
    for path in paths:
        source = ImageSource(path, fields.reading if fields else AS_SHOWN, look=True)
        try:
            if fields is None:
                source.decode_scaled(1)
            else:
                fields.look(source)
            results.append(source.facts)
        except ImageError as error:
            results.append(error.reason)
    return results


def look_at(paths: Sequence[str], facts: ImageFacts, workers: int) -> str:
    """Where not all files are checked: some of those that may be of more than 8 bits, turned or transparent -> a note.
    Those that can't be read are left to whoever reads them."""
    others = [path for path in dict.fromkeys(paths) if not path.lower().endswith(JPEG_ENDINGS)]
    others = others[::-(-len(others) // LOOKED_AT) or 1]
    check_images(others, workers, facts, progress=False)
    return f"{len(others):,} files that are no JPEG were looked at, not all (--skip_file_check)" if others else ""


def depth(facts: np.ndarray) -> tuple[int | None, float | None]:
    """(bits of whole numbers, white of floats) over all files, as `Reading` has them; None where no file has any."""
    whole, floats = (facts["largest"][facts["kind"] == kind] for kind in (as_shown.WHOLE_NUMBERS, as_shown.FLOATS))
    return bits_of(whole.max()) if len(whole) else None, float(white_of(floats.max())) if len(floats) else None


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
                warnings.append(f"warning: they fill {bits_of(largest.max())} bits and come out nearly black; --read_images "
                                "as_shown reads them over the range that they use")
            continue
        white = stored if kind == as_shown.FLOATS else 2**stored - 1
        notes.append(f"{text}, read from 0 to {white:,.6g}" + (f" ({stored} bits)" if kind == as_shown.WHOLE_NUMBERS else ""))
        beyond = int(np.count_nonzero(largest > white))
        if beyond:
            warnings.append(f"warning: {beyond:,} of them go beyond {white:,.6g}, which the checkpoint reads as white: so does "
                            "what is above")
    colours = facts["largest"][facts["kind"] == as_shown.DEEP_COLOURS]
    if len(colours):
        notes.append(f"{len(colours):,} images of 16 bits a colour, of which the upper 8 are read")
        if colours.max() < NEARLY_BLACK:
            warnings.append("warning: their colours don't fill 16 bits and come out nearly black: save them over the full "
                            "range, or with 8 bits")
    return notes, warnings
