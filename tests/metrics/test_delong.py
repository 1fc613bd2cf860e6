"""DeLong's variance against its definition by pairs, and against the jackknife; the clustered one against
repeated images; the joint test against the paper's formula with another contrast matrix, and against a
bootstrap."""

import math

import numpy as np
import pytest
from scipy.stats import chi2, kstest, norm
from sklearn.metrics import roc_auc_score

from benchmarks.coverage import Kind, draw
from util.metrics import delong
from util.metrics.intervals import classification_intervals


def by_pairs(is_class, scores):
    """AUC and variance as DeLong, DeLong and Clarke-Pearson (1988) write them: all pairs, then two sample
    variances."""
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
    assert (
        auc == pytest.approx(expected, abs=1e-12) == pytest.approx(roc_auc_score(is_class, scores), abs=1e-12)
    )
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
    # what ignoring patients would claim
    assert delong.variance(influence) == pytest.approx(once / 4, rel=0.02)


def test_several_classes_are_averaged():
    rng = np.random.default_rng(1)
    true = rng.integers(3, size=300)
    scores = rng.random((300, 3)) + 0.3 * np.eye(3)[true]
    one_hot = np.eye(4, dtype=bool)[true]  # the fourth class is absent
    auc, influence = delong.macro_auc_influence(one_hot, np.column_stack([scores, rng.random(300)]))
    assert auc == pytest.approx(np.mean([roc_auc_score(true == k, scores[:, k]) for k in range(3)]),
                                abs=1e-12)
    draws = []
    for _ in range(1500):
        rows = rng.integers(300, size=300)
        draws.append(np.mean([delong.auc_influence(true[rows] == k, scores[rows, k])[0] for k in range(3)]))
    assert delong.variance(influence) == pytest.approx(np.var(draws), rel=0.15)


# ---- several models at once --------------------------------------------------------------------------------

def several(rng: np.random.Generator, number: int, images: int = 90,
            ties: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """(is_class (N,), scores (G, N)) of models that share some of what they know."""
    is_class = rng.random(images) < 0.4
    shared = rng.normal(size=images)
    scores = [shared + rng.normal(size=images) + (0.6 + 0.3 * g) * is_class for g in range(number)]
    return is_class, np.round(scores, ties)


def influences_of(is_class: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pairs = [delong.auc_influence(is_class, each) for each in scores]
    return np.array([auc for auc, _ in pairs]), np.array([influence for _, influence in pairs])


def by_contrasts(aucs: np.ndarray, covariance: np.ndarray) -> tuple[float, int, float]:
    """The paper's formula with the contrasts of neighbours, inverted as it is written."""
    contrasts = np.eye(len(aucs))[:-1] - np.eye(len(aucs))[1:]
    apart = contrasts @ aucs
    statistic = apart @ np.linalg.inv(contrasts @ covariance @ contrasts.T) @ apart
    return statistic, len(apart), chi2.sf(statistic, len(apart))


@pytest.mark.parametrize("ties", [9, 0], ids=["distinct scores", "tied scores"])
def test_the_joint_test_is_that_of_all_pairs(ties):
    is_class, scores = several(np.random.default_rng(7), 4, ties=ties)
    covariance = np.array([[covariance_by_pairs(is_class, one, other) for other in scores] for one in scores])
    expected = by_contrasts(np.array([roc_auc_score(is_class, each) for each in scores]), covariance)
    found = delong.joint_test(*influences_of(is_class, scores))
    assert found == pytest.approx(expected, rel=1e-9) and 0 < found[2] < 1


@pytest.mark.parametrize("patients", [None, np.arange(90) // 4], ids=["images", "patients"])
def test_of_two_models_it_is_the_test_of_the_pair(example, patients):
    aucs, influences = influences_of(example[0], np.array(example[1:]))
    p = delong.difference_test(*influences, aucs[0] - aucs[1], patients)[2]
    assert delong.joint_test(aucs, influences, patients) == pytest.approx(
        (norm.isf(p / 2) ** 2, 1, p), rel=1e-9
    )


def test_models_that_rank_alike_add_no_degree_of_freedom():
    is_class, scores = several(np.random.default_rng(7), 3)
    expected = delong.joint_test(*influences_of(is_class, scores))
    more = np.array([*scores, np.exp(scores[0]), 5 * scores[2] - 1])
    assert (
        delong.joint_test(*influences_of(is_class, more)) == pytest.approx(expected, rel=1e-9)
        and expected[1] == 2
    )
    assert delong.joint_test(*influences_of(is_class, more[[0, 3, 0]])) == (0.0, 0, 1.0)


def test_a_joint_test_that_nobody_can_make():
    """A perfect model and one that is always wrong differ without any variance; of a single positive nobody
    knows it."""
    is_class = np.arange(12) < 5
    perfect = is_class + np.linspace(0, 0.1, 12)
    chi_square, freedom, p = delong.joint_test(
        *influences_of(is_class, np.array([perfect, -perfect, perfect]))
    )
    assert math.isnan(chi_square) and math.isnan(p) and freedom == 0
    single = np.arange(12) < 1
    assert math.isnan(delong.joint_test(*influences_of(single, np.array([perfect, -perfect])))[2])


def test_patients_count_once_in_the_joint_test():
    is_class, scores = several(np.random.default_rng(5), 3, images=300)
    once = delong.joint_test(*influences_of(is_class, scores))
    aucs, influences = influences_of(np.repeat(is_class, 4), np.repeat(scores, 4, axis=1))
    chi_square, freedom, _ = delong.joint_test(aucs, influences, np.repeat(np.arange(300), 4))
    assert chi_square == pytest.approx(once[0], rel=0.02) and freedom == once[1]
    # what ignoring patients would claim
    assert delong.joint_test(aucs, influences)[0] == pytest.approx(4 * once[0], rel=0.02)


@pytest.mark.long
def test_the_joint_test_of_several_classes_is_the_bootstraps():
    """Macro AUC, three models, three classes: the covariance of 3,000 resamples gives the same chi-square but
    for its noise."""
    rng = np.random.default_rng(2)
    true, shared = rng.integers(3, size=250), rng.normal(size=(250, 3))
    scores = [shared + rng.normal(size=(250, 3)) + skill * np.eye(3)[true] for skill in (1.0, 1.2, 1.5)]
    one_hot = np.eye(3, dtype=bool)[true]
    pairs = [delong.macro_auc_influence(one_hot, each) for each in scores]
    aucs = np.array([auc for auc, _ in pairs])
    draws = []
    for _ in range(3000):
        rows = rng.integers(250, size=250)
        draws.append([delong.macro_auc_influence(one_hot[rows], each[rows])[0] for each in scores])
    statistic, freedom, p = by_contrasts(aucs, np.cov(np.array(draws).T))
    found = delong.joint_test(aucs, np.array([influence for _, influence in pairs]))
    assert found[0] == pytest.approx(statistic, rel=0.12) and found[1] == freedom
    assert 0.0005 < found[2] < 0.5, "a chi-square far from both ends, so that the comparison says something"


def test_without_a_difference_the_joint_p_is_uniform():
    rng, found = np.random.default_rng(3), []
    for _ in range(400):
        is_class, shared = rng.random(120) < 0.4, rng.normal(size=120)
        scores = shared + rng.normal(size=(4, 120)) + is_class
        found.append(delong.joint_test(*influences_of(is_class, scores))[2])
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.085  # 5 % +- 3 standard errors
    assert kstest(found, "uniform").pvalue > 0.01


# ---- nothing to go by --------------------------------------------------------------------------------------

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
    # Wilson's bound for 20 of 20: Newcombe (1998) has 0.1611
    assert upper == 1 and lower == pytest.approx(0.8389, abs=1e-4)
    assert delong.logit_interval(0.0, 0.0, 20) == pytest.approx((0, 1 - 0.8389), abs=1e-4)
    lower, upper = delong.logit_interval(0.9, 0.02**2, 50)
    assert 0 < lower < 0.9 < upper < 1 and 0.9 - lower > upper - 0.9


def test_an_auc_of_few_patients_with_several_images_is_covered():
    """19 ill patients of two images: with the normal quantile the interval holds the truth in 92 % alone."""
    kind = Kind("small", (0.85, 0.15), 1.8124, a_patient=2, images=200)
    truth, held = norm.cdf(kind.distance / math.sqrt(2)), []
    for number in range(1000):
        table = draw(kind, kind.images, np.random.default_rng((number, 3)))
        entry = classification_intervals(table, draws=2)["roc_auc"]
        held.append(entry["lower"] <= truth <= entry["upper"])
    assert 0.93 <= np.mean(held) <= 0.97
