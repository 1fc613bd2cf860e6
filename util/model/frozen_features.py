"""The frozen backbone: the features of a split are computed once and kept, in memory and on the disk.

A feature depends on the weights, the image and how it is read. All of that is in the name of the file that
keeps it, so that stored features are found again by any run that needs the same ones, and by no other.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import torch

from util.core.disk import reason, replacing
from util.core.errors import InputError, RunError
from util.data.images.files import ImageError, file_status
from util.parallel.processes import World
from util.parallel.sharding import whole_tensors
from util.weights.checkpoint import remove_torn


def weights_digest(model: torch.nn.Module, without: torch.nn.Module) -> str:
    """A hash of a model's tensors, buffers included, by name; those of its part `without` left out.
    Collective where the model is sharded."""
    digest = hashlib.blake2b(digest_size=16)
    left_out = {id(tensor) for tensor in [*without.parameters(), *without.buffers()]}
    tensors = {name: tensor for name, tensor in [*model.named_parameters(), *model.named_buffers()]
               if id(tensor) not in left_out}
    for name, tensor in whole_tensors(tensors):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def pictures_digest(paths: list[str]) -> str:
    """A hash of files as they are now: place, size and time of change, in order. InputError where one is no
    file."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            status = file_status(path)
        except ImageError as error:
            raise InputError(f"{path} cannot be read ({error.reason}): mend or remove it") from error
        line = f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def feature_file(folder: Path, weights: str, pictures: str, settings: dict) -> Path:
    """Where the features of these images by these weights are kept. settings: whatever else they depend
    on."""
    text = json.dumps([weights, pictures, settings], sort_keys=True)
    return Path(folder) / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.npy"


def token_file(path: Path) -> Path:
    """Where the tokens lie whose features are in `path`."""
    return path.with_suffix(".tokens.npy")


def stored_features(path: Path, rows: int, compute: Callable[[], Iterable[np.ndarray]], world: World,
                    columns: int | None = None,
                    tokens: tuple[int, int] | None = None) -> tuple[torch.Tensor, np.ndarray | None, bool]:
    """(N, columns) features of a split, its tokens, and whether they lay on the disk; `compute()` makes them,
    piece by piece and in all processes together: rows of the columns and, where they are asked for, of P x W
    tokens.

    columns: None for any number. tokens: (P, W); they are kept in a file of their own, (N, P, W) in float16,
    which the main process maps (None in the others). Written under another name, then renamed. What can't be
    written is computed again next time, and tokens that can't be are left out: a line says so. RunError where
    features are NaN or infinite.
    """
    mapped, with_tokens = None, tokens is not None and world.is_main
    is_there = world.from_main(path.exists() if world.is_main else None)
    values = _read(path, (rows, columns), np.float32) if is_there else None
    if with_tokens:
        shape = (rows, *tokens)
        mapped = _read(token_file(path), shape, np.float16, mmap_mode="r")
    found = not world.any(values is None or (with_tokens and mapped is None))
    if not found:
        pieces = []
        with _TokenFile(token_file(path), shape) if with_tokens else contextlib.nullcontext() as file:
            for piece in compute():
                pieces.append(piece[:, :columns].copy())
                if with_tokens:
                    file.append(piece[:, columns:])
            values = np.concatenate(pieces)
            if not np.isfinite(values).all():
                raise RunError("the backbone's features are NaN or infinite: check its weights, or try "
                               "--precision fp32", everywhere=True)
        if with_tokens and file.problem:
            mapped = None
            world.say(f"tokens can't be kept in {path.parent} ({file.problem}): no attentive head is tried")
        elif with_tokens:
            mapped = _read(token_file(path), shape, np.float16, mmap_mode="r")
        if world.is_main:
            _write(path, values, world)
        world.barrier()
    return torch.from_numpy(values), mapped, found


def _read(path: Path, shape: tuple[int | None, ...], kind: type,
          mmap_mode: Literal["r"] | None = None) -> np.ndarray | None:
    try:
        values = np.load(path, mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # damaged or gone: computed again
    fits = (values.ndim == len(shape)
            and all(wanted in (None, side) for wanted, side in zip(shape, values.shape, strict=True)))
    return values if fits and values.dtype == kind else None


def _write(path: Path, values: np.ndarray, world: World) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, open(partial, "wb") as file:
            np.save(file, values)
    except OSError as error:
        world.say(f"features can't be kept in {path.parent} ({reason(error)}): the next start computes them "
                  "again")


class _TokenFile(contextlib.ExitStack):
    """A split's tokens on their way to the disk, in a `with`; nothing is left of them where that ends in an
    error, or where there is a `problem`. By plain writes: a full disk is no error that a mapped file could
    tell."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.problem = ""
        with self._noted():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_torn(path.parent, f".{path.name}.*.tmp")
            partial = self.enter_context(replacing(path))
            self._file = self.enter_context(open(partial, "wb"))  # noqa: SIM115 - this stack closes it
            np.lib.format.write_array_header_1_0(self._file,
                                                 {"descr": "<f2", "fortran_order": False, "shape": shape})

    def append(self, rows: np.ndarray) -> None:
        if not self.problem:
            with self._noted():
                if not (np.abs(rows) <= np.finfo(np.float16).max).all():
                    raise OSError("some are beyond float16's largest number")
                self._file.write(rows.astype(np.float16).tobytes())

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """An error ends the writing, not the run."""
        try:
            yield
        except OSError as error:
            self.problem = reason(error)
            with contextlib.suppress(OSError):  # of what was still to be written
                super().__exit__(type(error), error, error.__traceback__)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with self._noted():
            super().__exit__(kind, error, trace)


class FeatureDataset(torch.utils.data.Dataset):
    """Stored features as samples, in the place of images: see util/data/dataset.py, ImageDataset."""

    def __init__(self, features: torch.Tensor, targets: np.ndarray, paths: list[str],
                 covariates: torch.Tensor | None = None) -> None:
        self.features, self.covariates = features, covariates
        self._targets, self._paths = torch.tensor(targets), paths

    def __len__(self) -> int:
        return len(self.features)

    def path(self, position: int) -> str:
        return self._paths[position]

    def __getitem__(self, key: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """key: (epoch, position, …) -> (feature (W,), target, position)."""
        position = key[1]
        return self.features[position], self._targets[position], position
