"""Photographs as they come from cameras, drawn: a retina with sensor noise, as a JPEG of about a bit a
pixel."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from util.data.public.demo import draw

# grey levels; with quality 90 a file has 0.7 to 1.1 bits a pixel, as published fundus photographs do
NOISE = 1.0


def photographs(folder: Path, size: tuple[int, int], count: int, suffix: str = ".jpg", noise: float = NOISE,
                **options: Any) -> list[str]:
    """`count` images of `size` (width, height) in `folder` -> their paths; options are Pillow's for
    saving."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, (width, height) = [], size
    for number in range(count):
        drawn = draw(0, number, height)
        retina = np.asarray(drawn[0] if isinstance(drawn, tuple) else drawn, dtype=np.float32)
        side = (width - height) // 2
        wide = np.pad(retina, ((0, 0), (side, width - height - side), (0, 0)))
        grain = np.random.default_rng(number).normal(0, noise, (height, width, 1))
        kind = "-p" if options.get("progressive") else ""
        path = folder / f"{width}x{height}-{noise:g}-{number}{kind}{suffix}"
        saved = {"quality": 90, **options} if suffix == ".jpg" else options
        Image.fromarray((wide + grain).clip(0, 255).astype(np.uint8)).save(path, **saved)
        paths.append(str(path))
    return paths
