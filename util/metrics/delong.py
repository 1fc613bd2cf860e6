"""Intervals and tests of the area under the ROC curve, without resampling.

Everything rests on one number an image: how much it moves the AUC. The sum of the squares of these influences
is the variance of DeLong, DeLong and Clarke-Pearson (Biometrics 1988), computed from ranks in N log N steps
as Sun and Xu (IEEE Signal Processing Letters 2014) do. Influences add up: those of several classes to that of
their mean, those of a patient's images to the patient's (as Obuchowski, Biometrics 1997, does for clusters),
and those of two models on the same images subtract to that of their difference.

N is the number of images, G of models (or groups of them).
"""

import math

import numpy as np
from scipy.special import chdtrc, expit, logit, stdtrit

from util.metrics.bootstrap import LEVEL, QUANTILE, mean_of_defined

ALIKE = 1e-9  # of AUCs and, as a share of the largest one, of standard errors: what is smaller is rounding


def auc_influence(is_class: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """AUC of one class against the rest, and what each image adds to its error.

    is_class (N,) bool, scores (N,), higher means more likely this class; a tie counts half. NaN unless both
    kinds are there; the influences (N,) are NaN where one kind has a single image, whose variance nobody
    knows.
    """
    is_class, influence = np.asarray(is_class, dtype=bool), np.full(len(is_class), math.nan)
    inside, outside = np.sort(scores[is_class]), np.sort(scores[~is_class])
    if min(len(inside), len(outside)) == 0:
        return math.nan, influence
    beaten, beating = _share_below(scores[is_class], outside), 1 - _share_below(scores[~is_class], inside)
    auc = float(beaten.mean())
    if min(len(inside), len(outside)) > 1:
        influence[is_class] = (beaten - auc) / math.sqrt(len(inside) * (len(inside) - 1))
        influence[~is_class] = (beating - auc) / math.sqrt(len(outside) * (len(outside) - 1))
    return auc, influence


def _share_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) which share of the others (sorted) lies below each score; an equal one counts half."""
    lower, upper = (np.searchsorted(others, scores, side) for side in ("left", "right"))
    return (lower + upper) / (2 * len(others))


def macro_auc_influence(one_hot: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean one-vs-rest AUC over the classes where it is defined, and its influences (N,).

    one_hot: (N, K) bool; scores: (N, K). With two classes whose scores sum to one both AUCs are the same.
    """
    by_class = [auc_influence(one_hot[:, k], scores[:, k]) for k in range(one_hot.shape[1])]
    unknown = np.full(len(one_hot), math.nan)
    defined = [influence for auc, influence in by_class if not math.isnan(auc)] or [unknown]
    return float(mean_of_defined([auc for auc, _ in by_class])), np.mean(defined, axis=0)


def variance(influence: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Sum of the squared influences; groups (N,) int: images of one patient count together."""
    if groups is None:
        return float((influence**2).sum())
    return float((np.bincount(groups, weights=influence)**2).sum() * _correction(groups))


def logit_interval(value: float, variance_: float, fewest: int,
                   of_patients: bool = False) -> tuple[float, float]:
    """Interval of a share such as the AUC, symmetric on the logit scale, so that it stays within 0 and 1.

    fewest: independent images (or patients) of the rarer kind. Where all pairs are in order (or none),
    DeLong's variance is 0: the bound is then Wilson's for so many successes out of as many trials.
    of_patients: the variance is one of sums within patients. Those of few patients are too small too often,
    so the quantile is that of a t distribution of `fewest` - 1 degrees of freedom, as for other
    cluster-robust errors (benchmarks/coverage.py measures both).
    """
    if math.isnan(value) or math.isnan(variance_):
        return math.nan, math.nan
    if value in (0.0, 1.0):
        bound = fewest / (fewest + QUANTILE**2)
        return (bound, 1.0) if value == 1 else (0.0, 1 - bound)
    quantile = stdtrit(max(1, fewest - 1), 0.5 + LEVEL / 2) if of_patients else QUANTILE
    half = quantile * math.sqrt(variance_) / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def difference_test(first: np.ndarray, second: np.ndarray, difference: float,
                    groups: np.ndarray | None = None) -> tuple[float, float, float]:
    """Two models on the same images: (lower, upper, p) of the difference of their AUCs, first - second.

    first, second: their influences (N,), image by image. p is two-sided, from the normal distribution; 1
    where the models rank alike (no variance and no difference), NaN where the variance is unknown.
    """
    error = math.sqrt(variance(first - second, groups))
    if math.isnan(error):
        return math.nan, math.nan, math.nan
    if error == 0:
        return difference, difference, 1.0 if difference == 0 else 0.0
    p = math.erfc(abs(difference) / error / math.sqrt(2))
    return difference - QUANTILE * error, difference + QUANTILE * error, p


def joint_test(aucs: np.ndarray, influences: np.ndarray,
               groups: np.ndarray | None = None) -> tuple[float, int, float]:
    """Whether several models on the same images have one AUC: (chi-square, degrees of freedom, p).

    aucs (G,); influences (G, N), image by image; groups as in `variance`. The test of DeLong, DeLong and
    Clarke-Pearson (1988): with S the covariance of the AUCs a and any L of G - 1 independent contrasts, (L
    a)' (L S L')^-1 (L a). L is the difference from the models' mean here and the inverse a pseudo-inverse,
    which gives the same and knows rank-deficient covariances: the rank is the degrees of freedom, so that a
    model that ranks the images as another does adds none, and models that all do have a chi-square of 0 on 0,
    p 1. NaN where the variance is unknown, and where the AUCs differ along a contrast without variance (all
    pairs in order, or too few images for so many models): the images do not say then how much chance does.
    """
    if groups is not None:
        influences = (np.array([np.bincount(groups, weights=one) for one in influences])
                      * math.sqrt(_correction(groups)))
    if np.isnan(influences).any() or np.isnan(aucs).any():
        return math.nan, 0, math.nan
    differences = aucs - aucs.mean()
    # singular values rather than the covariance's eigenvalues, which are their squares: rounding stays
    # further below
    contrasts, errors, _ = np.linalg.svd(influences - influences.mean(axis=0), full_matrices=False)
    kept = errors > ALIKE * np.linalg.norm(influences, axis=1).max()
    contrasts, errors = contrasts[:, kept], errors[kept]
    along = contrasts.T @ differences
    if np.abs(differences - contrasts @ along).max() > ALIKE:
        return math.nan, 0, math.nan
    chi_square, rank = float(((along / errors) ** 2).sum()), len(errors)
    return chi_square, rank, float(chdtrc(rank, chi_square)) if rank else 1.0


def _correction(groups: np.ndarray) -> float:
    """The influences carry images / (images - 1); for patients it is their number that counts. NaN for a
    single one."""
    number, images = np.count_nonzero(np.bincount(groups)), len(groups)
    return number / (number - 1) * (images - 1) / images if number > 1 else math.nan
