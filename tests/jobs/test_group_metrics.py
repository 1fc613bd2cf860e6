"""Gaps between groups: found where there are some, and in no more than 5 % of data without one."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jobs import group_metrics
from jobs.group_metrics import Gap, exchange_test, gaps_of
from util.core.errors import InputError
from util.data.groups import bins_of, in_order, named
from util.metrics.classification import predictions_table
from util.metrics.intervals import classification_intervals, drops
from util.metrics.multilabel.intervals import multilabel_intervals
from util.metrics.multilabel.predictions import predictions_table as label_predictions
from util.metrics.regression import predictions_table as regression_table


def drawn(seed, sizes, distances, shares=None, a_patient=1):
    """A predictions table of groups A, B, …: distance of the two classes' means in each, share of the ill."""
    rng, rows, logits = np.random.default_rng(seed), [], []
    for name, size, distance, share in zip("ABCD", sizes, distances, shares or [0.4] * len(sizes),
                                           strict=False):
        ill = np.repeat(rng.random(size // a_patient) < share, a_patient)
        noise = np.repeat(rng.normal(size=size // a_patient), a_patient) * (a_patient > 1)
        position = distance * (ill - 0.5) + (noise + rng.normal(size=size)) / (1 + (a_patient > 1)) ** 0.5
        logits.append(np.column_stack([np.zeros(size), position]))
        rows += [{"target": int(one), "group_site": name,
                  "patient": f"{name}{place // a_patient}" if a_patient > 1 else ""}
                 for place, one in enumerate(ill)]
    rows = pd.DataFrame(rows).assign(index=np.arange(len(rows)), path="", split="test")
    return predictions_table(rows, np.concatenate(logits), ["well", "ill"])


def entries_of(table):
    return {name: classification_intervals(part, draws=20)
            for name, part in group_metrics.parts_of(table, "site")}


def gaps(table, seed=0):
    return gaps_of(table, "site", entries_of(table), seed)


def test_a_gap_is_found_and_says_between_whom():
    found = gaps(drawn(0, (200, 200, 200), (2.5, 2.5, 0.8)))
    assert [(gap.first, gap.second) for gap in found[::4]] == [("A", "B"), ("A", "C"), ("B", "C")]
    of_auc = {(gap.first, gap.second): gap for gap in found if gap.metric == "roc_auc"}
    assert of_auc["A", "B"].p_holm > 0.05 > 0.01 > max(of_auc[pair].p_holm for pair in (("A", "C"),
                                                                                       ("B", "C")))
    table = drawn(0, (200, 200, 200), (2.5, 2.5, 0.8))
    entries = entries_of(table)
    gap = of_auc["A", "C"]
    assert gap.value == pytest.approx(entries["A"]["roc_auc"]["value"] - entries["C"]["roc_auc"]["value"])
    assert (gap.lower, gap.upper) == tuple(drops(entries["A"], entries["C"])["roc_auc"][key]
                                           for key in ("lower", "upper"))


def test_more_ill_people_are_no_gap():
    """Outputs that depend on the class alone; accuracy is another one where more are ill, by that alone."""
    table = drawn(1, (600, 600), (1.0, 1.0), shares=(0.5, 0.05))
    table["logit_ill"] += 1.5  # so that the ill are right more often than the well
    shifted = predictions_table(table.assign(target=(table["true_class"] == "ill").astype(int)),
                                table[["logit_well", "logit_ill"]].to_numpy(), ["well", "ill"])
    found = {gap.metric: gap for gap in gaps(shifted)}
    assert abs(found["accuracy"].value) > 0.15 and found["accuracy"].p > 0.05


def test_the_exchange_is_a_permutation_test():
    """One class alone and no patients: scipy's permutation test of the difference of shares."""
    table = drawn(2, (60, 60), (0.5, 1.6), shares=(0.999, 0.999))
    table = table[table["true_class"] == "ill"].reset_index(drop=True)
    right = (table["predicted_class"] == "ill").to_numpy()
    first = (table["group_site"] == "A").to_numpy()
    ours = exchange_test(table, table["group_site"] == "A", ["accuracy"], 0)["accuracy"]
    theirs = stats.permutation_test((right[first], right[~first]), lambda a, b: a.mean() - b.mean(),
                                    n_resamples=2000, rng=np.random.default_rng(1)).pvalue
    assert ours == pytest.approx(theirs, abs=0.03) and ours < 0.2


def test_small_groups_are_shown_and_not_tested_and_patients_stay_whole():
    found = gaps(drawn(3, (100, 12), (2.0, 0.5)))
    assert all(math.isnan(gap.p) and not math.isnan(gap.value) for gap in found)
    # 40 images of 10 patients are 10 units
    found = gaps(drawn(3, (100, 40), (2.0, 0.5), a_patient=4))
    assert all(math.isnan(gap.p) for gap in found)


def test_the_lines_say_which_group_is_too_small_and_count_cases_and_patients():
    table = drawn(3, (100, 60), (2.0, 0.5), a_patient=4).assign(case=lambda rows: rows.index)
    task = SimpleNamespace(shown=[("roc_auc", "AUC")], options=SimpleNamespace(data=SimpleNamespace(unit="cases")))
    sizes = {name: group_metrics._units(part) for name, part in group_metrics.parts_of(table, "site")}
    of_a, of_b = group_metrics._lines(task, "test", "site", entries_of(table), gaps(table), sizes)[1:3]
    assert of_a.endswith("100 cases of 25 patients") and "too few" not in of_a
    assert of_b.endswith("60 cases of 15 patients  too few for a test")


def test_no_more_than_5_percent_false_gaps(monkeypatch):
    """Three groups without a gap, patients of two images: a family of twelve tests finds any in 5 % at
    most."""
    monkeypatch.setattr(group_metrics, "EXCHANGES", 200)
    false = 0
    for seed in range(60):
        table = drawn(seed, (60, 80, 60), (1.2, 1.2, 1.2), shares=(0.5, 0.3, 0.4), a_patient=2)
        entries = {name: {metric: {"value": 0.0, "lower": -1.0, "upper": 1.0}
                          for metric in group_metrics.compared(table)} for name in "ABC"}
        false += any(gap.p_holm < 0.05 for gap in gaps_of(table, "site", entries, seed))
    assert false <= stats.binom.ppf(0.999, 60, 0.05)


def test_a_regression_has_gaps_too():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(200, 1))
    noise = np.where(np.arange(200) < 100, 0.3, 1.5)[:, None] * rng.normal(size=(200, 1))
    rows = pd.DataFrame({"index": np.arange(200), "path": "", "patient": "", "split": "test",
                         "group_site": ["A"] * 100 + ["B"] * 100})
    table = regression_table(rows, true, true + noise, ["depth"])
    p = exchange_test(table, table["group_site"] == "A", ["r2", "mae"], 0)
    assert max(p.values()) < 0.01


@pytest.mark.parametrize(("cells", "edges", "says"), [
    (["a", "a"], None, "has 1 group"), (["a", "a", "b"], None, "a group of one image (b; line 4)"),
    (["a", "A"], None, "in two ways"), ([str(k // 2) for k in range(40)], None, "at most 12"),
    (["1", "old"], [40.0], "holds 'old'")])
def test_columns_without_groups_are_refused(cells, edges, says):
    with pytest.raises(InputError) as error:
        named("d.csv", pd.Series(cells, range(2, 2 + len(cells)), name="site", dtype=object), edges)
    assert says in str(error.value)


def test_bands_hold_their_lower_edge():
    cells = pd.Series(["39.9", "40", "59", "60", "", "80", "12", "na"], name="age", dtype=object)
    names, (line,) = named("d.csv", cells, [40.0, 60.0])
    assert list(names) == ["below 40", "40 to 60", "40 to 60", "60 and above", "", "60 and above", "below 40",
                           ""]
    assert "2 of 8 rows name no age" in line
    assert bins_of(["age=40,60"], ["age"]) == {"age": [40.0, 60.0]}
    for word in ("age", "age=", "age=60,40", "age=x", "sex=1", "age=nan"):
        with pytest.raises(InputError):
            bins_of([word], ["age"])


def test_bands_are_shown_by_their_size():
    assert in_order({"65 and above", "below 5", "45 to 65", "5 to 45", "right", "10", "left"}) == [
        "below 5", "5 to 45", "10", "45 to 65", "65 and above", "left", "right"]


def test_a_gap_is_written_as_a_row():
    assert set(vars(Gap("site", "roc_auc", "A", "B", 0.1, 0.0, 0.2, 0.04))) == {
        "column", "metric", "first", "second", "value", "lower", "upper", "p", "p_holm"}


def test_a_patient_may_have_images_in_both_groups():
    """Each of 100 patients was photographed by both cameras; those of the second are worse."""
    one, other = drawn(4, (100,), (3.0,)), drawn(5, (100,), (0.3,))
    table = pd.concat([one.assign(patient=[str(k) for k in range(100)]),
                       other.assign(group_site="B", patient=[str(k) for k in range(100)])])
    table = table.assign(index=np.arange(200)).reset_index(drop=True)
    p = exchange_test(table, table["group_site"] == "A", ["roc_auc"], 0)
    assert p["roc_auc"] < 0.01
    # few patients, each with many images in both groups
    assert math.isnan(exchange_test(table.assign(patient=[str(k % 10) for k in range(200)]),
                                    table["group_site"] == "A", ["roc_auc"], 0)["roc_auc"])


def labels_table(seed, sizes, distances, labels=("a", "b")):
    """Of several labels, the second one rarer in the second group."""
    rng, rows, true, logits = np.random.default_rng(seed), [], [], []
    for place, (name, size, distance) in enumerate(zip("AB", sizes, distances, strict=True)):
        there = (rng.random((size, len(labels))) < [0.5, 0.4 - 0.3 * place]).astype(float)
        true.append(there)
        logits.append(distance * (there - 0.5) + rng.normal(size=there.shape))
        rows += [{"group_site": name, "patient": ""}] * size
    rows = pd.DataFrame(rows).assign(index=np.arange(len(rows)), path="", split="test")
    return label_predictions(rows, np.concatenate(true), np.concatenate(logits), labels)


def test_gaps_of_several_labels():
    """A worse group is found; another share of a label makes no gap by itself."""
    def found(table):
        entries = {name: multilabel_intervals(part, 0, 20, {})
                   for name, part in group_metrics.parts_of(table, "site")}
        return {gap.metric: gap for gap in gaps_of(table, "site", entries, 0)}, entries

    gaps_there, entries = found(labels_table(0, (250, 250), (2.5, 0.8)))
    assert gaps_there["roc_auc"].p_holm < 0.01 and gaps_there["average_precision"].p_holm < 0.01
    assert gaps_there["roc_auc"].value == pytest.approx(entries["A"]["roc_auc"]["value"]
                                                       - entries["B"]["roc_auc"]["value"])
    alike, _ = found(labels_table(1, (250, 250), (1.5, 1.5)))
    assert alike["average_precision"].value > 0.05  # by the rarer label
    assert alike["average_precision"].p_holm > 0.05 and alike["roc_auc"].p_holm > 0.05
    # a group that knows other labels is not compared by their mean
    table = labels_table(2, (250, 250), (2.5, 0.8))
    table.loc[table["group_site"] == "B", "true_b"] = np.nan
    assert all(math.isnan(gap.value) and math.isnan(gap.p_holm) for gap in found(table)[0].values())
