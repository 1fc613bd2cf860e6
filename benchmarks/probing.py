"""The linear probe: 50 epochs through the frozen backbone, in the plain way, against one pass; and what val
says of both."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_digits

import main_finetune
import models_vit
from benchmarks import plain
from benchmarks.timing import Measure, Row, compare_apart
from jobs.loaders import features_of
from jobs.setup import prepare
from jobs.tasks.classification import Classification
from util.data.public.demo import make_demo
from util.data.tables import read_folder
from util.model.lr_schedule import learning_rate_at
from util.model.precision import Precision, cpu_has_bf16
from util.options.flag import FINETUNE
from util.options.parsing import parse
from util.parallel.processes import World

EPOCHS, SIZE, BATCH = 50, 224, 16
ARCH = ("--model", "Dinov2", "--model_arch", "dinov2_vits14", "--finetune", "")


class Pictures(torch.utils.data.Dataset):
    """Rows of a table through a transform, as an ImageFolder gives them."""

    def __init__(self, rows: pd.DataFrame, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.targets, self.transform = list(rows["path"]), list(rows["target"]), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        with contextlib.suppress(ValueError):  # timm's posterize fails under Pillow 13 for 0 bits
            return self.transform(plain.read(self.paths[place])), self.targets[place]
        return torch.zeros(3, SIZE, SIZE), self.targets[place]


def epoch_through_the_backbone(data: Path, a_class: int, name: str, size: int) -> Callable[[], None]:
    """A call that trains the head one epoch on `a_class` images a class and split, and scores val, the
    backbone running for every image."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision, table = Precision(name, device.type), read_folder(str(data)).table
    table = table.groupby(["split", "target"]).head(a_class)
    torch.manual_seed(0)
    model = models_vit.build_model(models_vit.find_backbone("Dinov2", "dinov2_vits14"), 5, size)
    models_vit.freeze_backbone(model.to(device))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    options = {"batch_size": BATCH, "num_workers": 2, "persistent_workers": True}
    train, val = (torch.utils.data.DataLoader(Pictures(table[table["split"] == split], transform),
                                              shuffle=split == "train", **options)
                  for split, transform in (("train", plain.train_transform(size)),
                                           ("val", plain.eval_transform(size))))

    def work() -> None:
        model.eval()
        for images, labels in train:
            with precision.autocast():
                loss = torch.nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad(), precision.autocast():
            for images, _ in val:
                model(images.to(device)).cpu()

    return work


def probe(data: Path, folder: Path, task: str, *more: object) -> float:
    """The program's own probe, from its flags to its results on the disk -> its score on val."""
    words = [*ARCH, "--adaptation", "lp", "--data_path", data, "--epochs", EPOCHS,
             "--output_dir", folder / "out", "--log_dir", folder / "logs", "--task", task,
             "--batch_size", BATCH, "--num_workers", 2, *more]
    with contextlib.redirect_stdout(io.StringIO()):
        main_finetune.main(list(map(str, words)))
    return json.loads((folder / "out" / task / "metrics_val.json").read_text())["score"]["value"]


def our_probe(data: Path, folder: Path, name: str, size: int, stored: bool) -> Callable[[], None]:
    """A call that runs the program's probe, with the features of an earlier one or without."""
    def work() -> None:
        for left in ("out/probe", *(() if stored else ("out/.features",))):
            shutil.rmtree(folder / left, ignore_errors=True)
        probe(data, folder, "probe", "--input_size", size, "--precision", name)

    return work


def rows(folder: Path, quick: bool) -> list[Row]:
    pictures, a_class, pairs, size = (100, 2, 1, 56) if quick else (1000, 4, 5, SIZE)
    data = folder / "probed"
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        make_demo(data, pictures=pictures, size=2 * size)
    table = read_folder(str(data)).table
    counts, of_part = (t["split"].value_counts()
                       for t in (table, table.groupby(["split", "target"]).head(a_class)))
    # an epoch on a few images of train and val stands for one on all of them
    learnt_from = ["train", "val"]
    seen = counts[learnt_from].sum() / of_part[learnt_from].sum()
    name = "bf16" if torch.cuda.is_available() or cpu_has_bf16() else "fp32"
    whole = f"probe of {EPOCHS} epochs, ViT-S/14, {pictures:,} images"
    measure = Measure("s", of_plain=EPOCHS * seen)
    at_equal, in_fp32 = ((epoch_through_the_backbone, data, a_class, precision, size)
                         for precision in (name, "fp32"))
    fresh, again = ((our_probe, data, folder, name, size, stored) for stored in (False, True))
    found = [compare_apart(f"{whole}: at equal precision ({name})", at_equal, fresh, pairs, ">= 35x",
                           "one pass is 1/50 of train and val, and test", measure),
             compare_apart(f"{whole}: against fp32", in_fp32, fresh, pairs, ">= 60x", measure=measure),
             compare_apart(f"{whole}: a second one, features stored", at_equal, again, pairs, ">= 500x",
                           measure=measure)]
    digits = write_digits(folder / "digits", 300 if quick else 1797)
    for what, place in (("demo", data), ("digits", digits)):
        mine = probe(place, folder, f"score-{what}", "--input_size", 56, "--precision", "fp32")
        theirs = single_head(place, folder, "--input_size", "56", "--precision", "fp32")
        found.append(Row(f"probe's best score on val, {what}, random weights", theirs, mine, "",
                         mine / theirs, None, ">= 1x"))
    return found


def write_digits(folder: Path, count: int) -> Path:
    """scikit-learn's digits as PNG files, in train, val and test."""
    images, labels = load_digits(return_X_y=True)
    for number in range(count):
        place = folder / ("train", "train", "train", "val", "test")[number % 5] / str(labels[number])
        place.mkdir(parents=True, exist_ok=True)
        pixels = (images[number].reshape(8, 8) * 15.9).astype(np.uint8)
        Image.fromarray(pixels).resize((56, 56)).save(place / f"{number}.png")
    return folder


def single_head(data: Path, folder: Path, *more: str) -> float:
    """The best score on val of one head at the run's own learning rate and decay, over all epochs: what 50
    epochs through the backbone come to, augmentation aside."""
    words = [*ARCH, "--adaptation", "lp", "--data_path", str(data), "--epochs", str(EPOCHS),
             "--task", "single", "--output_dir", str(folder / "out"), "--log_dir", str(folder / "logs"),
             "--batch_size", str(BATCH), *more]
    options = parse(FINETUNE, "", words)
    with contextlib.redirect_stdout(io.StringIO()):
        job = prepare(options, World(), Classification)
        features = features_of(job)
    labels = torch.tensor(job.task.targets(job.rows("train")))
    layer = torch.nn.Linear(features["train"].shape[1], len(job.task.class_names))
    torch.nn.init.trunc_normal_(layer.weight, std=2e-5)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=job.options.training.weight_decay)
    loss = job.task.loss(job.rows("train"))
    best, steps, schedule = 0.0, -(-len(labels) // BATCH), job.schedule
    for epoch in range(EPOCHS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate_at(
                epoch + (step + 0.5) / steps, schedule.peak, schedule.minimum, schedule.warmup_epochs, EPOCHS)
            rows_of_step = order[step * BATCH:(step + 1) * BATCH]
            loss(layer(features["train"][rows_of_step]), labels[rows_of_step]).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            predictions = job.task.predictions(job.rows("val"), layer(features["val"]).numpy())
        best = max(best, job.task.metrics(predictions)[0]["score"])
    return best
