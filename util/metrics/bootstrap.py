"""The bootstrap: which images a resample holds, and what the metrics of many resamples say.

A resample is a row of whole numbers, how often each image is in it (B, N). Patients are drawn where they are
known, images elsewhere, with equal chances and never by class: fixing the classes' counts leaves out the part
of the error that comes from them, so its intervals are too narrow. The same patients (or number of images)
and the same seed give the same resamples, so that metrics of two models on the same images may be subtracted
draw by draw.

B is the number of draws, N of images, G of patients.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
from scipy.special import expit, logit

DRAWS = 2000
# with more images the draws are fewer: the percentiles of so narrow a distribution need no more
MOST_ROWS = 100_000
DRAWS_OF_MANY = 200
CELLS = 2**22  # of a chunk of resamples, so that it stays near the processor
LEVEL = 0.95
QUANTILE = NormalDist().inv_cdf(0.5 + LEVEL / 2)  # 1.96


def draws_for(rows: int, draws: int = DRAWS) -> int:
    """How many resamples are taken of so many images."""
    return draws if rows <= MOST_ROWS else min(draws, DRAWS_OF_MANY)


def groups_of(patients: Sequence[str] | np.ndarray) -> np.ndarray | None:
    """(N,) patient numbers, an image without a patient ("") standing alone; None where no patient has two
    images."""
    patients = np.asarray(patients, dtype=object)
    unknown = patients == ""
    codes, number = np.empty(len(patients), dtype=np.int64), 0
    if not unknown.all():
        _, codes[~unknown] = np.unique(patients[~unknown].astype(str), return_inverse=True)
        number = int(codes[~unknown].max()) + 1
    codes[unknown] = number + np.arange(unknown.sum())
    return None if len(codes) == 0 or codes.max() + 1 == len(codes) else codes


def resamples(number: int, groups: np.ndarray | None, draws: int, seed: int) -> Iterator[np.ndarray]:
    """(b, N) float32 counts, b resamples at a time, `draws` in all. number: N; groups: from `groups_of`."""
    generator = np.random.default_rng(seed)
    units = number if groups is None else int(groups.max()) + 1
    chunk = max(1, CELLS // number)
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        drawn = generator.integers(units, size=(size, units))
        drawn += np.arange(size)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float32)
        yield counts if groups is None else counts[:, groups]


def percentile_interval(replicates: np.ndarray, level: float = LEVEL) -> tuple[float, float, int]:
    """(lower, upper, undefined): the middle 95 % of the draws where the metric is defined, and in how many it
    is not."""
    undefined = int(np.isnan(replicates).sum())
    if undefined == len(replicates):
        return math.nan, math.nan, undefined
    defined = replicates[~np.isnan(replicates)]
    return *np.quantile(defined, ((1 - level) / 2, (1 + level) / 2)).tolist(), undefined


def basic_interval(replicates: np.ndarray, value: float, least: float = -math.inf,
                   level: float = LEVEL) -> tuple[float, float, int]:
    """The percentiles' distances from the value, taken to the other side: for metrics whose resamples are
    shifted the way that the metric itself is, such as the calibration error, which chance can only raise.
    Nothing lies below `least`."""
    lower, upper, undefined = percentile_interval(replicates, level)
    return max(least, 2 * value - upper), max(least, 2 * value - lower), undefined


def corrected_interval(replicates: np.ndarray, value: float) -> tuple[float, float, int]:
    """value - bias ± 1.96 errors on the logit scale: for shares whose resamples are shifted, as average
    precision's are, in which an image stands beside its own copies. The bias is that of the resamples; its
    square is added to their variance, because it is only an estimate, too."""
    defined = replicates[~np.isnan(replicates)]
    undefined = len(replicates) - len(defined)
    if not len(defined):
        return math.nan, math.nan, undefined
    if defined.min() == defined.max():
        return float(defined[0]), float(defined[0]), undefined
    logits, middle = (logit(np.clip(shares, 1e-4, 1 - 1e-4)) for shares in (defined, value))
    bias = float(logits.mean() - middle)
    half = QUANTILE * math.sqrt(float(logits.var()) + bias**2)
    return float(expit(middle - bias - half)), float(expit(middle - bias + half)), undefined


def wilson_interval(hits: float, trials: float) -> tuple[float, float]:
    """Of a share of independent images (Wilson 1927); NaN for none."""
    if trials == 0:
        return math.nan, math.nan
    share, spread = hits / trials, QUANTILE**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    half = QUANTILE / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / trials / 4)
    # at the ends the bound is the share itself, whatever rounding makes of it
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == trials else middle + half)


def mean_of_defined(values: np.ndarray | Sequence[float] | Sequence[np.ndarray]) -> np.ndarray:
    """(P, ...) -> (...) means over the first axis of what is not NaN; NaN where nothing is."""
    values = np.asarray(values, dtype=np.float64)
    defined = (~np.isnan(values)).sum(axis=0)
    return np.where(defined > 0, np.nansum(values, axis=0) / np.maximum(defined, 1), np.nan)
