"""Sharded tensors on the disk: written by all processes together, read by any number of them, nothing in them
is run.

A sharded last checkpoint is a small `checkpoint-last.pth` beside a folder `checkpoint-last.<id>.shards` of
PyTorch's distributed checkpoints. The folder is complete before the small file names it, and older folders go
afterwards: whenever the processes are killed, the small file and the folder that it names are a pair.

PyTorch reads such a folder's `.metadata` by plain pickle and entries that are no tensors without
`weights_only`, which would run a stranger's code. Here the names in it are held to a list, and it may speak
of tensors alone.
"""

import io
import pickle
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from util.core.errors import InputError, RunError
from util.weights.fitting import WeightFile

FOLDER = re.compile(r"checkpoint-last\.[0-9a-f]{12}\.shards")
PATTERN = "checkpoint-last.*.shards"
DATA_FILE = re.compile(r"__\d+_\d+\.distcp")
LARGEST_INDEX = 2**28  # bytes of a .metadata; that of the 6.7B model takes 1 MB
_CHECKPOINT = "torch.distributed.checkpoint."
DTYPES = ("float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool")
ALLOWED = {f"{_CHECKPOINT}metadata": ("Metadata", "TensorStorageMetadata", "TensorProperties",
                                      "ChunkStorageMetadata", "MetadataIndex", "StorageMeta",
                                      "_MEM_FORMAT_ENCODING"),
           f"{_CHECKPOINT}filesystem": ("_StorageInfo",),
           "torch": ("Size", *DTYPES),
           "torch.serialization": ("_get_layout",)}


class _Index(pickle.Unpickler):
    """Reads a `.metadata`: the classes that it is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module, name)


def read_index(folder: Path) -> Metadata:
    """What a shard folder holds. InputError where it is absent or damaged, or holds more than tensors:
    nothing is run."""
    path = Path(folder) / ".metadata"
    remedy = "go on from checkpoint-best.pth's weights with --finetune, or start anew"
    try:
        if path.stat().st_size > LARGEST_INDEX:
            raise InputError(f"{path} is too large for an index of shards: {remedy}")
        found = _Index(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise InputError(f"the shards of this checkpoint, {folder}, can't be read ({error.strerror}): put "
                         f"the folder back, {remedy}") from error
    except InputError:
        raise
    except Exception as error:  # a stranger's bytes can fail the reader in any way; the cause stays attached
        raise InputError(f"{path} is damaged, or holds more than tensors, and nothing in it was run "
                         f"({(str(error).splitlines() or [type(error).__name__])[0][:120]}): "
                         f"{remedy}") from error
    if not (isinstance(found, Metadata) and _speaks_of_tensors_alone(found)):
        raise InputError(f"{path} speaks of more than tensors in files beside it: refused, and nothing in it "
                         f"was run; {remedy}")
    return found


def _speaks_of_tensors_alone(found: Metadata) -> bool:
    tensors, places = getattr(found, "state_dict_metadata", None), getattr(found, "storage_data", None)
    return (isinstance(tensors, dict) and isinstance(places, dict)
            and all(type(name) is str and type(entry) is TensorStorageMetadata
                    for name, entry in tensors.items())
            and all(type(place) is _StorageInfo and type(place.relative_path) is str
                    and DATA_FILE.fullmatch(place.relative_path) and type(place.offset) is int
                    and type(place.length) is int and not getattr(place, "transform_descriptors", None)
                    for place in places.values()))


class _Writer(dcp.FileSystemWriter):
    def storage_meta(self) -> StorageMeta:
        # PyTorch's own notes this machine's path, as an object that a reader has to build
        return StorageMeta()


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        found = read_index(Path(self.path))
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found


def write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors, sharded or the same in all processes, into a new folder; collective. RunError, in all
    processes."""
    try:
        # PyTorch's notes are about what we know: one process alone, storages of its own
        with warnings.catch_warnings(action="ignore"):
            dcp.save(dict(tensors), storage_writer=_Writer(str(folder), thread_count=1))
    except (dcp.CheckpointException, OSError, RuntimeError) as error:
        raise RunError(f"{folder} could not be written ({reason_of(error)}): the checkpoint before it stays; "
                       "make room and start again with --resume auto", everywhere=True) from error


def read_shards(folder: Path, into: dict[str, torch.Tensor], alone: bool = False) -> None:
    """Fill tensors, sharded over any number of processes or whole, from a shard folder; collective unless
    `alone`.

    InputError where one of them is not there, has another shape, or the files are damaged.
    """
    index = read_index(folder).state_dict_metadata
    for name, tensor in into.items():
        stored = tuple(index[name].size) if name in index else None
        if stored != tuple(tensor.shape):
            raise InputError(f"{folder} holds {name} as {stored}, not as {tuple(tensor.shape)}: it belongs "
                             "to another model or was changed; go on from checkpoint-best.pth's weights "
                             "with --finetune, or start anew")
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with warnings.catch_warnings(action="ignore"):  # as where it writes
            dcp.load(dict(into), storage_reader=_Reader(str(folder)), planner=planner, no_dist=alone)
    except (Exception, dcp.CheckpointException) as error:  # a damaged file can fail the reader in any way
        raise InputError(f"{folder} is damaged ({reason_of(error)}): go on from checkpoint-best.pth's "
                         "weights with --finetune, or start anew") from error


def reason_of(error: BaseException) -> str:
    """Why, in a few words: a distributed error holds those of the processes."""
    inner = [failure[0] if isinstance(failure, tuple) else failure
             for failure in getattr(error, "failures", {}).values()]
    error = inner[0] if inner else error
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0][:120]


# ---- the small file ----------------------------------------------------------------------------------------

def split(content: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    """A last checkpoint's content -> (the same with shapes alone in the place of its large tensors, these by
    name)."""
    tensors = {f"model.{name}": tensor for name, tensor in content["model"].items()}
    state = content["optimizer"]["state"]
    moments = {(number, key): tensor for number, entry in state.items() for key, tensor in entry.items()
               if tensor.ndim}
    tensors |= {f"optimizer.{number}.{key}": tensor for (number, key), tensor in moments.items()}
    small = content | {"model": {name: _shape(tensor) for name, tensor in content["model"].items()}}
    small["optimizer"] = content["optimizer"] | {"state": {
        number: {key: _shape(tensor) if (number, key) in moments else tensor for key, tensor in entry.items()}
        for number, entry in state.items()}}
    return small, tensors


def _shape(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def folder_of(file: WeightFile) -> Path | None:
    """The shard folder that a checkpoint names; None for an ordinary one. InputError for a name that is none
    of ours."""
    name = file.rest.get("shards")
    if name is None:
        return None
    if not (isinstance(name, str) and FOLDER.fullmatch(name)):
        raise InputError(f"{file.path} names shards outside its own folder: refused; start anew, or from "
                         "other weights")
    return file.path.parent / name


def whole(file: WeightFile, with_moments: bool = True) -> WeightFile:
    """A sharded checkpoint as an ordinary one, all of it (or the model alone) in this process's memory."""
    folder = folder_of(file)
    if folder is None:
        return file

    def room(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: torch.empty(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor
                for name, tensor in tensors.items()}

    tensors, stored = room(file.tensors), read_index(folder).state_dict_metadata
    wanted, optimizer = {}, file.rest["optimizer"]
    for name, tensor in tensors.items():  # a checkpoint's names lose `backbone.` where it is read
        full = f"model.backbone.{name}"
        wanted[full if full in stored else f"model.{name}"] = tensor
    if with_moments:
        state = {number: room(entry) for number, entry in optimizer["state"].items()}
        wanted |= {f"optimizer.{number}.{key}": tensor for number, entry in state.items()
                   for key, tensor in entry.items() if tensor.ndim}
        optimizer = optimizer | {"state": state}
    read_shards(folder, wanted, alone=True)
    rest = {name: value for name, value in file.rest.items() if name != "shards"}
    return replace(file, tensors=tensors, rest=rest | {"optimizer": optimizer})


def remove_unnamed(folder: Path, named: str | None) -> None:
    """Delete the shard folders that the last checkpoint does not name: older ones, and what a killed run
    began."""
    for path in folder.glob(PATTERN):
        if path.name != named and FOLDER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
