"""compare.py on runs of several labels: a label's tests are those of two classes, thresholds are each run's own."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from tests.metrics.test_delong import by_pairs, covariance_by_pairs
from util.core.errors import InputError
from util.core.run_files import write_metrics_json, write_predictions
from util.metrics.multilabel.intervals import multilabel_intervals
from util.metrics.multilabel.predictions import predictions_table
from util.metrics.predictions import read_predictions
from util.study import comparison
from util.study.comparison_runs import align, grouped, read_runs

LABELS = ["a", "b"]
DECIDED = ({"thresholds": {"threshold_a": 0.4, "threshold_b": 0.6}}, {"thresholds": {"threshold_a": 0.5}})


def run(folder, number, true, logits, labels=LABELS):
    folder.mkdir()
    rows = pd.DataFrame({"index": np.arange(len(true)), "path": [f"{n}.png" for n in range(len(true))],
                         "patient": "", "split": "test"})
    table = predictions_table(rows, true, logits, labels)
    write_predictions(table, folder / "predictions_test.csv")
    write_metrics_json(folder / "metrics_test.json", multilabel_intervals(table, 0, 50, DECIDED[number]))
    (folder / "run.json").write_text(json.dumps({"options": {"seed": 0, "epochs": number}}))
    return str(folder)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    true = (rng.random((90, 2)) < 0.4).astype(float)
    true[::9, 1] = np.nan
    logits = [rng.normal(size=true.shape) + better * np.nan_to_num(true) for better in (2.0, 1.0)]
    return true, logits


def test_a_labels_test_is_delongs_of_its_images(tmp_path, data):
    true, logits = data
    runs = read_runs([run(tmp_path / f"r{n}", n, true, logits[n]) for n in range(2)], "test")
    align(runs)
    groups, _ = grouped(runs)
    found = comparison.compare(groups, ["roc_auc_b", "roc_auc", "f1_a"], "test", 200, 0)
    known = ~np.isnan(true[:, 1])
    is_there, scores = true[known, 1] == 1, [one[known, 1] for one in logits]
    aucs, variances = zip(*(by_pairs(is_there, one) for one in scores), strict=True)
    variance = sum(variances) - 2 * covariance_by_pairs(is_there, *scores)
    test = next(test for test in found.tests if test.metric == "roc_auc_b" and test.method == "paired DeLong")
    assert test.difference == pytest.approx(aucs[0] - aucs[1])
    half = 1.959963984540054 * np.sqrt(variance)
    assert test.upper - test.difference == pytest.approx(half, rel=1e-9)
    # the mean's value is the labels' mean; F1 is called by each run's own threshold
    assert found.summary("r0", "roc_auc").mean == pytest.approx(
        (aucs[0] + sk.roc_auc_score(true[:, 0], logits[0][:, 0])) / 2)
    for number, threshold in enumerate((0.4, 0.5)):
        called = 1 / (1 + np.exp(-logits[number][:, 0])) >= threshold
        assert found.summary(f"r{number}", "f1_a").mean == pytest.approx(sk.f1_score(true[:, 0], called))
    assert not found.notes


def test_what_does_not_compare_is_one_line(tmp_path, data):
    true, logits = data
    first = run(tmp_path / "r0", 0, true, logits[0])
    other = true.copy()
    other[5, 1] = np.nan
    runs = read_runs([first, run(tmp_path / "r1", 1, other, logits[1])], "test")
    with pytest.raises(InputError, match="have different labels: true_b of 1 of 90 images"):
        align(runs)
    runs = read_runs([first, run(tmp_path / "r2", 1, true, logits[1], ["a", "c"])], "test")
    with pytest.raises(InputError, match="have different labels .'b' only in"):
        align(runs)
    swapped = read_runs([first, run(tmp_path / "r3", 1, true[:, ::-1], logits[1][:, ::-1], ["b", "a"])], "test")
    assert "has its labels in another order" in align(swapped)[0]
    assert list(swapped[1].table.columns) == list(swapped[0].table.columns)


def test_of_folds_what_depends_on_each_folds_thresholds_is_the_stored_one(tmp_path, data):
    true, logits = data
    folders = [run(tmp_path / f"r{n}", n, true, logits[n]) for n in range(2)]
    for number in range(2):
        path = tmp_path / f"r{number}" / "predictions_test.csv"
        write_predictions(read_predictions(path).assign(fold=["1", "2"] * 45), path)
        stored = json.loads((path.parent / "metrics_test.json").read_text())
        stored["f1_a"] |= {"value": 0.123, "lower": 0.1, "upper": 0.2}
        write_metrics_json(path.parent / "metrics_test.json", stored)
    runs = read_runs(folders, "test")
    align(runs)
    found = comparison.compare(grouped(runs)[0], ["roc_auc_a", "f1_a"], "test", 200, 0)
    shown = found.summary("r0", "f1_a")
    assert (shown.mean, shown.lower, shown.upper) == (0.123, 0.1, 0.2)
    assert {test.metric for test in found.tests} == {"roc_auc_a"}
    assert not any("two evaluations" in note for note in found.notes)
    assert any("no paired test of f1_a" in note for note in found.notes)
    assert any("several folds' models" in note for note in found.notes)
