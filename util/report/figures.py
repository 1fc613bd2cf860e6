"""Metrics in a report: how they are written, the tiles and the tables of them."""

import itertools

from util.metrics.table import (
    BY_NAME,
    CLASSIFICATION,
    METRICS,
    OPERATING,
    REGRESSION,
    SANDWICH,
    Metric,
    of_kind,
    row_of,
)
from util.report.run_data import Run, Split
from util.report.svg import clean

TO = " to "
UNDEFINED = "undefined"


def written(value: float | None, whole: bool = False) -> str:
    """A figure with three decimals (four significant digits where it is 10 or more), a real minus sign."""
    if value is None:
        return UNDEFINED
    if whole or (isinstance(value, int) and not isinstance(value, bool)):
        return f"{value:,.0f}"
    text = f"{value:.3f}" if abs(value) < 10 and (abs(value) >= 0.001 or value == 0) else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(entry: dict) -> str:
    """0.812 to 0.904, or '' where the figure has no interval."""
    lower, upper = entry.get("lower"), entry.get("upper")
    return "" if lower is None or upper is None else f"{written(float(lower))}{TO}{written(float(upper))}"


def with_interval(entry: dict) -> str:
    """0.871 (0.812 to 0.904)."""
    bounds = interval(entry)
    return written(entry["value"]) + (f" ({bounds})" if bounds else "")


def tiles(run: Run) -> str:
    """The headline figures of the main split, the other split's value below."""
    split, other = run.main, next((s for s in run.splits.values() if s is not run.main), None)
    found = [(name, label, hint) for name, label, hint in _headline(run) if name in split.entries][:6]
    return '<div class="tiles">' + "".join(_tile(name, label, hint, split, other) for name, label, hint in found) + "</div>"


def _headline(run: Run) -> list[tuple[str, str, str]]:
    """(name, label, hint) of the metrics that stand first."""
    rows = of_kind(run.kind, "headline")
    if run.kind == REGRESSION:
        if len(run.names) == 1:
            return [(f"{row.name}_{run.names[0]}", row.label, run.names[0]) for row in rows]
        means = [(row.name, row.label, row.hint) for row in rows[:2]]
        return means + [(f"r2_{name}", f"{BY_NAME['r2'].label} of {name}", "") for name in run.names]
    chosen = [(row.name, row.label, row.hint) for row in rows]
    if len(run.names) == 2:
        event = run.names[1]
        of_event = [(f"{name}_{event}", BY_NAME[name].label, event) for name in ("sensitivity", "specificity")]
        chosen = [("roc_auc", BY_NAME["roc_auc"].label, event), *of_event, *chosen[2:]]
    return chosen


def _tile(name: str, label: str, hint: str, split: Split, other: Split | None) -> str:
    entry = split.entries[name]
    value, lower, upper = (entry.get(part) for part in ("value", "lower", "upper"))
    bounds = interval(entry)
    row = row_of(name)
    scale = ""
    if row and row.on_unit_scale and value is not None and bounds and 0 <= lower <= value <= upper <= 1:
        scale = (f'<div class="scale" aria-hidden="true"><i style="left:{100 * lower:.1f}%;width:{100 * (upper - lower):.1f}%">'
                 f'</i><b style="left:{100 * value:.1f}%"></b></div>')
    beside = other.entries.get(name) if other else None
    return (f'<div class="tile"><h3>{clean(label)}</h3><p class="value">{written(value)}</p>'
            f'<p class="interval">{"95 % interval " + bounds if bounds else "no interval"}</p>{scale}'
            + (f'<p class="beside">{clean(other.name)} {written(beside["value"])}</p>' if beside else "")
            + (f'<p class="hint">{clean(hint)}</p>' if hint else "") + "</div>")


def of_each(kind: str) -> list[Metric]:
    """The metrics of each class or target, in their order."""
    return of_kind(kind, "per_class" if kind == CLASSIFICATION else "per_target")


def _hint(run: Run, metric: Metric) -> str:
    """What stands beside a metric's label; of two classes, which of them is meant."""
    if run.kind == REGRESSION:
        return "" if metric.name == "loss" else metric.hint
    if len(run.names) == 2 and (metric.group == OPERATING or metric.interval == SANDWICH):
        return f"{metric.hint}; of {run.names[1]}"
    return metric.hint


def all_figures(run: Run) -> str:
    """One table of everything that is not of a single class or target."""
    splits, shown = list(run.splits.values()), set()
    single = {f"{row.name}_{name}" for name in run.names for row in of_each(run.kind)}
    head = "".join(f'<th scope="col">{clean(s.name)}</th><th scope="col">95 % interval</th>' for s in splits)
    rows = []
    for _, members in itertools.groupby(METRICS, lambda metric: metric.group):
        for metric in members:
            if metric.group and any(metric.name in s.entries for s in splits):
                rows.append(_row(metric.name, metric.label, _hint(run, metric), splits))
                shown.add(metric.name)
        if rows and rows[-1] is not None:
            rows.append(None)
    others = dict.fromkeys(name for s in splits for name in s.entries if name not in shown | single | {"n"})
    rows += [_row(name, name, "", splits) for name in others]
    return _box("Figures and their 95 % intervals", f'<thead><tr><th scope="col">Figure</th>{head}<th scope="col">Interval by'
                f'</th></tr></thead><tbody>{_with_gaps(rows)}</tbody>', "figures")


def _with_gaps(rows: list[str | None]) -> str:
    """None ends a group: the next row gets a line above it."""
    parts, begins = [], False
    for row in rows:
        if row is None:
            begins = True
            continue
        parts.append(row.replace("<tr>", '<tr class="begins">', 1) if begins and parts else row)
        begins = False
    return "".join(parts)


def _row(name: str, label: str, hint: str, splits: list[Split]) -> str:
    cells, methods = [], []
    for split in splits:
        entry = split.entries.get(name)
        cells.append(f'<td class="number">{written(entry["value"]) if entry else "–"}</td>'
                     f'<td class="number quiet">{(interval(entry) if entry else "") or "–"}</td>')
        if entry and entry.get("method"):
            methods.append(str(entry["method"]))
    small = f' <small>{clean(hint)}</small>' if hint else ""
    return (f'<tr><th scope="row">{clean(label)}{small}</th>{"".join(cells)}'
            f'<td class="quiet">{clean(", ".join(dict.fromkeys(methods))) or "–"}</td></tr>')


def per_name(rows: list[dict[str, dict]], names: list[str], columns: list[Metric], what: str, caption: str) -> str:
    """A row a class or a target; a cell holds the value and, below it, its interval."""
    head = "".join(f'<th scope="col">{clean(column.label)}</th>' for column in columns)
    body = []
    for name, row in zip(names, rows, strict=True):
        cells = "".join(_cell(row.get(column.name), column.name) for column in columns)
        body.append(f'<tr><th scope="row">{clean(name)}</th>{cells}</tr>')
    return _box(caption, f'<thead><tr><th scope="col">{what}</th>{head}</tr></thead><tbody>{"".join(body)}</tbody>', "single")


def _cell(entry: dict | None, column: str) -> str:
    if not entry:
        return '<td class="number">–</td>'
    bounds = interval(entry)
    below = f"<small>{bounds}</small>" if bounds else ""
    return f'<td class="number">{written(entry["value"], whole=column == "n")}{below}</td>'


def _box(caption: str, content: str, look: str) -> str:
    """A table that scrolls sideways by itself where it is wider than the screen; it can be reached by the keyboard."""
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{clean(caption)}"><table class="{look}"><caption>'
            f"{clean(caption)}</caption>{content}</table></div>")


def methods(run: Run) -> list[str]:
    """Lines on how the intervals were made: the figures of each method, resamples, seeds, undefined resamples."""
    found: dict[tuple, dict] = {}
    for split in run.splits.values():
        for name, entry in split.entries.items():
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
    """A line a split: figures that are undefined in some of their resamples, which their intervals leave out."""
    lines = []
    for split in run.splits.values():
        some = {name: entry for name, entry in split.entries.items()
                if isinstance(entry.get("undefined"), int) and entry["undefined"] > 0}
        if some:
            worst = sorted(some, key=lambda name: -some[name]["undefined"])
            listed = "; ".join(f"{name} in {some[name]['undefined']:,} of {some[name].get('resamples', '?')}"
                               for name in worst[:6]) + (f"; and {len(some) - 6} more figures" if len(some) > 6 else "")
            lines.append(f"{split.name}: {listed}")
    return lines
