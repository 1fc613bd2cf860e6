"""report.html: a run on one page that needs nothing but itself, made of the files in the run's folder."""

import time
from pathlib import Path

from util.core.run_files import write_whole
from util.metrics.classification import confusion_matrix
from util.metrics.curves import curves_of
from util.metrics.table import REGRESSION
from util.report import svg_charts as charts
from util.report.commands import evaluation_command, report_command, training_command
from util.report.figures import all_figures, methods, of_each, per_name, tiles, undefined, written
from util.report.mistakes import Mistake, mistakes
from util.report.run_data import Outputs, Run, Split, class_figures, read_run
from util.report.svg import clean
from util.report.words import NOTES, data_table, facts_of, subtitle, warnings_of

PAGE = "report.html"
STYLE = Path(__file__).with_name("report.css")


def write_report(folder: str | Path) -> list[str]:
    """Write report.html and the pictures of a run into its folder; lines for the user.

    The folder's files are all that is needed (no model, no GPU), and the pictures' files for the thumbnails; what is not
    there is left out, and a line says so. Raises InputError where the folder is no run's, OSError where it can't be written.
    """
    began = time.monotonic()
    run = read_run(folder)
    notes = list(run.missing)
    sections, pictures = _sections(run, notes)
    page = _page(run, sections, notes)
    write_whole(run.folder / PAGE, page)
    size = (run.folder / PAGE).stat().st_size / 1e6
    return [f"report     {run.folder / PAGE} ({size:.1f} MB, {time.monotonic() - began:.1f} s)"
            + (f"; also as pictures: {', '.join(pictures)}" if pictures else ""), *(f"report: {note}" for note in notes)]


def _sections(run: Run, notes: list[str]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """[(id, heading, HTML)] in the order of the page, and the names of the PNG files that were drawn anew."""
    from util.report.png_charts import other_pictures

    made: list[tuple[str, str, str]] = []
    pictures: list[str] = []
    main = run.main
    made.append(("figures", f"Figures of {main.name}", f'<p class="lead">{_counted(run, main)}</p>{tiles(run)}'
                 f'{_per_name(run, main)}{all_figures(run)}'))
    for split in run.splits.values():
        if split.table is not None:
            heading = f"Charts of {split.name}"
            body, drawn, lines = (_classification(run, split, split is main) if run.kind == "classification"
                                  else _regression(run, split))
            made.append((f"charts-{split.name}", heading, body))
            pictures += drawn
            notes += lines
    notes += [note for note in other_pictures(run) if note not in notes]
    if main.table is not None:
        made.append(("mistakes", *_mistakes(run, main, notes)))
    learning = charts.learning(run.log, run.best_epoch)
    if learning:
        which = f"epoch {run.best_epoch} (upright line), whose weights were scored" if run.best_epoch is not None else (
            "the last epoch")
        made.append(("learning", "Learning curves", '<p class="lead">Blue: validation; broken grey: training. The numbers are '
                     f'those of {which}.</p><div class="charts small-ones">{"".join(learning)}</div>'))
    made.append(("data", "Data", data_table(run)))
    made.append(("run", "What was run", f'<div class="panel"><dl class="facts">{_definitions(facts_of(run))}</dl></div>'))
    made.append(("intervals", "How the intervals were made", _intervals(run)))
    made.append(("again", "How to repeat it", _again(run)))
    return made, pictures


def _counted(run: Run, split: Split) -> str:
    text = f"{split.images:,} images"
    if split.patients:
        text += f" of {split.patients:,} patients"
    return clean(f"{text}; a figure's 95 % interval says where it would lie in most repetitions of such a sample.")


def _definitions(pairs: list[tuple[str, str]]) -> str:
    return "".join(f"<dt>{clean(term)}</dt><dd>{clean(text)}</dd>" for term, text in pairs)


# ---- classification and regression ------------------------------------------------------------------------------------

def _per_name(run: Run, split: Split) -> str:
    columns = of_each(run.kind)
    rows = [{column.name: split.entries.get(f"{column.name}_{name}") for column in columns} for name in run.names]
    if run.kind == REGRESSION:
        return per_name(rows, run.names, columns, "Target", f"Targets on {split.name}, in their own units")
    if split.table is None:
        if not any(entry for row in rows for entry in row.values()):
            return ""
    else:
        rows = class_figures(Outputs.of(split.table, run.names), run.names, split.entries)
    return per_name(rows, run.names, columns, "Class", f"Classes on {split.name}, each against the rest")


def _classification(run: Run, split: Split, is_main: bool) -> tuple[str, list[str], list[str]]:
    """(HTML, names of the PNG files, lines)."""
    from util.report.png_charts import classification_pictures

    outputs, names = Outputs.of(split.table, run.names), run.names
    rows = class_figures(outputs, names, split.entries)
    temperature = split.entries.get("temperature", {}).get("value")
    curves = curves_of(outputs.true, outputs.predicted, outputs.probabilities, outputs.logits, names, temperature)
    counts = confusion_matrix(outputs.true, outputs.predicted, len(names))
    parts = [charts.roc(split.name, curves, names, rows), charts.precision_recall(split.name, curves, names, rows)]
    parts += [charts.reliability(split.name, curves, names, split.entries), charts.scores(split.name, curves)]
    matrix, spread = charts.confusion(split.name, counts, names), charts.spread_of_classes(split.name, curves, names)
    if len(names) <= charts.MAX_CLASSES_WITH_SHARES:
        body = f'<div class="charts">{"".join(parts)}{matrix}{spread}</div>'
    else:
        body = (f'<div class="charts">{"".join(parts)}</div><div class="wide">{matrix}{charts.confusions(counts, names)}</div>'
                f'<div class="charts">{spread}</div>')
    drawn, lines = [], []
    if is_main:  # a tenth of a second each: of the split that the page is headed by
        looks = charts.looks_of(sorted(curves.precision_recall), {k: rows[k]["roc_auc"] for k in curves.precision_recall})
        lines = classification_pictures(run, split, curves, rows, looks)
        drawn = [f"{key}_{split.name}.png" for key in ("roc", "precision_recall", "reliability", "scores")
                 if key not in ("roc", "precision_recall") or getattr(curves, key)]
    return body, drawn, lines


def _regression(run: Run, split: Split) -> tuple[str, list[str], list[str]]:
    parts = [charts.agreement(split.name, number, target, split.table) for number, target in enumerate(run.names)]
    lines = [f"{target}: no true value is known in {split.name}" for target, part in zip(run.names, parts, strict=True)
             if not part]
    return f'<div class="charts">{"".join(parts)}</div>', [], lines


# ---- mistakes -------------------------------------------------------------------------------------------------------

def _mistakes(run: Run, split: Split, notes: list[str]) -> tuple[str, str]:
    """(heading, HTML)."""
    found, total, lines = mistakes(run, split)
    notes += lines
    if run.kind == "classification":
        heading = "Most confident mistakes"
        lead = (f"{total:,} of {split.images:,} images of {split.name} are predicted wrong"
                + (f"; these {len(found)} with the highest probability." if total > len(found) else ", most confident first.")
                if total else f"No image of {split.name} is predicted wrong.")
    else:
        heading = "Largest errors"
        lead = (f"The {len(found)} images of {split.name} with the largest error, in standard deviations of the true values"
                + (" (the worst target of each)." if len(run.names) > 1 else "."))
    if any(mistake.heat_map for mistake in found):
        lead += " On the right, where the model looked."
    pairs = any(mistake.heat_map for mistake in found)
    items = "".join(_item(run, split, mistake, pairs) for mistake in found)
    look = "mistakes pairs" if pairs else "mistakes"
    return heading, f'<p class="lead">{clean(lead)}</p>' + (f'<ol class="{look}">{items}</ol>' if items else "")


def _item(run: Run, split: Split, mistake: Mistake, pairs: bool) -> str:
    name = mistake.path.replace("\\", "/").rsplit("/", 1)[-1]
    row = split.table.iloc[mistake.row]
    if run.kind == "classification":
        said, true = row["predicted_class"], row["true_class"]
        words = [f"<p><b>{clean(true)}</b> <small>true</small></p>",
                 f'<p>{clean(said)} <small>predicted, {written(float(row[f"prob_{said}"]))}</small></p>']
    else:
        words = []
        for target in run.names:
            true, said = float(row[f"true_{target}"]), float(row[f"pred_{target}"])
            known = written(true) if true == true else "unknown"
            words.append(f"<p><small>{clean(target)}</small> {written(said)} <small>predicted,</small> "
                         f"{known} <small>true</small></p>")
    shots = [_image(mistake.thumbnail, f"Picture {name}")] if mistake.thumbnail else [f"<p>{clean(mistake.why)}</p>"]
    if pairs:
        shots.append(_image(mistake.heat_map, f"Heat map of {name}") if mistake.heat_map else "<p>no heat map</p>")
    return (f'<li><div class="shots">{"".join(shots)}</div><div class="words">{"".join(words)}'
            f'<p class="file" title="{clean(mistake.path)}">{clean(name)}</p></div></li>')


def _image(picture: tuple[str, int, int], words: str) -> str:
    address, width, height = picture
    return f'<img src="{address}" width="{width}" height="{height}" alt="{clean(words)}">'


# ---- words ----------------------------------------------------------------------------------------------------------

def _intervals(run: Run) -> str:
    lines = methods(run)
    if not lines:
        return ("<p>The figures of this folder have no intervals: it was written before they were. "
                "Scoring the checkpoint again makes them (below).</p>")
    explained = ("A bootstrap draws whole patients where they are known, else images, with replacement, not by class; its "
                 "interval holds the middle 95 % of the resampled figures (of the calibration error, which chance alone "
                 "raises, mirrored at the figure). DeLong's is that of a ROC AUC, on the logit scale; Wilson's that of a "
                 "share of independent images; a sandwich error's that of a calibration slope or intercept.")
    left_out = "".join(f"<li>undefined resamples, left out of their interval: {clean(line)}</li>" for line in undefined(run))
    return (f'<div class="panel"><p>{explained}</p><ul class="small">'
            + "".join(f"<li>{clean(line)}</li>" for line in lines) + f"{left_out}</ul></div>")


def _again(run: Run) -> str:
    parts = []
    options, processes = run.options, run.facts.get("processes")
    if options:
        command, unknown = training_command(run.kind, options, processes if isinstance(processes, int) else 1)
        parts.append(f"<p>Train it again, from the folder of the code{_at_commit(run)}:</p><pre>{clean(command)}</pre>")
        if unknown:
            parts.append('<p class="small">Options of run.json that this version does not have: '
                         f'{clean(", ".join(unknown))}</p>')
        checkpoint = run.folder / "checkpoint-best.pth"
        if checkpoint.exists():
            parts.append("<p>Score its best weights on test again:</p>"
                         f"<pre>{clean(evaluation_command(run.kind, options, checkpoint))}</pre>")
        else:
            parts.append('<p class="small">checkpoint-best.pth is not in this folder: its weights cannot be scored again.</p>')
    parts.append(f"<p>Make this page again:</p><pre>{clean(report_command(run.folder))}</pre>")
    return "".join(parts)


def _at_commit(run: Run) -> str:
    commit = str(run.facts.get("commit") or "")
    if not commit:
        return ""
    changed = ", with changes that were not committed" if commit.endswith("+") else ""
    return f" at commit <code>{clean(commit.removesuffix('+'))}</code>{changed}"


# ---- the page -------------------------------------------------------------------------------------------------------

def _page(run: Run, sections: list[tuple[str, str, str]], notes: list[str]) -> str:
    found = warnings_of(run)
    links = "".join(f'<a href="#{key}">{clean(heading)}</a>' for key, heading, _ in sections)
    body = "".join(f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{clean(heading)}</h2>{content}</section>'
                   for key, heading, content in sections)
    warned = ""
    if found:
        items = "".join(f"<li>{clean(text)}" + (f"<ul>{''.join(f'<li>{clean(line)}</li>' for line in examples)}</ul>"
                                                if examples else "") + "</li>" for text, examples in found)
        only_notes = [text for text, _ in found] == [NOTES]
        warned = (f'<aside class="warnings{" notes" if only_notes else ""}" aria-labelledby="warnings-h"><h2 id="warnings-h">'
                  f'{"Notes" if only_notes else "Before these figures are trusted"}</h2><ul>{items}</ul></aside>')
    absent = ('<section aria-labelledby="absent-h"><h2 id="absent-h">Not on this page</h2><ul class="small">'
              + "".join(f"<li>{clean(note)}</li>" for note in notes) + "</ul></section>") if notes else ""
    kind = {"classification": "Classification", "regression": "Regression"}[run.kind]
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src \'unsafe-inline\'">'
        f'<title>{clean(run.title)}: report</title><link rel="icon" href="data:,"><style>\n{style}</style></head>\n<body><main>'
        f'<header><p class="over">{kind} report</p><h1>{clean(run.title)}</h1><p class="lead">{clean(subtitle(run))}</p>'
        f'<nav aria-label="Sections">{links}</nav></header>{warned}{body}{absent}'
        f'<footer><p>Made {time.strftime("%Y-%m-%d %H:%M")} from the files in {clean(run.folder.resolve())}. It holds '
        "thumbnails of pictures: whoever may not see those should not get this page.</p></footer></main></body></html>\n")
