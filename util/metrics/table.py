"""The table of metrics: what each is called, which way is better, how its interval is made, and where it is
shown.

Files, the terminal, the report, charts and comparisons take what they say of a metric from its row. Metrics
of a single class or target have the same name with _<class> or _<target> behind it. Numbers say a metric's
place in an order: `csv` that of the columns of metrics_*.csv, which users' scripts read; `terminal`, `curve`
and `headline` those of what is shown; the page's table has the order of the rows.
"""

from dataclasses import dataclass

CLASSIFICATION, MULTILABEL, REGRESSION = "classification", "multilabel", "regression"
ONE_CLASS, CLASSES = (CLASSIFICATION,), (CLASSIFICATION, MULTILABEL)
ALL = (*CLASSES, REGRESSION)
RANKING, DECISIONS, OPERATING, PROBABILITIES, NUMBERS, CHOICE = (
    "Ranking", "Decisions", "Operating points", "Probabilities", "Numbers", "Choice of the best epoch")
# How an interval is made where every image stands alone. Where patients have several images, shares are
# resampled, too.
DELONG, WILSON, SANDWICH, PERCENTILES, CORRECTED, BASIC = (
    "DeLong", "Wilson", "sandwich", "percentiles", "corrected", "basic")
COMPOSED = "selection"  # what --select_metric names with several metrics, or with one of which less is better


@dataclass(frozen=True)
class Metric:
    """A row. label: in tables; short: in charts and where there is little room; hint: what a reader should
    know of it."""

    name: str
    label: str
    group: str
    hint: str = ""
    short: str = ""
    kinds: tuple[str, ...] = CLASSES
    is_better_low: bool = False
    interval: str = PERCENTILES
    class_interval: str = ""  # of a single class, where it is made in another way
    needs_order: bool = False  # of the classes
    on_unit_scale: bool = False
    choices: tuple[str, ...] = ()  # its names at --select_metric
    is_compared: bool = False  # by compare.py where no metric is named
    csv: int | None = None
    terminal: tuple[int, str] | None = None  # place and label
    curve: int | None = None
    headline: int | None = None
    per_class: int | None = None
    per_target: int | None = None
    per_label: int | None = None  # also the order of the columns of a multi-label run's metrics_*.csv

    @property
    def title(self) -> str:
        return self.short or self.label


METRICS = (
    Metric("r2", "R²", NUMBERS, "mean over the targets", kinds=(REGRESSION,), on_unit_scale=True,
           choices=("r2",), is_compared=True, csv=1, terminal=(0, "R2"), curve=6, headline=0, per_target=1),
    Metric("pearson", "Pearson's r", NUMBERS, "mean over the targets", kinds=(REGRESSION,),
           on_unit_scale=True, choices=("pearson",), is_compared=True, csv=2, terminal=(1, "r"), curve=7,
           headline=1, per_target=2),
    Metric("mae", "Mean absolute error", NUMBERS, "mean over the targets, whatever their units", "MAE",
           (REGRESSION,), True, choices=("mae",), is_compared=True, csv=3, terminal=(2, "MAE"), curve=8,
           headline=2, per_target=3),
    Metric("rmse", "Root mean squared error", NUMBERS, "mean over the targets, whatever their units",
           "RMSE", (REGRESSION,), True, choices=("rmse",), csv=4, terminal=(3, "RMSE"), curve=9, headline=3,
           per_target=4),
    Metric("roc_auc", "ROC AUC", RANKING, "mean over the classes, each against the rest", interval=DELONG,
           on_unit_scale=True, choices=("auc", "roc_auc"), is_compared=True, csv=3, terminal=(0, "AUC"),
           curve=2, headline=0, per_class=5, per_label=2),
    Metric("average_precision", "Average precision", RANKING, "mean over the classes", interval=CORRECTED,
           on_unit_scale=True, choices=("ap", "average_precision"), is_compared=True, csv=8,
           terminal=(4, "AP"), curve=11, per_class=6, per_label=3),
    Metric("accuracy", "Accuracy", DECISIONS, interval=WILSON, on_unit_scale=True, choices=("accuracy",),
           csv=1, terminal=(1, "accuracy"), curve=10, headline=2, kinds=ONE_CLASS),
    Metric("balanced_accuracy", "Balanced accuracy", DECISIONS, "mean sensitivity of the classes",
           on_unit_scale=True, choices=("balanced_accuracy",), csv=14, headline=1, per_label=8),
    Metric("f1", "F1", DECISIONS, "mean over the classes", on_unit_scale=True, choices=("f1",),
           is_compared=True, csv=2, terminal=(2, "F1"), curve=3, headline=3, per_class=4, per_label=4),
    Metric("precision", "Precision", DECISIONS, "mean over the classes", on_unit_scale=True,
           choices=("precision",), csv=6, terminal=(5, "precision"), per_class=3, class_interval=WILSON,
           per_label=7),
    Metric("recall", "Recall", DECISIONS, "mean over the classes", on_unit_scale=True, choices=("recall",),
           csv=7, terminal=(6, "recall"), kinds=ONE_CLASS),
    Metric("jaccard", "Jaccard", DECISIONS, "mean over the classes", on_unit_scale=True,
           choices=("jaccard",), csv=5, terminal=(8, "Jaccard"), kinds=ONE_CLASS),
    Metric("hamming", "Hamming loss", DECISIONS, "lower is better", is_better_low=True, interval=WILSON,
           choices=("hamming",), csv=4, terminal=(9, "Hamming"), kinds=ONE_CLASS),
    Metric("kappa", "Cohen's kappa", DECISIONS, "unweighted", on_unit_scale=True, choices=("kappa",), csv=9,
           terminal=(3, "kappa"), curve=4, headline=4, per_label=9),
    Metric("qwk", "Quadratic weighted kappa", DECISIONS, "for classes in order, as grades are",
           "Quadratic kappa", needs_order=True, on_unit_scale=True, choices=("qwk",), csv=13,
           terminal=(7, "quadratic kappa"), curve=5, headline=5, kinds=ONE_CLASS),
    Metric("mae_grades", "Mean distance of grades", DECISIONS, "for classes in order; lower is better",
           is_better_low=True, needs_order=True, choices=("mae_grades",), csv=15, kinds=ONE_CLASS),
    Metric("sensitivity", "Sensitivity", DECISIONS, interval=WILSON, on_unit_scale=True, per_class=1,
           per_label=5),
    Metric("specificity", "Specificity", DECISIONS, interval=WILSON, on_unit_scale=True, per_class=2,
           per_label=6),
    *(Metric(f"{one}_at_{share}_{other}", f"{one.capitalize()} at {share} % {other}", OPERATING,
             "threshold chosen on val", interval=WILSON, on_unit_scale=True)
      for one, other in (("sensitivity", "specificity"), ("specificity", "sensitivity"))
      for share in (90, 95)),
    Metric("threshold", "Threshold", OPERATING, "of the highest F1 on val", kinds=(MULTILABEL,), interval="",
           per_label=12),
    Metric("loss", "Loss", PROBABILITIES, "negative log likelihood; lower is better", kinds=ALL,
           is_better_low=True, choices=("loss",), csv=0, terminal=(12, "loss"), curve=0),
    Metric("loss_calibrated", "Loss after temperature", PROBABILITIES, is_better_low=True),
    Metric("brier", "Brier score", PROBABILITIES, "lower is better", is_better_low=True, choices=("brier",),
           csv=12, terminal=(10, "Brier"), headline=7, per_label=10),
    Metric("brier_calibrated", "Brier score after temperature", PROBABILITIES, is_better_low=True),
    Metric("ece", "Expected calibration error", PROBABILITIES, "lower is better", "Calibration error",
           is_better_low=True, interval=BASIC, on_unit_scale=True, choices=("ece",), csv=16,
           terminal=(11, "ECE"), headline=6, per_label=11),
    Metric("ece_calibrated", "Expected calibration error after temperature", PROBABILITIES,
           is_better_low=True, interval=BASIC),
    Metric("calibration_slope", "Calibration slope", PROBABILITIES,
           "1 is ideal; below, probabilities are too extreme", interval=SANDWICH,
           terminal=(13, "calibr. slope")),
    Metric("calibration_intercept", "Calibration intercept", PROBABILITIES,
           "0 is ideal; below, probabilities are too high", interval=SANDWICH),
    Metric("temperature", "Temperature", PROBABILITIES, "fitted on val", interval=""),
    Metric("score", "Score", CHOICE, "mean of F1, ROC AUC and kappa", choices=("score",), csv=10,
           terminal=(14, "score"), curve=1),
    Metric(COMPOSED, "Selection", CHOICE, "what chose the epoch (--select_metric); higher is better",
           kinds=ALL, curve=12),
    Metric("n", "Images", "", kinds=ALL, interval="", csv=11, per_class=0, per_target=0, per_label=0),
    Metric("positives", "With the label", "", kinds=(MULTILABEL,), interval="", per_label=1),
)
BY_NAME = {metric.name: metric for metric in METRICS}
SCORE_PARTS = ("f1", "roc_auc", "kappa")  # whose mean the score is


def of_kind(kind: str, order: str = "") -> list[Metric]:
    """The metrics of a kind of task; in an order (csv, terminal, curve, headline …) those that have a place
    in it."""
    found = [metric for metric in METRICS if kind in metric.kinds]
    return sorted((metric for metric in found if getattr(metric, order) is not None),
                  key=lambda metric: getattr(metric, order)) if order else found


def row_of(name: str) -> Metric | None:
    """The row of a metric's name, also of a single class's or target's; None for a name of another kind."""
    while name not in BY_NAME and "_" in name:
        name = name.rpartition("_")[0]
    return BY_NAME.get(name)


def is_better_low(name: str) -> bool:
    row = row_of(name)
    return row is not None and row.is_better_low


def choices(kind: str) -> dict[str, str]:
    """What may be typed at --select_metric, and the metric that it means; the score first."""
    ordered = sorted(METRICS, key=lambda metric: metric.group != CHOICE)
    return {word: metric.name for metric in ordered if kind in metric.kinds for word in metric.choices}
