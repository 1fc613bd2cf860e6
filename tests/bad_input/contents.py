"""What weight files hold that does not fit; safetensors files that lie."""

import json
import struct

import torch

from tests.bad_input.checkpoints import (
    DAMAGED,
    DIVERGED,
    MISFIT,
    NO_TENSORS,
    NOT_FINITE,
    OTHER_ENTRY,
    saved,
    score,
    start_from,
    weights,
    whole,
)
from tests.bad_input.checkpoints import TABLE as TABLE

# ---- what it holds -----------------------------------------------------------------------------------------

for name, content in {
    "a number": 5,
    "a list": [torch.ones(2)],
    "a tensor": torch.ones(2),
    "nothing": {},
    "text": "weights",
    "None": None,
    "an empty model": {"model": {}},
}.items():
    start_from(NO_TENSORS, name, saved(content))
for name, content in {
    "a number": 1.5,
    "a list": [1],
    "a table": {"a": 1},
    "text": "x",
    "None": None,
    "a sparse one": torch.eye(3).to_sparse(),
    "a complex one": torch.ones(2, dtype=torch.complex64),
}.items():
    start_from(
        OTHER_ENTRY,
        name,
        lambda place, content=content: saved({"model": weights(place) | {"norm.weight": content}}),
        "norm.weight",
    )
start_from(
    OTHER_ENTRY,
    "one without memory",
    lambda place: saved({"model": weights(place) | {"norm.weight": torch.ones(2, device="meta")}}),
    "norm.weight",
)
start_from(OTHER_ENTRY, "one by number", lambda place: saved({0: torch.ones(2), "a": torch.ones(2)} | {1: 5}))

start_from(MISFIT, "one tensor alone", lambda place: saved({"norm.weight": weights(place)["norm.weight"]}),
           "missing")
start_from(
    MISFIT,
    "a tensor too many",
    lambda place: saved(weights(place) | {"decoder.weight": torch.ones(3)}),
    "taken by nothing: decoder.weight",
)
start_from(
    MISFIT,
    "another shape",
    lambda place: saved(weights(place) | {"norm.weight": torch.ones(65)}),
    "of another shape",
    "file 65, model 64",
)
start_from(
    MISFIT,
    "another number of axes",
    lambda place: saved(weights(place) | {"norm.weight": torch.ones(1, 1, 64)}),
    "file 1 x 1 x 64",
)
start_from(
    MISFIT,
    "whole numbers",
    lambda place: saved({name: tensor.to(torch.int8) for name, tensor in weights(place).items()}),
    "int8",
)
start_from(MISFIT, "another architecture", lambda place: saved(weights(place)), "0 of",
           words=("--model_arch", "resnet10t"))
start_from(
    MISFIT,
    "another family",
    lambda place: saved(weights(place)),
    words=("--model", "Dinov2", "--model_arch", "dinov2_vits14", "--input_size", 28),
)
start_from(
    MISFIT,
    "positions of no square",
    lambda place: saved(weights(place) | {"pos_embed": torch.ones(1, 8, 64)}),
    "pos_embed",
)
start_from(MISFIT, "positions of none",
           lambda place: saved(weights(place) | {"pos_embed": torch.ones(1, 1, 64)}), "pos_embed")
start_from(
    NOT_FINITE, "NaN", lambda place: saved(weights(place) | {"norm.weight": torch.full((64,), torch.nan)}),
    "norm.weight"
)
start_from(
    NOT_FINITE, "infinite", lambda place: saved(weights(place) | {"norm.bias": torch.full((64,), torch.inf)}),
    "norm.bias"
)
score(
    DIVERGED,
    "in prediction",
    lambda place: saved(whole(place) | {"model": {name: tensor * torch.nan
                                                  for name, tensor in weights(place).items()}}),
)
score(
    DIVERGED,
    "in scoring",
    lambda place: saved(whole(place) | {"model": {name: tensor * torch.nan
                                                  for name, tensor in weights(place).items()}}),
    program="main_finetune.py",
)

# ---- safetensors -------------------------------------------------------------------------------------------


def safetensors(header: dict | bytes, body: bytes = bytes(256), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(start=0, end=256, shape=(64,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


LIES = {
    "a header of exabytes": safetensors({"norm.weight": entry()}, length=2**62),
    "a header of 90 MB": safetensors({"norm.weight": entry()}, length=90_000_000),
    "a header of no bytes": safetensors(b""),
    "a header that is no JSON": safetensors(b"{norm.weight"),
    "a header that is a list": safetensors(b"[1, 2]"),
    "offsets beyond the end": safetensors({"norm.weight": entry(0, 25600, (6400,))}),
    "offsets below 0": safetensors({"norm.weight": entry(-4, 252)}),
    "offsets turned round": safetensors({"norm.weight": entry(256, 0)}),
    "overlapping offsets": safetensors({"norm.weight": entry(), "norm.bias": entry()}),
    "a hole": safetensors({"norm.weight": entry(128, 256, (32,))}),
    "another dtype": safetensors({"norm.weight": entry(dtype="F64")}),
    "an unknown dtype": safetensors({"norm.weight": entry(dtype="F31")}),
    "a shape that overflows": safetensors({"norm.weight": entry(shape=(2**40, 2**40))}),
    "a shape below 0": safetensors({"norm.weight": entry(shape=(-64,))}),
    "bytes behind the end": safetensors({"norm.weight": entry()}, bytes(999)),
    "cut": safetensors({"norm.weight": entry()}, bytes(100)),
    "eight bytes": bytes(8),
    "three bytes": b"\1\0\0",
    "a deep header": safetensors(b'{"a":' * 2000 + b"1" + b"}" * 2000),
}
for name, content in LIES.items():
    start_from(DAMAGED, f"safetensors: {name}", content, file="w.safetensors")
start_from(
    MISFIT,
    "safetensors: one name twice",
    safetensors(
        b'{"norm.weight":{"dtype":"F32","shape":[64],"data_offsets":[0,256]},"norm.weight":{"dtype":"F32","shape":[64],"data_offsets":[0,256]}}'
    ),
    file="w.safetensors",
)
start_from(NO_TENSORS, "safetensors: none", safetensors(b"{}", b""), file="w.safetensors")
