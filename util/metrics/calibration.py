"""Whether probabilities mean what they say: calibration error, slope and intercept, and the temperature that
fixes them.

N is the number of images, K of classes.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_softmax, logsumexp

from util.metrics.bootstrap import QUANTILE
from util.metrics.delong import variance

BINS = 15  # of the calibration error, of equal width, as Guo et al. (ICML 2017) take them
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 100.0
MOST_SLOPE = 1 / LEAST_TEMPERATURE  # of a recalibration
Estimate = tuple[float, np.ndarray]  # a value and its influences (N,)
_STEPS = 100  # of Newton's method, which needs some five


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) -> (N, K) probabilities in float64, as they stand in a predictions table."""
    return np.exp(log_softmax(np.asarray(logits, dtype=np.float64), axis=1))


def confidence_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(N,) bin numbers of probabilities: bin b holds those above b / bins up to (b + 1) / bins."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def reliability(probability: np.ndarray, happened: np.ndarray,
                bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share that happened (NaN where empty) and images of equal bins, (bins,) each."""
    number = confidence_bins(probability, bins)
    images = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        return (np.bincount(number, weights=probability, minlength=bins) / images,
                np.bincount(number, weights=happened, minlength=bins) / images, images)


def fit_temperature(logits: np.ndarray, true: np.ndarray) -> float:
    """The temperature whose softmax(logits / temperature) has the least negative log likelihood (Guo et al.
    2017).

    The loss is convex in the inverse temperature, so its slope has one zero at the most; where even the end
    of LEAST_TEMPERATURE to MOST_TEMPERATURE is too timid (no error at all, or no signal), that end is
    returned.
    """
    from scipy.optimize import brentq  # slow to import, and only val's outputs need it

    right = logits[np.arange(len(true)), true]

    def slope(inverse: float) -> float:
        return float(((softmax(logits * inverse) * logits).sum(axis=1) - right).mean())

    low, high = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    if slope(low) >= 0:
        return MOST_TEMPERATURE
    if slope(high) <= 0:
        return LEAST_TEMPERATURE
    return 1 / brentq(slope, low, high, xtol=1e-12, rtol=1e-12)


@dataclass(frozen=True)
class Recalibration:
    """Logits -> slope * logits + intercepts, the intercepts (K,) with the mean 0."""

    slope: float
    intercepts: tuple[float, ...]
    log_likelihood: float  # of the images that it was fitted to

    def of(self, logits: np.ndarray) -> np.ndarray:
        return self.slope * logits + np.array(self.intercepts)


def fit_recalibration(logits: np.ndarray, true: np.ndarray, with_slope: bool) -> Recalibration | None:
    """The intercepts, and with `with_slope` the one slope of all classes, of the greatest likelihood; None
    where there is none (a class without images, or classes that the logits part without an error).

    Of two classes it is the logistic recalibration of Cox (1958) as Steyerberg (Clinical Prediction Models,
    2009) uses it. Where the classes' shares alone are others than in training, intercepts alone are exact:
    they add the logarithm of the ratio of the shares (Saerens et al., Neural Computation 2002).
    """
    from scipy.optimize import minimize

    number, rows = logits.shape[1], np.arange(len(true))
    one_hot = np.eye(number)[true]
    if not one_hot.any(axis=0).all():
        return None

    def parts(values: np.ndarray) -> tuple[float, np.ndarray]:
        return (values[0] if with_slope else 1.0), np.append(values[-(number - 1):], 0.0)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        slope, intercepts = parts(values)
        changed = log_softmax(slope * logits + intercepts, axis=1)
        surplus = np.exp(changed) - one_hot
        gradient = surplus.mean(axis=0)[:-1]
        if with_slope:
            gradient = np.append((surplus * logits).sum(axis=1).mean(), gradient)
        return -changed[rows, true].mean(), gradient

    start = np.append(np.ones(int(with_slope)), np.zeros(number - 1))
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-8})
    slope, intercepts = parts(found.x)
    separated = with_slope and ((slope * logits + intercepts).argmax(axis=1) == true).all()
    if separated or np.abs(found.jac).max() > 1e-5 or not 0 < slope < MOST_SLOPE:
        return None
    return Recalibration(float(slope), tuple((intercepts - intercepts.mean()).tolist()),
                         -float(found.fun) * len(true))


def class_log_odds(logits: np.ndarray, k: int) -> np.ndarray:
    """(N,) log(p / (1 - p)) of class k's softmax, exact where p rounds to 0 or 1."""
    return logits[:, k] - logsumexp(np.delete(logits, k, axis=1), axis=1)


def slope_and_intercept(log_odds: np.ndarray, is_class: np.ndarray) -> tuple[Estimate, Estimate]:
    """Calibration slope and intercept of one class, as Van Calster et al. (BMC Medicine 2019) define them.

    The slope is that of a logistic regression of the class on the log odds that were predicted (1 is ideal,
    below 1 they are too extreme); the intercept is what has to be added to the log odds, their slope left at
    1 (0 is ideal, below 0 they are too high). Each comes with its influences (N,), whose squares sum to the
    sandwich variance. NaN where the class is separated from the rest, constant, or all there is.
    """
    log_odds, outcome = np.asarray(log_odds, np.float64), np.asarray(is_class, np.float64)
    one = np.ones((len(outcome), 1))
    slope = _logistic(np.column_stack([one, log_odds]), outcome, np.zeros(len(outcome)), np.array([0.0, 1.0]))
    intercept = _logistic(one, outcome, log_odds, np.zeros(1))
    return (slope[0][1], slope[1][:, 1]), (intercept[0][0], intercept[1][:, 0])


def _logistic(design: np.ndarray, outcome: np.ndarray, offset: np.ndarray,
              start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of a logistic regression by Newton's method, and each row's influence on them; NaN without
    a maximum."""
    unknown = np.full(len(start), math.nan), np.full(design.shape, math.nan)
    if outcome.min(initial=1) == outcome.max(initial=0):
        return unknown

    def loss(coefficients: np.ndarray) -> float:
        return np.logaddexp(0, (1 - 2 * outcome) * (design @ coefficients + offset)).sum()

    coefficients, before = start, loss(start)
    for _ in range(_STEPS):
        chance = expit(design @ coefficients + offset)
        slope = design.T @ (outcome - chance)
        curvature = design.T @ (design * (chance * (1 - chance))[:, None])
        if (not np.isfinite(curvature).all() or np.linalg.cond(curvature) > 1e12
                or np.abs(coefficients).max() > 1e4):
            return unknown
        step = np.linalg.solve(curvature, slope)
        while (now := loss(coefficients + step)) > before + 1e-9 * abs(before) and np.abs(step).max() > 1e-12:
            step = step / 2
        coefficients, before = coefficients + step, now
        if np.abs(step).max() < 1e-9:
            return coefficients, (design * (outcome - chance)[:, None]) @ np.linalg.inv(curvature).T
    return unknown


def wald_interval(value: float, influence: np.ndarray, groups: np.ndarray | None) -> tuple[float, float]:
    """value ± 1.96 standard errors of its influences, those of a patient's images together."""
    half = QUANTILE * math.sqrt(variance(influence, groups))
    return value - half, value + half
