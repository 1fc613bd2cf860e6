"""What the predictions of several models come to."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax

from util.metrics import classification, folds
from util.metrics.intervals import classification_intervals, entry
from util.metrics.multilabel.predictions import predictions_table as labels_table


def table_of(seed, number=40, classes=("a", "b", "c")):
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"index": np.arange(number), "path": "", "split": "test", "patient": "",
                         "target": np.arange(number) % len(classes)})
    return classification.predictions_table(rows, rng.normal(size=(number, len(classes))), list(classes))


def test_the_mean_of_probabilities():
    tables = [table_of(seed) for seed in (1, 2, 3)]
    mean, names = folds.mean_of(tables), ["prob_a", "prob_b", "prob_c"]
    expected = np.mean([one[names].to_numpy() for one in tables], axis=0)
    np.testing.assert_allclose(mean[names], expected)
    np.testing.assert_allclose(softmax(mean[["logit_a", "logit_b", "logit_c"]].to_numpy(), axis=1), expected)
    assert list(mean["predicted_class"]) == [names[k][-1] for k in expected.argmax(axis=1)]
    rows = pd.DataFrame({"index": [0, 1], "path": "", "split": "test", "patient": ""})
    several = folds.mean_of([labels_table(rows, np.array([[1.0], [0.0]]), np.array([[x], [-x]]), ["l"]) for x in (1, 3)])
    np.testing.assert_allclose(several["prob_l"], [np.mean(expit([1, 3])), np.mean(expit([-1, -3]))])
    np.testing.assert_allclose(expit(several["logit_l"]), several["prob_l"])


def test_decisions_are_those_of_each_models_threshold():
    tables, thresholds = {1: table_of(4, classes="ab"), 2: table_of(5, classes="ab")}, {1: 0.3, 2: 0.8}
    tables[2]["index"] += 40
    whole = folds.out_of_fold({fold: folds.called(one, {"b": thresholds[fold]}) for fold, one in tables.items()})
    found = classification_intervals(whole, draws=50, thresholds={"sensitivity_at_90_specificity": 0.5})
    hits = np.concatenate([(one["prob_b"] >= thresholds[fold])[one["true_class"] == "b"]
                           for fold, one in tables.items()])
    assert found["sensitivity_at_90_specificity"]["value"] == pytest.approx(hits.mean())
    assert list(whole["fold"]) == ["1"] * 40 + ["2"] * 40


def test_intervals_are_widened_and_stay_where_metrics_are():
    found = folds.widened({"roc_auc": entry(0.9, 0.8, 0.95), "loss": entry(0.1, 0.01, 0.4), "r2": entry(-0.1, -0.4, 0.1),
                           "accuracy": entry(0.98, 0.9, 1.0), "n": entry(3.0),
                           "calibration_slope": entry(1.0, 0.5, 1.5)}, 3)
    factor = np.sqrt(2)
    assert found["roc_auc"]["lower"] == pytest.approx(0.9 - 0.1 * factor)
    assert found["roc_auc"]["upper"] == pytest.approx(0.9 + 0.05 * factor)
    assert found["loss"]["lower"] == 0 and found["loss"]["upper"] == pytest.approx(0.1 + 0.3 * factor)
    assert found["accuracy"]["upper"] == 1 and found["r2"]["lower"] == pytest.approx(-0.1 - 0.3 * factor)
    assert found["calibration_slope"]["upper"] == pytest.approx(1 + 0.5 * factor)
    assert found["n"] == entry(3.0) or np.isnan(found["n"]["lower"])


def test_the_measurement_runs(capsys):
    from benchmarks import fold_coverage

    assert fold_coverage.main(["--sets", "2", "--kinds", "1"]) == 0
    assert "widened" in capsys.readouterr().out
