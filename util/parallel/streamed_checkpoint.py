"""A model in shards -> one ordinary checkpoint, of which no process ever holds more than a tensor."""

import bisect
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from util.core.errors import RunError
from util.parallel.processes import World
from util.parallel.sharding import whole_tensors
from util.weights.shard_files import reason_of


def write_streamed(path: Path, content: dict, world: World) -> None:
    """Write `content`, whose "model" is sharded, as an ordinary checkpoint; collective. RunError, in all
    processes.

    The main process writes the file with room for the tensors, then each of them as it comes: at most one is
    whole in memory at a time. The name is given at the end, so a reader never sees half a file.
    """
    temporary, problem = path.with_name(f".{path.name}.{os.getpid()}.tmp"), None
    places, sums = {}, {}  # of tensors: {name: offset}, {offset: checksum}

    def in_main(work: Callable[[], object]) -> None:
        """Until something fails; the processes gather all tensors whatever the disk says."""
        nonlocal problem
        if world.is_main and problem is None:
            try:
                work()
            except (OSError, RuntimeError) as error:
                problem = reason_of(error)

    in_main(lambda: places.update(_write_with_room(temporary, content, sums)))
    for name, tensor in whole_tensors(content["model"]):
        in_main(lambda name=name, tensor=tensor: _write_at(temporary, places[name], tensor, sums))
    in_main(lambda: _complete(temporary, sums, path))
    if problem:
        temporary.unlink(missing_ok=True)
    problem = world.from_main(problem)
    if problem:
        raise RunError(f"{path} could not be written ({problem}): the checkpoint before it stays; make room "
                       "and start again with --resume auto", everywhere=True)


def _write_at(path: Path, offset: int, tensor: torch.Tensor, sums: dict[int, int]) -> None:
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
    sums[offset] = zlib.crc32(data)


def _write_with_room(path: Path, content: dict, sums: dict[int, int]) -> dict[str, int]:
    """The file with zeros in the place of the model's tensors -> {name: offset}; its other tensors are
    written whole."""
    room, rest = {}, {name: value for name, value in content.items() if name != "model"}
    with FakeTensorMode():
        for name, tensor in content["model"].items():
            room[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
    with torch.serialization.skip_data(materialize_fake_tensors=True), open(path, "wb") as file:
        torch.save({"model": room, **rest}, file)
    with FakeTensorMode(), warnings.catch_warnings(action="ignore"):
        back = torch.load(path, weights_only=True)
    # tensors beside the model: skipped as well, and written at once
    stored = _tensors_in({name: back[name] for name in rest})
    for tensor, real in zip(stored, _tensors_in(rest), strict=True):
        _write_at(path, _offset(tensor), real.detach().cpu(), sums)
    return {name: _offset(tensor) for name, tensor in back["model"].items()}


def _offset(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._checkpoint_offset


def _tensors_in(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for entry in entries for tensor in _tensors_in(entry)]


def _complete(temporary: Path, sums: dict[int, int], path: Path) -> None:
    """The checksums of what was written afterwards, into the archive's directory (unzip looks at them,
    PyTorch does not); then the file gets its name."""
    with open(temporary, "r+b") as file:
        with zipfile.ZipFile(file, "a") as archive:
            entries = archive.infolist()
            starts = [entry.header_offset for entry in entries]
            for offset, checksum in sums.items():
                entries[bisect.bisect_left(starts, offset) - 1].CRC = checksum
            archive.comment = b""  # makes zipfile write the directory again
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
