"""Drawn volumes for tests of cases: grey sections with dark shadows, some with a bright artefact; one section of
an ill volume has a lesion, which differs from an artefact in its shape."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

SIDE = 32


def section(generator: np.random.Generator, lesion: bool, artefacts: float = 0.3) -> np.ndarray:
    """(32, 32, 3) uint8. artefacts: the share of sections that have one."""
    image = generator.normal(90 + generator.normal(0, 12), 18, (SIDE, SIDE))
    y, x = np.mgrid[:SIDE, :SIDE]
    image[:, (x[0] - generator.integers(SIDE)) ** 2 < 5] -= 30
    if generator.random() < artefacts:  # a bright line across
        image[(y[:, 0] - generator.integers(4, SIDE - 4)) ** 2 < 2] = 190
    if lesion:
        row, column = generator.integers(7, SIDE - 7, 2)
        image[(y - row) ** 2 + (x - column) ** 2 < 20] = 190
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def write_volumes(folder: Path, counts: dict[str, int], sections: int = 32, seed: int = 0) -> Path:
    """PNG files and a CSV with columns path, label, split, volume -> the CSV. Every second volume is ill."""
    generator, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for split, number in counts.items():
        for volume in range(number):
            where, label = int(generator.integers(sections)), ("healthy", "ill")[volume % 2]
            for place in range(sections):
                name = f"{split}{volume:03d}_{place:02d}.png"
                image = section(generator, label == "ill" and place == where)
                Image.fromarray(image).save(folder / name, compress_level=1)
                rows.append((name, label, split, f"{split}{volume:03d}"))
    path = folder / "volumes.csv"
    pd.DataFrame(rows, columns=["path", "label", "split", "volume"]).to_csv(path, index=False)
    return path
