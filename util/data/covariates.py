"""Numbers or names that are read beside an image: their scales, learnt from the training rows.

They are stored in the checkpoint as plain values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from util.core.errors import InputError
from util.core.plain_numbers import number_of
from util.data.csv_columns import is_missing


@dataclass(frozen=True)
class Covariate:
    """A column that is read beside the image: a number (mean and sd of the training rows), or one of
    `levels`."""

    name: str
    levels: tuple[str, ...] = ()
    mean: float = 0.0
    sd: float = 1.0

    @property
    def is_category(self) -> bool:
        return bool(self.levels)

    @classmethod
    def learn(cls, name: str, cells: Sequence[str]) -> "Covariate":
        """From a column's training cells (some missing: `is_missing`): a number where all are numbers, else a
        category. InputError where there is nothing to learn from."""
        present = [cell for cell in cells if not is_missing(cell)]
        if len(set(present)) < 2:
            raise InputError(f"covariate {name} has {len(set(present))} value(s) in train: leave it out of "
                             "--covariates")
        try:
            numbers = np.array([number_of(cell) for cell in present])
        except ValueError:
            return cls(name, levels=tuple(sorted(set(present))))
        if not np.isfinite(numbers).all():
            raise InputError(f"covariate {name} has infinite values: correct them, or leave the cells empty")
        return cls(name, mean=float(numbers.mean()), sd=float(numbers.std(ddof=1)) or 1.0)

    def encode(self, cells: Sequence[str]) -> np.ndarray:
        """Cells -> (N,) float32: standardised numbers or places in `levels`; NaN where missing or of no known
        level. Levels of earlier checkpoints may be called "unknown"."""
        if self.is_category:
            places = {level: float(place) for place, level in enumerate(self.levels)}
            return np.array([places.get(cell, np.nan) for cell in cells], dtype=np.float32)
        values = np.array([np.nan if is_missing(cell) else float(cell) for cell in cells])
        return ((values - self.mean) / self.sd).astype(np.float32)

    def plain(self) -> dict:
        return {"name": self.name, "levels": list(self.levels), "mean": self.mean, "sd": self.sd}

    @classmethod
    def from_plain(cls, stored: dict) -> "Covariate":
        return cls(stored["name"], tuple(stored["levels"]), stored["mean"], stored["sd"])


def encode_all(covariates: Sequence[Covariate], columns: Sequence[Sequence[str]]) -> torch.Tensor | None:
    """(N, C) of all covariates, or None where there are none."""
    if not covariates:
        return None
    return torch.from_numpy(np.stack([c.encode(cells) for c, cells in zip(covariates, columns, strict=True)],
                                     axis=1))
