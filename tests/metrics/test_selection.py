import argparse
import math

import pytest

from util.metrics import selection


def test_names_become_figures():
    read = selection.reader("classification")
    assert read("score") == "score" and read("AUC + f1") == "roc_auc+f1" and read("ap") == "average_precision"
    for text in ("auc+roc_auc", "r2", "", "auc+"):
        with pytest.raises(argparse.ArgumentTypeError, match="twice|none of"):
            read(text)
    with pytest.raises(argparse.ArgumentTypeError):
        selection.reader("regression")("auc")


def test_sums_are_means_and_losses_are_turned():
    figures = {"roc_auc": 0.8, "f1": 0.5, "loss": 1.2, "kappa": math.nan}
    assert selection.figure_of("qwk") == "qwk" and selection.composed("qwk", figures) == {}
    assert selection.composed("roc_auc+f1", figures) == pytest.approx({"selection": 0.65})
    assert selection.composed("loss", figures) == {"selection": -1.2}
    assert selection.composed("roc_auc+loss", figures) == pytest.approx({"selection": -0.2})
    assert math.isnan(selection.composed("roc_auc+kappa", figures)["selection"])
