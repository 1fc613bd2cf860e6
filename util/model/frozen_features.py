"""The frozen backbone: the features of a split are computed once and kept, in memory and on the disk.

A feature depends on the weights, the image and how it is read. All of that is in the name of the file that
keeps it, so that stored features are found again by any run that needs the same ones, and by no other.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from util.core.disk import reason
from util.core.errors import InputError, RunError
from util.data.images.files import ImageError, file_status
from util.parallel.processes import World
from util.parallel.sharding import whole_tensors


def weights_digest(model: torch.nn.Module, without: torch.nn.Module) -> str:
    """A hash of a model's tensors, buffers included, by name; those of its part `without` left out.
    Collective where the model is sharded."""
    digest, left_out = (
        hashlib.blake2b(digest_size=16),
        {id(tensor) for tensor in [*without.parameters(), *without.buffers()]},
    )
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    tensors = {name: tensor for name, tensor in tensors.items() if id(tensor) not in left_out}
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
        digest.update(
            f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(
                "utf-8", "surrogateescape"
            )
        )
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
                    columns: int | None = None, tokens: tuple[int, int] | None = None
                    ) -> tuple[torch.Tensor, np.ndarray | None, bool]:
    """(N, columns) features of a split, its tokens, and whether they lay on the disk; `compute()` makes them,
    piece by piece
    and in all processes together: rows of the columns and, where they are asked for, of P x W tokens.

    columns: None for any number. tokens: (P, W); they are kept in a file of their own, (N, P, W) in float16,
    which the main process maps (None in the others). Written under another name, then renamed. What can't be
    written is computed again next time, and tokens that can't be are
    left out: a line says so. RunError where features are NaN or infinite.
    """
    of_tokens, mapped = token_file(path), None
    values = _read(path, (rows, columns),
                   np.float32) if world.from_main(path.exists() if world.is_main else None) else None
    if tokens is not None and world.is_main:
        mapped = _read(of_tokens, (rows, *tokens), np.float16, mmap_mode="r")
    found = not world.any(values is None or (tokens is not None and world.is_main and mapped is None))
    if not found:
        file = _TokenFile(of_tokens, (rows, *tokens), world) if tokens is not None and world.is_main else None
        pieces = []
        with file or contextlib.nullcontext():
            for piece in compute():
                pieces.append(piece[:, :columns].copy())
                if file is not None:
                    file.append(piece[:, columns:])
            values = np.concatenate(pieces)
            if not np.isfinite(values).all():
                raise RunError("the backbone's features are NaN or infinite: check its weights, or try "
                               "--precision fp32", everywhere=True)
        if world.is_main:
            mapped = file.kept() if file is not None else None
            _write(path, values, world)
        world.barrier()
    return torch.from_numpy(values), mapped, found


def _read(path: Path, shape: tuple[int | None, ...], kind: type, **how) -> np.ndarray | None:
    try:
        values = np.load(path, allow_pickle=False, **how)
    except (OSError, ValueError, EOFError):
        return None  # damaged or gone: computed again
    fits = values.ndim == len(shape) and all(wanted in (None, side)
                                             for wanted, side in zip(shape, values.shape, strict=True))
    return values if fits and values.dtype == kind else None


def _write(path: Path, values: np.ndarray, world: World) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.save(file, values)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            partial.unlink(missing_ok=True)
        world.say(f"features can't be kept in {path.parent} ({reason(error)}): the next start computes them "
                  "again")


class _TokenFile:
    """A split's tokens on their way to the disk; nothing is left of them where its `with` ends in an error.
    By plain writes: a full disk is no error that a mapped file could tell."""

    def __init__(self, path: Path, shape: tuple[int, int, int], world: World):
        self.path, self.partial, self.world = (
            path,
            path.with_name(f".{path.name}.{os.getpid()}.partial"),
            world,
        )
        self.shape, self.problem, self._file = shape, "", None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{path.name}.*.partial"):
                if not Path(f"/proc/{left.name.split('.')[-2]}").exists():  # of a start that was killed
                    left.unlink(missing_ok=True)
            self._file = open(self.partial, "wb")  # noqa: SIM115 - open from one piece to the next
            np.lib.format.write_array_header_1_0(self._file,
                                                 {"descr": "<f2", "fortran_order": False, "shape": shape})
        except OSError as error:
            self._give_up(reason(error))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self._give_up(str(error))

    def append(self, rows: np.ndarray) -> None:
        if self.problem:
            return
        if not (np.abs(rows) <= np.finfo(np.float16).max).all():
            self._give_up("some are beyond float16's largest number")
            return
        try:
            self._file.write(rows.astype(np.float16).tobytes())
        except OSError as error:
            self._give_up(reason(error))

    def kept(self) -> np.ndarray | None:
        """The tokens, mapped; None where they could not be kept."""
        if not self.problem:
            try:
                self._file.close()
                os.replace(self.partial, self.path)
                return _read(self.path, self.shape, np.float16, mmap_mode="r")
            except OSError as error:
                self._give_up(reason(error))
        self.world.say(f"tokens can't be kept in {self.path.parent} ({self.problem}): no attentive head is "
                       "tried")
        return None

    def _give_up(self, problem: str) -> None:
        self.problem = problem
        if self._file is not None:
            # of what was still to be written; the first error is the one to tell
            with contextlib.suppress(OSError):
                self._file.close()
        with contextlib.suppress(OSError):
            self.partial.unlink(missing_ok=True)


class FeatureDataset(torch.utils.data.Dataset):
    """Stored features as samples, in the place of images: see util/data/dataset.py, ImageDataset."""

    def __init__(self, features: torch.Tensor, targets: np.ndarray, paths: list[str],
                 covariates: torch.Tensor | None = None):
        self.features, self.covariates = features, covariates
        self._targets, self._paths = torch.tensor(targets), paths

    def __len__(self) -> int:
        return len(self.features)

    def path(self, position: int) -> str:
        return self._paths[position]

    def __getitem__(self, key: tuple[int, ...]):
        """key: (epoch, position, …) -> (feature (W,), target, position)."""
        position = key[1]
        return self.features[position], self._targets[position], position
