"""How long a device waits between its passes: for the first batch, an epoch's predictions, a checkpoint.
What is begun ahead or written beside the training, against the same done when it is needed."""

import functools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import models_vit
from benchmarks.pictures import photographs
from benchmarks.reading import scaled
from benchmarks.stepping import CLASSES
from benchmarks.timing import Measure, Row, compare, seconds
from util.core.machine import usable_cores
from util.core.run_files import write_predictions
from util.data.dataset import ImageDataset
from util.data.loader import Loader, loaded, make_loader
from util.data.sampling import EvalBatches, StepPlan, TrainBatches
from util.metrics.classification import predictions_table
from util.model.precision import Precision
from util.parallel.processes import World
from util.weights import checkpoint
from util.weights.background import Background

A_BATCH = 0.2  # seconds that the device computes a batch: longer than it is read
WAITED = Measure(clock=lambda run: run())  # of calls that give the seconds that were waited


def rows(folder: Path, quick: bool) -> list[Row]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [*_first_batches(folder, quick), _predictions(folder, quick, device),
            _checkpoint(folder, quick, device)]


def _first_batches(folder: Path, quick: bool) -> list[Row]:
    side, size, batches = (256, 2, 3) if quick else (2048, 8, 12)
    paths = (photographs(folder / "photographs", (side, side), 3) * batches * size)[:batches * size]
    table, workers = pd.DataFrame({"index": range(len(paths)), "path": paths}), usable_cores()
    orders = TrainBatches(StepPlan(len(paths), size, 1, 1), 0, 0), EvalBatches(len(paths), size, 0, 1)
    train, val = (make_loader(ImageDataset(table, np.zeros(len(paths), np.int64), transform, 0), order,
                              workers, False) for transform, order in zip(scaled(), orders, strict=True))
    found = []
    for what, before, after in (("evaluation", train, val), ("training", val, train)):
        found.append(compare(
            f"until the first batch of {what}, {size} JPEG {side}x{side} on {workers} cores: read when it is "
            "needed, and while the last batches of the other pass are computed",
            functools.partial(gap, before, after, False), functools.partial(gap, before, after, True),
            1 if quick else 5, measure=WAITED))
    return found


def gap(before: Loader, after: Loader, ahead: bool) -> float:
    """Seconds from the end of a pass to the first batch of the next one."""
    world = World(device=torch.device("cpu"))
    for _ in loaded(before, "", world, after.begin if ahead else None):
        time.sleep(A_BATCH)
    batches = loaded(after, "", world)
    waited = seconds(lambda: next(batches))
    for _ in batches:
        pass
    return waited


def _predictions(folder: Path, quick: bool, device: torch.device) -> Row:
    number, width = 500 if quick else 10_000, 2048
    net = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(8))).to(device)
    inputs = torch.randn(64, width, device=device)

    def step() -> None:
        net(inputs).square().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    samples = pd.DataFrame({"index": range(number), "path": [f"images/{n:06d}.jpg" for n in range(number)],
                            "patient": "", "split": "val", "target": np.arange(number) % CLASSES})
    logits = np.random.default_rng(0).normal(size=(number, CLASSES))
    table = predictions_table(samples, logits, [f"grade{k}" for k in range(CLASSES)])
    background, path = Background(), folder / "predictions_val.csv"

    def at_once() -> float:
        return seconds(lambda: (write_predictions(table, path), step()))

    def beside() -> float:
        work = functools.partial(write_predictions, table, path, background.rest)
        took = seconds(lambda: (background.begin([work]), step()))
        background.wait()
        return took

    return compare(f"{number:,} predictions and a step of large products: written before it, and beside",
                   at_once, beside, 1 if quick else 5, measure=WAITED)


def _checkpoint(folder: Path, quick: bool, device: torch.device) -> Row:
    row = models_vit.find_backbone(*("Dinov2", "dinov2_vits14") if quick else ("RETFound_dinov2",))
    model = Precision("fp32", device.type).place(models_vit.build_model(row, CLASSES, 224), device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    path, background = folder / checkpoint.LAST, Background()

    def at_once() -> float:
        return seconds(lambda: checkpoint.write(path, content))

    def beside() -> float:
        def begin() -> None:
            background.begin([functools.partial(checkpoint.write, path, background.copied(content))])

        took = seconds(begin)
        background.wait()
        return took

    size = sum(p.nbytes for p in model.parameters()) * 3 / 1e9
    return compare(f"until the loop goes on after a checkpoint of {size:.1f} GB ({row.arch} and AdamW): "
                   "written at once, and copied", at_once, beside, 1 if quick else 3, measure=WAITED)
