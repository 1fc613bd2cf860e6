"""Calibration figures against scikit-learn, scipy and their definitions."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from util.metrics import calibration
from util.metrics.weighted import Images, WeightedFigures


@pytest.fixture
def example():
    rng = np.random.default_rng(5)
    logits = 2.0 * rng.normal(size=(800, 4))
    chances = calibration.softmax(logits / 2.5)  # so the logits are too extreme by 2.5
    true = (rng.random(800)[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    return logits, true


def test_temperature_is_where_the_loss_is_least(example):
    logits, true = example
    found = minimize_scalar(lambda t: log_loss(true, calibration.softmax(logits / t)), bounds=(0.1, 20),
                            method="bounded", options={"xatol": 1e-9})
    assert calibration.fit_temperature(logits, true) == pytest.approx(found.x, rel=1e-5)
    assert found.x == pytest.approx(2.5, rel=0.15)


def test_temperature_without_error_or_signal_stays_in_its_bounds():
    perfect = 5.0 * np.eye(3)
    assert calibration.fit_temperature(perfect, np.arange(3)) == calibration.LEAST_TEMPERATURE
    assert calibration.fit_temperature(perfect, np.array([1, 2, 0])) == calibration.MOST_TEMPERATURE


def test_slope_and_intercept_are_those_of_logistic_regressions(example):
    logits, true = example
    for k in range(4):
        odds, is_class = calibration.class_log_odds(logits, k), true == k
        chance = calibration.softmax(logits)[:, k]
        assert odds == pytest.approx(np.log(chance / (1 - chance)), rel=1e-6)
        (slope, influence), (intercept, _) = calibration.slope_and_intercept(odds, is_class)
        fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds[:, None], is_class)
        assert slope == pytest.approx(fitted.coef_[0, 0], rel=1e-4)
        offset = minimize(lambda a, odds=odds, y=is_class: np.logaddexp(0, (1 - 2 * y) * (odds + a[0])).sum(),
                          [0.0], tol=1e-10)
        assert intercept == pytest.approx(offset.x[0], abs=1e-4)
        # the sandwich error: near the spread of slopes of resamples
        if k == 0:
            rng, slopes = np.random.default_rng(0), []
            for _ in range(300):
                rows = rng.integers(len(odds), size=len(odds))
                slopes.append(calibration.slope_and_intercept(odds[rows], is_class[rows])[0][0])
            assert math.sqrt((influence**2).sum()) == pytest.approx(np.std(slopes), rel=0.15)


def test_log_odds_of_sure_outputs_are_exact():
    assert calibration.class_log_odds(np.array([[1000.0, 0.0], [0.0, 1000.0]]),
                                      0) == pytest.approx([1000, -1000])


def test_separated_or_constant_classes_have_no_slope():
    odds = np.array([-2.0, -1.0, 1.0, 2.0])
    for is_class in (odds > 0, np.ones(4, bool)):
        (slope, influence), _ = calibration.slope_and_intercept(odds, is_class)
        assert math.isnan(slope) and np.isnan(influence).all()
    (_, _), (intercept, _) = calibration.slope_and_intercept(odds, odds > 0)
    assert intercept == pytest.approx(0, abs=1e-9)  # it exists all the same


def test_reliability_bins_add_up(example):
    logits, true = example
    chances = calibration.softmax(logits)
    right = chances.argmax(axis=1) == true
    confidence, accuracy, images = calibration.reliability(chances.max(axis=1), right, calibration.BINS)
    assert images.sum() == len(true) and len(images) == calibration.BINS
    there = images > 0
    gaps = np.abs(confidence - accuracy)[there] * images[there]
    known = Images(list("abcd"), true, chances.argmax(axis=1), chances, logits, None, None)
    assert gaps.sum() / len(true) == pytest.approx(WeightedFigures(known).values()["ece"], abs=1e-12)
    # a bin holds its upper end, the lowest one also 0
    assert list(calibration.confidence_bins(np.array([0.0, 1 / 15, 1 / 15 + 1e-9, 1.0]), 15)) == [0, 0, 1, 14]
