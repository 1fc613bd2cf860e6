"""Started by tests/end_to_end/test_sharded_backbones.py under torchrun: every backbone of the table, cut to
two blocks, built as shapes, sharded, filled from a file and stepped; an "ok ARCH" line each, or an
AssertionError.

    torchrun --nproc_per_node=2 tests/shard_backbones.py FOLDER
"""

import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

import models_vit
from engine_finetune import to_device
from util.core.ending import exit_with
from util.parallel.processes import process_group
from util.parallel.sharding import fills_by_itself, local, materialise, shard, shard_of

# wider models take their time in a test: the 7B is tried as shapes, and in the probe's test
FULL_WIDTH = 2000


def check(row: models_vit.Backbone, folder: Path, world) -> None:
    size = 2 * row.patch
    torch.manual_seed(11)
    whole = models_vit.build_model(row, 3, size, drop_path=0.1, depth=2)
    names = {name for name in whole.state_dict() if not name.startswith(models_vit.head_names(whole))}
    path = folder / f"{row.arch}.pth"
    if world.is_main:
        torch.save({name: tensor for name, tensor in whole.state_dict().items() if name in names}, path)
    world.barrier()
    torch.manual_seed(11)
    with torch.device("meta"):
        model = models_vit.build_model(row, 3, size, drop_path=0.1, depth=2)
    parts = []
    models_vit.load_backbone(model, row, str(path), "", put=lambda part, fitted: parts.append((part, fitted)))
    assert fills_by_itself(model, parts), row.arch
    shard(model, world)
    materialise(model, world.device, parts)
    wanted = whole.state_dict()
    for name, tensor in model.state_dict().items():
        assert isinstance(tensor, DTensor) and torch.equal(local(tensor), shard_of(wanted[name], tensor)), (
            row.arch,
            name,
        )
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), (row.arch, name)

    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-3, fused=True) for m in (whole, model)]
    images, outputs = to_device(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)),
                                world.device), []
    for m, optimizer in zip((whole, model), optimizers, strict=True):
        for _ in range(2):
            torch.manual_seed(5)
            loss = torch.nn.functional.cross_entropy(m.train()(images), torch.tensor([0, 2]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        outputs.append(loss.detach())
    assert torch.isfinite(outputs[0]) and torch.allclose(*outputs, rtol=1e-5), (row.arch, outputs)
    path.unlink(missing_ok=True)
    world.say(f"ok {row.arch}")


def shapes_alone(row: models_vit.Backbone, world) -> None:
    with torch.device("meta"):
        model = models_vit.build_model(row, 3, 224)
    shard(model, world)
    assert sum(parameter.numel()
               for parameter in model.parameters()) == row.parameters + 3 * model.num_features + 3
    held = sum(local(parameter).numel() for parameter in model.parameters())
    assert held <= row.parameters / world.size * 1.01 + 10 * model.num_features
    world.say(f"shapes {row.arch}")


def main(folder: Path) -> None:
    with process_group("cpu") as world:
        for row in models_vit.BACKBONES:
            with torch.device("meta"):
                width = models_vit.build_model(row, 0, 224, depth=1).num_features
            if width <= FULL_WIDTH:
                check(row, folder, world)
            else:
                shapes_alone(row, world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    exit_with(0)
