"""Figures of predicted numbers against scikit-learn and SciPy; undefined ones are NaN, never a crash."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr
from sklearn import metrics as sklearn_metrics

from util.core import run_files
from util.core.errors import InputError, RunError
from util.metrics.predictions import read_predictions
from util.metrics.regression import metric_columns, predictions_table, regression_metrics, target_figures
from util.metrics.target_scale import TargetScale
from util.report.bland_altman import agreement, agreement_files, limits_of_agreement
from util.report.charts import save_png


@pytest.fixture
def table():
    rng = np.random.RandomState(1)
    true = rng.normal(5, 2, (30, 2))
    samples = pd.DataFrame({"index": np.arange(30)[::-1], "path": [f"{n}.png" for n in range(30)]})
    samples = samples.assign(patient="", split="val")
    predicted = true + rng.normal(0, 1, true.shape)
    true[4, 1] = np.nan
    return predictions_table(samples, true, predicted, ["tc", "血脂"])


def scale_of(table):
    return TargetScale.learn(["tc", "血脂"], ["none", "none"], table[["true_tc", "true_血脂"]].to_numpy())


def test_figures_are_scikit_learns(table):
    figures, notes = regression_metrics(table, scale_of(table), beta=0.5)
    for name in ("tc", "血脂"):
        known = table[f"true_{name}"].notna()
        true, predicted = table[f"true_{name}"][known], table[f"pred_{name}"][known]
        assert figures[f"r2_{name}"] == pytest.approx(sklearn_metrics.r2_score(true, predicted), abs=1e-12)
        assert figures[f"mae_{name}"] == pytest.approx(
            sklearn_metrics.mean_absolute_error(true, predicted), abs=1e-12
        )
        assert figures[f"rmse_{name}"] == pytest.approx(
            sklearn_metrics.root_mean_squared_error(true, predicted), abs=1e-12
        )
        assert figures[f"pearson_{name}"] == pytest.approx(pearsonr(true, predicted)[0], abs=1e-12)
        assert figures[f"n_{name}"] == known.sum()
    assert figures["r2"] == pytest.approx((figures["r2_tc"] + figures["r2_血脂"])
                                          / 2) and figures["n"] == 30 and notes == []
    assert set(metric_columns(["tc", "血脂"])) == {"epoch", "val_loss", *figures} - {"loss"}


def test_loss_is_torchs_over_known_values(table):
    scale = scale_of(table)
    true, predicted = (scale.standardise(table[[f"{kind}_tc", f"{kind}_血脂"]].to_numpy())
                       for kind in ("true", "pred"))
    known = torch.from_numpy(~np.isnan(true))
    expected = torch.nn.functional.smooth_l1_loss(torch.from_numpy(predicted)[known],
                                                  torch.from_numpy(true)[known], beta=0.5)
    assert regression_metrics(table, scale, 0.5)[0]["loss"] == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("true, predicted, undefined", [
    ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], {"r2", "pearson"}),
    ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], {"pearson"}),
    ([1.0], [2.0], {"r2", "pearson"}),
    ([math.nan, math.nan], [2.0, 1.0], {"r2", "pearson", "mae", "rmse"}),
])
def test_undefined_figures_are_nan(true, predicted, undefined):
    figures = target_figures(np.array(true), np.array(predicted))
    assert {name for name, value in figures.items() if math.isnan(value)} == undefined


def test_a_constant_target_leaves_the_mean_to_the_others(table):
    scale = scale_of(table)
    table["true_tc"] = 5.0
    figures, notes = regression_metrics(table, scale, 1.0)
    assert math.isnan(figures["r2_tc"]) and figures["r2"] == figures["r2_血脂"]
    assert "R² is undefined for tc" in notes[0] and "other 1 of 2" in notes[0]


def test_table_reads_back_bit_for_bit(table, tmp_path):
    run_files.write_predictions(table, tmp_path / "p.csv")
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "p.csv"), table)
    assert list(table["index"]) == list(range(30)) and table["path"][0] == "29.png"
    (tmp_path / "p.csv").write_text("index,path,patient,split,pred_tc\n")
    with pytest.raises(InputError, match="lacks the columns true_tc"):
        read_predictions(tmp_path / "p.csv")


def test_predictions_that_are_no_numbers_are_a_failed_run(table):
    samples = table[["index", "path", "patient", "split"]]
    with pytest.raises(RunError, match="1 of 30 images"):
        predictions_table(samples, np.zeros((30, 1)), np.where(np.arange(30)[:, None] == 3, np.nan, 0.0),
                          ["a"])


def test_limits_of_agreement():
    bias, lower, upper = limits_of_agreement(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0]))
    assert (bias, lower, upper) == (1.0, 1 - 1.96, 1 + 1.96)  # differences 1, 0, 2: sd 1


def test_a_chart_a_target(table, tmp_path):
    from PIL import Image

    targets = ["tc", "血脂"]
    for number, file in enumerate(agreement_files("test", targets)):
        # a line where no font draws the second name
        save_png(agreement("test", table, targets, number), tmp_path / file)
        assert Image.open(tmp_path / file).size[0] > 1000
    assert agreement_files("val", ["a/b", "a b"]) == ["agreement_val_a_b.png", "agreement_val_a_b_2.png"]
    table["true_tc"] = np.nan
    assert agreement("val", table, ["tc"], 0) is None
