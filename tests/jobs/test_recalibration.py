"""Recalibration to another test set: what was distorted comes back, on images that the fit did not see."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from jobs.recalibration import AS_IT_IS, INTERCEPTS, SLOPE, recalibrate, recalibrate_labels
from util.metrics.calibration import fit_recalibration
from util.metrics.classification import predictions_table
from util.metrics.multilabel.predictions import predictions_table as labels_table


def drawn(images, slope=1.0, shares=(0.5, 0.5), trained=(0.5, 0.5), seed=0, a_patient=1):
    """Two classes of two normal distributions; outputs are right for `trained` shares, times `slope`."""
    rng = np.random.default_rng(seed)
    true = np.repeat(rng.choice(len(shares), images // a_patient, p=shares), a_patient)
    position = 1.5 * true + rng.normal(size=len(true))
    likelihood = -((position[:, None] - 1.5 * np.arange(len(shares))) ** 2) / 2
    rows = pd.DataFrame({"index": np.arange(len(true)), "path": "", "split": "test_X", "target": true,
                         "patient": np.repeat(np.arange(len(true) // a_patient), a_patient).astype(str)
                         if a_patient > 1 else ""})
    logits = slope * (likelihood + np.log(trained))
    return predictions_table(rows, logits, [str(k) for k in range(len(shares))])


def metric(found, correction, name):
    return found["metrics"][correction][name]["value"]


@pytest.mark.parametrize("seed", range(3))
def test_another_prevalence_alone_needs_intercepts_alone(seed):
    found, problem = recalibrate(drawn(20_000, shares=(0.9, 0.1), seed=seed), 0.5, seed, draws=2)
    assert not problem and found["fitted"] == found["scored"] == 10_000
    assert abs(metric(found, AS_IT_IS, "calibration_intercept")) > 1.5
    for correction in (INTERCEPTS, SLOPE):
        assert abs(metric(found, correction, "calibration_intercept")) < 0.1
    # the logarithm of the ratio of the odds
    shift = found["intercepts_alone"]["1"] - found["intercepts_alone"]["0"]
    assert shift == pytest.approx(np.log(0.1 / 0.9), abs=0.1)
    assert found["p_of_slope"] > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_a_slope_comes_back(seed):
    found, problem = recalibrate(drawn(20_000, slope=2.0, seed=seed), 0.5, seed, draws=2)
    assert not problem
    assert metric(found, AS_IT_IS, "calibration_slope") == pytest.approx(0.5, abs=0.05)
    assert metric(found, INTERCEPTS, "calibration_slope") == pytest.approx(0.5, abs=0.05)
    assert metric(found, SLOPE, "calibration_slope") == pytest.approx(1.0, abs=0.1)
    assert found["slope"] == pytest.approx(0.5, abs=0.05) and found["p_of_slope"] < 1e-6
    assert metric(found, SLOPE, "loss") < metric(found, INTERCEPTS, "loss")
    # on the images of the fit itself the intercept would be 0, to rounding
    assert abs(metric(found, SLOPE, "calibration_intercept")) > 1e-4


def test_the_fit_is_a_logistic_regression():
    table = drawn(500, slope=1.7, shares=(0.7, 0.3))
    logits = table[["logit_0", "logit_1"]].to_numpy()
    true = table["true_class"].astype(int).to_numpy()
    ours = fit_recalibration(logits, true, True)
    log_odds = (logits[:, 1] - logits[:, 0])[:, None]
    other = LogisticRegression(C=np.inf, tol=1e-10).fit(log_odds, true)
    assert ours.slope == pytest.approx(other.coef_[0, 0], rel=1e-4)
    assert ours.intercepts[1] - ours.intercepts[0] == pytest.approx(other.intercept_[0], abs=1e-4)
    grades = drawn(4000, slope=2.0, shares=(0.5, 0.3, 0.2), trained=(0.2, 0.3, 0.5))
    logits = grades[["logit_0", "logit_1", "logit_2"]].to_numpy()
    found = fit_recalibration(logits, grades["true_class"].astype(int).to_numpy(), True)
    assert found.slope == pytest.approx(0.5, abs=0.06)
    shares = np.log([0.5 / 0.2, 1.0, 0.2 / 0.5])
    np.testing.assert_allclose(found.intercepts, shares - shares.mean(), atol=0.15)


def test_patients_are_on_one_side_and_what_cannot_be_fitted_is_said():
    table = drawn(400, a_patient=4)
    found, _ = recalibrate(table, 0.25, 0, draws=2)
    assert found["fitted"] == 100 and found["scored"] == 300
    # one patient of 300 images and 100 of one: he is on one side, whole
    table["patient"] = ["P"] * 300 + [str(number) for number in range(100)]
    found, _ = recalibrate(table, 0.5, 0, draws=2)
    assert found["fitted"] in (50, 51) or found["fitted"] in (349, 350)
    parted = drawn(60)
    parted["logit_1"] = np.where(parted["true_class"] == "1", 5.0, -5.0)
    parted["logit_0"] = 0.0
    assert "without an error" in recalibrate(parted, 0.5, 0, draws=2)[1]
    assert recalibrate(table[table["true_class"] == "1"].reset_index(drop=True), 0.5, 0, draws=2)[1]


def test_every_label_is_fitted_by_itself_where_it_is_known():
    """As a logistic regression of the label on its log odds, on the same images for all; the metrics as those
    of two classes."""
    tables = [drawn(8000, slope=slope, shares=shares, seed=seed)
              for slope, shares, seed in ((2.0, (0.5, 0.5), 1), (1.0, (0.8, 0.2), 2))]
    log_odds = np.stack([(one["logit_1"] - one["logit_0"]).to_numpy() for one in tables], axis=1)
    true = np.stack([one["true_class"].astype(float).to_numpy() for one in tables], axis=1)
    true[::3, 1] = np.nan
    samples = tables[0][["index", "path", "split", "patient"]].assign(patient=np.arange(8000) // 2)
    samples["patient"] = samples["patient"].astype(str)
    table = labels_table(samples, np.column_stack([true, np.ones(8000)]), np.column_stack([log_odds, log_odds[:, 0]]),
                         ["sloped", "rarer", "constant"])
    found = recalibrate_labels(table, 0.5, 0, draws=2)
    assert found["fitted"] == found["scored"] == 4000 and "a class is absent" in found["labels"]["constant"]["problem"]
    drawn_patients = np.random.default_rng(0).permutation(4000)[:2000]
    # patients are numbered in the order of their names
    numbers = np.unique(samples["patient"], return_inverse=True)[1]
    fitted = np.isin(numbers, drawn_patients)
    for place, (name, slope) in enumerate((("sloped", 0.5), ("rarer", 1.0))):
        one, known = found["labels"][name], ~np.isnan(true[:, place])
        rows = fitted & known
        other = LogisticRegression(C=np.inf, tol=1e-10).fit(log_odds[rows, place, None], true[rows, place])
        assert one["fitted"] == rows.sum() and one["scored"] == (~fitted & known).sum()
        assert one["slope"] == pytest.approx(other.coef_[0, 0], rel=1e-3) == pytest.approx(slope, abs=0.06)
        assert one["intercepts"] == pytest.approx(other.intercept_[0], abs=1e-3)
        probability = other.predict_proba(log_odds[~fitted & known, place, None])[:, 1]
        assert metric(one, SLOPE, "loss") == pytest.approx(log_loss(true[~fitted & known, place], probability), rel=1e-4)
        assert metric(one, SLOPE, "calibration_slope") == pytest.approx(1, abs=0.1)
    assert found["labels"]["rarer"]["p_of_slope"] > 0.01 and found["labels"]["sloped"]["p_of_slope"] < 1e-6
