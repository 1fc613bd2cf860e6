"""util/metrics/table.py: every metric that is computed has a row, and the rows say what the computing modules
do."""

import numpy as np
import pytest

from tests.metrics.test_classification import random_table
from util.metrics.classification import classification_metrics
from util.metrics.intervals import classification_intervals
from util.metrics.table import (
    BY_NAME,
    CLASSIFICATION,
    DELONG,
    METRICS,
    REGRESSION,
    SANDWICH,
    WILSON,
    is_better_low,
    of_kind,
    row_of,
)


def test_names_are_unique_and_places_are_orders():
    assert len(BY_NAME) == len(METRICS)
    for kind in (CLASSIFICATION, REGRESSION):
        for order in ("csv", "terminal", "curve", "headline"):
            places = [getattr(metric, order) for metric in of_kind(kind, order)]
            assert places == sorted(places) and len(set(places)) == len(places), (kind, order)


@pytest.mark.parametrize("classes", [2, 4])
def test_every_computed_metric_has_a_row_that_says_its_interval(classes):
    table = random_table(classes, 60)
    entries = classification_intervals(table, draws=50, thresholds={} if classes > 2 else None,
                                       temperature=1.3)
    methods = {DELONG: "DeLong", WILSON: "Wilson", SANDWICH: "sandwich"}
    for name, entry in entries.items():
        row = row_of(name)
        assert row is not None, name
        if entry["method"]:
            made_by = row.interval if name in BY_NAME else row.class_interval or row.interval
            assert entry["method"] == methods.get(made_by, "bootstrap of images"), name
        assert (entry["method"] is not None) or not row.interval or np.isnan(entry["lower"]), name


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric.csv is not None
                                    and metric.name != "n"
                                    and CLASSIFICATION in metric.kinds], ids=lambda metric: metric.name)
def test_better_is_as_the_row_says(metric):
    """A model that is right everywhere against one that is wrong everywhere."""
    table = random_table(3, 40)
    right, wrong = table.copy(), table.copy()
    names = [name.removeprefix("prob_") for name in table if name.startswith("prob_")]
    for each, shift in ((right, 0), (wrong, 1)):
        place = table["true_class"].map(names.index).to_numpy()
        logits = 6.0 * np.eye(3)[(place + shift) % 3]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        each[[f"logit_{name}" for name in names]], each[[f"prob_{name}" for name in names]] = (
            logits,
            probabilities,
        )
        each["predicted_class"] = [names[k] for k in logits.argmax(axis=1)]
    good, bad = (classification_metrics(each, names)[0][metric.name] for each in (right, wrong))
    assert (good < bad) == metric.is_better_low and good != bad


def test_names_of_classes_and_targets():
    assert is_better_low("mae_vessel_width") and is_better_low("loss") and not is_better_low("f1_loss")
    assert row_of("sensitivity_at_90_specificity").label == "Sensitivity at 90 % specificity"
    assert row_of("roc_auc_no_DR") is BY_NAME["roc_auc"] and row_of("anything") is None
