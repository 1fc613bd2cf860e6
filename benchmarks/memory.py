"""Memory of a process for a fine-tuning step of a ViT-L in fp32, two images a process: alone, ddp, fsdp, and
with activation checkpointing. On CPUs; what is held on GPUs is the same tensors.

    python -m benchmarks.memory             prints the table (10 GB of memory, some minutes)
    python -m benchmarks.memory --small     the same of a small model, to see that it runs

The peak is that of the resident memory, over what the process holds once everything is imported. "start":
from nothing to the weights in place, out of a file; "step": two steps of AdamW, the second with its moments.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import project_environment
from util.core.ending import exit_with

if TYPE_CHECKING:
    from models_vit import Backbone

ROOT = Path(__file__).parent.parent
BATCH, CLASSES = 2, 5
WAYS = (("alone", 1, "ddp", False), ("alone, checkpointed", 1, "ddp", True), ("ddp", 2, "ddp", False),
        ("ddp, checkpointed", 2, "ddp", True), ("fsdp", 2, "fsdp", False),
        ("fsdp, checkpointed", 2, "fsdp", True))
GOALS = {"fsdp": 1.7, "fsdp, checkpointed": 2.0}  # times less than alone


def resident(name: str) -> int:
    """A number of this process in bytes: VmRSS now, VmHWM the most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads Linux's /proc/self/status")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(way: str, recomputed: bool, small: bool, weights: Path) -> None:
    """One process of one way: prints its numbers as JSON (the main process)."""
    import torch

    import models_vit
    from jobs.parallel import recompute_blocks
    from util.model.lr_decay import parameter_groups
    from util.parallel import sharding
    from util.parallel.processes import process_group, wrap

    with process_group("cpu") as world:
        row = backbone(small)
        size = 32 if small else 224
        forget_peak()
        base = resident("VmRSS")
        torch.manual_seed(0)
        sharded = way == "fsdp"
        with torch.device("meta" if sharded else "cpu"):
            model = models_vit.build_model(row, CLASSES, size, **({"depth": 2} if small else {}))
        if recomputed:
            recompute_blocks(model)
        if sharded:
            parts = []
            models_vit.load_backbone(model, row, str(weights), "",
                                     put=lambda part, fitted: parts.append((part, fitted)))
            sharding.shard(model, world)
            sharding.materialise(model, world.device, parts)
            del parts
        else:
            models_vit.load_backbone(model, row, str(weights), "")
        start = resident("VmHWM") - base
        forget_peak()
        running = wrap(model.train(), world)
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.05, 0.65), lr=1e-4, fused=True)
        images, labels = torch.randn(BATCH, 3, size, size), torch.arange(BATCH)
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(running(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step = resident("VmHWM") - base
        most = [max(values) for values in zip(*world.gather((base, start, step)), strict=True)]
        if world.is_main:
            print(json.dumps({"base": most[0], "start": most[1], "step": most[2]}), flush=True)


def backbone(small: bool) -> "Backbone":
    import models_vit

    arch = "dinov3_vits16" if small else "retfound_dinov2"
    return next(row for row in models_vit.BACKBONES if row.arch == arch)


def write_weights(path: Path, small: bool) -> None:
    import torch

    import models_vit

    model = models_vit.build_model(backbone(small), 0, 32 if small else 224,
                                   **({"depth": 2} if small else {}))
    torch.save(model.state_dict(), path)


def started(processes: int, words: list[str]) -> dict[str, int]:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "--module"]
    run = subprocess.run([*command, "benchmarks.memory", *words],
                         cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
                         env=project_environment(OMP_NUM_THREADS="1"))
    return json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME",
                        help="of the ways, the one alone beside it")
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.way[0], options.way[1] == "True", options.small, options.weights)
        exit_with(0)
    small = ["--small"] if options.small else []
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "weights.pth"
        script = ("from pathlib import Path; from benchmarks.memory import write_weights; "
                  f"write_weights(Path({str(weights)!r}), {options.small})")
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
        print("| a process | processes | start, GiB | step, GiB | less than alone | goal |")
        print("| --- | --- | --- | --- | --- | --- |")
        alone = None
        for name, processes, way, recomputed in WAYS:
            if options.only and name not in ("alone", *options.only):
                continue
            found = started(processes, ["--way", way, str(recomputed), "--weights", str(weights), *small])
            alone = alone or found["step"]
            goal = f"{GOALS[name]}x" if name in GOALS else ""
            print(f"| {name} | {processes} | {found['start'] / 2**30:.2f} | {found['step'] / 2**30:.2f} | "
                  f"{alone / found['step']:.2f}x | {goal} |", flush=True)
        print(f"\nover {found['base'] / 2**30:.2f} GiB that a process holds once everything is imported")


if __name__ == "__main__":
    main()
