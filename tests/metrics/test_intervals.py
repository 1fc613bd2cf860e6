"""Weighted figures against those of the same images repeated; intervals against published ones and the plain
bootstrap."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from jobs.tasks.classification import Classification
from tests.metrics.test_classification import make_table, random_table
from util.core import signals
from util.metrics import bootstrap, classification, intervals
from util.metrics.regression import regression_metrics
from util.metrics.regression import target_figures as figures_of_target
from util.metrics.target_scale import TargetScale
from util.metrics.weighted import Images, WeightedFigures, operating_thresholds
from util.options.flag import FINETUNE
from util.options.groups import Options


def ones(table, **options):
    figures = WeightedFigures(Images.of(table), **options)(np.ones((1, len(table))))
    return {name: float(value[0]) for name, value in figures.items()}


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct scores", "tied scores"])
@pytest.mark.parametrize("num_classes", [2, 5, 39])
def test_weights_of_one_give_the_figures(num_classes, rounded):
    table = random_table(num_classes, rounded=rounded, seed=num_classes)
    expected, _ = classification.classification_metrics(table)
    found = ones(table)
    assert {name: found[name] for name in expected if name != "n"} == pytest.approx(
        {name: value for name, value in expected.items() if name != "n"}, abs=1e-6)


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct scores", "tied scores"])
def test_weights_are_repetitions(rounded):
    table = random_table(3, rounded=rounded, seed=8)
    counts = np.random.default_rng(0).integers(0, 4, len(table))
    counts[table["true_class"] == "2 grade"] = 0  # a resample without one of the classes
    repeated = table.loc[table.index.repeat(counts)].assign(index=range(counts.sum()))
    expected, _ = classification.classification_metrics(repeated)
    found = WeightedFigures(Images.of(table))(counts[None].astype(np.float32))
    for name, value in expected.items():
        if name != "n":
            assert found[name][0] == pytest.approx(value, abs=2e-6), name
    assert math.isnan(found["sensitivity_2 grade"][0]) and math.isnan(found["roc_auc_2 grade"][0])


def test_figures_of_classes_are_scikit_learns():
    table = random_table(4, seed=2)
    images, found = Images.of(table), ones(table)
    for k, name in enumerate(images.names):
        true, predicted = images.true == k, images.predicted == k
        assert found[f"sensitivity_{name}"] == pytest.approx(sklearn_metrics.recall_score(true, predicted),
                                                             abs=1e-12)
        assert found[f"specificity_{name}"] == pytest.approx(
            sklearn_metrics.recall_score(~true, ~predicted), abs=1e-12
        )
        assert found[f"precision_{name}"] == pytest.approx(
            sklearn_metrics.precision_score(true, predicted), abs=1e-12
        )
        assert found[f"f1_{name}"] == pytest.approx(sklearn_metrics.f1_score(true, predicted), abs=1e-12)
        assert found[f"roc_auc_{name}"] == pytest.approx(
            sklearn_metrics.roc_auc_score(true, images.probabilities[:, k]), abs=1e-12)
        assert found[f"n_{name}"] == true.sum()


def test_operating_points_are_those_of_the_roc_curve():
    table = random_table(2, n=300, seed=4)
    images = Images.of(table)
    thresholds = operating_thresholds(images)
    found = ones(table, thresholds=thresholds)
    false_positives, sensitivity, _ = sklearn_metrics.roc_curve(
        images.true, images.probabilities[:, 1], drop_intermediate=False
    )
    for point in (90, 95):
        best = sensitivity[1 - false_positives >= point / 100 - 1e-12].max()
        assert found[f"sensitivity_at_{point}_specificity"] == pytest.approx(best)
        best = (1 - false_positives)[sensitivity >= point / 100 - 1e-12].max()
        assert found[f"specificity_at_{point}_sensitivity"] == pytest.approx(best)
    # on other images val's thresholds stay as they are
    other = random_table(2, n=300, seed=5)
    threshold = thresholds["sensitivity_at_90_specificity"]
    positive = Images.of(other).true == 1
    expected = (Images.of(other).probabilities[positive, 1] >= threshold).mean()
    entries = intervals.classification_intervals(other, draws=50, thresholds=thresholds)
    assert entries["sensitivity_at_90_specificity"]["value"] == pytest.approx(expected)
    assert operating_thresholds(Images.of(random_table(3))) == {}
    # without a threshold of val's there are none: chosen on the images themselves they would be another
    # figure
    assert not any("_at_" in name for name in intervals.classification_intervals(other, draws=50))


def test_on_val_itself_operating_points_claim_no_interval():
    task = Classification(Options.of(FINETUNE, {"select_metric": "score", "calibrate": True}))
    val = random_table(2, n=200, seed=4)
    decided = task.decide(val)
    of_val, of_test = (task.intervals(table, classification.classification_metrics(table)[0], decided)
                       for table in (val, random_table(2, n=200, seed=5).assign(split="test")))
    for name in decided["thresholds"]:
        assert (
            of_val[name]["value"] >= 0
            and math.isnan(of_val[name]["lower"])
            and of_val[name]["method"] is None
        )
        assert of_test[name]["lower"] <= of_test[name]["value"] <= of_test[name]["upper"]
    assert len(decided["thresholds"]) == 4 and of_test["temperature"]["value"] == decided["temperature"]


@pytest.mark.parametrize(("hits", "trials", "lower", "upper"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_wilson_is_as_newcombe_published_it(hits, trials, lower, upper):
    # Statistics in Medicine 1998
    assert bootstrap.wilson_interval(hits, trials) == pytest.approx((lower, upper), abs=5e-5)
    mirrored = bootstrap.wilson_interval(trials - hits, trials)
    assert mirrored == pytest.approx((1 - upper, 1 - lower), abs=5e-5)


def test_bootstrap_is_that_of_the_images_one_by_one():
    table = random_table(3, n=80, seed=1)
    replicates = intervals.classification_replicates(table, draws=60, seed=9)
    generator = np.random.default_rng(9)
    for draw in range(60):
        rows = generator.integers(80, size=80)
        expected, _ = classification.classification_metrics(table.iloc[rows].assign(index=range(80)))
        for name in ("f1", "kappa", "roc_auc", "average_precision", "loss", "ece"):
            assert replicates[name][draw] == pytest.approx(expected[name], abs=2e-6), name
    entry = intervals.classification_intervals(table, seed=9, draws=60)["f1"]
    assert (entry["lower"], entry["upper"]) == pytest.approx(np.quantile(replicates["f1"], (0.025, 0.975)))
    assert entry["resamples"] == 60 and entry["seed"] == 9 and entry["method"] == "bootstrap of images"


def test_patients_are_drawn_whole():
    table = random_table(2, n=60, seed=3).assign(patient=[f"p{number // 3}" for number in range(60)])
    groups = bootstrap.groups_of(table["patient"])
    for weights in bootstrap.resamples(60, groups, 20, seed=0):
        assert (weights.reshape(len(weights), 20, 3) == weights[:, ::3, None]).all()
        assert (weights[:, ::3].sum(axis=1) == 20).all()
    entries = intervals.classification_intervals(table, draws=100)
    assert entries["accuracy"]["method"] == "bootstrap of patients"
    known = table["patient"].where(table.index < 30, "")
    assert len(np.unique(bootstrap.groups_of(known))) == 10 + 30  # images of no known patient stand alone
    assert bootstrap.groups_of([""] * 5) is None and bootstrap.groups_of(list("abc")) is None


def test_repeating_every_image_narrows_nothing_where_it_is_one_patients():
    table = random_table(3, n=100, seed=6)
    twice = pd.concat([table, table]).assign(index=range(200),
                                             patient=[f"p{number % 100}" for number in range(200)])
    one, two = (intervals.classification_intervals(t, draws=1000) for t in (table, twice))
    for name in ("f1", "roc_auc", "loss", "calibration_slope"):
        widths = [entries[name]["upper"] - entries[name]["lower"] for entries in (one, two)]
        assert widths[1] == pytest.approx(widths[0], rel=0.1), name


def test_degenerate_resamples_are_counted():
    table = make_table([0, 0, 0, 0, 1], np.random.default_rng(0).normal(size=(5, 2)))
    entry = intervals.classification_intervals(table, draws=400)["average_precision_1 grade"]
    # the one image is in none of the five draws
    assert 400 * 0.8**5 * 0.6 < entry["undefined"] < 400 * 0.8**5 * 1.4
    alone = intervals.classification_intervals(make_table([0, 0, 0], np.eye(3, 2)), draws=20)
    assert math.isnan(alone["roc_auc"]["value"]) and math.isnan(alone["roc_auc"]["lower"])
    assert alone["roc_auc"]["method"] is None


def test_average_precision_loses_the_bias_of_its_resamples():
    # of a value at 1.0 on the logit scale
    replicates = 1 / (1 + np.exp(-np.random.default_rng(0).normal(1.2, 0.3, 4000)))
    lower, upper, undefined = bootstrap.corrected_interval(
        np.append(replicates, math.nan), 1 / (1 + math.exp(-1.0))
    )
    half = 1.96 * math.hypot(0.3, 0.2)
    assert np.log([lower / (1 - lower), upper / (1 - upper)]) == pytest.approx(
        [0.8 - half, 0.8 + half], abs=0.03
    )
    assert undefined == 1 and np.isnan(bootstrap.corrected_interval(np.full(3, math.nan), 0.5)[:2]).all()
    entry = intervals.classification_intervals(random_table(3, seed=3), draws=300)["average_precision"]
    drawn = intervals.classification_replicates(random_table(3, seed=3), draws=300)["average_precision"]
    assert (entry["lower"], entry["upper"]) == pytest.approx(
        bootstrap.corrected_interval(drawn, entry["value"])[:2]
    )
    assert entry["lower"] < np.quantile(drawn, 0.025)


def test_without_a_right_image_of_a_class_its_figures_reach_further():
    true, predicted = np.repeat([0, 1], [40, 10]), np.repeat([0, 1, 0], [39, 1, 10])
    found = intervals.classification_intervals(make_table(true, 3 * np.eye(2)[predicted]), draws=1000)
    for name in ("f1", "kappa", "balanced_accuracy", "precision"):
        assert found[name]["upper"] > found[name]["value"] + 0.02 and found[name]["without_hits"] == [
            "1 grade"
        ], name
    assert found["kappa"]["value"] < 0 < found["kappa"]["upper"]
    one_right = intervals.classification_intervals(
        make_table(true, 3 * np.eye(2)[np.repeat([0, 1, 0], [39, 2, 9])]), draws=100
    )
    assert all("without_hits" not in entry for entry in one_right.values())
    absent = intervals.classification_intervals(make_table([0, 1] * 9, 3 * np.eye(3)[[0, 1, 1] * 6]),
                                                draws=100)
    # a class that is not there can't be right
    assert all("without_hits" not in entry for entry in absent.values())


def test_resamples_that_are_all_alike_claim_no_certainty():
    entries = intervals.classification_intervals(
        make_table([0, 0, 1, 1] * 5, 9 * np.eye(2)[[0, 0, 1, 1] * 5]), draws=50
    )
    assert (
        entries["f1"]["value"] == 1
        and math.isnan(entries["f1"]["lower"])
        and math.isnan(entries["f1"]["upper"])
    )
    assert entries["accuracy"]["lower"] < 0.9 and entries["roc_auc"]["lower"] < 0.8  # Wilson's


def test_calibrated_figures_are_those_of_warmer_logits():
    table = random_table(3, seed=4)
    entries = intervals.classification_intervals(table, draws=50, temperature=2.0)
    images = Images.of(table)
    warmer = ones(make_table(images.true, images.logits / 2))
    assert [entries[f"{name}_calibrated"]["value"] for name in ("loss", "brier", "ece")] == pytest.approx(
        [warmer[name] for name in ("loss", "brier", "ece")], abs=1e-6)
    assert entries["temperature"]["value"] == 2.0


def regression_table(n=70, seed=0):
    rng = np.random.default_rng(seed)
    true = 50 + 10 * rng.normal(size=(n, 2))
    true[:5, 1] = math.nan
    predicted = 0.7 * np.nan_to_num(true, nan=50) + 15 + 3 * rng.normal(size=(n, 2))
    return pd.DataFrame({"index": range(n), "path": "", "patient": "", "split": "test", "true_a": true[:, 0],
                         "pred_a": predicted[:, 0], "true_b": true[:, 1], "pred_b": predicted[:, 1]})


def test_regression_resamples_are_figures_of_the_rows():
    table = regression_table()
    replicates = intervals.regression_replicates(table, ["a", "b"], draws=40, seed=2)
    generator = np.random.default_rng(2)
    for draw in range(40):
        rows = generator.integers(70, size=70)
        by_target = [figures_of_target(table[f"true_{name}"].to_numpy()[rows],
                                       table[f"pred_{name}"].to_numpy()[rows])
                     for name in "ab"]
        for figure in ("r2", "pearson", "mae", "rmse"):
            assert replicates[f"{figure}_b"][draw] == pytest.approx(by_target[1][figure], rel=1e-6)
            assert replicates[figure][draw] == pytest.approx(
                np.mean([entry[figure] for entry in by_target]), rel=1e-6
            )
    scale = TargetScale.learn(["a", "b"], ("none", "none"), table[["true_a", "true_b"]].to_numpy())
    figures, _ = regression_metrics(table, scale, 1.0)
    entries = intervals.regression_intervals(table, figures, ["a", "b"])
    assert all(entries[name]["value"] == pytest.approx(figures[name], nan_ok=True) for name in figures)
    assert entries["r2_a"]["lower"] < figures["r2_a"] < entries["r2_a"]["upper"]
    assert entries["loss"]["method"] is None and entries["n"]["method"] is None


def test_resamples_end_where_the_process_is_asked_to(monkeypatch):
    """A handler interrupts the main thread alone."""
    monkeypatch.setattr(signals, "asked", lambda: True)
    with pytest.raises(signals.StopRequested), signals.answered():
        intervals.classification_intervals(random_table(2))


def test_the_draws_are_fewer_for_very_many_images():
    assert bootstrap.draws_for(100_000) == 2000 and bootstrap.draws_for(100_001) == 200
    assert bootstrap.draws_for(10**6, 50) == 50


def test_a_drop_of_shares_is_newcombes():
    """Newcombe (Statistics in Medicine 1998): 56 of 70 against 48 of 80, 0.0524 to 0.3339 by his method 10."""
    sets = [{"accuracy": intervals.entry(hits / trials, *bootstrap.wilson_interval(hits, trials))}
            for hits, trials in ((56, 70), (48, 80))]
    lost = intervals.drops(*sets)["accuracy"]
    assert (round(lost["value"], 4), round(lost["lower"], 4), round(lost["upper"], 4)) == (0.2, 0.0524, 0.3339)
    turned = intervals.drops(sets[1], sets[0])["accuracy"]
    assert turned["value"] == -lost["value"] and turned["lower"] == -lost["upper"]


def test_a_drop_is_positive_where_it_is_worse():
    entries = [{name: intervals.entry(value, value - 0.1, value + 0.1)
                for name in ("roc_auc", "brier", "calibration_slope", "sensitivity_ill", "n")}
               for value in (0.5, 0.3)]
    lost = intervals.drops(*entries)
    assert lost["roc_auc"]["value"] == pytest.approx(0.2) == -lost["brier"]["value"]
    assert {"calibration_slope", "n"}.isdisjoint(lost) and "sensitivity_ill" in lost
    entries[1]["roc_auc"]["lower"] = math.nan
    assert "roc_auc" not in intervals.drops(*entries)
