"""Numbers to predict, and numbers or names that are read beside a picture: their scales, learnt from the training rows.

Both are stored in the checkpoint as plain values, so that what a model gives out can be read in the CSV's own units.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from util.core.errors import InputError
from util.core.plain_numbers import number_of
from util.data.csv_columns import is_missing

TRANSFORMS = ("none", "log")


@dataclass(frozen=True)
class TargetScale:
    """The T targets with their transform, mean and standard deviation (of the transformed training values, n - 1).

    A standardised value is (f(value) - mean) / sd, f the identity or the natural logarithm.
    """

    names: tuple[str, ...]
    transforms: tuple[str, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]

    @classmethod
    def learn(cls, names: Sequence[str], transforms: Sequence[str], values: np.ndarray) -> "TargetScale":
        """values: (N, T) of the training rows in the CSV's units, NaN where missing. InputError for a target that has
        fewer than two training values, or the same one in all rows: it can't be learned and its R² is undefined."""
        means, sds = [], []
        for name, transform, column in zip(names, transforms, np.asarray(values, dtype=np.float64).T, strict=True):
            present = _transformed(column[~np.isnan(column)], transform)
            if len(present) < 2:
                raise InputError(f"target {name} has {len(present)} values in train: leave it out of --targets, or fill it in")
            if present.min() == present.max():
                raise InputError(f"target {name} is constant in train ({column[~np.isnan(column)][0]:g} in all "
                                 f"{len(present)} rows): leave it out of --targets")
            means.append(float(present.mean()))
            sds.append(float(present.std(ddof=1)))
        return cls(tuple(names), tuple(transforms), tuple(means), tuple(sds))

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """(N, T) in the CSV's units -> (N, T) standardised; NaN stays."""
        columns = [_transformed(column, transform)
                   for column, transform in zip(np.asarray(values, dtype=np.float64).T, self.transforms, strict=True)]
        return (np.stack(columns, axis=1) - self.means) / self.sds

    def restore(self, standardised: np.ndarray) -> np.ndarray:
        """(N, T) standardised -> (N, T) in the CSV's units."""
        values = np.asarray(standardised, dtype=np.float64) * self.sds + self.means
        for number, transform in enumerate(self.transforms):
            if transform == "log":
                values[:, number] = np.exp(values[:, number])
        return values

    def plain(self) -> dict:
        return {key: list(value) for key, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, stored: dict) -> "TargetScale":
        return cls(**{key: tuple(value) for key, value in stored.items()})


def _transformed(values: np.ndarray, transform: str) -> np.ndarray:
    return np.log(values) if transform == "log" else values


@dataclass(frozen=True)
class Covariate:
    """A column that is read beside the picture: a number (mean and sd of the training rows), or one of `levels`."""

    name: str
    levels: tuple[str, ...] = ()
    mean: float = 0.0
    sd: float = 1.0

    @property
    def is_category(self) -> bool:
        return bool(self.levels)

    @classmethod
    def learn(cls, name: str, cells: Sequence[str]) -> "Covariate":
        """From a column's training cells (some missing: `is_missing`): a number where all are numbers, else a category.
        InputError where there is nothing to learn from."""
        present = [cell for cell in cells if not is_missing(cell)]
        if len(set(present)) < 2:
            raise InputError(f"covariate {name} has {len(set(present))} value(s) in train: leave it out of --covariates")
        try:
            numbers = np.array([number_of(cell) for cell in present])
        except ValueError:
            return cls(name, levels=tuple(sorted(set(present))))
        if not np.isfinite(numbers).all():
            raise InputError(f"covariate {name} has infinite values: correct them, or leave the cells empty")
        return cls(name, mean=float(numbers.mean()), sd=float(numbers.std(ddof=1)) or 1.0)

    def encode(self, cells: Sequence[str]) -> np.ndarray:
        """Cells -> (N,) float32: standardised numbers or places in `levels`; NaN where missing or of no known level. Levels of
        earlier checkpoints may be called "unknown"."""
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
    return torch.from_numpy(np.stack([c.encode(cells) for c, cells in zip(covariates, columns, strict=True)], axis=1))
