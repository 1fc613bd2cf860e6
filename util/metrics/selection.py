"""What makes the best epoch: a metric of val, or the mean of several."""

import argparse
import math
from collections.abc import Callable

from util.metrics.table import COMPOSED, choices, is_better_low


def reader(kind: str) -> Callable[[str], str]:
    """An argparse type: `auc+f1` -> `roc_auc+f1`, the metrics' own names in the order typed. kind: of the
    task."""
    names = choices(kind)

    def read(text: str) -> str:
        parts = [part.strip().lower() for part in text.split("+")]
        unknown = [part for part in parts if part not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(names)} (or several of "
                                             "them, joined by +)")
        found = [names[part] for part in parts]
        if len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"{text!r} names a figure twice")
        return "+".join(found)
    return read


def figure_of(metric: str) -> str:
    """The metric whose highest value on val makes the best epoch."""
    return COMPOSED if "+" in metric or is_better_low(metric) else metric


def composed(metric: str, figures: dict[str, float]) -> dict[str, float]:
    """{} or {"selection": value}: the mean of the metric's parts, those of which less is better with their
    sign turned; NaN where one of them is undefined."""
    if figure_of(metric) != COMPOSED:
        return {}
    values = [-figures[part] if is_better_low(part) else figures[part] for part in metric.split("+")]
    return {COMPOSED: math.nan if any(map(math.isnan, values)) else sum(values) / len(values)}


def undefined(metric: str, score: float, kept: str) -> list[str]:
    """A warning where nothing can be chosen by a metric on val. kept: what is, instead."""
    if not math.isnan(score):
        return []
    return [f"warning: --select_metric {metric} is undefined on val, so nothing can be chosen by it and "
            f"{kept} is kept: name another one, such as loss, or put images of every class into val"]
