"""Small images with several labels each, and the CSV that says them, for the tests that run the whole way."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

LABELS = ["bright", "red", "rare"]
SPLITS = {"train": 40, "val": 24, "test": 30}


def write_labelled(folder: Path, seed: int = 4, size: int = 40) -> Path:
    """folder/NNN.png and folder/labels.csv: columns path, split, patient (two images each), site, the labels
    (a third of `rare` empty), and `tags`, the names of those that are there."""
    rng, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in SPLITS.items():
        for place in range(count):
            bright, red, rare = place % 2, place // 2 % 2, int(place % 5 == 0)
            grey = rng.integers(0, 70, (size, size, 3)) + 60 * bright
            grey[..., 0] += 90 * red
            if rare:
                grey[10:20, 10:20] = 250
            Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
            values = dict(zip(LABELS, (str(bright), str(red), str(rare)), strict=True))
            tags = ";".join(name for name, value in values.items() if value == "1")
            if place % 3 == 2:
                values["rare"] = ""
            rows.append({"path": f"{number:03d}.png", "split": split, "patient": f"{split}{place // 2}",
                         "site": "north" if place % 4 < 2 else "south", **values, "tags": tags})
            number += 1
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"
