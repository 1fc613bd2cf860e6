"""The frozen backbone: the features of a split are computed once and kept, in memory and on the disk.

A feature depends on the weights, the picture and how it is read. All of that is in the name of the file that keeps it,
so that stored features are found again by any run that needs the same ones, and by no other.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch

from util.disk import reason
from util.distributed import World
from util.errors import InputError, RunError
from util.images import ImageError, file_status
from util.sharding import whole_tensors


def weights_digest(model: torch.nn.Module, without: torch.nn.Module) -> str:
    """A hash of a model's tensors, buffers included, by name; those of its part `without` left out. Collective where the model
    is sharded."""
    digest, left_out = hashlib.blake2b(digest_size=16), {id(tensor) for tensor in [*without.parameters(), *without.buffers()]}
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    tensors = {name: tensor for name, tensor in tensors.items() if id(tensor) not in left_out}
    for name, tensor in whole_tensors(tensors):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def pictures_digest(paths: list[str]) -> str:
    """A hash of files as they are now: place, size and time of change, in order. InputError where one is no file."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            status = file_status(path)
        except ImageError as error:
            raise InputError(f"{path} cannot be read ({error.reason}): mend or remove it") from error
        digest.update(f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def feature_file(folder: Path, weights: str, pictures: str, settings: dict) -> Path:
    """Where the features of these pictures by these weights are kept. settings: whatever else they depend on."""
    text = json.dumps([weights, pictures, settings], sort_keys=True)
    return Path(folder) / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.npy"


def stored_features(path: Path, rows: int, compute, world: World) -> tuple[torch.Tensor, bool]:
    """(N, W) features of a split, and whether they lay on the disk; `compute()` makes them, in all processes together.

    Written under another name, then renamed. Where they can't be written they are computed again next time: a line says
    so. RunError where features are NaN or infinite.
    """
    found = world.from_main(path.exists() if world.is_main else None)
    values = _read(path, rows) if found else None
    found = not world.any(values is None)
    if not found:
        values = compute()
        if not np.isfinite(values).all():
            raise RunError("the backbone's features are NaN or infinite: check its weights, or try --precision fp32",
                           everywhere=True)
        if world.is_main:
            _write(path, values, world)
        world.barrier()
    return torch.from_numpy(values), found


def _read(path: Path, rows: int) -> np.ndarray | None:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # damaged or gone: computed again
    return values if values.ndim == 2 and len(values) == rows and values.dtype == np.float32 else None


def _write(path: Path, values: np.ndarray, world: World) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.save(file, values)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        world.say(f"features can't be kept in {path.parent} ({reason(error)}): the next start computes them again")


class FeatureDataset(torch.utils.data.Dataset):
    """Stored features as samples, in the place of pictures: see util/datasets.py, ImageDataset."""

    def __init__(self, features: torch.Tensor, targets: np.ndarray, paths: list[str], covariates: torch.Tensor | None = None):
        self.features, self.covariates = features, covariates
        self._targets, self._paths = torch.tensor(targets), paths

    def __len__(self) -> int:
        return len(self.features)

    def path(self, position: int) -> str:
        return self._paths[position]

    def __getitem__(self, key: tuple[int, int]):
        """key: (epoch, position) -> (feature (W,), target, position)."""
        _, position = key
        return self.features[position], self._targets[position], position
