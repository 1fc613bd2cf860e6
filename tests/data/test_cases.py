"""Cases: how they are named, what they may not be, and what their outputs are of those of their images."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from util.core.errors import InputError
from util.data import cases
from util.options.data import DataOptions


def table(**columns):
    """Six images of three cases in train and test."""
    rows = {"index": range(6), "path": [f"d/v{n // 2}/s_{n}.png" for n in range(6)],
            "label": ["dry", "dry", "wet", "wet", "dry", "dry"], "target": [0, 0, 1, 1, 0, 0],
            "split": ["train"] * 4 + ["test"] * 2, "patient": ["p0", "p0", "p1", "p1", "p1", "p1"]}
    return pd.DataFrame(rows | columns)


def names(found):
    return list(found[0]["case"])


def test_cases_are_named_by_a_column_an_expression_or_the_patient():
    assert "case" not in cases.named(table(), DataOptions())[0]
    volumes = ["v0", "v0", "v1", "v1", "v2", "v2"]
    for expression in (r"(v\d)/", r"([^/]+)/[^/]+$"):
        assert names(cases.named(table(), DataOptions(case_regex=expression))) == volumes
    given = table(case=["a", "a", "b", "b", "", ""])
    assert names(cases.named(given, DataOptions(case_col="c"))) == [
        "a", "a", "b", "b", "d/v2/s_4.png", "d/v2/s_5.png"]
    # what is typed wins over what a checkpoint says
    both = DataOptions(case_col="c", case_regex=r"(v\d)/")
    assert names(cases.named(given, both))[:2] == ["a", "a"]
    assert names(cases.named(given, both, frozenset({"case_regex"}))) == volumes
    people = table(patient=["p0", "p0", "p1", "p1", "p2", "p2"])
    assert names(cases.named(people, DataOptions(case="patient"))) == list(people["patient"])


@pytest.mark.parametrize(
    "columns, asked, says",
    [
        ({}, {"case": "patient"}, "1 cases have images with different labels, the first is p1 (d/v1/s_2.png "
                                  "wet; d/v2/s_4.png dry): a case has one"),
        ({"case": list("aabbbb"), "label": ["dry"] * 6}, {"case_col": "c"},
         "1 cases stand in two splits, the first is b (d/v1/s_2.png train; d/v2/s_4.png test)"),
        ({"case": list("aabbcc"), "patient": ["p0", "p1", "", "", "p2", ""]}, {"case_col": "c"},
         "1 cases have images of two patients, the first is a"),
        ({"patient": [""] * 6}, {"case": "patient"}, "--case patient: no patient is known"),
        ({}, {"case_regex": "v"}, "--case_regex v: has 0 groups, and one says the case"),
        ({}, {"case_regex": "(x+)"}, "--case_regex (x+): found in none of 6 file names"),
    ],
)
def test_what_a_case_may_not_be(columns, asked, says):
    given = table(**columns)
    if columns.get("patient") is None and asked.get("case") == "patient":
        given["split"] = "train"
    with pytest.raises(InputError, match="^") as error:
        cases.named(given, DataOptions(**asked), frozenset(asked))
    assert str(error.value).startswith(says)


def test_groups_that_differ_within_a_case_are_none():
    given = table(case=list("aabbcc"), group_side=["l", "r", "l", "l", "r", "r"])
    found, lines = cases.named(given, DataOptions(case_col="c"))
    assert list(found["group_side"]) == ["", "", "l", "l", "r", "r"] and "1 cases" in lines[0]


def test_an_image_that_names_no_group_is_in_that_of_its_case():
    given = table(case=list("aabbcc"), group_side=["", "l", "r", "", "", ""])
    found, lines = cases.named(given, DataOptions(case_col="c"))
    assert list(found["group_side"]) == ["l", "l", "r", "r", "", ""]
    assert lines == ["2 images that name no side are in the group of their case's others"]


def outputs(seed=0, width=3):
    return np.random.default_rng(seed).normal(size=(6, width))


ROWS = table(case=list("aabbca"), split="test", label="dry", target=0, patient="")


def test_a_row_a_case_is_that_of_its_first_image():
    found, owners = cases.of_images(ROWS)
    assert list(found["case"]) == ["a", "b", "c"] and list(found["images"]) == [3, 2, 1]
    assert list(found["index"]) == [0, 2, 4] and owners.tolist() == [0, 0, 1, 1, 2, 0]


def test_the_mean_and_attention():
    logits = outputs()
    _, mean, weights = cases.pooled(ROWS, logits, "mean", True)
    np.testing.assert_allclose(mean, [logits[[0, 1, 5]].mean(0), logits[2:4].mean(0), logits[4]])
    np.testing.assert_allclose(weights, [1 / 3, 1 / 3, 1 / 2, 1 / 2, 1, 1 / 3])
    scored = outputs(width=4)
    _, found, weights = cases.pooled(ROWS, scored, "attention", True)
    expected = softmax(scored[[0, 1, 5], -1])
    np.testing.assert_allclose(weights[[0, 1, 5]], expected)
    np.testing.assert_allclose(found[0], expected @ scored[[0, 1, 5], :-1])
    # equal scores are the mean, whatever they are
    scored[:, -1] = 1e4
    np.testing.assert_allclose(cases.pooled(ROWS, scored, "attention", True)[1],
                               cases.pooled(ROWS, scored[:, :-1], "mean", True)[1])


def test_the_largest():
    logits = outputs()
    _, found, weights = cases.pooled(ROWS, logits, "max", True)
    chance = softmax(logits, axis=1)[:, 0]
    first = [0, 1, 5][int(np.argmin(chance[[0, 1, 5]]))]
    np.testing.assert_array_equal(found[0], logits[first])
    assert weights[first] == 1 and weights.sum() == 3 and set(weights) == {0, 1}
    # a constant on an image's logits changes nothing of it
    moved = logits + np.arange(6)[:, None]
    np.testing.assert_array_equal(cases.pooled(ROWS, moved, "max", True)[2], weights)
    _, found, weights = cases.pooled(ROWS, logits, "max", False)  # of numbers, each by itself
    np.testing.assert_array_equal(found[1], logits[2:4].max(axis=0))
    assert weights[2:4].sum() == pytest.approx(1)


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_the_order_of_the_images_changes_nothing(pool):
    values = outputs(width=4)
    order = np.array([3, 5, 0, 4, 1, 2])
    table_before, before, weights_before = cases.pooled(ROWS, values, pool, True)
    table_after, after, weights = cases.pooled(ROWS.iloc[order].reset_index(drop=True), values[order], pool,
                                               True)
    place = [list(table_after["case"]).index(name) for name in table_before["case"]]
    np.testing.assert_allclose(after[place], before, rtol=1e-12)
    np.testing.assert_allclose(weights, weights_before[order], rtol=1e-12)
