"""The pictures of a report's page, as HTML figures around SVG: made of a run's tables by
util/metrics/curves.py and util/report/svg.py."""

import math

import numpy as np
import pandas as pd

from util.metrics.bootstrap import wilson_interval
from util.metrics.curves import Curves
from util.metrics.table import BY_NAME
from util.report.bland_altman import limits_of_agreement
from util.report.charts import (
    LEARNING_RATE,
    MAX_CLASSES_WITH_COUNTS,
    MAX_CLASSES_WITH_SHARES,
    cell_texts,
    curve_panels,
    row_shares,
    titled,
)
from util.report.figures import with_interval, written
from util.report.svg import SERIES, Chart, clean, room_around, ticks

MOST_ROWS = 40  # classes in one chart of their probabilities, which then still fits a printed page
MOST_POINTS = 1500  # of a scatter plot on the page
# A cell's text turns white on the light page, or black on the dark one, where its colour asks for it (contrast 4.6 there).
DARK_FROM, BRIGHT_FROM = 0.93, 0.68
SHARES = (0, 0.2, 0.4, 0.6, 0.8, 1)


def figure(caption: str, small: str, body: str) -> str:
    below = f"<small>{clean(small)}</small>" if small else ""
    return f"<figure><figcaption>{clean(caption)}{below}</figcaption>{body}</figure>"


def legend(entries: list[tuple[str, str, str]]) -> str:
    """[(classes of the mark, name, figure or '')]."""
    return '<ul class="legend">' + "".join(f'<li><i class="{look}"></i><span>{clean(name)}</span><b>{clean(text)}</b></li>'
                                           for look, name, text in entries) + "</ul>"


# ---- classification -------------------------------------------------------------------------------------------------

def looks_of(classes: list[int], entries: dict[int, dict]) -> dict[int, str]:
    """A colour for each class; where there are more than colours, for those of the lowest ROC AUC, and grey for the rest."""
    if len(classes) <= SERIES:
        return {k: f"s{place}" for place, k in enumerate(classes)}
    auc = {k: entries[k]["value"] if entries[k]["value"] is not None else math.inf for k in classes}
    lowest = sorted(sorted(classes, key=auc.get)[:SERIES])
    return {k: f"s{lowest.index(k)}" if k in lowest else "faint" for k in classes}


def roc(split: str, curves: Curves, names: list[str], rows: list[dict]) -> str:
    return _curves_of_classes(split, "roc", "ROC curves", curves.roc, names, rows, "roc_auc", "ROC AUC",
                              ("1 − specificity", "Sensitivity"), curves)


def precision_recall(split: str, curves: Curves, names: list[str], rows: list[dict]) -> str:
    return _curves_of_classes(split, "pr", "Precision-recall curves", curves.precision_recall, names, rows,
                              "average_precision", "Average precision", ("Recall (sensitivity)", "Precision"), curves)


def _curves_of_classes(split, key, caption, points, names, rows, name, label, labels, curves):
    if not points:
        return ""
    entries = {k: rows[k][name] for k in points}
    looks = looks_of(list(points), {k: rows[k]["roc_auc"] for k in points})
    described = "; ".join(f"{names[k]}: {with_interval(entries[k])}" for k in list(points)[:SERIES])
    chart = Chart(f"{key}-{split}", f"{caption}, {split}", f"{label} of each class against the rest. {described}.",
                  (0, 1), (0, 1), labels).axes(SHARES, SHARES)
    if key == "roc":
        chart.rule((0, 0, 1, 1))
    for k in sorted(points, key=lambda k: looks[k] != "faint"):  # the grey ones below
        draw = chart.steps if key == "pr" else chart.line
        draw(*points[k], looks[k], f"{names[k]} {with_interval(entries[k])}")
    listed = [(looks[k], names[k], with_interval(entries[k])) for k in points if looks[k] != "faint"]
    grey = sum(look == "faint" for look in looks.values())
    if grey:
        listed.append(("faint", f"{grey} other classes: their figures stand in the table of classes", ""))
    small = f"{label} and its 95 % interval" if any(entry.get("lower") is not None for entry in entries.values()) else label
    if grey:
        small += f"; in colour, the {SERIES} classes of lowest ROC AUC"
    if curves.left_out:
        small += f"; {curves.left_out} classes of fewer images are not drawn"
    return figure(caption, small, chart.svg() + legend(listed))


def reliability(split: str, curves: Curves, names: list[str], entries: dict[str, dict]) -> str:
    """The reliability diagram, and below it how many images stand behind each point."""
    bins = len(curves.calibration[0][1][2])
    total = int(curves.calibration[0][1][2].sum())
    errors = {"ece": "expected calibration error", "ece_calibrated": "after temperature"}
    said = "; ".join(f"{label} {with_interval(entries[name])}" for name, label in errors.items() if name in entries)
    chart = Chart(f"reliability-{split}", f"Reliability diagram, {split}",
                  f"Share of images that are what was predicted, against the predicted probability, in {bins} bins. {said}",
                  (0, 1), (0, 1), ("", "Share that came true"), bottom=14)
    chart.axes(SHARES, SHARES, x_texts=[""] * len(SHARES))
    chart.rule((0, 0, 1, 1))
    for place, (label, (mean, share, images)) in enumerate(curves.calibration):
        known, look = images > 0, f"s{place}"
        for x, y, count in zip(mean[known], share[known], images[known], strict=True) if place == 0 else ():
            low, high = wilson_interval(round(y * count), int(count))
            chart.rule((x, low, x, high), f"thin {look}")
        chart.line(mean[known], share[known], look, label)
        chart.dots(mean[known], share[known], f"firm {look}", label)
    counts = curves.calibration[0][1][2]
    most = int(counts.max(initial=1))
    below = Chart(f"reliability-counts-{split}", f"Images in each bin, {split}",
                  "From the lowest probability to the highest: " + ", ".join(map(str, counts.tolist())), (0, 1),
                  (0, most * 1.25), (curves.of_what if len(curves.of_what) < 60 else "Predicted probability", "Images"),
                  size=(420, 130))
    below.axes(SHARES, [0, most], y_texts=["0", f"{most:,}"], grid=False)
    for number, count in enumerate(counts.tolist()):
        if count:
            below.bar((number + 0.08) / bins, (number + 0.92) / bins, 0, count, "s0",
                      f"{number / bins:.2f} to {(number + 1) / bins:.2f}: {count:,} images")
            below.note((number + 0.5) / bins, count, f"{count}" if count < 10000 else f"{count / 1000:.0f}k", "middle", up=4)
    listed = [(f"s{place}", label, with_interval(entries[name]) if name in entries and len(names) > 2 else "")
              for place, ((label, _), name) in enumerate(zip(curves.calibration, errors, strict=False))]
    small = (f"{curves.of_what}; {total:,} images in {bins} bins. Upright lines: Wilson 95 % intervals"
             + ("; numbers: expected calibration error" if listed[0][2] else ""))
    return figure("Reliability diagram", small, chart.svg() + below.svg() + legend(
        [*listed, ("faint", "broken line: perfect calibration", "")]))


def scores(split: str, curves: Curves) -> str:
    """Of two classes the event's probability by true class, else the highest probability of right and wrong answers."""
    two = curves.scores[0][0] not in ("right", "wrong") or not curves.of_what.endswith("predicted class")
    totals = [max(1, int(counts.sum())) for _, counts in curves.scores]
    heights = [counts / total for (_, counts), total in zip(curves.scores, totals, strict=True)] if two else [
        counts.astype(float) for _, counts in curves.scores]
    stacked = 0 if two else heights[1]
    top = max(float(np.max(heights[0] + stacked)), float(np.max(heights[1])), 1e-9)
    what = "Share of the true class" if two else "Images"
    chart = Chart(f"scores-{split}", f"Score distribution, {split}", "; ".join(
        f"{name}: {int(counts.sum()):,} images" for name, counts in curves.scores), (0, 1), (0, top * 1.05),
        (curves.of_what if len(curves.of_what) < 60 else "Predicted probability", what)).axes(SHARES)
    bins, looks = len(heights[0]), ("s0", "s1")
    for place in (0, 1):
        for number in np.flatnonzero(heights[place]):
            base = 0.0 if two or place else float(heights[1][number])
            chart.bar(number / bins, (number + 1) / bins, base, base + float(heights[place][number]), looks[place],
                      f"{curves.scores[place][0]}, {number / bins:.2f} to {(number + 1) / bins:.2f}: "
                      f"{int(curves.scores[place][1][number]):,} images")
    listed = [(f"box {looks[place]}", f"{'truly ' if two else 'predicted '}{name}", f"{int(counts.sum()):,}")
              for place, (name, counts) in enumerate(curves.scores)]
    return figure("Score distribution", f"{curves.of_what}, {bins} bins", chart.svg() + legend(listed))


def spread_of_classes(split: str, curves: Curves, names: list[str]) -> str:
    """Of each class the probability that it is given: its own images against all others."""
    rows = [k for k in range(len(curves.own)) if curves.own[k] is not None]
    if not rows or len(names) == 2 or len(names) > MOST_ROWS:
        return ""
    height = 34 if len(rows) <= MAX_CLASSES_WITH_SHARES else 17
    letters = min(24, max(len(names[k]) for k in rows))
    chart = Chart(f"spread-{split}", f"Probability of each class, {split}", "; ".join(
        f"{names[k]}: median {curves.own[k][2]:.2f} of its own images"
        + (f", {curves.others[k][2]:.2f} of the others" if curves.others[k] is not None else "") for k in rows[:12]),
        (0, 1), (len(rows), 0), ("Probability given to the class", ""), size=(420, 64 + height * len(rows)),
        left=20 + int(6.6 * letters))
    texts = [names[k] if len(names[k]) <= 24 else names[k][:23] + "…" for k in rows]
    chart.axes(SHARES, [place + 0.5 for place in range(len(rows))], y_texts=texts, grid=False)
    for place, k in enumerate(rows):
        for low, high, found, look in ((0.14, 0.48, curves.own[k], "s0"), (0.54, 0.82, curves.others[k], "faint")):
            if found is not None:
                middle = place + (low + high) / 2
                chart.rule((found[0], middle, found[4], middle), f"firm {look}")
                chart.bar(found[1], found[3], place + low, place + high, f"solid {look}" if look == "s0" else look,
                          f"{names[k]}: half of the images between {found[1]:.2f} and {found[3]:.2f}")
                chart.rule((found[2], place + low - 0.04, found[2], place + high + 0.04), "firm")
    return figure("Probability of each class", "Lines: 5 to 95 % of the images; boxes: the middle half; upright: the median",
                  chart.svg() + legend([("box s0", "images of the class", ""), ("box faint", "all other images", "")]))


def confusion(split: str, counts: np.ndarray, names: list[str]) -> str:
    """The confusion matrix as a table, coloured by the share of the row."""
    if len(names) > MAX_CLASSES_WITH_COUNTS:
        return (f"<p>{len(names)} classes are too many for their confusion matrix here: confusion_matrix_{split}.png in the "
                "run's folder shows all.</p>")
    dense = len(names) > MAX_CLASSES_WITH_SHARES
    shares, texts, rows = row_shares(counts), cell_texts(counts), []
    for k, name in enumerate(names):
        cells = []
        for column, text in enumerate(texts[k]):
            share = shares[k, column]
            look = "none" if np.isnan(share) else "strong" if share >= DARK_FROM else "middle" if share >= BRIGHT_FROM else ""
            count, _, part = text.partition("\n")
            style = f' style="--share:{share:.3f}"' if share > 0 else ""
            cells.append(f'<td{f" class={look}" if look else ""}{style}>{count}{f"<small>{part}</small>" if part else ""}</td>')
        rows.append(f'<tr><th scope="row">{clean(name)} <small>({int(counts[k].sum()):,})</small></th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{clean(name)}</th>' for name in names)
    right, total = int(np.trace(counts)), int(counts.sum())
    small = (f"Rows: true class (images); columns: predicted class. {right:,} of {total:,} on the diagonal"
             + (f" ({100 * right / total:.1f} %)" if total else ""))
    table = (f'<div class="scroll bare" tabindex="0" role="region" aria-label="Confusion matrix, {split}">'
             f'<table class="confusion{" dense" if dense else ""}"><thead><tr>'
             f'<td class="corner"></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>')
    return figure("Confusion matrix", small, table)


def confusions(counts: np.ndarray, names: list[str], most: int = 10) -> str:
    """The commonest pairs of true and predicted class."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    cells = [cell for cell in np.argsort(-wrong, axis=None, kind="stable")[:most].tolist() if wrong.flat[cell] > 0]
    if not cells:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{clean(names[cell // len(names)])}</th><td>{clean(names[cell % len(names)])}</td>'
        f'<td class="number">{wrong.flat[cell]:,} of {counts[cell // len(names)].sum():,}</td></tr>' for cell in cells)
    return ('<div class="scroll" tabindex="0" role="region" aria-label="Commonest confusions"><table><caption>Commonest '
            'confusions</caption><thead><tr><th scope="col">True class</th><th scope="col">Predicted as</th>'
            f'<th scope="col" class="number">Images</th></tr></thead><tbody>{rows}</tbody></table></div>')


# ---- regression -----------------------------------------------------------------------------------------------------

def agreement(split: str, number: int, target: str, table: pd.DataFrame) -> str:
    """Predicted against true and Bland and Altman's plot of one target; '' where no truth is known."""
    true, predicted = (table[f"{kind}_{target}"].to_numpy(np.float64) for kind in ("true", "pred"))
    known = np.isfinite(true)
    true, predicted = true[known], predicted[known]
    if not len(true):
        return ""
    shown = np.linspace(0, len(true) - 1, min(len(true), MOST_POINTS)).astype(int)
    some = f"; {len(shown):,} of {len(true):,} images drawn" if len(shown) < len(true) else f"; {len(true):,} images"
    ends = room_around(np.concatenate([true, predicted]))
    look = "many" if len(shown) > 300 else ""
    scatter = Chart(f"scatter-{split}-{number}", f"{target}: predicted against true, {split}",
                    "Each dot is an image; the broken line is equality. True values from "
                    f"{written(float(true.min()))} to {written(float(true.max()))}.", ends, ends,
                    ("True", "Predicted"), left=58).axes()
    scatter.rule((ends[0], ends[0], ends[1], ends[1]))
    scatter.dots(true[shown], predicted[shown], f"s0 {look}")
    bias, lower, upper = limits_of_agreement(true, predicted)
    means, differences = (true + predicted) / 2, predicted - true
    heights = room_around(np.append(differences, [bias, lower, upper, 0]), 0.08)
    plot = Chart(f"bland-{split}-{number}", f"{target}: Bland-Altman plot, {split}",
                 f"Difference predicted minus true against their mean: mean difference {written(bias)}, 95 % limits of "
                 f"agreement {written(_finite(lower))} to {written(_finite(upper))}.", room_around(means), heights,
                 ("Mean of true and predicted", "Predicted − true"), left=58).axes()
    plot.dots(means[shown], differences[shown], f"s0 {look}")
    edge = plot.x[1]
    for value, label, line in ((bias, "mean", "firm"), (lower, "−1.96 sd", "cut"), (upper, "+1.96 sd", "cut")):
        if math.isfinite(value):
            plot.rule((plot.x[0], value, edge, value), f"{line} s1")
            plot.note(edge, value, f"{label} {written(value)}", "end", up=4)
    return (figure(f"{target}: predicted against true", f"Broken line: equality{some}", scatter.svg())
            + figure(f"{target}: Bland-Altman plot", "Mean difference ± 1.96 sd: the 95 % limits of agreement" + some,
                     plot.svg()))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ---- learning curves ------------------------------------------------------------------------------------------------

def learning(log: list[dict], best_epoch: int | None) -> list[str]:
    """A small chart of each metric with a curve that the log has, in the order of the picture in the folder; log.txt has more,
    which say nearly the same."""
    panels = {name: lines for name, lines in curve_panels(log).items()
              if name == LEARNING_RATE or (name in BY_NAME and BY_NAME[name].curve is not None)}
    if not panels:
        return []
    epochs = [row["epoch"] for row in log]
    marked = epochs.index(best_epoch) if best_epoch in epochs else len(epochs) - 1
    charts = []
    for number, (name, lines) in enumerate(panels.items()):
        low, high = room_around(np.concatenate(list(lines.values())), 0.08)
        x = (epochs[0], epochs[-1]) if epochs[0] < epochs[-1] else (epochs[0] - 1, epochs[0] + 1)
        label, value = titled(name), lines.get("val", lines.get("train"))[marked]
        text = written(_finite(float(value))) if np.isfinite(value) else "–"
        chart = Chart(f"learning-{number}", f"{label} over the epochs", f"{text} at epoch {epochs[marked]}.", x, (low, high),
                      ("", ""), size=(220, 150), left=64, right=8, top=8, bottom=22)
        chart.axes(_whole_ticks(*x), ticks(low, high, 3))
        if best_epoch in epochs and len(epochs) > 1:
            chart.rule((best_epoch, low, best_epoch, high))
        for source, values in _thinned(lines, epochs):
            hint = "" if name == "lr" else {"train": "training", "val": "validation"}[source]
            chart.line(*values, "plain" if source == "train" else "s0", hint)
        charts.append(figure(f"{label}  {text}", "", chart.svg()))
    return charts


def _whole_ticks(low: float, high: float) -> list[int]:
    step = max(1, math.ceil((high - low) / 5))
    return list(range(int(low), int(high) + 1, step))


def _thinned(lines: dict[str, np.ndarray], epochs: list, most: int = 600):
    """At most `most` epochs of each line, evenly chosen, the last among them."""
    chosen = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), most)).astype(int))
    return [(source, (np.asarray(epochs, float)[chosen], values[chosen])) for source, values in lines.items()]
