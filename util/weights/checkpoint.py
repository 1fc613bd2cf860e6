"""Checkpoints: written whole or not at all, read without running anything, resumed exactly.

A checkpoint holds plain tensors, numbers, strings, lists and dicts alone. Its "model" keeps timm's own names,
so timm loads the file as it is. What a reader needs to use it stands beside: class names in order, the
transforms, the options, the versions, where the weights came from.
"""

import io
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from util.core.disk import AGAIN, reason, remedy, replacing
from util.core.errors import InputError, RunError
from util.options.stored import BEFORE
from util.weights.checkpoint_schema import TAKE_ANOTHER, check_arguments, check_stored
from util.weights.fitting import WeightFile, read_weights

if TYPE_CHECKING:
    from typing_extensions import Buffer

LAST, BEST = "checkpoint-last.pth", "checkpoint-best.pth"
# the best epoch's, with --adaptation lora; BEST is the whole model, at the run's end
ADAPTER = "checkpoint-adapter.pth"
FORMAT = 1


def write(path: str | Path, content: dict) -> None:
    """Write `content` under a temporary name, flush it to the disk, then rename: a reader never sees half a
    file.

    RunError where the disk is full or can't be written; what stood there before stays.
    """
    try:
        with replacing(path) as temporary, _Remembering(io.FileIO(temporary, "wb")) as stream:
            try:
                torch.save(content, stream)
            except RuntimeError:
                if stream.error is None:
                    raise  # no fault of the disk's
                raise stream.error from None
    except OSError as error:
        raise RunError(f"{path} could not be written ({reason(error)}): the checkpoint before it stays; "
                       f"{remedy(error)} and {AGAIN}") from error


class _Remembering(io.BufferedWriter):
    """A file for torch.save, which turns an OSError of writing into a RuntimeError about its own position in
    the file."""

    error: OSError | None = None

    def write(self, content: "Buffer") -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = self.error or error
            raise


def remove_torn(folder: Path, pattern: str = ".*.tmp") -> None:
    """Delete temporary files that a killed run left behind: of checkpoints, tables and images."""
    for left in folder.glob(pattern):
        pid = re.search(r"\.(\d+)\.tmp$", left.name)
        if not pid or not Path(f"/proc/{pid.group(1)}").exists():
            left.unlink(missing_ok=True)


def random_states(device: torch.device) -> dict:
    """This process's random generators. (Draws are functions of seed, epoch and sample or step; these are for
    the rest.)"""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss),
                  float(cached)],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict, device: torch.device) -> None:
    """The same, put back. InputError for what is no generator's state."""
    try:
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words), gauss))
        kind, keys, position, has_gauss, cached = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(states["torch"])
        if device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError("the checkpoint's random_states are no generators' states "
                         f"({type(error).__name__}): {TAKE_ANOTHER}") from error


def read(path: str | Path, whole: bool = True) -> WeightFile:
    """A checkpoint of ours or of the original scripts; InputError where it can't be read or holds more than
    data.

    A sharded one comes with all its tensors, or, without `whole`, with their shapes alone.
    """
    file = read_weights(path)
    if is_ours(file):
        if isinstance(file.rest["format"], int) and file.rest["format"] > FORMAT:
            raise InputError(f"{path} was written by a newer version of this program (format "
                             f"{file.rest['format']})")
        _settle_reading(file.rest)
        check_stored(path, file.rest)
    else:  # a stranger's entries mean what they will there; its epoch is only told
        epoch = file.rest.get("epoch")
        file.rest = {"epoch": epoch} if isinstance(epoch, int | float | str) else {}
        check_arguments(path, file.arguments)
    if "shards" not in file.rest:
        return file
    # what it needs takes long to import, and few checkpoints are sharded
    from util.weights import shard_files

    shard_files.read_index(shard_files.folder_of(file))
    return shard_files.whole(file) if whole else file


def _settle_reading(rest: dict) -> None:
    """What a checkpoint's options say of reading in today's words. Before --norm had a meaning any word stood
    for the backbone's own normalisation; such a checkpoint's transform has none of the entries that came with
    that meaning."""
    options, transform = rest["options"], rest.get("transform")
    settings = transform.get("eval") if isinstance(transform, dict) else None
    if not isinstance(options, dict):
        return  # rejected in a moment
    if "norm" not in options or (isinstance(settings, dict) and "reduced" not in settings):
        options = options | {"norm": "backbone"}
    rest["options"] = BEFORE | options


def is_ours(file: WeightFile) -> bool:
    return "format" in file.rest and "options" in file.rest


def require_resumable(file: WeightFile) -> None:
    """InputError unless training can be resumed from the file."""
    if not is_ours(file):
        raise InputError(f"{file.path} was not written by this program, so training can't go on from it: "
                         "score it with --eval, or start from its weights with --finetune")
    if "optimizer" not in file.rest:
        raise InputError(f"{file.path} holds the model alone (the best epoch's): go on from {LAST} beside "
                         "it, or start anew from its weights with --finetune")


def plain(value: object) -> Any:
    """A value as what a checkpoint may hold; TypeError for anything else (our own bug, found at the first
    save)."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor):
        return value
    raise TypeError(f"a checkpoint can't hold a {type(value).__name__}")
