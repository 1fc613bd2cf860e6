"""Whether it is worth the time and the disk to keep images decoded, for `--image_cache auto`.

Decided by a few of the files, decoded and written as the cache would. It changes the time of a run alone:
what pixels the run sees is decided before (`kept`).
"""

import os
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from util.core.disk import free_of, reason
from util.core.plain_numbers import duration, size_of
from util.data.images.cache import Filling
from util.data.images.files import ImageError
from util.data.images.scan import ImageFacts

MOST_TRIED = 32  # files
MOST_SECONDS = 2.0  # for decoding them
LEAST_SAVED = 5.0  # seconds: less is not worth a folder
FREE_SHARE = 0.5  # of the free disk: the run's checkpoints need room, too


def worth_filling(filling: Filling, paths: Sequence[str], passes: int, threads: int,
                  facts: ImageFacts | None) -> tuple[bool, list[str]]:
    """Whether this launch, which reads each image `passes` times in `threads` at once, ends sooner with the
    cache; and lines that say why not.

    Images that are in the cache already count as kept. Files that can't be read are left to the check.
    facts: of the check, which reads files that it does not know with or without a cache, so that to decode
    them costs nothing more; None: nothing is checked.
    """
    lacking = np.flatnonzero(filling.absent(paths))
    if not len(lacking) or passes < 2:
        return not len(lacking), []
    seconds, pixels = _decoded([paths[place] for place in lacking], filling)
    if not pixels:
        return False, []
    once = len(lacking) * seconds / threads
    some = [paths[place] for place in lacking[:MOST_TRIED]]
    reads_anyway = facts is not None and len(facts.of(some)) < len(some) / 2
    most = (passes if reads_anyway else passes - 1) * once
    if most < LEAST_SAVED:
        return False, [_declined(f"keeping them decoded would save {duration(most)} at most")]
    needed = len(lacking) * sum(len(one) for one in pixels) / len(pixels)
    folder = next(one for one in filling.folder.parents if one.is_dir())
    room = FREE_SHARE * free_of(folder)[0]
    if needed > room:
        return False, [_declined(f"keeping them takes {size_of(needed)}, more than half of what is free in "
                                 f"{folder}")]
    try:
        writing = len(lacking) * _seconds_of_writing(pixels, folder)
    except OSError as error:
        return False, [_declined(f"nothing can be kept in {folder} ({reason(error)})")]
    if most - writing < LEAST_SAVED:
        return False, [_declined(f"writing them to {folder} would take {duration(writing)}, and save "
                                 f"{duration(most)}")]
    where, saved = filling.folder.parent, duration(most - writing)
    return True, [f"images     kept decoded in {where}: saves some {saved} of {passes} epochs "
                  "(--image_cache auto)"]


def _declined(why: str) -> str:
    return f"images     decoded in every epoch: {why} (--image_cache auto)"


def _decoded(paths: Sequence[str], filling: Filling) -> tuple[float, list[bytes]]:
    """Seconds an image, and the pixels, of files that lie evenly among all."""
    pixels, began = [], time.monotonic()
    for place in np.unique(np.linspace(0, len(paths) - 1, MOST_TRIED).round().astype(int)):
        try:
            pixels.append(filling.kept.pixels(paths[place]).tobytes())
        except ImageError:
            continue
        if time.monotonic() - began > MOST_SECONDS:
            break
    return (time.monotonic() - began) / max(1, len(pixels)), pixels


def _seconds_of_writing(pixels: Sequence[bytes], folder: os.PathLike) -> float:
    """An image, down to the disk. OSError."""
    began = time.monotonic()
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.writelines(pixels)
        stream.flush()
        os.fsync(stream.fileno())
    return (time.monotonic() - began) / len(pixels)
