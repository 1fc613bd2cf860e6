"""The metrics of each group of a test set, and the gaps between groups.

A gap's interval is made of both groups' own. Its test exchanges the groups' members: outputs that do not
depend on the group could as well have come with another one. Whole patients are exchanged, and among those
of one class alone, so that a group with more ill people makes no gap in accuracy by that alone. The p values
of a column's gaps are corrected together (Holm), so that in 95 % of data without a gap none is found.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from jobs.run_folder import RunFolder
from jobs.tasks.base import Task
from util.core.run_files import write_whole
from util.data.groups import PREFIX, columns_of, in_order
from util.data.labels.cells import written
from util.data.labels.table import values_of
from util.metrics.bootstrap import groups_of
from util.metrics.intervals import drops, entry, is_comparable, regression_figures
from util.metrics.multilabel.figures import LabelFigures
from util.metrics.multilabel.predictions import labels_of
from util.metrics.predictions import kind_and_names
from util.metrics.table import MULTILABEL, REGRESSION, is_better_low
from util.metrics.weighted import Images, WeightedFigures
from util.study.comparison import holm

SMALLEST = 20  # images, or patients: below, a gap is shown and not tested
EXCHANGES = 2000
LEVEL = 0.05
GROUP_COLUMNS = ["column", "group", "metric", "value", "lower", "upper"]
CHUNK = 2**22  # cells of the exchanges that are computed at a time


@dataclass(frozen=True)
class Gap:
    """Of one metric between two groups: first - second (turned where less is better), its interval, p."""

    column: str
    metric: str
    first: str
    second: str
    value: float
    lower: float
    upper: float
    p: float
    p_holm: float = math.nan


def compared(table: pd.DataFrame) -> list[str]:
    """The metrics whose gaps are tested."""
    kind, names = kind_and_names(table)
    if kind == REGRESSION:
        return ["r2", "mae"]
    if kind == MULTILABEL:
        return ["roc_auc", "average_precision"]
    of_positive = [f"{metric}_{names[1]}" for metric in ("sensitivity", "specificity")]
    return ["roc_auc", "accuracy", *(of_positive if len(names) == 2 else ["balanced_accuracy", "f1"])]


def write(task: Task, folder: RunFolder, split: str, table: pd.DataFrame,
          entries_of: Callable[[pd.DataFrame], dict[str, dict]]) -> list[str]:
    """groups_SPLIT.csv and gaps_SPLIT.csv, where groups are asked for; lines for the user.
    entries_of: rows of the predictions table -> their metrics with intervals."""
    rows, gaps, lines = [], [], []
    for column in columns_of(table):
        entries = {name: entries_of(part) for name, part in parts_of(table, column)}
        if not entries:
            lines.append(f"{split}: no image names a {column}")
            continue
        rows += [{"column": column, "group": name, "metric": metric,
                  **{key: found[key] for key in ("value", "lower", "upper")}}
                 for name, of_group in entries.items() for metric, found in of_group.items()]
        found = gaps_of(table, column, entries, task.options.run.seed)
        gaps += found
        lines += _lines(task, split, column, entries, found,
                        {name: _units(part) for name, part in parts_of(table, column)})
    if not lines:
        return []
    for name, content, columns in (("groups", rows, GROUP_COLUMNS),
                                   ("gaps", [vars(gap) for gap in gaps], [one.name for one in fields(Gap)])):
        with folder.writing(folder.file(f"{name}_{split}.csv")) as path:
            text = pd.DataFrame(content, columns=columns).to_csv(index=False, lineterminator="\n")
            write_whole(path, text)
    return lines


def parts_of(table: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, rows) of each group of a column."""
    groups = table[PREFIX + column]
    for name in in_order(set(groups) - {""}):
        yield name, table[groups == name].reset_index(drop=True)


def entries_by(task: Task, decided: dict) -> Callable[[pd.DataFrame], dict[str, dict]]:
    """The metrics of rows of a test set, with what val decided."""
    return lambda part: task.intervals(part, task.metrics(part, decided)[0], decided)


def gaps_of(table: pd.DataFrame, column: str, entries: dict[str, dict[str, dict]], seed: int) -> list[Gap]:
    """Of each pair of a column's groups, each with its corrected p; NaN where a group is too small to test,
    or means are not over the same labels."""
    found, metrics = [], compared(table)
    for number, (one, other) in enumerate(itertools.combinations(entries, 2)):
        lost = drops(entries[one], entries[other])
        pair = table[table[PREFIX + column].isin([one, other])].reset_index(drop=True)
        p = exchange_test(pair, pair[PREFIX + column] == one, metrics, seed + number)
        for metric in metrics:
            if not is_comparable(entries[one][metric], entries[other][metric]):
                found.append(Gap(column, metric, one, other, *[math.nan] * 4))
                continue
            gap = entries[one][metric]["value"] - entries[other][metric]["value"]
            gap = lost.get(metric) or entry(-gap if is_better_low(metric) else gap)  # without an interval
            found.append(Gap(column, metric, one, other, *(gap[key] for key in ("value", "lower", "upper")),
                             p[metric]))
    return [Gap(**{**vars(gap), "p_holm": corrected})
            for gap, corrected in zip(found, holm([gap.p for gap in found]), strict=True)]


def exchange_test(pair: pd.DataFrame, is_first: pd.Series, metrics: list[str],
                  seed: int) -> dict[str, float]:
    """{metric: p} of two groups' images: the share of exchanges whose gap is as far from the exchanges' mean
    as the gap that is there. NaN where a group is smaller than SMALLEST, or the metric undefined in one.

    Units are patients (`groups_of`), exchanged among those whose commonest class, or combination of labels,
    is the same; of a regression among all. A patient with images in both groups is a unit in each, which
    makes p larger rather than smaller: what the two have in common is then taken for chance.
    """
    units = np.unique(2 * _units(pair) + is_first.to_numpy(), return_inverse=True)[1]
    member = pd.Series(is_first.to_numpy()).groupby(units).first().to_numpy()
    if min(member.sum(), (~member).sum()) < SMALLEST:
        return dict.fromkeys(metrics, math.nan)
    strata = _classes(pair).groupby(units).agg(lambda names: names.mode()[0]).to_numpy()
    figures = _weighted_figures(pair)
    observed = _gap(figures, member[units][None], metrics)
    exchanged = [_gap(figures, members[:, units], metrics) for members in _exchanges(member, strata, seed)]
    p = {}
    for metric in metrics:
        values = np.concatenate([part[metric] for part in exchanged])
        values = values[~np.isnan(values)]
        there = observed[metric][0]
        if np.isnan(there) or not len(values):
            p[metric] = math.nan
            continue
        far = np.abs(values - values.mean()) >= np.abs(there - values.mean()) - 1e-12
        p[metric] = float((1 + far.sum()) / (1 + len(values)))
    return p


def _classes(table: pd.DataFrame) -> pd.Series:
    """What a row's images may be exchanged within: its class, or what is known of its labels."""
    kind, names = kind_and_names(table)
    if kind == MULTILABEL:
        return pd.Series(written(values_of(table, names)), table.index, dtype=object)
    return table["true_class"] if "true_class" in table else pd.Series("", table.index)


def _units(table: pd.DataFrame) -> np.ndarray:
    """(N,) numbers of what is exchanged: patients where some have several rows, else rows."""
    units = groups_of(table["patient"].to_numpy(dtype=object))
    return np.arange(len(table)) if units is None else units


def _weighted_figures(table: pd.DataFrame) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """weights (B, N) of the rows, which are in the order of their index -> {metric: (B,)}."""
    kind, names = kind_and_names(table)
    if kind == MULTILABEL:
        return LabelFigures(labels_of(table, {}))
    return (regression_figures(table, names) if kind == REGRESSION else
            WeightedFigures(Images.of(table)))


def _exchanges(member: np.ndarray, strata: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """(b, U) bool: members of the first group, exchanged within the strata; EXCHANGES in all."""
    generator, chunk = np.random.default_rng(seed), max(1, CHUNK // len(member))
    places = [np.flatnonzero(strata == stratum) for stratum in sorted(set(strata))]
    for start in range(0, EXCHANGES, chunk):
        members = np.repeat(member[None], min(chunk, EXCHANGES - start), axis=0)
        for where in places:
            members[:, where] = generator.permuted(members[:, where], axis=1)
        yield members


def _gap(figures: Callable[[np.ndarray], dict[str, np.ndarray]], is_first: np.ndarray,
         metrics: list[str]) -> dict[str, np.ndarray]:
    one, other = (figures(members.astype(np.float32)) for members in (is_first, ~is_first))
    return {metric: one[metric] - other[metric] for metric in metrics}


def _lines(task: Task, split: str, column: str, entries: dict[str, dict], gaps: list[Gap],
           sizes: dict[str, np.ndarray]) -> list[str]:
    """sizes: the `_units` of each group's rows."""
    metric, label = task.shown[0]
    width = max(map(len, entries))
    lines = [f"{split} by {column}"]
    for name, of_group in entries.items():
        number, rows = len(set(sizes[name])), len(sizes[name])
        patients = f" of {number:,} patients" if number < rows else ""
        small = "  too few for a test" if number < SMALLEST and len(entries) > 1 else ""
        lines.append(f"  {name:<{width}}  {label} {_written(of_group[metric])}  {rows:,} "
                     f"{task.options.data.unit}{patients}{small}")
    sure = [gap for gap in gaps if gap.p_holm < LEVEL]
    lines += [f"  gap of {gap.metric} between {gap.first} and {gap.second}: {gap.value:.3f} "
              f"({gap.lower:.3f} to {gap.upper:.3f}), p {gap.p_holm:.3g} after Holm's correction"
              for gap in sure]
    if not sure:
        tested = any(not math.isnan(gap.p) for gap in gaps)
        lines.append("  no significant gap (exchange tests, Holm's correction)" if tested else
                     "  no gap was tested" if gaps else "  one group alone: nothing to compare")
    return lines


def _written(found: dict) -> str:
    if math.isnan(found["value"]):
        return "undefined"
    lacks = found["lower"] is None or math.isnan(found["lower"])
    return f"{found['value']:.3f}" + ("" if lacks else f" ({found['lower']:.3f} to {found['upper']:.3f})")
