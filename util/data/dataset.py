"""The table of images -> samples for a loader."""

import hashlib
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch

from util.core.errors import RunError
from util.data.images.files import ImageError


class PictureLost(RunError):
    """An image that cannot be read in mid-run. From a loader's worker it arrives as one line, as any
    `RunError`."""

    def __init__(self, message: str) -> None:
        # torch makes it anew in the main process, from the worker's whole traceback, whose last line is this.
        super().__init__(message.strip().splitlines()[-1].removeprefix(f"{__name__}.PictureLost: "))


class ImageDataset(torch.utils.data.Dataset):
    """The table's images as samples; what happens to one depends on (seed, epoch, its `index` in the table)
    alone.

    table: of images (util/data/tables.py); targets: (N,) whole numbers or (N, T) floats, a row an image;
    transform: a path -> (3, S, S) float32; covariates: (N, C) that the model reads beside the image, or None;
    source: from a path to what the transform reads in its place (util/data/images/cache.py), or None.
    """

    def __init__(self, table: pd.DataFrame, targets: np.ndarray, transform: Callable[[Any], torch.Tensor],
                 seed: int, covariates: torch.Tensor | None = None,
                 source: Callable[[str], object] | None = None) -> None:
        self.transform = transform
        self.source = source
        self.seed = seed
        self.covariates = covariates
        self._targets = torch.tensor(targets)
        self._indices = table["index"].to_numpy(np.int64)
        # one block of bytes: a million str objects would be copied into every worker as it counts references
        encoded = [os.fsencode(path) for path in table["path"]]
        self._path_ends = np.cumsum([0] + [len(path) for path in encoded])
        self._path_bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._targets)

    def path(self, position: int) -> str:
        """The path in row `position`."""
        return os.fsdecode(
            self._path_bytes[self._path_ends[position]:self._path_ends[position + 1]].tobytes())

    def __getitem__(self, key: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """key: (epoch, position in the table) -> (float32 (3, S, S), target () or (T,), position). A third
        number of the key counts how often the image was there before in this epoch. Raises RunError."""
        epoch, position, *before = key
        with _seeded(self.seed, epoch, self._indices[position], *filter(None, before)):
            try:
                path = self.path(position)
                picture = self.transform(path if self.source is None else self.source(path))
            except ImageError as error:
                raise PictureLost("an image that was there at the start cannot be read any more: "
                                  f"{error}") from None
        return picture, self._targets[position], position


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """python's, numpy's and torch's CPU generators from a hash of (seed, epoch, index, …); as they were,
    afterwards.

    They are put back because without workers they are the training loop's own.
    """
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=24).digest()
    for_python, for_numpy, for_torch = struct.unpack("<QQQ", digest)
    states = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()
    random.seed(for_python)
    # another generator: get_state and seed take ten times it
    np.random.set_bit_generator(np.random.PCG64(for_numpy))
    torch.default_generator.manual_seed(for_torch)  # torch.manual_seed would also reach for every accelerator
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_bit_generator(states[1])
        torch.set_rng_state(states[2])
