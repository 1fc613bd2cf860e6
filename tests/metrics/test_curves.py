"""The report's curves against scikit-learn's, and its bins against a second way of counting."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from util.metrics import calibration, curves
from util.metrics.weighted import Images, WeightedFigures


def cases():
    rng = np.random.default_rng(3)
    for number, share in ((3, 0.5), (40, 0.3), (500, 0.05), (5000, 0.4)):
        is_class = rng.random(number) < share
        is_class[:2] = True, False
        scores = rng.normal(size=number) + is_class
        yield is_class, scores
        yield is_class, np.round(scores, 1)  # ties
        yield is_class, np.zeros(number)


@pytest.mark.parametrize(("is_class", "scores"), list(cases()))
def test_roc_is_scikit_learns(is_class, scores):
    x, y = curves.roc_points(is_class, scores, most=10**9)
    theirs = roc_curve(is_class, scores, drop_intermediate=True)[:2]
    everything = set(zip(*roc_curve(is_class, scores, drop_intermediate=False)[:2], strict=True))
    assert set(zip(x, y, strict=True)) <= everything and len(x) <= len(theirs[0])
    np.testing.assert_allclose(np.trapezoid(y, x), roc_auc_score(is_class, scores), atol=1e-12)
    np.testing.assert_allclose(np.interp(theirs[0], x, y), np.interp(theirs[0], *theirs), atol=1e-12)


@pytest.mark.parametrize(("is_class", "scores"), list(cases()))
def test_precision_recall_is_scikit_learns(is_class, scores):
    recall, precision = curves.precision_recall_points(is_class, scores, most=10**9)
    their_precision, their_recall, _ = precision_recall_curve(is_class, scores)
    assert set(zip(recall, precision, strict=True)) <= set(zip(their_recall, their_precision, strict=True))
    # as stairs, the area below it is average precision
    np.testing.assert_allclose((np.diff(recall, prepend=0) * precision).sum(),
                               average_precision_score(is_class, scores))


def test_thinned_points_lie_on_the_curve_and_keep_its_ends_and_its_shape():
    rng = np.random.default_rng(0)
    is_class = rng.random(200_000) < 0.2
    scores = rng.normal(size=len(is_class)) + 1.3 * is_class
    for whole, thin in ((curves.roc_points(is_class, scores, 10**9), curves.roc_points(is_class, scores)),
                        (curves.precision_recall_points(is_class, scores, 10**9),
                         curves.precision_recall_points(is_class, scores))):
        assert 100 < len(thin[0]) <= curves.MOST_POINTS + 2 < len(whole[0])
        assert set(zip(*thin, strict=True)) <= set(zip(*whole, strict=True))
        assert all(thin[axis][end] == whole[axis][end] for axis in (0, 1) for end in (0, -1))
        far = np.abs(np.interp(whole[0][whole[0] > 0.01], *thin) - whole[1][whole[0] > 0.01])
        assert far.max() < 0.02  # a few pixels


def test_few_positives_keep_every_corner():
    is_class = np.zeros(100_000, bool)
    is_class[[5, 500, 50_000]] = True
    x, y = curves.roc_points(is_class, -np.arange(100_000.0))
    assert len(x) == 7 and list(y) == [0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1] or len(x) == 8
    recall, precision = curves.precision_recall_points(is_class, -np.arange(100_000.0))
    np.testing.assert_allclose(precision, [1 / 6, 2 / 501, 3 / 50_001])


def test_no_curve_where_one_kind_is_absent():
    for is_class in (np.zeros(5, bool), np.ones(5, bool), np.zeros(0, bool)):
        assert curves.roc_points(is_class, np.arange(len(is_class), dtype=float)) is None
    assert curves.precision_recall_points(np.zeros(5, bool), np.arange(5.0)) is None
    assert curves.precision_recall_points(np.ones(5, bool), np.arange(5.0))[1].tolist() == [1] * 5


def test_reliability_counts_as_pandas_does():
    rng = np.random.default_rng(1)
    probability = np.concatenate([rng.random(300), [0, 0.1, 0.2, 1]])
    happened = rng.random(304) < probability
    mean, share, images = calibration.reliability(probability, happened, 10)
    groups = pd.DataFrame({"p": probability, "y": happened}).groupby(
        pd.cut(probability, np.linspace(0, 1, 11), include_lowest=True), observed=False)
    np.testing.assert_array_equal(images, groups.size())
    np.testing.assert_allclose(mean, groups["p"].mean())
    np.testing.assert_allclose(share, groups["y"].mean())


def test_reliability_of_the_highest_probability_is_that_of_the_calibration_error():
    rng = np.random.default_rng(2)
    true, logits = rng.integers(0, 4, 200), rng.normal(size=(200, 4))
    probabilities = calibration.softmax(logits)
    names = list("abcd")
    drawn = curves.curves_of(true, logits.argmax(axis=1), probabilities, logits, names, temperature=2.0)
    for (_, (mean, share, images)), p in zip(drawn.calibration,
                                             (probabilities, calibration.softmax(logits / 2)), strict=True):
        known = images > 0
        error = (np.abs(mean - share)[known] * images[known]).sum() / 200
        images = Images(names, true, p.argmax(axis=1), p, logits, None, None)
        np.testing.assert_allclose(error, WeightedFigures(images).values()["ece"])
    right, wrong = (counts for _, counts in drawn.scores)
    assert right.sum() == (logits.argmax(axis=1) == true).sum() and right.sum() + wrong.sum() == 200


def test_of_two_classes_the_second_is_the_event():
    true, logits = np.array([0, 0, 1, 1]), np.array([[0, -1.0], [0, 1.0], [0, 2.0], [0, 3.0]])
    p = calibration.softmax(logits)
    drawn = curves.curves_of(true, logits.argmax(axis=1), p, logits, ["no", "yes"])
    assert list(drawn.roc) == [1] and drawn.of_what == "Probability of yes" and len(drawn.calibration) == 1
    np.testing.assert_allclose(np.trapezoid(drawn.roc[1][1], drawn.roc[1][0]), 1)
    assert [counts.sum() for _, counts in drawn.scores] == [2, 2] and drawn.calibration[0][1][2].sum() == 4
