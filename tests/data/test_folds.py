"""The deal of --folds."""

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from util.core.errors import InputError
from util.data.splits import deal, next_fold


def images(patients, labels, **more):
    number = len(patients)
    return pd.DataFrame({"path": [f"{n}.png" for n in range(number)], "split": "train", "patient": patients,
                         "label": labels, "target": labels, **more})


@pytest.fixture
def table():
    """300 patients with one to four images, of three classes; one in ten is ill."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(300), rng.integers(1, 5, 300))
    classes = rng.choice(["0", "1", "2"], 300, p=[0.7, 0.2, 0.1])
    return images([f"p{n}" for n in owners], classes[owners])


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_patients_stay_together_and_classes_are_even(table, folds):
    dealt = deal(table, folds, 7)
    assert set(dealt) == set(range(1, folds + 1))
    assert table.groupby("patient")["path"].count().max() > 1
    assert pd.Series(dealt).groupby(table["patient"]).nunique().max() == 1
    patients = table.assign(fold=dealt).drop_duplicates("patient")
    counts = pd.crosstab(patients["label"], patients["fold"])
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    # images, too, about as evenly as scikit-learn deals them
    theirs = np.zeros(len(table), int)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for number, (_, scored) in enumerate(splitter.split(table, table["label"], table["patient"])):
        theirs[scored] = number
    ours, other = (pd.crosstab(table["label"], of).std(axis=1).mean() for of in (dealt, theirs))
    assert ours <= 1.5 * other + 1


def test_the_deal_is_of_the_seed_and_the_table(table):
    np.testing.assert_array_equal(deal(table, 5, 1), deal(table, 5, 1))
    assert (deal(table, 5, 1) != deal(table, 5, 2)).mean() > 0.5
    more = pd.concat([table, images(["t"], ["0"]).assign(split="test", path="t.png")], ignore_index=True)
    np.testing.assert_array_equal(deal(more, 5, 1), [*deal(table, 5, 1), 0])


def test_cases_and_patients(table):
    cases = table.assign(case=table["patient"].str.cat(table["path"].str[-5], "-"))
    dealt = deal(cases, 5, 0)
    assert pd.Series(dealt).groupby(cases["patient"]).nunique().max() == 1
    alone = cases.assign(patient="")
    dealt = pd.Series(deal(alone, 5, 0))
    assert dealt.groupby(alone["case"]).nunique().max() == 1
    assert dealt.groupby(table["patient"]).nunique().max() > 1
    # a patient who is known on one image of a case alone
    half = cases.assign(patient=cases["patient"].where(cases.index % 2 == 0, ""))
    assert pd.Series(deal(half, 5, 0)).groupby(half["case"]).nunique().max() == 1


def test_numbers_and_several_labels():
    rng = np.random.default_rng(1)
    values = rng.normal(size=200)
    rows = images([""] * 200, "x", true_depth=values).drop(columns="target")
    means = pd.Series(values).groupby(deal(rows, 5, 0)).mean()
    assert means.std() < 0.05  # of fifths that are drawn freely it would be 0.16
    many = images([""] * 200, "x", true_a=rng.random(200) < 0.5, true_rare=np.arange(200) < 7)
    many["target"] = 0
    rare = pd.Series(np.arange(200) < 7).groupby(deal(many.astype({"true_a": float, "true_rare": float}), 5, 0)).sum()
    assert rare.max() - rare.min() <= 1


def test_what_cannot_be_dealt():
    with pytest.raises(InputError, match="--folds 5: train and val have 4 patients"):
        deal(images(list("aabbccdd"), ["0", "0", "1", "1"] * 2), 5, 0)
    with pytest.raises(InputError, match="1 images of train and val have class 1"):
        deal(images([""] * 9, ["0"] * 8 + ["1"]), 3, 0)
    with pytest.raises(InputError, match="2 images of train and val have label a"):
        deal(images([""] * 9, "x", true_a=[1.0] * 2 + [0.0] * 7).assign(target=0), 3, 0)
    assert [next_fold(fold, 3) for fold in (1, 2, 3)] == [2, 3, 1]

