"""Fabricated folders of runs, as training leaves them, for the tests of the report."""

import json

import numpy as np
import pandas as pd
from PIL import Image

from util.core.run_files import write_metrics_json, write_predictions
from util.metrics.classification import classification_metrics, predictions_table
from util.metrics.multilabel.intervals import multilabel_intervals
from util.metrics.multilabel.predictions import decide
from util.metrics.multilabel.predictions import predictions_table as labels_table
from util.metrics.predictions import class_names_of
from util.metrics.regression import predictions_table as numbers_table

HOSTILE = ["<script>alert(1)</script>", "\"quoted\" & 'so'", "重度 非增殖性", "a|b\nc{}--x", "_under $x_1$"]
METHOD = {"method": "bootstrap of patients", "resamples": 2000, "seed": 0, "undefined": 0}


def samples(rng, number, classes, folder, patients=True, pictures=True):
    """Rows of a split, and their images (of which a second of the rows share one) below folder/pictures."""
    target = np.arange(number) % classes
    place = folder / "pictures"
    paths = []
    for row in range(number):
        path = place / f"eye {row // 2:03d} <{row % 3}>.png"
        if pictures and not path.exists():
            place.mkdir(exist_ok=True, parents=True)
            Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return pd.DataFrame({"index": np.arange(number), "path": paths, "target": target,
                         "patient": [f"p{row // 2}" for row in range(number)] if patients else "",
                         "split": "test"})


def classification_run(folder, names, number=90, splits=("val", "test"), intervals=True, pictures=True,
                       seed=0, **facts):
    """A classification's folder -> folder. facts: entries of run.json beside the usual ones."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for split in splits:
        rows = samples(rng, number, len(names), folder, pictures=pictures)
        logits = rng.normal(size=(number, len(names))) + 1.5 * np.eye(len(names))[rows["target"]]
        table = predictions_table(rows, logits, names)
        write_predictions(table, folder / f"predictions_{split}.csv")
        (folder / f"metrics_{split}.json").write_text(json.dumps(entries_of(table, intervals)))
        images[split] = {name: int(count) for name, count in table["true_class"].value_counts().items()}
    write_rest(folder, {"data": {"class_names": names, "images": {"train": images[splits[0]], **images},
                                 "notes": ["a note <b>"]}, **facts})
    return folder


def entries_of(table, intervals=True):
    """What metrics_*.json holds: the figures with made-up intervals of 0.05 on both sides, or with none."""
    figures = classification_metrics(table)[0]
    if intervals:
        for name in class_names_of(table):
            figures |= {f"sensitivity_{name}": 0.5, f"roc_auc_{name}": 0.75}

    def entry(value):
        bounds = (
            {"lower": value - 0.05, "upper": value + 0.05, **METHOD}
            if intervals
            else {"lower": None, "upper": None}
        )
        return {"value": value, **bounds}

    return {name: entry(value) for name, value in figures.items()}


def multilabel_run(folder, names, number=160, splits=("val", "test"), pictures=True, draws=200, calibrate=False,
                   **facts):
    """A folder of several labels, with the program's own intervals -> folder."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    counts, decided = {}, None
    for split in splits:
        rows = samples(rng, number, 1, folder, pictures=pictures)
        true = (rng.random((number, len(names))) < np.linspace(0.5, 0.08, len(names))).astype(float)
        logits = rng.normal(size=true.shape) * 1.4 + 2.5 * true - 2
        true[rng.random(true.shape) < 0.1] = np.nan
        table = labels_table(rows, true, logits, names)
        decided = decided or decide(table, calibrate)
        write_predictions(table, folder / f"predictions_{split}.csv")
        write_metrics_json(folder / f"metrics_{split}.json", multilabel_intervals(table, 0, draws, decided))
        counts[split] = {name: [int((true[:, k] == kind).sum()) for kind in (1, 0)] for k, name in enumerate(names)}
    write_rest(folder, {"data": {"label_names": names, "images": {"train": number, "val": number, "test": number},
                                 "positives": {"train": counts[splits[0]], **counts}, "notes": []},
                        "options": {"task": folder.name, "multilabel": True, "label_cols": names, "csv_file": "d.csv",
                                    "model": "timm", "model_arch": "vit_x"}, **facts})
    return folder


def regression_run(folder, targets, number=60, splits=("val", "test"), **facts):
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        rows = samples(rng, number, 1, folder)
        true = rng.normal(100, 15, (number, len(targets)))
        true[::7, -1] = np.nan
        predicted = np.nan_to_num(true, nan=100) + rng.normal(3, 8, true.shape)
        table = numbers_table(rows, true, predicted, targets)
        write_predictions(table, folder / f"predictions_{split}.csv")
        stored = {"loss": 0.3, "r2": 0.7, "pearson": 0.85, "n": number}
        stored |= {f"{figure}_{name}": 0.5 for name in targets for figure in ("r2", "pearson", "mae", "rmse")}
        (folder / f"metrics_{split}.json").write_text(json.dumps({
            name: {"value": value, "lower": value - 0.1, "upper": value + 0.1, **METHOD}
            for name, value in stored.items()}))
    write_rest(folder, {"data": {"targets": {"names": targets},
                                 "images": {"train": 200, "val": number, "test": number},
                                 "notes": []}, "options": {"targets": targets, "task": folder.name}, **facts})
    return folder


def write_rest(folder, facts):
    """run.json and log.txt."""
    usual = {
        "started": "2026-01-02T03:04:05+0000",
        "options": {
            "task": folder.name,
            "model": "timm",
            "model_arch": "vit_x",
            "epochs": 3,
            "adaptation": "finetune",
        },
        "versions": {"torch": "2.9.0"},
        "commit": "abc123+",
        "processes": 1,
        "device": "cpu",
        "precision": "fp32",
        "model": {"arch": "vit_x", "parameters": 1000, "trained": 1000},
        "weights": {
            "name": "RETFound",
            "used": 294,
            "expected": 294,
            "text": "",
            "sha256": "0" * 64,
            "path": "x",
        },
    }
    (folder / "run.json").write_text(json.dumps(usual | facts))
    rows = [{"epoch": e, "train_loss": 1 / (e + 1), "lr": 1e-4, "val_loss": 1.2 / (e + 1),
             "val_roc_auc": 0.6 + e / 10}
            for e in range(3)]
    (folder / "log.txt").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics_test.csv").write_text("epoch,val_loss\n1,0.5\n")
