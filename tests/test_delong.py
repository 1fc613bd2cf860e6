"""DeLong's variance against its definition by pairs, and against the jackknife; the clustered one against repeated images."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from util import delong


def by_pairs(is_class, scores):
    """AUC and variance as DeLong, DeLong and Clarke-Pearson (1988) write them: all pairs, then two sample variances."""
    inside, outside = scores[is_class], scores[~is_class]
    wins = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    of_inside, of_outside = wins.mean(axis=1), wins.mean(axis=0)
    return wins.mean(), of_inside.var(ddof=1) / len(inside) + of_outside.var(ddof=1) / len(outside)


def covariance_by_pairs(is_class, first, second):
    parts = []
    for scores in (first, second):
        inside, outside = scores[is_class], scores[~is_class]
        wins = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
        parts.append((wins.mean(axis=1), wins.mean(axis=0)))
    return sum(np.cov(one, other)[0, 1] / len(one) for one, other in zip(*parts, strict=True))


@pytest.fixture(params=[False, True], ids=["distinct scores", "tied scores"])
def example(request):
    rng = np.random.default_rng(3)
    is_class = rng.random(90) < 0.3
    first = rng.normal(size=90) + is_class
    second = 0.6 * first + rng.normal(size=90) + 0.3 * is_class
    return (is_class, np.round(first), np.round(second)) if request.param else (is_class, first, second)


def test_auc_and_variance_are_those_of_all_pairs(example):
    is_class, scores, _ = example
    auc, influence = delong.auc_influence(is_class, scores)
    expected, variance = by_pairs(is_class, scores)
    assert auc == pytest.approx(expected, abs=1e-12) == pytest.approx(roc_auc_score(is_class, scores), abs=1e-12)
    assert delong.variance(influence) == pytest.approx(variance, rel=1e-12)


def test_the_jackknife_is_near(example):
    is_class, scores, _ = example
    n = len(scores)
    left_out = np.array([by_pairs(np.delete(is_class, i), np.delete(scores, i))[0] for i in range(n)])
    jackknife = (n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()
    assert delong.variance(delong.auc_influence(is_class, scores)[1]) == pytest.approx(jackknife, rel=0.02)


def test_a_difference_has_the_variance_of_both_less_their_covariance(example):
    is_class, first, second = example
    (one, of_one), (other, of_other) = (delong.auc_influence(is_class, scores) for scores in (first, second))
    lower, upper, p = delong.difference_test(of_one, of_other, one - other)
    error = math.sqrt(by_pairs(is_class, first)[1] + by_pairs(is_class, second)[1]
                      - 2 * covariance_by_pairs(is_class, first, second))
    assert (upper - lower) / 2 == pytest.approx(1.959964 * error, rel=1e-6)
    z = (one - other) / error
    assert p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=1e-9)
    assert delong.difference_test(of_one, of_one, 0.0) == (0.0, 0.0, 1.0)


def test_the_same_image_many_times_is_one_patient():
    rng = np.random.default_rng(0)
    is_class, scores = rng.random(200) < 0.4, rng.normal(size=200)
    once = delong.variance(delong.auc_influence(is_class, scores)[1])
    _, influence = delong.auc_influence(np.repeat(is_class, 4), np.repeat(scores, 4))
    assert delong.variance(influence, np.repeat(np.arange(200), 4)) == pytest.approx(once, rel=0.02)
    assert delong.variance(influence) == pytest.approx(once / 4, rel=0.02)  # what ignoring patients would claim


def test_several_classes_are_averaged():
    rng = np.random.default_rng(1)
    true = rng.integers(3, size=300)
    scores = rng.random((300, 3)) + 0.3 * np.eye(3)[true]
    one_hot = np.eye(4, dtype=bool)[true]  # the fourth class is absent
    auc, influence = delong.macro_auc_influence(one_hot, np.column_stack([scores, rng.random(300)]))
    assert auc == pytest.approx(np.mean([roc_auc_score(true == k, scores[:, k]) for k in range(3)]), abs=1e-12)
    draws = []
    for _ in range(1500):
        rows = rng.integers(300, size=300)
        draws.append(np.mean([delong.auc_influence(true[rows] == k, scores[rows, k])[0] for k in range(3)]))
    assert delong.variance(influence) == pytest.approx(np.var(draws), rel=0.15)


def test_what_has_no_interval():
    auc, influence = delong.auc_influence(np.array([True, True]), np.array([0.1, 0.2]))
    assert math.isnan(auc) and np.isnan(influence).all()
    auc, influence = delong.auc_influence(np.array([True, False, False]), np.array([0.3, 0.2, 0.1]))
    assert auc == 1 and np.isnan(influence).all()
    assert np.isnan(delong.logit_interval(1.0, delong.variance(influence), 1)).all()
    assert np.isnan(delong.difference_test(influence, influence, 0.0)).all()
    assert np.isnan(delong.macro_auc_influence(np.ones((3, 1), bool), np.ones((3, 1)))[0])


def test_a_perfect_auc_is_not_certain():
    lower, upper = delong.logit_interval(1.0, 0.0, 20)
    assert upper == 1 and lower == pytest.approx(0.8389, abs=1e-4)  # Wilson's bound for 20 of 20: Newcombe (1998) has 0.1611
    assert delong.logit_interval(0.0, 0.0, 20) == pytest.approx((0, 1 - 0.8389), abs=1e-4)
    lower, upper = delong.logit_interval(0.9, 0.02**2, 50)
    assert 0 < lower < 0.9 < upper < 1 and 0.9 - lower > upper - 0.9
