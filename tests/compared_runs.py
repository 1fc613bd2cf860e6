"""Run folders as a training leaves them, made of numbers that a test chooses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from util.core.run_files import write_predictions
from util.metrics.classification import predictions_table
from util.metrics.intervals import classification_intervals
from util.metrics.regression import predictions_table as regression_table

CLASSES = ("healthy", "mild", "severe")
OPTIONS = {"model": "timm", "model_arch": "vit_a", "adaptation": "finetune", "dataratio": [1.0],
           "input_size": 224, "lr": None,
           "blr": 5e-3, "epochs": 50, "finetune": "", "data_path": "/data", "output_dir": "output_dir",
           "task": "t"}


def images(labels, patients=None, place="/data/test", classes=CLASSES) -> pd.DataFrame:
    """Samples as predictions_table takes them."""
    return pd.DataFrame({
        "index": np.arange(len(labels)),
        "path": [f"{place}/{classes[k]}/{n:04d}.png" for n, k in enumerate(labels)],
        "patient": patients if patients is not None else "", "split": "test", "target": labels})


def guesses(labels, skill: float, seed: int, num_classes: int = 3) -> np.ndarray:
    """(N, K) logits of a model that knows this much."""
    return (
        np.random.default_rng(seed).normal(size=(len(labels), num_classes))
        + skill * np.eye(num_classes)[labels]
    )


def write_run(folder: Path, samples: pd.DataFrame, logits: np.ndarray, seed: int = 0, classes=CLASSES,
              split="test",
              intervals: bool = False, fingerprint: str = "", **options) -> Path:
    """A classification's run folder. intervals: store those of the figures, as present runs do, or null, as
    older ones."""
    table = predictions_table(samples, logits, list(classes))
    entries = classification_intervals(table, draws=200)
    if not intervals:
        entries = {name: {"value": entry["value"], "lower": None, "upper": None}
                   for name, entry in entries.items()}
    return write_folder(folder, table, entries, OPTIONS | {"seed": seed, **options}, split, fingerprint)


def write_regression(folder: Path, samples: pd.DataFrame, true, predicted, targets, seed: int = 0,
                     **options) -> Path:
    table = regression_table(samples, true, predicted, targets)
    return write_folder(folder, table, {"loss": {"value": 0.25, "lower": None, "upper": None}},
                        OPTIONS | {"seed": seed, "targets": targets, **options})


def write_folder(folder: Path, table: pd.DataFrame, entries: dict, options: dict, split="test",
                 fingerprint="") -> Path:
    folder.mkdir(parents=True)
    write_predictions(table, folder / f"predictions_{split}.csv")

    def plain(value):
        return None if isinstance(value, float) and np.isnan(value) else value

    entries = {name: {part: plain(value) for part, value in entry.items()} for name, entry in entries.items()}
    (folder / f"metrics_{split}.json").write_text(json.dumps(entries))
    facts = {"options": options, "data": {"fingerprint": fingerprint}, "effective_batch": 24, "processes": 1}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder
