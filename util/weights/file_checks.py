"""What a weight file may be and hold, checked before its numbers are used: no program, no bomb, nothing but
plain tensors."""

import zipfile
from pathlib import Path

import torch

from util.core.errors import InputError

# torch.save stores tensors as they are, so that an archive holds no more than its file has; headers are far
# below this.
SPARE_BYTES = 2**20
ASK = "ask its author for a file of tensors alone (or a .safetensors file)"


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of that size begins as the format does: eight bytes for the length of a header, and its
    bracket."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size


def refuse_archive(path: Path) -> None:
    """InputError for an archive of torch that is a program, or that unpacks to more than it is (a zip
    bomb)."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return  # damaged: torch's own reader says how
    names = [member.filename for member in members]
    inside = [name for name in names if name.endswith((".pth", ".pt", ".safetensors"))]
    if inside and not any(name.endswith("data.pkl") for name in names):
        raise InputError(f"{path} is an archive with weight files in it ({', '.join(inside[:3])}): unpack it "
                         "and pass one of them")
    for ending, program in (("/constants.pkl", "a TorchScript program"),
                            (".data/extern_modules", "a torch.package")):
        if any(name.endswith(ending) for name in names):
            raise InputError(f"{path} holds {program}: refused, and nothing in it was run; {ASK}")
    unpacked, size = sum(member.file_size for member in members), path.stat().st_size
    if unpacked > size + SPARE_BYTES:
        raise InputError(f"{path} claims {unpacked:,} bytes in a file of {size:,}: refused, it is no file of "
                         "torch.save but may be a zip bomb")


def refuse_odd(path: str | Path, name: str, value: object) -> None:
    """InputError unless an entry is a tensor of real numbers that lie in the file, one by one."""
    kind = (type(value).__name__ if not isinstance(value, torch.Tensor) else
            "sparse tensor" if value.layout != torch.strided else
            "tensor without numbers" if value.is_meta else
            "quantized tensor" if value.is_quantized else
            "complex tensor" if value.is_complex() else "")
    if kind:
        raise InputError(f"{path} is no weight file: its entry {name!r} is a {kind}, not a tensor of plain "
                         "numbers")
    claimed, there = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if claimed > there + SPARE_BYTES:  # repeated by a step of 0: small ones are made by `expand`
        raise InputError(f"{path}: its entry {name!r} claims {claimed:,} bytes of {there:,}: refused, it may "
                         "be made to fill the memory")


def refuse_not_finite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """InputError where weights to start from are no numbers: every loss would be NaN."""
    # float8 has no isfinite of its own
    wrong = [name for name, tensor in tensors.items() if tensor.is_floating_point()
             and not torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all()]
    if wrong:
        raise InputError(f"{path} holds NaN or infinite numbers in {len(wrong)} of {len(tensors)} tensors "
                         f"({', '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}): its training diverged "
                         "or it is damaged; take another file")
