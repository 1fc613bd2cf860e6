"""Several labels an image: a CSV that says of each whether it is there, binary cross-entropy, metrics of each
label and their means."""

from collections.abc import Collection

import numpy as np
import pandas as pd
import torch

from engine_finetune import LabelMixing, Mixing, MultilabelLoss, balanced_class_weights
from jobs import terminal
from jobs.run_folder import RunFolder
from jobs.tasks.classification import Classification
from util.core.errors import InputError, reject_if
from util.data import cases, tables
from util.data.labels.cells import refuse_constant
from util.data.labels.table import counts, read_labels_csv, values_of
from util.metrics import selection
from util.metrics.intervals import entry
from util.metrics.multilabel.figures import figures_of, metric_columns, multilabel_metrics
from util.metrics.multilabel.intervals import multilabel_intervals
from util.metrics.multilabel.predictions import decide, predictions_table
from util.metrics.predictions import read_predictions
from util.metrics.table import BY_NAME, CHOICE, COMPOSED, DECISIONS, MULTILABEL, OPERATING, choices, row_of
from util.options.groups import Options
from util.options.training import Space
from util.report import charts, label_charts
from util.weights.fitting import WeightFile

OF_A_LABEL = ("roc_auc", "average_precision", "f1", "sensitivity", "specificity")  # on the terminal
MOST_LABELS_LISTED = 60


class Multilabel(Classification):
    """Several labels an image, each there or not: a classifier whose outputs are log odds of their own."""

    kind, asked_by = MULTILABEL, "multilabel"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        unknown = [name for name in options.metrics.select_metric.split("+")
                   if MULTILABEL not in BY_NAME[name].kinds]
        reject_if(
            (unknown, f"--select_metric {' '.join(unknown)} is not defined with --multilabel: choose among "
                      f"{', '.join(choices(MULTILABEL))}"),
            (options.mixing.balanced_sampling,
             "--balanced_sampling with --multilabel: an image can have several labels; pass --class_weights "
             "balanced, which weighs each label's two kinds alike"))

    @property
    def columns(self) -> tuple[str, ...]:
        return metric_columns(self.class_names) + ((COMPOSED,) if self.score == COMPOSED else ())

    # ---- data

    def read(self, resumed: WeightFile | None, splits: tuple[str, ...]) -> tables.Data:
        asked, typed = self.options.data, self.options.typed
        reject_if(
            (not asked.csv_file,
             "--multilabel needs a CSV (--csv_file): a folder of classes has one label an image"),
            ({"label_col", "label_cols"} <= typed,
             "--label_col and --label_cols both name the labels: pass one of them"))
        if "label_col" in typed:  # where the checkpoint's run had columns
            self.options = self.options.having(label_cols=[])
        known = resumed.rest["class_names"] if resumed is not None else None
        data, self.class_names = read_labels_csv(self.options.data, splits, known)
        number = len(self.class_names)
        taken = [name for name in self.class_names for metric in BY_NAME if f"{metric}_{name}" in BY_NAME]
        if taken:
            raise InputError(f"label {taken[0]}: a metric of it would be called as another one is; rename it")
        if "nb_classes" in typed and asked.nb_classes != number:
            raise InputError(f"--nb_classes {asked.nb_classes}, but there are {number} labels: pass "
                             f"--nb_classes {number}, or leave it out")
        self.options = self.options.having(nb_classes=number)
        self._require_test_set(data)
        return data

    def settle(self, data: tables.Data, resumed: WeightFile | None) -> None:
        super().settle(data, resumed)
        if not self.options.run.eval and "train" in data.splits:
            train = data.table[data.table["split"] == "train"]
            refuse_constant(self.class_names, values_of(train, self.class_names), "train")

    def targets(self, rows: pd.DataFrame) -> np.ndarray:
        return values_of(rows, self.class_names).astype(np.float32)

    # ---- model

    def loss(self, train_rows: pd.DataFrame) -> torch.nn.Module:
        values, weights = values_of(train_rows, self.class_names), None
        if self.options.mixing.class_weights == "balanced":
            of_each = np.stack([(values == kind).sum(axis=0) for kind in (0, 1)], axis=1)
            weights = torch.stack(list(map(balanced_class_weights, of_each)))
        return MultilabelLoss(_known_a_picture(values), self.options.mixing.smoothing, weights)

    def plain_loss(self, rows: pd.DataFrame) -> torch.nn.Module:
        return MultilabelLoss(_known_a_picture(values_of(rows, self.class_names)))

    def mixing(self) -> Mixing | None:
        mixing = self.options.mixing
        if super().mixing() is None:
            return None
        return LabelMixing(mixing.mixup, mixing.cutmix, mixing.cutmix_minmax, mixing.mixup_prob,
                           mixing.mixup_switch_prob, mixing.mixup_mode, label_smoothing=0.0)

    def space(self, model: torch.nn.Module) -> Space:
        """Without balanced sampling, which has no meaning here."""
        found = dict(super().space(model))
        found.pop("balanced_sampling")
        return found

    # ---- metrics

    def predictions(self, rows: pd.DataFrame, outputs: np.ndarray) -> pd.DataFrame:
        return predictions_table(rows, values_of(rows, self.class_names), outputs, self.class_names)

    def metrics(self, predictions: pd.DataFrame,
                decided: dict | None = None) -> tuple[dict[str, float], list[str]]:
        figures, notes = multilabel_metrics(predictions, decided)
        return figures | selection.composed(self.options.metrics.select_metric, figures), notes

    def _score_of(self, rows: pd.DataFrame, outputs: np.ndarray) -> float:
        figures = figures_of(self.predictions(rows, outputs))
        return (figures | selection.composed(self.options.metrics.select_metric, figures))[self.score]

    def decide(self, predictions: pd.DataFrame) -> dict:
        return decide(predictions, self.options.metrics.calibrate)

    def intervals(self, predictions: pd.DataFrame, figures: dict[str, float],
                  decided: dict) -> dict[str, dict]:
        entries = multilabel_intervals(predictions, self.options.run.seed, decided=decided)
        if (predictions["split"] == "val").any():  # the thresholds were chosen on these very images
            entries |= {name: entry(found["value"]) for name, found in entries.items()
                        if row_of(name).group in (DECISIONS, OPERATING, CHOICE)}
        if COMPOSED in figures:
            entries[COMPOSED] = entry(figures[COMPOSED], metric=self.options.metrics.select_metric)
        return {name: found | ({"value": figures[name]} if name in figures else {})
                for name, found in entries.items()}

    def lines_below(self, entries: dict[str, dict]) -> list[str]:
        names = self.class_names[:MOST_LABELS_LISTED]
        width = max(map(len, names))
        lines = ["  above: means over the labels; thresholds were chosen on val, for the highest F1 of each"]
        if "loss_calibrated" in entries:
            lines.append("  calibrated on val (a temperature for each label): " + "  ".join(
                f"{label} {terminal.figure_with_interval(entries[f'{name}_calibrated'])}"
                for name, label in (("loss", "loss"), ("brier", "Brier"), ("ece", "ECE"))))
        for name in names:
            parts = [f"{BY_NAME[figure].short or BY_NAME[figure].label} "
                     + terminal.figure_with_interval(entries[f"{figure}_{name}"]) for figure in OF_A_LABEL]
            there, number = (entries[f"{count}_{name}"]["value"] for count in ("positives", "n"))
            lines.append(f"  {name:<{width}}  {'  '.join(parts)}  n {there:,.0f} of {number:,.0f}")
        return lines + _more(self.class_names, "metrics_*.json")

    def draw(self, folder: RunFolder, split: str) -> list[str]:
        chart = label_charts.roc_of(read_predictions(folder.file(f"predictions_{split}.csv")), split)
        if chart is None:
            return ["no label has images of both kinds, so no ROC curve"]
        return charts.save_png(chart, folder.file(self.pictures(split)))

    def pictures(self, split: str) -> str:
        return f"roc_{split}.png"

    # ---- what is said and stored

    def describe_data(self, data: tables.Data) -> list[str]:
        found = counts(data.table, self.class_names)
        totals = ", ".join(f"{split} {(data.table['split'] == split).sum():,}" for split in found)
        lines = [f"data       {self.options.data.csv_file}: {len(self.class_names)} labels; {totals}"]
        width = max(map(len, self.class_names))
        for name in self.class_names[:MOST_LABELS_LISTED]:
            of_splits = "  ".join(f"{split} {found[split][name][0]:>6,} of {sum(found[split][name]):>6,}"
                                  for split in found)
            lines.append(f"           {name:<{width}}  {of_splits}")
        return lines + _more(self.class_names, "run.json")

    def facts(self, data: tables.Data) -> dict:
        images = data.table["split"].value_counts()
        judged = data.table
        if cases.COLUMN in judged:
            judged = judged.drop_duplicates(cases.COLUMN)
        return {"label_names": self.class_names, "positives": counts(judged, self.class_names),
                "images": {split: int(images[split]) for split in data.splits},
                **cases.counted(data.table, data.splits)}


def _known_a_picture(values: np.ndarray) -> float:
    return max(float((~np.isnan(values)).sum(axis=1).mean()), 1e-9)


def _more(names: Collection[str], file: str) -> list[str]:
    left = len(names) - MOST_LABELS_LISTED
    return [f"           and {left} more labels (all in {file})"] if left > 0 else []
