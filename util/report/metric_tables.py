"""Metrics in a report: how they are written, and what stands in the tiles and tables of the page."""

import itertools
from collections.abc import Mapping, Sequence

from util.metrics.intervals import drops
from util.metrics.predictions import common_patients
from util.metrics.table import (
    BY_NAME,
    CHOICE,
    CLASSIFICATION,
    METRICS,
    MULTILABEL,
    OPERATING,
    REGRESSION,
    SANDWICH,
    Metric,
    of_kind,
    row_of,
)
from util.report.run_data import Run, Split, as_dict, number

TO = " to "
UNDEFINED = "undefined"
MOST_TILES = 6
# of several labels: the tiles, and what stands of each beside the metrics that a row of metrics_*.csv has
OF_LABELS = ("roc_auc", "average_precision", "f1", "sensitivity", "specificity", "ece")
CALIBRATION = ("calibration_slope", "calibration_intercept")


def written(value: float | None, whole: bool = False) -> str:
    """A metric with three decimals (four significant digits where it is 10 or more), a real minus sign."""
    if value is None:
        return UNDEFINED
    if whole or (isinstance(value, int) and not isinstance(value, bool)):
        return f"{value:,.0f}"
    text = f"{value:.3f}" if abs(value) < 10 and (abs(value) >= 0.001 or value == 0) else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(entry: dict) -> str:
    """0.812 to 0.904, or '' where the metric has no interval."""
    lower, upper = entry.get("lower"), entry.get("upper")
    return "" if lower is None or upper is None else f"{written(float(lower))}{TO}{written(float(upper))}"


def with_interval(entry: dict) -> str:
    """0.871 (0.812 to 0.904)."""
    bounds = interval(entry)
    return written(entry["value"]) + (f" ({bounds})" if bounds else "")


def tiles(run: Run) -> list[dict[str, object]]:
    """The headline metrics of the main split. scale: where its interval begins, its width, and the value, in
    per cent; beside: the values of the external test sets, else of val."""
    split, found = run.main, []
    others = [one for one in run.splits.values() if one is not split]
    others = ([one for one in others if one.is_external]
              or [one for one in others if one.name == "val"])
    for name, label, hint in [tile for tile in _headline(run) if tile[0] in split.entries][:MOST_TILES]:
        entry, row, scale = split.entries[name], row_of(name), None
        value, lower, upper = (entry.get(part) for part in ("value", "lower", "upper"))
        bounds = interval(entry)
        if row and row.on_unit_scale and value is not None and bounds and 0 <= lower <= value <= upper <= 1:
            scale = (100 * lower, 100 * (upper - lower), 100 * value)
        found.append({"label": label, "hint": hint, "value": written(value), "bounds": bounds, "scale": scale,
                      "beside": ", ".join(f"{one.name} {written(one.entries[name]['value'])}"
                                          for one in others if name in one.entries)})
    return found


def drops_of(run: Run) -> list[dict[str, object]]:
    """What is lost from the main test set to each external one: rows of (metric, drop, main, external), each
    of these a (value, interval); [] where there are none."""
    found = []
    for split in run.splits.values():
        if not split.is_external or run.main.is_external:
            continue
        lost = drops(run.main.entries, split.entries)
        rows = [(row.label, [(written(entry["value"]), interval(entry))
                             for entry in (lost[row.name], run.main.entries[row.name],
                                           split.entries[row.name])])
                for row in METRICS if row.name in lost]
        both = run.main.table is not None and split.table is not None
        shared = common_patients(run.main.table, split.table) if both else 0
        found.append({"name": split.name, "rows": rows, "shared": shared})
    return [one for one in found if one["rows"]]


def groups_of(run: Run, split: Split) -> list[dict[str, object]]:
    """Of each column that groups were taken from: the groups' metrics, rows of (name, cells), and the gaps
    between them, rows of (metric, groups, gap, interval, p)."""
    found = []
    for column in dict.fromkeys(row.get("column", "") for row in split.groups):
        entries: dict[str, dict[str, dict]] = {}
        for row in split.groups:
            if row.get("column") == column:
                values = {part: _number(row.get(part)) for part in ("value", "lower", "upper")}
                entries.setdefault(str(row.get("group")), {})[str(row.get("metric"))] = values
        shown = [(name, label) for name, label, _ in _headline(run)
                 if any(name in of_group for of_group in entries.values())][:MOST_TILES]
        rows = [(group, [_cell(of_group.get("n"), "n"),
                         *(_cell(of_group.get(name), name) for name, _ in shown)])
                for group, of_group in entries.items()]
        gaps = [(_label(str(gap.get("metric"))), f"{gap.get('first')} against {gap.get('second')}",
                 written(_number(gap.get("value"))),
                 interval({part: _number(gap.get(part)) for part in ("lower", "upper")}) or "–",
                 written(p) if (p := _number(gap.get("p_holm"))) is not None else
                 "–" if _number(gap.get("value")) is None else "too few")
                for gap in split.gaps if gap.get("column") == column]
        labels = [split.unit.capitalize(), *(label for _, label in shown)]
        found.append({"column": column, "labels": labels, "rows": rows, "gaps": gaps})
    return found


def _label(name: str) -> str:
    row = row_of(name)
    of = name.removeprefix(row.name).lstrip("_") if row else ""
    return name if row is None else f"{row.label}{f' of {of}' if of else ''}"


def _number(text: str | None) -> float | None:
    try:
        return number(float(text or "nan"))
    except ValueError:
        return None


def recalibrations_of(run: Run) -> list[dict[str, object]]:
    """What probabilities that were fitted anew to a test set are like on its other images: rows of (metric,
    cells), a cell (value, interval) for each correction; of several labels rows of (label, cells of its
    loss)."""
    found = []
    for split, one in run.recalibrations.items():
        of_labels = "labels" in one
        shown = _recalibrated_labels(as_dict(one["labels"])) if of_labels else _recalibrated(one)
        unit = run.splits[split].unit if split in run.splits else "images"
        found.append({"name": split, "of_labels": of_labels, "fitted": one.get("fitted"), "unit": unit,
                      "scored": one.get("scored"), **shown})
    return found


def _recalibrated(one: dict) -> dict[str, object]:
    metrics = {str(name): as_dict(entries) for name, entries in as_dict(one["metrics"]).items()}
    rows = [(row.label, [_cell(entries.get(row.name), row.name) for entries in metrics.values()])
            for row in METRICS if any(row.name in entries for entries in metrics.values())]
    chance = number(one.get("p_of_slope"))
    return {"corrections": list(metrics), "rows": rows, "slope": written(number(one.get("slope"))),
            "p": written(chance), "is_enough": chance is not None and chance >= 0.05}


def _recalibrated_labels(labels: dict) -> dict[str, object]:
    metrics = {str(name): as_dict(as_dict(one).get("metrics")) for name, one in labels.items()}
    corrections = list(next(filter(None, metrics.values()), {}))
    rows = [(name, [*(_cell(as_dict(metrics[name].get(correction)).get("loss"), "loss")
                      for correction in corrections),
                    *((written(number(as_dict(one).get(key))), "") for key in ("slope", "p_of_slope"))])
            for name, one in labels.items()]
    return {"corrections": [*corrections, "slope", "p against 1"], "rows": rows}


def _headline(run: Run) -> list[tuple[str, str, str]]:
    """(name, label, hint) of the metrics that stand first."""
    chosen = [(row.name, row.label, row.hint) for row in of_kind(run.kind, "headline")]
    *_, last = "", *run.names
    if run.kind == REGRESSION and len(run.names) == 1:
        return [(f"{name}_{last}", label, last) for name, label, _ in chosen]
    if run.kind == REGRESSION:
        return chosen[:2] + [(f"r2_{name}", f"{BY_NAME['r2'].label} of {name}", "") for name in run.names]
    if run.kind == MULTILABEL:
        return [(name, BY_NAME[name].label, "mean over the labels") for name in OF_LABELS]
    if len(run.names) == 2:
        of_event = [(f"{name}_{last}", BY_NAME[name].label, last) for name in ("sensitivity", "specificity")]
        return [("roc_auc", BY_NAME["roc_auc"].label, last), *of_event, *chosen[2:]]
    return chosen


def _hint(run: Run, metric: Metric) -> str:
    """What stands beside a metric's label; of two classes, which of them is meant."""
    if run.kind == REGRESSION:
        return "" if metric.name == "loss" else metric.hint
    if run.kind == MULTILABEL:
        says_more = metric.hint and "classes" not in metric.hint and metric.group != CHOICE
        return f"mean over the labels; {metric.hint}" if says_more else "mean over the labels"
    if len(run.names) == 2 and (metric.group == OPERATING or metric.interval == SANDWICH):
        return f"{metric.hint}; of {run.names[1]}"
    return metric.hint


def of_each(kind: str) -> list[Metric]:
    """The metrics of each class, label or target, in their order."""
    if kind == MULTILABEL:
        return [*of_kind(kind, "per_label"), *(BY_NAME[name] for name in CALIBRATION)]
    return of_kind(kind, "per_class" if kind == CLASSIFICATION else "per_target")


def all_metrics(run: Run) -> list[dict[str, object]]:
    """Everything that is not of a single class, label or target: cells are (value, interval) of each split;
    begins: a group of lines."""
    splits, rows, shown = list(run.splits.values()), [], {"n"}
    of_one = of_kind(MULTILABEL) if run.kind == MULTILABEL else of_each(run.kind)
    shown |= {f"{row.name}_{name}" for name in run.names for row in of_one}
    for group, members in itertools.groupby(METRICS, lambda metric: metric.group):
        found = [metric for metric in members
                 if group and any(metric.name in split.entries for split in splits)]
        rows += [_row(metric.name, metric.label, _hint(run, metric), splits,
                      bool(rows) and metric is found[0]) for metric in found]
        shown |= {metric.name for metric in found}
    others = dict.fromkeys(name for split in splits for name in split.entries if name not in shown)
    return rows + [_row(name, name, "", splits, bool(rows) and place == 0)
                   for place, name in enumerate(others)]


def _row(name: str, label: str, hint: str, splits: list[Split], begins: bool) -> dict[str, object]:
    entries = [split.entries.get(name) for split in splits]
    cells = [(written(entry["value"]), interval(entry) or "–") if entry else ("–", "–") for entry in entries]
    methods = dict.fromkeys(str(entry["method"]) for entry in entries if entry and entry.get("method"))
    return {"label": label, "cells": cells, "hint": hint, "methods": ", ".join(methods) or "–",
            "begins": begins}


def of_names(run: Run,
             found: Sequence[Mapping[str, dict | None]] | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """(name, cells) of each class or target of the main split; found: their metrics, where they were
    computed. [] where none is known."""
    columns, entries = of_each(run.kind), run.main.entries
    if found is None:
        found = [{column.name: entries.get(f"{column.name}_{name}") for column in columns}
                 for name in run.names]
    if not any(entry for row in found for entry in row.values()) and run.kind == CLASSIFICATION:
        return []
    return [(name, [_cell(row.get(column.name), column.name) for column in columns])
            for name, row in zip(run.names, found, strict=True)]


def _cell(entry: dict | None, column: str) -> tuple[str, str]:
    return (written(entry["value"], column in ("n", "positives")), interval(entry)) if entry else ("–", "")


def methods(run: Run) -> list[str]:
    """Lines on how the intervals were made: the metrics of each method, resamples, seeds, undefined
    resamples."""
    found: dict[tuple[str, object, object], dict[str, None]] = {}
    for name, entry in (item for split in run.splits.values() for item in split.entries.items()):
        if entry.get("method") and interval(entry):
            key = (str(entry["method"]), entry.get("resamples"), entry.get("seed"))
            found.setdefault(key, {})[name] = None
    lines = []
    for (method, resamples, seed), names in found.items():
        drawn = f", {resamples:,} resamples, seed {seed}" if isinstance(resamples, int) else ""
        listed = ", ".join(list(names)[:14]) + (f" and {len(names) - 14} more" if len(names) > 14 else "")
        lines.append(f"{method}{drawn}: {listed}")
    return lines


def undefined(run: Run) -> list[str]:
    """A line a split: metrics that are undefined in some of their resamples, which their intervals leave
    out."""
    lines = []
    for split in run.splits.values():
        some = {name: entry for name, entry in split.entries.items()
                if isinstance(entry.get("undefined"), int) and entry["undefined"] > 0}
        if some:
            worst = sorted(some, key=lambda name: -some[name]["undefined"])
            listed = "; ".join(f"{name} in {some[name]['undefined']:,} of {some[name].get('resamples', '?')}"
                               for name in worst[:6])
            listed += f"; and {len(some) - 6} more metrics" if len(some) > 6 else ""
            lines.append(f"{split.name}: {listed}")
    return lines
