"""A plain training loop, as one writes it with timm and PyTorch alone; the images, splits and figures are the
project's.

    python -m benchmarks.plain_training --data_path DIR --model_arch tf_efficientnet_lite0 \
        --finetune WEIGHTS --output DIR

What "plain" is:
model      timm.create_model with its own start of all weights that the file does not give, the head among
           them; no drop path
pixels     whole images decoded by Pillow, with the mean and standard deviation of timm's table
training   timm.data.create_transform as it comes: random resized crops of 0.08 to 1 of the image, mirrored at
           random, colour jitter of 0.4; label smoothing of 0.1, as timm's train.py has it
evaluation timm.data.create_transform as it comes: resized, centre crop by the model's crop_pct
optimizer  AdamW, 5e-4 for all layers, weight decay 0.05 (none on biases and norms); a linear warm-up of 5
           epochs, at most a fifth of all, then half a cosine to 0; fp32, or bf16 by autocast
choice     the epoch with the best score on val: mean of macro F1, ROC AUC and kappa, as the project chooses
"""

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler

from benchmarks.other_runs import write_run
from benchmarks.plain import read
from util.core.machine import usable_cores
from util.data.tables import read_folder
from util.metrics.classification import classification_metrics, predictions_table

METHOD = "plain loop"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Images(torch.utils.data.Dataset):
    """Rows of a table through a transform."""

    def __init__(self, rows: pd.DataFrame, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.targets, self.transform = list(rows["path"]), list(rows["target"]), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.transform(read(self.paths[place])), self.targets[place]


def build(options: argparse.Namespace, num_classes: int) -> torch.nn.Module:
    """The model with the weights of the file and a new head. RuntimeError where other tensors than the head's
    don't fit."""
    is_fixed = timm.get_pretrained_cfg(options.model_arch).fixed_input_size
    sized = {"img_size": options.input_size} if is_fixed else {}
    model = timm.create_model(options.model_arch, num_classes=num_classes, **sized)
    if options.finetune:
        weights = torch.load(options.finetune, map_location="cpu", weights_only=True)
        head = {name: value for name, value in model.state_dict().items()
                if name.startswith(f"{model.default_cfg['classifier']}.")}
        model.load_state_dict(weights | head)
    return model


def schedule_of(optimizer: torch.optim.Optimizer, epochs: int, warmup_epochs: float,
                steps: int) -> CosineLRScheduler:
    """A linear warm-up, at most a fifth of the epochs, then half a cosine to 0; steps: of an epoch."""
    warmup = round(min(warmup_epochs, epochs / 5) * steps)
    return CosineLRScheduler(optimizer, epochs * steps - warmup, warmup_t=warmup, warmup_prefix=True,
                             t_in_epochs=False)


def outputs_of(model: torch.nn.Module, images: torch.Tensor, precision: str) -> torch.Tensor:
    """(B, C), fp32."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
        return model(images.to(DEVICE)).float()


@torch.inference_mode()
def evaluate(model: torch.nn.Module, loader: torch.utils.data.DataLoader, rows: pd.DataFrame,
             class_names: list[str], precision: str) -> pd.DataFrame:
    """The predictions table of a split."""
    model.eval()
    logits = [outputs_of(model, images, precision).cpu().numpy() for images, _ in loader]
    return predictions_table(rows, np.concatenate(logits), class_names)


def main(argv: list[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    torch.manual_seed(options.seed)
    data = read_folder(options.data_path)
    model = build(options, len(data.class_names)).to(DEVICE)
    config = resolve_data_config({"input_size": (3, options.input_size, options.input_size)}, model=model)
    augmented = create_transform(**config, is_training=True, scale=tuple(options.crop_scale),
                                 hflip=options.hflip, color_jitter=options.color_jitter)
    rows = {split: data.table[data.table["split"] == split] for split in ("train", "val", "test")}
    loaders = {split: torch.utils.data.DataLoader(
        Images(rows[split], augmented if split == "train" else create_transform(**config)),
        options.batch_size, shuffle=split == "train", drop_last=split == "train",
        num_workers=options.num_workers, persistent_workers=options.num_workers > 0) for split in rows}
    steps = len(loaders["train"])
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, 0.05), lr=options.lr)
    schedule = schedule_of(optimizer, options.epochs, options.warmup_epochs, steps)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    best, step = -np.inf, 0
    for epoch in range(options.epochs):
        model.train()
        for images, labels in loaders["train"]:
            step += 1
            schedule.step_update(step)
            loss(outputs_of(model, images, options.precision), labels.to(DEVICE)).backward()
            optimizer.step()
            optimizer.zero_grad()
        predictions = evaluate(model, loaders["val"], rows["val"], data.class_names, options.precision)
        score = classification_metrics(predictions)[0]["score"]
        if score > best:
            best, weights, best_epoch = score, copy.deepcopy(model.state_dict()), epoch
        print(f"epoch {epoch}: score on val {score:.4f}", flush=True)
    model.load_state_dict(weights)
    tables = {split: evaluate(model, loaders[split], rows[split], data.class_names, options.precision)
              for split in ("val", "test")}
    left_out = ("output", "num_workers", "precision")
    settings = {name: value for name, value in vars(options).items() if name not in left_out}
    write_run(Path(options.output), data,
              {"model": "timm", "adaptation": METHOD, "fundus_crop": "off", **settings}, tables,
              best_epoch=best_epoch, effective_batch=options.batch_size)
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--model_arch", required=True)
    parser.add_argument("--finetune", default="", help="weights under timm's names; empty: random ones")
    parser.add_argument("--input_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--warmup_epochs", type=float, default=5)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--crop_scale", type=float, nargs=2, default=(0.08, 1.0))
    parser.add_argument("--hflip", type=float, default=0.5)
    parser.add_argument("--color_jitter", type=float, default=0.4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=usable_cores())
    parser.add_argument("--output", required=True, help="the run's folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
