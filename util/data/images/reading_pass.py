"""The one pass over the image files of a launch: each file is opened once for all that lack something of it.

The check of all files, their facts, the round fields, the fingerprints and the cache are `Reader`s. A file is
read once (`ImageFile`), and what one reader has decoded of it the next one takes. Three kinds are decoded
again, and why:
- a JPEG whose field is looked for and which is cached, at two scales: the field is defined on a small copy,
  so that it is the same with and without a cache, and the cache's pixels are those that are read without one
- a JPEG without colour that is cached, at a small scale and in full, as whenever it is read
- an image without contrast, whose fingerprint is always made of the same scale
  (util/data/leakage/near_duplicates.py)
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from util.data.images.files import ImageError, ImageFile

GROUP = 8  # files that a thread takes at a time
IN_FLIGHT = 2  # groups a thread that are being read or wait to be taken: what bounds the memory


class Reader(Protocol):
    """One that looks at files."""

    def lacks(self, paths: Sequence[str]) -> np.ndarray:
        """(N,) bool: which of these files it has to look at."""

    def look(self, file: ImageFile) -> object:
        """What it finds of a file, in a thread of the pass. Raises ImageError."""

    def take(self, paths: Sequence[str], found: Sequence[Any]) -> None:
        """What was found of some of the files, in their order, in the thread that called the pass."""

    def save(self) -> None:
        """Called at the end, also when the pass is interrupted."""


def read_images(wanted: Sequence[tuple[Reader, Sequence[str]]], workers: int,
                progress: bool = True) -> list[tuple[str, str]]:
    """Read every file that a reader lacks, in `workers` threads (the decoders work outside the interpreter's
    lock).

    wanted: readers in the order in which they look at a file, each with the paths that it is asked about.
    progress: a bar, if stderr is a terminal. Returns [(path, reason)] of the files that can't be read, in
    order; of these no reader takes anything.
    """
    lacking: dict[str, list[Reader]] = {}
    for reader, paths in wanted:
        paths = list(dict.fromkeys(paths))
        for place in np.flatnonzero(reader.lacks(paths)):
            lacking.setdefault(paths[place], []).append(reader)
    todo = [path for path in dict.fromkeys(path for _, paths in wanted for path in paths) if path in lacking]
    Image.init()  # plugins loaded once, here, and not by several threads at a time
    bad = []
    pool = ThreadPoolExecutor(max(1, workers))
    bar = tqdm(total=len(todo), desc="reading images", disable=not (progress and sys.stderr.isatty()),
               leave=False)
    try:
        with bar:
            for group, results in _in_order(pool, todo, lacking, IN_FLIGHT * max(1, workers)):
                found = {reader: ([], []) for reader, _ in wanted}
                for path, result in zip(group, results, strict=True):
                    if isinstance(result, ImageError):
                        bad.append((path, result.reason))
                        continue
                    for reader, one in zip(lacking[path], result, strict=True):
                        found[reader][0].append(path)
                        found[reader][1].append(one)
                for reader, (paths, ones) in found.items():
                    if paths:
                        reader.take(paths, ones)
                bar.update(len(group))
    finally:
        pool.shutdown(cancel_futures=True)
        for reader, _ in wanted:
            reader.save()
    return bad


def _in_order(pool: ThreadPoolExecutor, todo: list[str], lacking: dict[str, list[Reader]],
              most: int) -> Iterator[tuple[list[str], list[list | ImageError]]]:
    """(paths, what `_look_at` gives of each), a group after the other, of which at most `most` are begun at a
    time."""
    begun = deque()
    for start in range(0, len(todo), GROUP):
        group = todo[start:start + GROUP]
        begun.append((group, pool.submit(_look_at, group, [lacking[path] for path in group])))
        if len(begun) >= most:
            group, future = begun.popleft()
            yield group, future.result()
    for group, future in begun:
        yield group, future.result()


def _look_at(paths: list[str], readers: list[list[Reader]]) -> list[list | ImageError]:
    """What each reader of each file finds, or why the file is bad."""
    results = []
    for path, of_path in zip(paths, readers, strict=True):
        file = ImageFile(path, look=True)
        try:
            results.append([reader.look(file) for reader in of_path])
        except ImageError as error:
            results.append(error)
    return results
