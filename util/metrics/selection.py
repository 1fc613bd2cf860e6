"""What makes the best epoch: a figure of val, or the mean of several."""

import argparse
import math

# What may be typed, and the figure that it means.
CLASSIFICATION = {
    "score": "score", "auc": "roc_auc", "roc_auc": "roc_auc", "f1": "f1", "kappa": "kappa", "qwk": "qwk",
    "accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "ap": "average_precision",
    "average_precision": "average_precision", "precision": "precision", "recall": "recall", "jaccard": "jaccard",
    "hamming": "hamming", "loss": "loss", "brier": "brier", "ece": "ece", "mae_grades": "mae_grades",
}
REGRESSION = {"r2": "r2", "pearson": "pearson", "mae": "mae", "rmse": "rmse", "loss": "loss"}
LESS_IS_BETTER = frozenset({"hamming", "loss", "brier", "ece", "mae_grades", "mae", "rmse"})
COMPOSED = "selection"  # the figure that a sum of several, or one of which less is better, gets a column of


def reader(names: dict[str, str]):
    """An argparse type: `auc+f1` -> `roc_auc+f1`, the figures' own names in the order typed."""
    def read(text: str) -> str:
        parts = [part.strip().lower() for part in text.split("+")]
        unknown = [part for part in parts if part not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(names)} (or several of them, joined by +)")
        found = [names[part] for part in parts]
        if len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"{text!r} names a figure twice")
        return "+".join(found)
    return read


def figure_of(metric: str) -> str:
    """The figure whose highest value on val makes the best epoch."""
    return COMPOSED if "+" in metric or metric in LESS_IS_BETTER else metric


def composed(metric: str, figures: dict[str, float]) -> dict[str, float]:
    """{} or {"selection": value}: the mean of the metric's parts, those of which less is better with their sign turned; NaN
    where one of them is undefined."""
    if figure_of(metric) != COMPOSED:
        return {}
    values = [-figures[part] if part in LESS_IS_BETTER else figures[part] for part in metric.split("+")]
    return {COMPOSED: math.nan if any(map(math.isnan, values)) else sum(values) / len(values)}


def undefined(metric: str, score: float, kept: str) -> list[str]:
    """A warning where nothing can be chosen by a metric on val. kept: what is, instead."""
    if not math.isnan(score):
        return []
    return [f"warning: --select_metric {metric} is undefined on val, so nothing can be chosen by it and {kept} is kept: name "
            "another one, such as loss, or put images of every class into val"]
