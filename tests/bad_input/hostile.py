"""Weight files that were made to run code, or to fill the memory."""

import argparse
import io
import os
import pickle
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from tests.bad_input.checkpoints import (
    BOMB,
    DAMAGED,
    HOSTILE,
    NO_TENSORS,
    OTHER_ENTRY,
    archive,
    flipped,
    old_format,
    saved,
    score,
    start_from,
    weights,
)
from tests.bad_input.checkpoints import TABLE as TABLE
from tests.bad_input.place import Place

# ---- hostile -----------------------------------------------------------------------------------------------


class Call:
    """Unpickled, it would call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(mark: Path) -> str:
    return f"touch {mark}"


ATTACKS = {
    "os.system": lambda mark: Call(os.system, touch(mark)),
    "os.mkdir": lambda mark: Call(os.mkdir, str(mark)),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Call(exec, f"open({str(mark)!r}, 'w')"),
    "subprocess": lambda mark: Call(subprocess.check_call, ["touch", str(mark)]),
    "open": lambda mark: Call(open, str(mark), "w"),
    "getattr": lambda mark: Call(getattr, Call(__import__, "os"), "system"),
    "torch.hub": lambda mark: Call(torch.hub.load, str(mark.parent), "x"),
    "numpy.load": lambda mark: Call(np.load, str(mark), None, True),
    "a parser's file": lambda mark: Call(argparse.FileType("w"), str(mark)),
}
PLACES = {
    "the whole file": lambda attack, tensors: attack,
    "beside the model": lambda attack, tensors: {"model": tensors, "args": attack},
    "in the args": lambda attack, tensors: {"model": tensors, "args": argparse.Namespace(lr=attack)},
    "in the options": lambda attack, tensors: {
        "model": tensors,
        "format": 1,
        "options": {"epochs": [attack]},
    },
    "as a key": lambda attack, tensors: (
        {"model": tensors, attack: 1}
        if not isinstance(attack, Call)
        else {"model": tensors, "deep": [[[[attack]]]]}
    ),
}
for name, attack in ATTACKS.items():
    start_from(
        HOSTILE,
        name,
        lambda place, attack=attack: saved({"model": weights(place), "x": attack(place.mark())}),
        real=name == "os.system",
    )
for where, wrap in PLACES.items():
    score(HOSTILE, f"{where}", lambda place,
          wrap=wrap: saved(wrap(ATTACKS["os.system"](place.mark()), weights(place))))
score(
    HOSTILE,
    "to score with main_finetune.py",
    lambda place: saved({"model": weights(place), "x": ATTACKS["os.system"](place.mark())}),
    program="main_finetune.py",
)
start_from(
    HOSTILE,
    "old format",
    lambda place: old_format({"model": weights(place), "x": ATTACKS["os.system"](place.mark())}),
)
start_from(HOSTILE, "plain pickle", lambda place: pickle.dumps(ATTACKS["os.system"](place.mark())))
start_from(DAMAGED, "plain pickle of protocol 0",
           lambda place: pickle.dumps(ATTACKS["os.system"](place.mark()), protocol=0))
start_from(
    DAMAGED,
    "old pickle written by hand",
    lambda place: f"cos\nsystem\n(S'touch {place.mark()}'\ntR.".encode(),
)
start_from(DAMAGED, "instance opcode", lambda place: f"(S'touch {place.mark()}'\nios\nsystem\n.".encode())
start_from(HOSTILE, "called safetensors", lambda place: saved({"x": ATTACKS["os.system"](place.mark())}),
           file="w.safetensors")
start_from(
    HOSTILE,
    "numpy objects",
    lambda place: saved({"w": np.array([ATTACKS["os.system"](place.mark())], dtype=object)}),
)
start_from(HOSTILE, "a whole model", lambda place: saved(torch.nn.Linear(2, 2)),
           "torch.nn.modules.linear.Linear")
start_from(HOSTILE, "a class of its author",
           lambda place: saved({"model": weights(place), "x": Call(Call, 1)}))
start_from(HOSTILE, "a set of strings", lambda place: saved({"model": weights(place), "x": frozenset("ab")}))


def tar_of_old(place: Place) -> bytes:
    """The format of before 2017: a tar with a pickle, whose tensors are more pickles."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as file:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(ATTACKS["os.system"](place.mark()))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def odd_members(place: Place) -> bytes:
    """An archive that names its pickle well and writes elsewhere, too."""
    return archive(
        {
            "archive/data.pkl": pickle.dumps(ATTACKS["os.system"](place.mark()), protocol=2),
            "archive/version": b"3\n",
            "../../evil.py": b"import os",
            "/etc/evil": b"x",
            "archive/byteorder": b"little",
        }
    )


class Doubler(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def torchscript(place: Place) -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(Doubler(), torch.ones(2)), stream)
    return stream.getvalue()


def torch_package(place: Place) -> bytes:
    from torch.package import PackageExporter

    with PackageExporter(str(place.folder / "p.pt")) as exporter:
        exporter.save_source_string("evil", f"open({str(place.mark())!r}, 'w')")
        exporter.save_pickle("model", "model.pkl", {"x": 1})
    return (place.folder / "p.pt").read_bytes()


start_from(DAMAGED, "tar of 2016", tar_of_old)
start_from(DAMAGED, "archive with odd members", odd_members)
start_from(HOSTILE, "a TorchScript program", torchscript, "TorchScript")
start_from(HOSTILE, "a torch.package", torch_package, "torch.package")
score(HOSTILE, "a TorchScript program to score", torchscript, "TorchScript")

score(HOSTILE, "bytes of its table lost", flipped)

# ---- bombs -------------------------------------------------------------------------------------------------


def zip_bomb(place: Place) -> bytes:
    """Two gigabytes of zeros as the pickle of an archive of two megabytes."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("archive/data.pkl", "w", force_zip64=True) as member,
    ):
        block = bytes(2**24)
        for _ in range(16):
            member.write(block)
    return stream.getvalue()


def laughs(depth=60):
    """A list of ten times the same list of ten times the same list …: small in memory, endless to print or
    compare."""
    value = ["ha"]
    for _ in range(depth):
        value = [value] * 10
    return value


def deep_pickle(depth: int) -> bytes:
    """Brackets in brackets, written by hand: Python's own pickler would not go so deep."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


start_from(BOMB, "a zip bomb", zip_bomb, "bytes in a file of")
start_from(
    BOMB,
    "a tensor of no size in memory",
    lambda place: saved({"pos_embed": torch.zeros(1).expand(1, 200_001**2, 64), "x": torch.ones(1)}),
    "pos_embed",
)
start_from(
    BOMB,
    "a table of huge tensors",
    lambda place: saved(weights(place) | {"norm.weight": torch.zeros(1).expand(10**12)}),
    "norm.weight",
)
start_from(NO_TENSORS, "laughs", saved(laughs()))
start_from(OTHER_ENTRY, "laughs as a weight", lambda place: saved({"norm.weight": laughs()}))
start_from(DAMAGED, "brackets in brackets", deep_pickle(100_000))
start_from(
    NO_TENSORS,
    "brackets in brackets in an archive",
    archive({"archive/data.pkl": deep_pickle(100_000), "archive/version": b"3\n",
             "archive/byteorder": b"little"}),
)
