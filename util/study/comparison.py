"""Models compared on the same images: metrics of groups of runs with intervals, paired tests, Holm's
correction.

A group is one setting, trained once or with several seeds. Of several seeds the metric is the mean over them,
never that of an ensemble of them, which is another, better model that nobody trained. What is random is the
test set: resamples draw images (or patients), and each resample's metric is again the mean over the seeds, as
the readers' mean is taken where fixed readers read random cases (Obuchowski and Rockette, 1995). Intervals
and p therefore speak of these trained models on new patients. Whether a difference would also be there with
other seeds is a second question: `with_seeds` answers it where both groups have several.

N is the number of images, B of resamples, S of seeds.
"""

import difflib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy.special import stdtr

from util.core.errors import InputError
from util.metrics import delong
from util.metrics.bootstrap import draws_for, groups_of, percentile_interval
from util.metrics.folds import FOLD
from util.metrics.intervals import (
    auc_influences,
    bootstrap_interval,
    classification_replicates,
    fewest_of,
    is_shifted,
    regression_replicates,
)
from util.metrics.multilabel.figures import auc_influences as label_influences
from util.metrics.multilabel.figures import fewest
from util.metrics.multilabel.figures import figures_of as label_figures
from util.metrics.multilabel.figures import replicates_of as label_replicates
from util.metrics.multilabel.predictions import labels_of, stored_decisions
from util.metrics.predictions import unit_of
from util.metrics.regression import figures_of as regression_figures
from util.metrics.table import CHOICE, DECISIONS, MULTILABEL, OPERATING, REGRESSION, of_kind, row_of
from util.metrics.weighted import Images, WeightedFigures
from util.study.comparison_runs import Group, Run

LEVEL = 0.05  # of the tests
SAME = 1e-6  # a stored metric and the same one computed again from the predictions
DELONG, BOOTSTRAP, JOINT = "paired DeLong", "paired bootstrap", "joint DeLong"
ENOUGH = 20  # images of the rarer kind for a joint test's degree of freedom: see benchmarks/error_rates.py
ROUNDING = 1e-12  # means over seeds are summed in different orders


@dataclass(frozen=True)
class Summary:
    """One metric of one group."""

    group: str
    metric: str
    values: tuple[float, ...]  # a seed each
    lower: float = math.nan
    upper: float = math.nan
    method: str = ""  # of the interval

    @property
    def mean(self) -> float:
        """Over the seeds; NaN where the metric is undefined for one of them."""
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """Over the seeds, with S - 1; NaN for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan


@dataclass
class Test:
    """Two groups on the same images: first - second."""

    first: str
    second: str
    metric: str
    method: str
    difference: float
    lower: float
    upper: float
    p: float
    p_holm: float = math.nan
    p_seeds: float = math.nan  # where other seeds might have been drawn too
    p_seeds_holm: float = math.nan


@dataclass(frozen=True)
class JointTest:
    """Three or more groups on the same images: whether all have the same ROC AUC. chi_square and p NaN: not
    defined."""

    metric: str
    method: str
    groups: int
    chi_square: float
    degrees_of_freedom: int
    p: float


@dataclass
class Comparison:
    """All that is shown and written."""

    groups: list[Group]
    metrics: list[str]
    summaries: list[Summary]
    tests: list[Test]
    images: int
    patients: int | None  # None: no patient has two images
    draws: int
    seed: int
    split: str
    unit: str  # images or cases
    joint: list[JointTest]  # one an AUC; none of fewer than three groups, whose test is that of the pair
    notes: list[str] = field(default_factory=list)

    def summary(self, group: str, metric: str) -> Summary:
        return next(one for one in self.summaries if (one.group, one.metric) == (group, metric))

    def main_tests(self) -> list[Test]:
        """One test a pair and metric: DeLong's where there is one, else the bootstrap's."""
        by_delong = {test.metric for test in self.tests if test.method == DELONG}
        return [test for test in self.tests if test.method == DELONG or test.metric not in by_delong]


# ---- one group ---------------------------------------------------------------------------------------------

@dataclass
class Figures:
    """What one group's tests are made of."""

    values: dict[str, np.ndarray]  # (S,) by metric, computed from the predictions
    replicates: dict[str, np.ndarray]  # (B,), the mean over the seeds on each resample
    influences: dict[str, np.ndarray]  # (N,) of AUCs, the mean over the seeds


def figures_of(group: Group, draws: int, seed: int, metrics: list[str],
               told: Callable[[], object] = lambda: None) -> Figures:
    """Compute a group's metrics; its runs are aligned (comparison_runs.align). told: called after each run.

    metrics: of which resamples are kept.
    """
    parts = []
    for run in group.runs:
        values, replicates = _computed(run, draws, seed)
        has_auc = any(name.startswith("roc_auc") for name in metrics if name in replicates)
        influences = _influences(run) if has_auc else {}
        parts.append((values, *({name: found[name] for name in metrics if name in found}
                                for found in (replicates, influences))))
        told()
    values, replicates, influences = (
        {name: np.array([of_run[name] for of_run in of_runs]) for name in of_runs[0]}
        for of_runs in zip(*parts, strict=True))
    return Figures(values, *({name: each.mean(axis=0) for name, each in of_each.items()}
                             for of_each in (replicates, influences)))


def _computed(run: Run, draws: int, seed: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """A run's metrics, and those of the resamples."""
    if run.kind == REGRESSION:
        return (regression_figures(run.table, run.labels),
                regression_replicates(run.table, run.labels, draws, seed))
    if run.kind == MULTILABEL:
        decided = stored_decisions(run.entries, run.labels)
        found = label_figures(run.table, decided), label_replicates(run.table, draws, seed, decided)
        return tuple({name: value for name, value in of_all.items() if not _is_by_fold(run, name)}
                     for of_all in found)
    order = run.settings.get("class_order")
    values = WeightedFigures(Images.of(run.table, order)).values()
    return values, classification_replicates(run.table, draws, seed, order)


def _is_by_fold(run: Run, metric: str) -> bool:
    """Whether it depends on thresholds that each fold's val chose, which no out-of-fold table holds."""
    return FOLD in run.table and row_of(metric).group in (DECISIONS, OPERATING, CHOICE)


def _influences(run: Run) -> dict[str, np.ndarray]:
    if run.kind == MULTILABEL:
        return label_influences(labels_of(run.table, {}))
    return auc_influences(Images.of(run.table))


def _fewest(run: Run, metric: str) -> int:
    """Images (or patients) of the rarer kind, see `fewest_of`."""
    if run.kind == MULTILABEL:
        return fewest(labels_of(run.table, {}), metric)
    return fewest_of(Images.of(run.table), metric)


# ---- comparing ---------------------------------------------------------------------------------------------

def compare(groups: list[Group], metrics: list[str] | None, split: str, draws: int, seed: int,
            told: Callable[[], object] = lambda: None) -> Comparison:
    """Metrics of all groups and tests of all pairs. Their runs are aligned; metrics None: the kind's own.

    InputError for a metric that no run has.
    """
    first = groups[0].runs[0]
    kind, patients = first.kind, groups_of(first.table["patient"].to_numpy(dtype=object))
    metrics = list(dict.fromkeys(metrics or (row.name for row in of_kind(kind) if row.is_compared)))
    _require_known(metrics, groups)
    used = draws_for(len(first.table), draws)
    figures = [figures_of(group, used, seed, metrics, told) for group in groups]
    unit = unit_of(first.table)
    notes = [f"{used} instead of {draws} resamples, for {len(first.table):,} {unit}"] if used < draws else []
    summaries = [_summary(group, metric, each, patients, notes)
                 for group, each in zip(groups, figures, strict=True)
                 for metric in metrics]
    untested = [metric for metric in metrics if metric not in figures[0].replicates]
    if untested and len(groups) > 1:
        notes.append(f"no paired test of {', '.join(untested)}: it is not computed from the predictions of "
                     f"{split} alone")
    tests = [test for metric in metrics if metric not in untested and len(groups) > 1
             for test in _tests(groups, figures, metric, patients, used, notes)]
    joint = [_joint_test(metric, groups, figures, patients, notes) for metric in metrics
             if len(groups) > 2 and metric in figures[0].influences]
    if FOLD in first.table:
        notes.append(f"{split} is the table of several folds' models: intervals of single runs are widened "
                     "for what folds leave out; tests, and intervals of several seeds, take the models as "
                     "given")
    number = None if patients is None else int(patients.max()) + 1
    return Comparison(groups, metrics, summaries, tests, len(first.table), number, used, seed, split,
                      unit, joint,
                      list(dict.fromkeys(notes)))


def _require_known(metrics: list[str], groups: list[Group]) -> None:
    known: dict[str, None] = {}
    for run in itertools.chain.from_iterable(group.runs for group in groups):
        computed, _ = _computed(replace(run, table=run.table.head(2)), 1, 0)
        known |= dict.fromkeys([*run.entries, *computed])
    for metric in metrics:
        if metric not in known:
            near = ", ".join(difflib.get_close_matches(metric, known, 3))
            hint = f"did you mean {near}?" if near else f"there are {', '.join(list(known)[:30])}"
            raise InputError(f"--metric {metric}: no run has it; {hint}")


def _summary(group: Group, metric: str, figures: Figures, patients: np.ndarray | None,
             notes: list[str]) -> Summary:
    """A metric's value a seed and its interval: the stored one of a single run, else that of the mean over
    the seeds."""
    stored = [run.entries.get(metric, {"value": math.nan, "lower": math.nan, "upper": math.nan})
              for run in group.runs]
    values = figures.values.get(metric, np.array([entry["value"] for entry in stored]))
    agree = np.isclose([entry["value"] for entry in stored], values, rtol=SAME, atol=SAME, equal_nan=True)
    for run, entry, value, agrees in zip(group.runs, stored, values, agree, strict=True):
        if not agrees and metric in run.entries:
            notes.append(f"{run.folder}: the stored {metric} is {entry['value']:.4f} and the stored "
                         f"predictions give {value:.4f}, shown here: the files are of two evaluations, or "
                         "the classes' order is another one")
    undefined = int(np.isnan(values).sum())
    if undefined and metric in figures.values:
        notes.append(f"{metric} is undefined for {undefined} of {len(values)} run(s) of {group.name}")
    first, run = stored[0], group.runs[0]
    is_stored = len(values) == 1 and agree[0] and not math.isnan(first["lower"])
    if is_stored and not (run.patients_lent and metric in figures.values):
        bounds = first["lower"], first["upper"], first.get("method") or ""
    else:
        bounds = _interval(metric, figures, run, patients)
    return Summary(group.name, metric, tuple(values.tolist()), *bounds)


def _interval(metric: str, figures: Figures, run: Run,
              patients: np.ndarray | None) -> tuple[float, float, str]:
    unknown = math.nan, math.nan, ""
    if metric not in figures.replicates or np.isnan(figures.values[metric]).any():
        return unknown
    value = float(np.mean(figures.values[metric]))
    if metric in figures.influences:
        of_one = metric != "roc_auc" or (run.kind != MULTILABEL and len(run.labels) == 2)
        lower, upper = delong.logit_interval(value, delong.variance(figures.influences[metric], patients),
                                             _fewest(run, metric), patients is not None and of_one)
        return (lower, upper, "DeLong") if not math.isnan(lower) else unknown
    replicates = figures.replicates[metric]
    lower, upper, _ = bootstrap_interval(metric, value, replicates)
    if lower == upper:  # no error in any resample: see `bootstrapped`
        return unknown
    return lower, upper, f"bootstrap of {unit_of(run.table)}" if patients is None else "bootstrap of patients"


# ---- tests -------------------------------------------------------------------------------------------------

def _tests(groups: list[Group], figures: list[Figures], metric: str, patients: np.ndarray | None, used: int,
           notes: list[str]) -> list[Test]:
    """All pairs by each method of a metric; each method's p values are corrected over the pairs."""
    families: dict[str, list[Test]] = {}
    for (first, one), (second, other) in itertools.combinations(zip(groups, figures, strict=True), 2):
        values = one.values[metric], other.values[metric]
        difference = float(_subtracted(values[0].mean(), values[1].mean()))
        pair = (first.name, second.name, metric)
        if metric in one.influences:
            apart = _subtracted(one.influences[metric], other.influences[metric])
            found = delong.difference_test(apart, np.zeros_like(apart), difference, patients)
            spread = delong.variance(apart, patients)
            families.setdefault(DELONG, []).append(
                Test(*pair, DELONG, difference, *found, p_seeds=with_seeds(difference, spread, *values)))
        apart = _subtracted(one.replicates[metric], other.replicates[metric])
        lower, upper, p, undefined = paired_bootstrap(apart, difference, is_shifted(metric))
        spread = math.nan if len(apart) - undefined < 2 else float(np.nanvar(apart, ddof=1))
        families.setdefault(BOOTSTRAP, []).append(
            Test(*pair, BOOTSTRAP, difference, lower, upper, p,
                 p_seeds=with_seeds(difference, spread, *values)))
        if undefined:
            notes.append(f"{metric} is undefined in {undefined} of {len(apart)} resamples of {first.name} or "
                         f"{second.name}: the others are counted")
    for tests in families.values():
        for plain, corrected in (("p", "p_holm"), ("p_seeds", "p_seeds_holm")):
            for test, value in zip(tests, holm([getattr(test, plain) for test in tests]), strict=True):
                setattr(test, corrected, value)
    lowest = len(families[BOOTSTRAP]) * 2 / (used + 1)
    if lowest >= LEVEL:
        notes.append(f"with {used} resamples and {len(families[BOOTSTRAP])} pairs no bootstrap's p can be "
                     f"below {lowest:.2g} after Holm's correction: raise --draws above "
                     f"{math.ceil(len(families[BOOTSTRAP]) * 2 / LEVEL)}")
    return [test for tests in families.values() for test in tests]


def _joint_test(metric: str, groups: list[Group], figures: list[Figures], patients: np.ndarray | None,
                notes: list[str]) -> JointTest:
    """All groups at once, by the covariance of their AUCs; what makes it say less than usual goes to the
    notes."""
    number, influences = len(figures), np.array([each.influences[metric] for each in figures])
    found = delong.joint_test(np.array([each.values[metric].mean() for each in figures]), influences,
                              patients)
    _, freedom, p = found
    rarer = _fewest(groups[0].runs[0], metric)
    units = unit_of(groups[0].runs[0].table) if patients is None else "patients"
    problems = (
        (np.isnan(influences).any(),
         f"no joint test of {metric}: its variance is unknown with fewer than two images of a class or of "
         "the rest"),
        (math.isnan(p),
         f"no joint test of {metric}: some AUCs differ although these {units} give their difference no "
         f"variance (all pairs in order, or too few {units} for {number} groups)"),
        (freedom == 0,
         f"joint test of {metric}: all {number} groups rank the images alike, so there is no difference to "
         "test"),
        (freedom < number - 1,
         f"joint test of {metric}: {freedom} instead of {number - 1} degrees of freedom: some groups rank "
         "the images as others do, or their AUCs follow from the others'"))
    notes += [text for is_so, text in problems if is_so][:1]
    if freedom and rarer < ENOUGH * freedom:
        notes.append(f"joint test of {metric}: {rarer} {units} of a class (or of the rest) are few for "
                     f"{freedom} degrees of freedom, so its p may be too small; {ENOUGH} for each are enough")
    return JointTest(metric, JOINT, number, *found)


def _subtracted(first: np.ndarray | float, second: np.ndarray | float) -> np.ndarray:
    """first - second, and 0 where what is left is rounding, so that models that predict alike do not
    differ."""
    difference = np.subtract(first, second)
    return np.where(np.abs(difference) < ROUNDING, 0.0, difference)


def paired_bootstrap(differences: np.ndarray, difference: float,
                     shifted: bool = False) -> tuple[float, float, float, int]:
    """(lower, upper, p, undefined) of a difference from its values on B resamples.

    The interval is the percentiles'; p is two-sided and inverts it, so that p is below 0.05 where the
    interval leaves out 0 (but for the last resample): twice the smaller share of differences on either side
    of 0, an equal one being on both, with 1 added above and below (Davison and Hinkley, 1997), so that no p
    is 0. NaN differences are left out and counted; p is NaN where nothing is left.

    shifted: of metrics that resampling itself moves (ECE, which chance can only raise), differently for the
    two models, the differences' spread around their own mean counts alone: the interval is the observed
    difference and what 95 % of them keep within, p the share that lies further from their mean than the
    observed one from 0. Under no difference this calls 1 to 5 % different where percentiles call 0 to 2 % and
    percentiles taken to the other side 6 to 9 % (300 images).
    """
    defined = differences[~np.isnan(differences)]
    undefined = len(differences) - len(defined)
    if not len(defined) or math.isnan(difference):
        return math.nan, math.nan, math.nan, undefined
    if shifted:
        apart = np.abs(defined - defined.mean())
        half = float(np.quantile(apart, 1 - LEVEL))
        p = (int((apart >= abs(difference)).sum()) + 1) / (len(apart) + 1)
        return difference - half, difference + half, p, undefined
    lower, upper, _ = percentile_interval(defined)
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return lower, upper, min(1.0, 2 * (int(tail) + 1) / (len(defined) + 1)), undefined


def with_seeds(difference: float, of_images: float, first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of a difference of means over seeds where both images and seeds are random; NaN unless both
    have two seeds.

    of_images: the variance that the images give to the difference; first, second: the metric, a seed each
    (S,). The variances of the two means over the seeds are added to it, and the statistic is compared with
    Student's t, with the degrees of freedom of Welch and Satterthwaite (those of the images' part are many).
    The seeds' spread on these images holds a part of the images' variance already, so this errs on the side
    of caution. A seed is no pairing: nothing but the number is shared.
    """
    if min(len(first), len(second)) < 2 or math.isnan(difference) or math.isnan(of_images):
        return math.nan
    of_seeds = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    total = of_images + sum(of_seeds)
    if total == 0:
        return 1.0 if difference == 0 else 0.0
    weight = sum(part**2 / (len(values) - 1) for part, values in zip(of_seeds, (first, second), strict=True))
    statistic = abs(difference) / math.sqrt(total)
    if weight == 0:
        return math.erfc(statistic / math.sqrt(2))
    return float(min(1.0, 2 * stdtr(total**2 / weight, -statistic)))


def holm(p: list[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 1979): the chance of any false alarm
    among all tests stays below the level. NaN stays NaN and does not count."""
    corrected = np.array(p, dtype=np.float64)
    order = np.argsort(corrected)[:np.count_nonzero(~np.isnan(corrected))]  # NaN is sorted to the end
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, corrected[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()


# ---- as tables ---------------------------------------------------------------------------------------------

def groups_table(comparison: Comparison) -> pd.DataFrame:
    """A row a group: group, seeds, the options in which groups differ, then <metric>, _sd, _lower, _upper and
    _interval of each metric, and the folders of its runs."""
    rows = []
    for group in comparison.groups:
        settings = {f"option_{name}": value[0] if isinstance(value, list) and len(value) == 1 else value
                    for name, value in group.settings.items()}
        row = {"group": group.name, "seeds": len(group.runs), **settings}
        for metric in comparison.metrics:
            one = comparison.summary(group.name, metric)
            row |= {metric: one.mean, f"{metric}_sd": one.sd, f"{metric}_lower": one.lower,
                    f"{metric}_upper": one.upper, f"{metric}_interval": one.method}
        rows.append(row | {"runs": ";".join(str(run.folder) for run in group.runs)})
    return pd.DataFrame(rows)


def table_of_tests(tests: list[Test] | list[JointTest], kind: type[Test] | type[JointTest]) -> pd.DataFrame:
    """A row a test, with the columns of its kind, Test or JointTest."""
    return pd.DataFrame(map(vars, tests), columns=list(kind.__dataclass_fields__))
