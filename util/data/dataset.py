"""The table of images -> samples for a loader."""

import functools
import hashlib
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import default_collate

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
    transform: a path -> (3, S, S) float32, or by its `pixels` what that is before the normalisation;
    covariates: (N, C) that the model reads beside the image, or None;
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
        """key: (epoch, position in the table) -> (uint8 or normalised float32 (3, S, S), target () or (T,),
        position). A third number of the key counts how often the image was there before in this epoch. Raises
        RunError."""
        epoch, position, *before = key
        with _seeded(self.seed, epoch, self._indices[position], *filter(None, before)):
            try:
                path = self.path(position)
                picture = self._read(path if self.source is None else self.source(path))
            except ImageError as error:
                raise PictureLost("an image that was there at the start cannot be read any more: "
                                  f"{error}") from None
        if isinstance(picture, np.ndarray):
            picture = torch.from_numpy(picture).permute(2, 0, 1)
        return picture, self._targets[position], position

    def _read(self, source: object) -> np.ndarray | torch.Tensor:
        return getattr(self.transform, "pixels", self.transform)(source)

    def collate(self, samples: list[tuple]) -> tuple["Pixels", torch.Tensor, torch.Tensor]:
        """Samples -> a batch: (images, targets, positions)."""
        pictures, targets, positions = zip(*samples, strict=True)
        finished = [place for place, picture in enumerate(pictures) if picture.is_floating_point()]
        settings = getattr(self.transform, "settings", {})
        blank = torch.zeros_like(pictures[0], dtype=torch.uint8)
        rows = [(blank if picture.is_floating_point() else picture).permute(1, 2, 0) for picture in pictures]
        return (Pixels(default_collate(rows),
                       default_collate([pictures[place] for place in finished]) if finished else None,
                       finished, tuple(settings.get("mean", ())), tuple(settings.get("std", ()))),
                default_collate(targets), default_collate(positions))


class CaseDataset(torch.utils.data.Dataset):
    """Cases as samples of a training: `most` of the images of each, drawn by (seed, epoch, case).

    images: of all of them; owners: (N,) the place of each image's case, 0 to C - 1; targets: a row a case.
    """

    covariates = None

    def __init__(self, images: ImageDataset, owners: np.ndarray, targets: np.ndarray, most: int) -> None:
        self.images, self.most = images, most
        self._places = np.argsort(owners, kind="stable")
        self._ends = np.cumsum(np.bincount(owners))
        self._targets = torch.tensor(targets)

    def __len__(self) -> int:
        return len(self._ends)

    def _members(self, case: int) -> np.ndarray:
        """Places of a case's images."""
        return self._places[self._ends[case - 1] if case else 0:self._ends[case]]

    def path(self, position: int) -> str:
        """The case's first image."""
        return self.images.path(self._members(position)[0])

    def __getitem__(self, key: tuple[int, ...]) -> tuple[list[tuple], torch.Tensor, int]:
        """key: as of ImageDataset, of a case -> (samples of its images, its target, position)."""
        epoch, position, *before = key
        members = self._members(position)
        if len(members) > self.most:
            # what a file is called says nothing of the draw, its place in the table does
            generator = np.random.default_rng([self.images.seed, epoch, position, *before])
            members = np.sort(generator.choice(members, self.most, replace=False))
        samples = [self.images[epoch, int(place), *before] for place in members]
        return samples, self._targets[position], position

    def collate(self, samples: list[tuple]) -> tuple["ImagesOfCases", torch.Tensor, torch.Tensor]:
        """Samples -> a batch: (the images of all cases, targets and positions of the cases)."""
        of_cases, targets, positions = zip(*samples, strict=True)
        owners = np.repeat(np.arange(len(of_cases)), list(map(len, of_cases)))
        images, _, _ = self.images.collate([sample for of_case in of_cases for sample in of_case])
        return (ImagesOfCases(images, torch.from_numpy(owners)), default_collate(targets),
                default_collate(positions))


@dataclass
class ImagesOfCases:
    """A batch of images, and the place of each one's case in it: owners (M,)."""

    images: "Pixels"
    owners: torch.Tensor

    def pin_memory(self) -> "ImagesOfCases":
        return ImagesOfCases(self.images.pin_memory(), self.owners.pin_memory())


@dataclass
class Pixels:
    """A batch of images on its way to the device, which normalises them: a quarter of the bytes.

    values: (B, S, S, 3) uint8; finished: (n, 3, S, S) float32, normalised already, of the images at `places`,
    or None.
    """

    values: torch.Tensor
    finished: torch.Tensor | None
    places: list[int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    def pin_memory(self) -> "Pixels":
        finished = None if self.finished is None else self.finished.pin_memory()
        return replace(self, values=self.values.pin_memory(), finished=finished)

    def on(self, device: torch.device) -> torch.Tensor:
        """(B, 3, S, S) float32 on the device, channels last, by the operations of timm and torchvision; not
        waited for."""
        images = self.values.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)
        if self.mean:
            mean, std = _constants(self.mean, self.std, device)
            images.div_(255).sub_(mean).div_(std)
        for number, place in enumerate(self.places):
            images[place].copy_(self.finished[number], non_blocking=True)
        return images


@functools.cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...],
               device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))
    return mean, std


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
