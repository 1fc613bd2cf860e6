"""Metrics of several labels an image, for one weighting of the images or for many: those of each label as two
classes, and their means.

Every metric is named <metric>_<label>; the bare names are means over the labels where it is defined. B is the
number of weightings, N of images.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from util.core.errors import RunError
from util.metrics import delong
from util.metrics.bootstrap import groups_of, mean_of_defined
from util.metrics.intervals import collect, fewest_of
from util.metrics.multilabel.predictions import NAMES, THRESHOLD, Label, labels_of
from util.metrics.predictions import require_finite
from util.metrics.table import CHOICE, MULTILABEL, SCORE_PARTS, of_kind
from util.metrics.weighted import WeightedFigures

# of each label and, as their means, in the columns of metrics_*.csv
FIGURES = tuple(metric.name for metric in of_kind(MULTILABEL, "per_label") if metric.interval)
COUNTS = ("n", "positives")
OF_CLASS = ("roc_auc", "average_precision", "f1", "precision", "sensitivity", "specificity")
# which of two classes' metrics are a label's: those of the second class where there are such, else of both
SOURCES = {metric.name: f"{metric.name}_{NAMES[1]}" if metric.name in OF_CLASS else metric.name
           for metric in of_kind(MULTILABEL) if metric.group not in ("", CHOICE)}
SOURCES |= {"n": "n", "positives": f"n_{NAMES[1]}"}


def metric_columns(labels: list[str]) -> tuple[str, ...]:
    """The columns of metrics_val.csv and metrics_test.csv."""
    return ("epoch", "val_loss", *FIGURES, "score", "n",
            *(f"{figure}_{name}" for name in labels for figure in ("loss", *FIGURES, *COUNTS)))


def of_label(found: Mapping[str, object], name: str) -> dict[str, object]:
    """The metrics of two classes (util/metrics/weighted.py) as a label's, <metric>_<label>."""
    return {f"{own}_{name}": found[source] for own, source in SOURCES.items() if source in found}


class LabelFigures:
    """figures(weights (B, N)) -> {name: (B,)}; the rows are in the order of their index."""

    def __init__(self, labels: list[Label]) -> None:
        self.labels = labels
        self.figures = {label.name: WeightedFigures(label.images, label.operating, label.temperature)
                        for label in labels}

    def by_label(self, weights: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """{(label, metric of two classes): (B,)}."""
        found = {}
        for label in self.labels:
            of_known = weights if label.known.all() else weights[:, label.known]
            found |= {(label.name, metric): values
                      for metric, values in self.figures[label.name](of_known).items()}
        return found

    def together(self, by_label: Mapping[tuple[str, str], np.ndarray]) -> dict[str, np.ndarray]:
        """The labels' metrics under their names, and the means."""
        found = {}
        for label in self.labels:
            own = {metric: values for (name, metric), values in by_label.items() if name == label.name}
            found |= of_label(own, label.name)
        return means(found, [label.name for label in self.labels]) | found

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        return self.together(self.by_label(weights))

    def values(self) -> dict[str, float]:
        """The metrics of the images as they are, with the number of all and of each label, and the
        thresholds."""
        number = len(self.labels[0].known)
        found = {name: float(values[0]) for name, values in self(np.ones((1, number))).items()}
        for label in self.labels:
            found |= {f"n_{label.name}": len(label.images.true),
                      f"positives_{label.name}": int(label.images.true.sum()),
                      f"{THRESHOLD}_{label.name}": label.threshold}
        return found | {"n": number}


def means(found: Mapping[str, np.ndarray], labels: list[str]) -> dict[str, np.ndarray]:
    """The means over the labels of those metrics that are of labels, and the score."""
    present = {name: [found[key] for label in labels if (key := f"{name}_{label}") in found]
               for name in SOURCES if name not in COUNTS}
    bare = {name: mean_of_defined(values) for name, values in present.items() if values}
    return bare | {"score": mean_of_defined([bare[part] for part in SCORE_PARTS])}


def figures_of(table: pd.DataFrame,
               decided: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, float]:
    """All metrics of a predictions table. decided: see `labels_of`."""
    return LabelFigures(labels_of(table, decided)).values()


def multilabel_metrics(table: pd.DataFrame, decided: Mapping[str, Mapping[str, float]] | None = None
                       ) -> tuple[dict[str, float], list[str]]:
    """The same, and lines that say what they leave out. Thresholds are those of `decided`, else those of the
    highest F1 on this very table. RunError for non-finite outputs or an empty table."""
    if table.empty:
        raise RunError("there are no predictions to score")
    outputs = [name for name in table if name.startswith(("prob_", "logit_"))]
    require_finite(table[outputs].to_numpy(np.float64), table["path"], "outputs")
    labels = labels_of(table, decided)
    figures = LabelFigures(labels).values()
    undefined = [label.name for label in labels if math.isnan(figures[f"roc_auc_{label.name}"])]
    listed = ", ".join(undefined[:10]) + (f" and {len(undefined) - 10} more" if len(undefined) > 10 else "")
    return figures, [f"roc_auc is undefined for {len(undefined)} of {len(labels)} labels ({listed}): their "
                     "images are of one kind alone, so means are over the others"] if undefined else []


def replicates_of(table: pd.DataFrame, draws: int, seed: int,
                  decided: Mapping[str, Mapping[str, float]]) -> dict[str, np.ndarray]:
    """{metric: (draws,)} of resamples; as `classification_replicates`."""
    figures, groups = LabelFigures(labels_of(table, decided)), groups_of(patients_of(table))
    return collect(figures, len(table), groups, draws, seed)


def patients_of(table: pd.DataFrame) -> np.ndarray:
    return table.sort_values("index")["patient"].to_numpy(dtype=object)


def spread(label: Label, influence: np.ndarray) -> np.ndarray:
    """Influences of the images where a label is known -> (N,) of all, 0 elsewhere."""
    found = np.zeros(len(label.known))
    found[label.known] = influence
    return found


def auc_influences(labels: list[Label]) -> dict[str, np.ndarray]:
    """{roc_auc and roc_auc_<label>: (N,) what each image adds to its error}, see util/metrics/delong.py."""
    found = {}
    for label in labels:
        auc, influence = delong.auc_influence(label.images.true == 1, label.images.probabilities[:, 1])
        if not math.isnan(auc):
            found[f"roc_auc_{label.name}"] = spread(label, influence)
    unknown = np.full(len(labels[0].known), math.nan)
    mean = np.mean([*found.values()], axis=0) if found else unknown
    return {"roc_auc": mean} | {f"roc_auc_{label.name}": found.get(f"roc_auc_{label.name}", unknown)
                                for label in labels}


def fewest(labels: list[Label], name: str) -> int:
    """As `fewest_of`, of a label's AUC; of roc_auc, of the label with the fewest that has any."""
    counts = [fewest_of(label.images, f"roc_auc_{NAMES[1]}") for label in labels
              if name in ("roc_auc", f"roc_auc_{label.name}")]
    return min(filter(None, counts), default=0)
