"""Figures in a report: what they are called, how they are written, the tiles and the tables of them."""

from util.report.run_data import Run, Split
from util.report.svg import clean

TO = " to "
# name -> (label, what a reader should know of it); in the order of the table
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Numbers": {
        "r2": ("R²", "mean over the targets"), "pearson": ("Pearson's r", "mean over the targets"),
        "mae": ("Mean absolute error", "mean over the targets, whatever their units"),
        "rmse": ("Root mean squared error", "mean over the targets, whatever their units"),
    },
    "Ranking": {
        "roc_auc": ("ROC AUC", "mean over the classes, each against the rest"),
        "average_precision": ("Average precision", "mean over the classes"),
    },
    "Decisions": {
        "accuracy": ("Accuracy", ""),
        "balanced_accuracy": ("Balanced accuracy", "mean sensitivity of the classes"),
        "f1": ("F1", "mean over the classes"),
        "precision": ("Precision", "mean over the classes"),
        "recall": ("Recall", "mean over the classes"),
        "jaccard": ("Jaccard", "mean over the classes"),
        "hamming": ("Hamming loss", "lower is better"),
        "kappa": ("Cohen's kappa", "unweighted"),
        "qwk": ("Quadratic weighted kappa", "for classes in order, as grades are"),
        "mae_grades": ("Mean distance of grades", "for classes in order; lower is better"),
    },
    "Operating points": {
        f"{one}_at_{share}_{other}": (f"{one.capitalize()} at {share} % {other}", "threshold chosen on val")
        for one, other in (("sensitivity", "specificity"), ("specificity", "sensitivity")) for share in (90, 95)},
    "Probabilities": {
        "loss": ("Loss", "negative log likelihood; lower is better"),
        "loss_calibrated": ("Loss after temperature", ""),
        "brier": ("Brier score", "lower is better"),
        "brier_calibrated": ("Brier score after temperature", ""),
        "ece": ("Expected calibration error", "lower is better"),
        "ece_calibrated": ("Expected calibration error after temperature", ""),
        "calibration_slope": ("Calibration slope", "1 is ideal; below, probabilities are too extreme"),
        "calibration_intercept": ("Calibration intercept", "0 is ideal; below, probabilities are too high"),
        "temperature": ("Temperature", "fitted on val"),
    },
    "Choice of the best epoch": {"score": ("Score", "mean of F1, ROC AUC and kappa"),
                                "selection": ("Selection", "what chose the epoch (--select_metric); higher is better")},
}
PER_CLASS = {"n": "Images", "sensitivity": "Sensitivity", "specificity": "Specificity", "precision": "Precision", "f1": "F1",
             "roc_auc": "ROC AUC", "average_precision": "Average precision"}
PER_TARGET = {"n": "Images", "r2": "R²", "pearson": "Pearson's r", "mae": "Mean absolute error",
              "rmse": "Root mean squared error"}
ON_UNIT_SCALE = {"roc_auc", "average_precision", "accuracy", "balanced_accuracy", "f1", "precision", "recall", "jaccard",
                 "kappa", "qwk", "ece", "sensitivity", "specificity", "r2", "pearson"}
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
    known = {name: pair for group in GROUPS.values() for name, pair in group.items()}
    if run.kind == "regression":
        if len(run.names) == 1:
            target = run.names[0]
            return [(f"{name}_{target}", known[name][0], target) for name in ("r2", "pearson", "mae", "rmse")]
        means = [(name, *known[name]) for name in ("r2", "pearson")]
        return means + [(f"r2_{name}", f"R² of {name}", "") for name in run.names]
    names = ["roc_auc", "balanced_accuracy", "accuracy", "f1", "kappa", "qwk", "ece", "brier"]
    chosen = [(name, *known[name]) for name in names]
    if len(run.names) == 2:
        event = run.names[1]
        chosen = [("roc_auc", "ROC AUC", event), (f"sensitivity_{event}", "Sensitivity", event),
                  (f"specificity_{event}", "Specificity", event), *chosen[2:]]
    return chosen


def _tile(name: str, label: str, hint: str, split: Split, other: Split | None) -> str:
    entry = split.entries[name]
    value, lower, upper = (entry.get(part) for part in ("value", "lower", "upper"))
    bounds = interval(entry)
    kind = name if name in ON_UNIT_SCALE else next((k for k in ON_UNIT_SCALE if name.startswith(f"{k}_")), None)
    scale = ""
    if kind and value is not None and bounds and 0 <= lower <= value <= upper <= 1:
        scale = (f'<div class="scale" aria-hidden="true"><i style="left:{100 * lower:.1f}%;width:{100 * (upper - lower):.1f}%">'
                 f'</i><b style="left:{100 * value:.1f}%"></b></div>')
    beside = other.entries.get(name) if other else None
    return (f'<div class="tile"><h3>{clean(label)}</h3><p class="value">{written(value)}</p>'
            f'<p class="interval">{"95 % interval " + bounds if bounds else "no interval"}</p>{scale}'
            + (f'<p class="beside">{clean(other.name)} {written(beside["value"])}</p>' if beside else "")
            + (f'<p class="hint">{clean(hint)}</p>' if hint else "") + "</div>")


def _hint(run: Run, name: str, hint: str) -> str:
    """What stands beside a figure's label; of two classes, which of them is meant."""
    if run.kind == "regression":
        return "" if name == "loss" else hint
    if len(run.names) == 2 and ("_at_" in name or name.startswith("calibration_")):
        return f"{hint}; of {run.names[1]}"
    return hint


def all_figures(run: Run) -> str:
    """One table of everything that is not of a single class or target."""
    splits, shown = list(run.splits.values()), set()
    single = {f"{figure}_{name}" for name in run.names for figure in (*PER_CLASS, *PER_TARGET)}
    head = "".join(f'<th scope="col">{clean(s.name)}</th><th scope="col">95 % interval</th>' for s in splits)
    rows = []
    for members in GROUPS.values():
        for name, (label, hint) in members.items():
            if any(name in s.entries for s in splits):
                rows.append(_row(name, label, _hint(run, name, hint), splits))
                shown.add(name)
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


def per_name(rows: list[dict[str, dict]], names: list[str], columns: dict[str, str], what: str, caption: str) -> str:
    """A row a class or a target; a cell holds the value and, below it, its interval."""
    head = "".join(f'<th scope="col">{clean(label)}</th>' for label in columns.values())
    body = []
    for name, row in zip(names, rows, strict=True):
        cells = "".join(_cell(row.get(column), column) for column in columns)
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
