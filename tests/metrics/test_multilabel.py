"""Several labels an image: each label's metrics are those of two classes and of scikit-learn, their means those
of the labels; thresholds and temperatures come from another table."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from util.core.run_files import write_predictions
from util.metrics import classification, delong
from util.metrics.bootstrap import groups_of
from util.metrics.intervals import classification_intervals, drops
from util.metrics.multilabel import figures, intervals, predictions
from util.metrics.predictions import kind_and_names, read_predictions

LABELS = ["DR", "A_b", "1.0 odd, name"]
TOLERANCE = 1e-9


def random_table(seed=0, number=120, missing=0.2, patients=False, labels=LABELS):
    rng = np.random.default_rng(seed)
    true = (rng.random((number, len(labels))) < np.linspace(0.5, 0.15, len(labels))).astype(float)
    logits = rng.normal(size=true.shape) * 1.5 + 2 * true - 1.5
    logits[:10] = np.round(logits[:10]) + 0.25  # ties, none of them at a probability of a half
    if missing:
        true[rng.random(true.shape) < missing] = np.nan
        true[:, 0] = np.where(np.isnan(true[:, 0]), 1.0, true[:, 0])  # one label is known everywhere
    rows = pd.DataFrame({"index": np.arange(number), "path": [f"{n}.png" for n in range(number)], "split": "test",
                         "patient": [f"p{n // 2}" for n in range(number)] if patients else ""})
    return predictions.predictions_table(rows, true, logits, labels)


def two_classes(table, label):
    """The label's rows as a classification's table."""
    known = table[table[f"true_{label}"].notna()].reset_index(drop=True)
    rows = known[["index", "path", "split", "patient"]].assign(target=known[f"true_{label}"].astype(int))
    logits = np.column_stack([np.zeros(len(known)), known[f"logit_{label}"]])
    return classification.predictions_table(rows, logits, ["no", "yes"])


def test_a_table_is_read_back_equal_in_every_bit(tmp_path):
    table = random_table(patients=True)
    write_predictions(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "t.csv"), table, check_exact=True)
    assert kind_and_names(table) == ("multilabel", LABELS)
    probabilities = table[[f"prob_{name}" for name in LABELS]].to_numpy()
    assert np.allclose(probabilities, expit(table[[f"logit_{name}" for name in LABELS]].to_numpy()), rtol=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_metrics_of_each_label_are_scikit_learns(seed):
    table = random_table(seed)
    found, notes = figures.multilabel_metrics(table)
    assert notes == []
    for label in LABELS:
        known = table[table[f"true_{label}"].notna()]
        y, p = known[f"true_{label}"].to_numpy(int), known[f"prob_{label}"].to_numpy()
        precision, recall, levels = sk.precision_recall_curve(y, p)
        best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-30))
        called = p >= found[f"threshold_{label}"]
        assert found[f"f1_{label}"] == pytest.approx(best, abs=TOLERANCE)
        expected = {
            "roc_auc": sk.roc_auc_score(y, p), "average_precision": sk.average_precision_score(y, p),
            "f1": sk.f1_score(y, called), "sensitivity": sk.recall_score(y, called),
            "specificity": sk.recall_score(y, called, pos_label=0), "precision": sk.precision_score(y, called),
            "balanced_accuracy": sk.balanced_accuracy_score(y, called), "kappa": sk.cohen_kappa_score(y, called),
            "brier": sk.brier_score_loss(y, p), "loss": sk.log_loss(y, p), "n": len(y), "positives": y.sum()}
        for name, value in expected.items():
            assert found[f"{name}_{label}"] == pytest.approx(value, abs=TOLERANCE), (name, label)
    for name in figures.FIGURES:
        of_labels = [found[f"{name}_{label}"] for label in LABELS]
        assert found[name] == pytest.approx(np.nanmean(of_labels), abs=TOLERANCE)
    assert found["score"] == pytest.approx(np.mean([found[part] for part in ("f1", "roc_auc", "kappa")]))
    assert found["n"] == 120


def test_means_without_missing_cells_are_scikit_learns_macro_averages():
    table = random_table(5, missing=0)
    found = figures.figures_of(table, {})  # thresholds of 0.5
    y, p = (table[[f"{kind}_{name}" for name in LABELS]].to_numpy() for kind in ("true", "prob"))
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y, p, average="macro"), abs=TOLERANCE)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(y, p), abs=TOLERANCE)
    assert found["f1"] == pytest.approx(sk.f1_score(y, p >= 0.5, average="macro"), abs=TOLERANCE)
    assert found["sensitivity"] == pytest.approx(sk.recall_score(y, p >= 0.5, average="macro"), abs=TOLERANCE)


@pytest.mark.parametrize("patients", [False, True])
@pytest.mark.parametrize("missing", [0, 0.3])
def test_a_label_is_two_classes_with_their_intervals(patients, missing):
    """At a threshold of a half, as the more probable of two classes is predicted."""
    table, val = random_table(1, missing=missing, patients=patients), random_table(2, missing=0.1)
    chosen = predictions.decide(val, calibrate=True)
    half = {f"threshold_{label}": 0.5 for label in LABELS}
    decided = {"thresholds": chosen["thresholds"] | half, "temperatures": chosen["temperatures"]}
    found = intervals.multilabel_intervals(table, 3, 100, decided)
    for label in LABELS:
        thresholds = {name.removesuffix(f"_{label}"): value for name, value in chosen["thresholds"].items()
                      if "_at_" in name and name.endswith(f"_{label}")}
        assert len(thresholds) == 4
        expected = classification_intervals(two_classes(table, label), 3, 100, thresholds,
                                            chosen["temperatures"][label])
        for own, source in figures.SOURCES.items():
            if source == "threshold":
                continue
            one, other = found[f"{own}_{label}"], expected[source.replace("_1", "_yes")]
            assert one["method"] == other["method"], own
            for part in ("value", "lower", "upper"):
                assert one[part] == pytest.approx(other[part], abs=TOLERANCE, nan_ok=True), (own, label, part)


def test_thresholds_and_temperatures_are_vals():
    val, test = random_table(7), random_table(8)
    decided = predictions.decide(val, calibrate=True)
    found = figures.figures_of(test, decided)
    for label in LABELS:
        known = test[test[f"true_{label}"].notna()]
        y, z = known[f"true_{label}"].to_numpy(int), known[f"logit_{label}"].to_numpy()
        threshold = decided["thresholds"][f"threshold_{label}"]
        assert threshold in set(val[f"prob_{label}"])
        assert found[f"f1_{label}"] == pytest.approx(sk.f1_score(y, expit(z) >= threshold), abs=TOLERANCE)
        warm = expit(z / decided["temperatures"][label])
        assert found[f"loss_calibrated_{label}"] == pytest.approx(sk.log_loss(y, warm), abs=TOLERANCE)
        at = decided["thresholds"][f"sensitivity_at_90_specificity_{label}"]
        assert found[f"sensitivity_at_90_specificity_{label}"] == pytest.approx(
            sk.recall_score(y, expit(z) >= at), abs=TOLERANCE)
        of_val = val[val[f"true_{label}"] == 0]
        assert (of_val[f"prob_{label}"] < at).mean() >= 0.9
    entries = intervals.multilabel_intervals(test, 0, 20, decided)
    again = predictions.stored_decisions(entries, LABELS)
    assert again["temperatures"] == decided["temperatures"]
    assert figures.figures_of(test, again)["f1"] == found["f1"]


def test_calibration_slope_is_that_of_a_logistic_regression():
    table = random_table(3, number=400, missing=0.2)
    found = intervals.multilabel_intervals(table, 0, 20)
    slopes = []
    for label in LABELS:
        known = table[table[f"true_{label}"].notna()]
        fit = LogisticRegression(C=1e12, tol=1e-12, max_iter=10_000).fit(known[[f"logit_{label}"]].to_numpy(),
                                                                       known[f"true_{label}"].astype(int))
        slopes.append(fit.coef_[0, 0])
        assert found[f"calibration_slope_{label}"]["value"] == pytest.approx(slopes[-1], abs=1e-5)
    assert found["calibration_slope"]["value"] == pytest.approx(np.mean(slopes), abs=1e-5)


def test_intervals_of_the_means():
    """DeLong's of the mean AUC by adding up influences by hand; the bootstrap's by resampling by hand."""
    table = random_table(4, patients=True)
    found = intervals.multilabel_intervals(table, 5, 200)
    total = np.zeros(len(table))
    for label in LABELS:
        known = table[f"true_{label}"].notna().to_numpy()
        _, influence = delong.auc_influence(table[f"true_{label}"][known] == 1, table[f"prob_{label}"][known].to_numpy())
        total[known] += influence / len(LABELS)
    groups = groups_of(table["patient"].to_numpy(dtype=object))
    lower, upper = delong.logit_interval(found["roc_auc"]["value"], delong.variance(total, groups), 10)
    assert (found["roc_auc"]["lower"], found["roc_auc"]["upper"]) == pytest.approx((lower, upper))
    assert found["roc_auc"]["method"] == "DeLong"
    # one resample: the metrics of the table with its rows repeated
    chosen = predictions.decide(table, calibrate=False)
    counts = np.random.default_rng(0).integers(0, 3, len(table))
    again = table.loc[table.index.repeat(counts)].reset_index(drop=True)
    again["index"] = np.arange(len(again))
    weighted = figures.LabelFigures(predictions.labels_of(table, chosen))(counts[None].astype(float))
    plain = figures.figures_of(again, chosen)
    for name in ("f1", "average_precision", "sensitivity", "brier", "ece", "kappa", "score", "f1_A_b"):
        assert weighted[name][0] == pytest.approx(plain[name], abs=TOLERANCE)
    assert found["f1"]["method"] == "bootstrap of patients" and found["f1"]["resamples"] == 200
    assert found["f1"]["lower"] < found["f1"]["value"] < found["f1"]["upper"]


def test_a_label_of_one_kind_is_left_out_of_the_means_and_said():
    table = random_table(6, missing=0).assign(true_DR=0.0)
    found, notes = figures.multilabel_metrics(table, predictions.decide(random_table(9), calibrate=False))
    assert np.isnan(found["roc_auc_DR"]) and "1 of 3 labels (DR)" in notes[0]
    others = [found[f"roc_auc_{label}"] for label in LABELS[1:]]
    assert found["roc_auc"] == pytest.approx(np.mean(others))
    chosen = predictions.decide(table, calibrate=True)  # nothing can be chosen for it
    assert "threshold_DR" not in chosen["thresholds"] and "DR" not in chosen["temperatures"]
    assert predictions.labels_of(table, chosen)[0].threshold == 0.5
    entries = intervals.multilabel_intervals(table, 0, 50, chosen)
    assert np.isnan(entries["roc_auc_DR"]["value"]) and entries["specificity_DR"]["method"] == "Wilson"


@pytest.mark.parametrize("patients", [False, True])
def test_a_label_that_is_known_of_no_image(patients):
    """As of an external test set that does not tell it: the others are as they would be without it."""
    table = random_table(3, patients=patients).assign(**{"true_A_b": np.nan})
    chosen = predictions.decide(random_table(4), calibrate=True)
    found, notes = figures.multilabel_metrics(table, chosen)
    assert found["n_A_b"] == 0 and np.isnan(found["f1_A_b"]) and "A_b" in notes[0]
    entries = intervals.multilabel_intervals(table, 0, 60, chosen)
    without = table.drop(columns=[f"{kind}_A_b" for kind in ("true", "prob", "logit")])
    others = intervals.multilabel_intervals(without, 0, 60, chosen)
    for name, entry in others.items():
        for part in ("value", "lower", "upper"):
            assert entries[name][part] == pytest.approx(entry[part], nan_ok=True, abs=TOLERANCE), name
    assert all(np.isnan(entries[f"{name}_A_b"][part]) for name in figures.FIGURES
               for part in ("value", "lower", "upper"))
    assert entries["f1"]["without"] == entries["score"]["without"] == ["A_b"] and "without" not in others["f1"]
    # what is lost: of the labels that both sets tell, and of no mean over different ones
    lost = drops(others, entries)
    assert {"roc_auc_DR", "f1_DR"} <= lost.keys() and not {"roc_auc", "f1", "score", "f1_A_b"} & lost.keys()
    nothing = table.assign(**{f"true_{name}": np.nan for name in LABELS})
    entries = intervals.multilabel_intervals(nothing, 0, 20, chosen)
    assert np.isnan(entries["ece"]["value"]) and np.isnan(entries["ece"]["lower"])
    assert predictions.decide(nothing, calibrate=True) == {"thresholds": {}, "temperatures": {}}


def test_no_order_of_rows_changes_anything():
    table = random_table(2, patients=True)
    shuffled = table.sample(frac=1, random_state=0)
    one, other = (intervals.multilabel_intervals(each, 1, 30) for each in (shuffled, table))
    assert str(one) == str(other)


def test_a_mean_calibration_error_is_no_lower_than_chance_makes_it():
    """Outputs that are calibrated: the mean error of many labels is chance alone, and its interval says so."""
    rng, labels = np.random.default_rng(0), [f"l{k}" for k in range(12)]
    logits = rng.normal(size=(150, 12)) * 1.5
    true = (rng.random(logits.shape) < expit(logits)).astype(float)
    rows = pd.DataFrame({"index": np.arange(150), "path": "a.png", "split": "test", "patient": ""})
    table = predictions.predictions_table(rows, true, logits, labels)
    found = intervals.multilabel_intervals(table, 0, 200)["ece"]
    assert found["value"] > 0.05 and found["lower"] < 0.02 and found["upper"] >= found["value"]
