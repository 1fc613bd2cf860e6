"""The scale of numbers to predict, learnt from the training rows and stored in the checkpoint as plain
values."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from util.core.errors import InputError

TRANSFORMS = ("none", "log")


@dataclass(frozen=True)
class TargetScale:
    """The T targets with their transform, mean and standard deviation (n - 1, of the transformed training
    values).

    A standardised value is (f(value) - mean) / sd, f the identity or the natural logarithm.
    """

    names: tuple[str, ...]
    transforms: tuple[str, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]

    @classmethod
    def learn(cls, names: Sequence[str], transforms: Sequence[str], values: np.ndarray) -> "TargetScale":
        """values: (N, T) of the training rows in the CSV's units, NaN where missing. InputError for a target
        that has fewer than two training values, or the same one in all rows: it can't be learned and its R²
        is undefined."""
        means, sds = [], []
        for name, transform, column in zip(names, transforms, np.asarray(values, dtype=np.float64).T,
                                           strict=True):
            present = _transformed(column[~np.isnan(column)], transform)
            if len(present) < 2:
                raise InputError(f"target {name} has {len(present)} values in train: leave it out of "
                                 "--targets, or fill it in")
            if present.min() == present.max():
                raise InputError(f"target {name} is constant in train ({column[~np.isnan(column)][0]:g} in "
                                 f"all {len(present)} rows): leave it out of --targets")
            means.append(float(present.mean()))
            sds.append(float(present.std(ddof=1)))
        return cls(tuple(names), tuple(transforms), tuple(means), tuple(sds))

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """(N, T) in the CSV's units -> (N, T) standardised; NaN stays."""
        columns = [_transformed(column, transform)
                   for column, transform in zip(np.asarray(values, dtype=np.float64).T, self.transforms,
                                                strict=True)]
        return (np.stack(columns, axis=1) - self.means) / self.sds

    def restore(self, standardised: np.ndarray) -> np.ndarray:
        """(N, T) standardised -> (N, T) in the CSV's units."""
        values = np.asarray(standardised, dtype=np.float64) * self.sds + self.means
        for number, transform in enumerate(self.transforms):
            if transform == "log":
                values[:, number] = np.exp(values[:, number])
        return values

    def plain(self) -> dict[str, list]:
        return {key: list(value) for key, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, stored: dict[str, list]) -> "TargetScale":
        return cls(**{key: tuple(value) for key, value in stored.items()})


def _transformed(values: np.ndarray, transform: str) -> np.ndarray:
    return np.log(values) if transform == "log" else values
