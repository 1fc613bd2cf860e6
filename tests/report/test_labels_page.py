"""The report of several labels: a row a label, curves of each, mistakes by label; also of a folder that lacks
some files."""

import json

import numpy as np
import pytest

from tests.report.pages import page_of
from tests.run_folders import HOSTILE, multilabel_run
from util.metrics.predictions import read_predictions
from util.report.run_data import read_run, worst_first, wrong_labels

NAMES = ["Retinopathy", "Glaucoma", "Cataract"]
pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return multilabel_run(tmp_path_factory.mktemp("run") / "eyes", NAMES, number=80, draws=60, calibrate=True)


def test_the_page_of_several_labels(folder):
    page, lines = page_of(folder)
    text = page.text
    stored = json.loads((folder / "metrics_test.json").read_text())
    assert "Labels on test, with the thresholds that were chosen on val" in text and "Confusion" not in text
    for name in NAMES:
        for metric in ("roc_auc", "f1", "sensitivity", "ece", "calibration_slope", "threshold"):
            value = stored[f"{metric}_{name}"]["value"]
            assert f"{value:.3f}".replace("-", "\u2212") in text, (metric, name)
    assert "mean over the labels" in text and "over the classes" not in text and "of the classes" not in text
    for heading in ("ROC curves", "Precision-recall curves", "Reliability diagram", "Score distribution",
                    "Probability of each label", "Most confident mistakes", "Learning curves"):
        assert heading in text
    assert text.count("Probability of a label, all labels together") >= 2
    assert f"--multilabel \\ --label_cols {' '.join(NAMES)}" in text or f"--label_cols {' '.join(NAMES)}" in text
    assert "Images with each label, and without it" in text and "after each label's temperature" in text
    assert not any("cannot" in line for line in lines)


def test_mistakes_are_labels_that_are_called_wrongly(folder):
    run = read_run(folder)
    split = run.splits["test"]
    table = read_predictions(folder / "predictions_test.csv")
    shuffled = table.sample(frac=1, random_state=1).reset_index(drop=True)
    split.table = shuffled
    found = wrong_labels(split)
    for place, name in enumerate(NAMES):
        threshold = split.entries[f"threshold_{name}"]["value"]
        true, chance = shuffled[f"true_{name}"].to_numpy(), shuffled[f"prob_{name}"].to_numpy()
        wrong = (chance >= threshold) != (true == 1)
        expected = np.where(np.isnan(true), np.nan, np.where(wrong, np.abs(chance - true), 0))
        assert np.allclose(found[:, place], expected, equal_nan=True)
    rows, total = worst_first(run, split, 5)
    worst = np.nanmax(found, axis=1)
    assert total == (worst > 0).sum() and worst[rows].tolist() == sorted(worst, reverse=True)[:5]


def test_a_folder_without_metrics_or_with_strange_names(tmp_path):
    folder = multilabel_run(tmp_path / "r", HOSTILE, number=40, draws=20, pictures=False)
    page, _ = page_of(folder)
    assert "alert(1)" in page.text and "script" not in [tag for tag, _ in page.tags]
    for file in folder.glob("metrics_*.json"):
        file.unlink()
    (folder / "run.json").unlink()
    page, lines = page_of(folder)
    assert any("computed again from its predictions, without intervals" in line for line in lines)
    assert "Labels on test" in page.text and "undefined" not in page.text.split("Metrics of test")[0]
    for file in folder.glob("predictions_*.csv"):
        file.unlink()
    multilabel_run(tmp_path / "r2", NAMES, number=40, draws=20, pictures=False)
    for file in (tmp_path / "r2").glob("predictions_*.csv"):
        file.unlink()
    page, lines = page_of(tmp_path / "r2")
    assert "Labels on test" in page.text and any("no curves and no images of test" in line for line in lines)
