"""Numbers or names that are read beside an image: their columns, and their scales, learnt from the training
rows.

A column of a CSV becomes a column covariate_NAME of the table of images, text as it is written. The scales
are stored in the checkpoint as plain values.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from util.core.errors import InputError
from util.core.plain_numbers import number_of
from util.data.csv_columns import extreme_values, is_missing, missing_values, refuse_two_spellings, some
from util.options.data import DataOptions

PREFIX = "covariate_"


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

    def describe(self) -> str:
        if self.is_category:
            return f"one of {', '.join(self.levels[:8])}"
        return f"number, mean {self.mean:.4g}, sd {self.sd:.4g} in train"

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


def flags(asked: DataOptions, taken: Collection[str]) -> dict[str, str]:
    """{column: the flag that names it}. InputError for a column that is named twice or taken already: of
    labels or targets, of paths, of splits."""
    repeated = [name for name in dict.fromkeys(asked.covariates) if asked.covariates.count(name) > 1]
    if repeated:
        raise InputError(f"--covariates names {some(repeated)} twice")
    both = [name for name in asked.covariates if name in taken]
    if both:
        raise InputError(f"--covariates {some(both)}: already a target, the label, the path or the split of "
                         f"{asked.csv_file}")
    return dict.fromkeys(asked.covariates, "--covariates")


def add(table: pd.DataFrame, csv_file: str, cells: pd.DataFrame, asked: DataOptions) -> list[str]:
    """Add the covariates' columns to a table of images, whose rows are those of `cells`; lines about values
    that are missing or far from all others. InputError for one name in two spellings."""
    notes = []
    for name in asked.covariates:
        table[PREFIX + name] = list(cells[name])
        present = cells[name][~cells[name].map(is_missing)]
        try:
            notes += extreme_values(name, np.array(list(map(number_of, present))))
        except ValueError:  # a category
            refuse_two_spellings(csv_file, present)
    for name in asked.covariates:
        notes += missing_values(name, table[PREFIX + name].map(is_missing), table["split"],
                                "covariate, told to the model as missing")
    return notes


def check(csv_file: str, covariates: Sequence[Covariate], table: pd.DataFrame) -> list[str]:
    """InputError for text in a column of numbers; lines about levels that training did not have."""
    notes = []
    for covariate in covariates:
        cells = table[PREFIX + covariate.name]
        missing = cells.map(is_missing)
        if covariate.is_category:
            unknown = sorted(set(cells[~missing]) - set(covariate.levels))
            if unknown:
                notes.append(f"covariate {covariate.name}: training had no {', '.join(unknown[:5])} "
                             f"({cells.isin(unknown).sum():,} rows): told to the model as missing")
            continue
        numbers = pd.to_numeric(cells.mask(missing, "nan"), errors="coerce")
        wrong = (numbers.isna() & ~missing) | np.isinf(numbers)
        if wrong.any():
            found = ", ".join(map(repr, cells[wrong].unique()[:5]))
            raise InputError(f"{csv_file}: covariate {covariate.name} is a number in train, but elsewhere "
                             f"there is {found}: correct the column")
    return notes
