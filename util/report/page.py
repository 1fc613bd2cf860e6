"""report.html: a run on one page that needs nothing but itself, made of the files in the run's folder.

What stands on it is computed here and in the modules beside; how it looks stands in templates/.
"""

import time
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from util.core.run_files import write_whole
from util.metrics.curves import curves_of
from util.metrics.table import BY_NAME, CLASSIFICATION, MULTILABEL, REGRESSION
from util.metrics.weighted import Images
from util.metrics.weighted import confusion_matrix as count_confusions
from util.report import bland_altman, charts, class_charts, label_charts, words
from util.report import metric_tables as tables
from util.report.charts import LEARNING_RATE, NOT_XML, Chart, Panel
from util.report.class_charts import Scored
from util.report.commands import evaluation_command, report_command, training_command
from util.report.learning_curves import learning_curves
from util.report.mistakes import mistakes, right_ones, shown
from util.report.run_data import Run, Split, class_metrics, read_run, wrong_labels

PAGE = "report.html"
MOST_LABELS = 4  # of an image, that are called wrongly
TEMPLATES = Path(__file__).with_name("templates")


def write_report(folder: str | Path) -> list[str]:
    """Write report.html and the charts of a run into its folder; lines for the user.

    The folder's files are all that is needed (no model, no GPU), and the images' files for the thumbnails;
    what is not there is left out, and a line says so. Raises InputError where the folder is no run's, OSError
    where it can't be written.
    """
    began = time.monotonic()
    run = read_run(folder)
    notes, pngs = list(run.missing), []
    with_table = [split for split in run.splits.values() if split.table is not None]
    scored = {split.name: _scored(run, split) for split in with_table if run.kind != REGRESSION}
    sections = [_split_charts(run, split, scored.get(split.name), notes, pngs) for split in with_table]
    learning = _learning(run, notes)
    is_class = run.kind == CLASSIFICATION and run.main.name in scored
    rows = scored[run.main.name].rows if is_class else None
    page = _page(run, {"splits": sections, "learning": learning, "notes": notes, **_mistakes(run, notes),
                       "of_names": tables.of_names(run, rows)})
    write_whole(run.folder / PAGE, NOT_XML.sub("\ufffd", page))
    size = (run.folder / PAGE).stat().st_size / 1e6
    line = f"report     {run.folder / PAGE} ({size:.1f} MB, {time.monotonic() - began:.1f} s)"
    line += f"; also as images: {', '.join(pngs)}" if pngs else ""
    return [line, *(f"report: {note}" for note in notes)]


# ---- charts ------------------------------------------------------------------------------------------------

def _scored(run: Run, split: Split) -> Scored:
    heading = f"{run.title}, {split.name}, {split.images:,} {split.unit}"
    if run.kind == MULTILABEL:
        return label_charts.scored_of(split.table, split.name, heading, split.entries)
    images = Images.of(split.table)
    temperature = split.entries.get("temperature", {}).get("value")
    curves = curves_of(images.true, images.predicted, images.probabilities, images.logits, run.names,
                       temperature)
    counts = count_confusions(images.true, images.predicted, len(run.names))
    return Scored(split.name, heading, run.names, curves, counts,
                  class_metrics(images, split.entries), split.entries, split.unit)


def _split_charts(run: Run, split: Split, scored: Scored | None, notes: list[str],
                  pngs: list[str]) -> dict[str, object]:
    """A split's section: its panels in order, and of many classes the pairs that are confused most.

    PNG files are drawn where they lack or are older than the predictions, and of a classification's main
    split always.
    """
    table, names, panels = run.folder / f"predictions_{split.name}.csv", run.names, []
    if scored is None:
        for number, file in enumerate(bland_altman.agreement_files(split.name, names)):
            chart = bland_altman.agreement(split.name, split.table, names, number)
            panels += _save(chart, run.folder / file, table, notes)
            notes += [] if chart else [f"{names[number]}: no true value is known in {split.name}"]
        return {"name": split.name, "panels": panels, "confusions": None}
    for draw in (class_charts.roc, class_charts.precision_recall, class_charts.reliability,
                 class_charts.scores):
        file = f"{draw.__name__}_{split.name}.png"
        drawn = _save(draw(scored), run.folder / file if split is run.main else None, None, notes)
        panels += drawn
        pngs += [file] if drawn and split is run.main else []
    if run.kind == MULTILABEL:
        panels += _save(class_charts.spread_of_classes(scored), None, None, notes)
        return {"name": split.name, "panels": panels, "confusions": None}
    matrix = class_charts.confusion_matrix(split.name, scored.counts, names, scored.heading, split.unit)
    is_shown = len(names) <= class_charts.MAX_CLASSES_WITH_COUNTS
    panels += _save(matrix, run.folder / f"confusion_matrix_{split.name}.png", table, notes, is_shown)
    for panel in _save(class_charts.spread_of_classes(scored), None, None, notes):
        panel.is_wide = matrix.panels[0].is_wide
        panels.append(panel)
    pairs = [(names[true], names[said], f"{scored.counts[true, said]:,} of {scored.counts[true].sum():,}")
             for true, said in class_charts.commonest_confusions(scored.counts)]
    has_pairs = len(names) > class_charts.MAX_CLASSES_WITH_SHARES
    return {"name": split.name, "panels": panels, "has_matrix": is_shown,
            "confusions": pairs if has_pairs else None}


def _save(chart: Chart | None, png: Path | None, source: Path | None, notes: list[str],
          is_shown: bool = True) -> list[Panel]:
    """Draw a chart for the page, and its PNG unless that is there and not older than its source -> its panels
    on the page."""
    if chart is None:
        return []
    if is_shown:
        charts.draw_svgs(chart)
    if png is not None and not (source and png.exists() and png.stat().st_mtime >= source.stat().st_mtime):
        notes += [note for note in charts.save_png(chart, png) if note not in notes]
    return chart.panels if is_shown else []


def _learning(run: Run, notes: list[str]) -> list[Panel]:
    """The learning curves of the metrics whose row of the table has a place for one; log.txt has more, which
    say nearly the same."""
    def is_shown(key: str) -> bool:
        name = key.removeprefix("train_").removeprefix("val_")
        return key in ("epoch", LEARNING_RATE) or (name in BY_NAME and BY_NAME[name].curve is not None)

    rows = [{key: value for key, value in row.items() if is_shown(key)} for row in run.log]
    chart, png = learning_curves(rows, run.best_epoch), run.folder / "learning_curves.png"
    return _save(chart, png if len(rows) > 1 else None, run.folder / "log.txt", notes)


# ---- words -------------------------------------------------------------------------------------------------

def _mistakes(run: Run, notes: list[str]) -> dict[str, object]:
    """What the section of mistakes holds; nothing without a table."""
    split = run.main
    if split.table is None:
        return {"mistakes": None, "mistakes_heading": ""}
    found, total, lines = mistakes(run, split)
    notes += lines
    has_maps = any(mistake["heat_map"] for mistake in found)
    if run.kind == CLASSIFICATION:
        heading, lead = "Most confident mistakes", f"No {split.unit[:-1]} of {split.name} is predicted wrong."
        which = "most confident first"
        if total > len(found):
            which = f"these {len(found)} with the highest probability"
        if total:
            lead = f"{total:,} of {split.images:,} {split.unit} of {split.name} are predicted wrong; {which}."
    elif run.kind == MULTILABEL:
        heading, lead = ("Most confident mistakes",
                         f"Every label of every {split.unit[:-1]} of {split.name} is right.")
        which = "; those whose probability is furthest off come first" if total > 1 else ""
        if total:
            lead = (f"{total:,} of {split.images:,} {split.unit} of {split.name} have a label that is called "
                    f"wrongly by the threshold that was chosen on val{which}.")
    else:
        heading = "Largest errors"
        worst = " (the worst target of each)" if len(run.names) > 1 else ""
        lead = (f"The {len(found)} {split.unit} of {split.name} with the largest error, in standard "
                f"deviations of the true values{worst}.")
    right, lines = shown(run, split, right_ones(run, split))
    notes += lines
    return {"mistakes": [_item(run, split, mistake) for mistake in found], "has_maps": has_maps,
            "right": [_item(run, split, one) for one in right],
            "mistakes_heading": heading,
            "mistakes_lead": lead + (" On the right, where the model looked." if has_maps else "")}


def _item(run: Run, split: Split, mistake: dict[str, object]) -> dict[str, object]:
    """A mistake, with (name, predicted, true) of its class or of each target."""
    row = split.table.iloc[mistake["row"]]
    if run.kind == CLASSIFICATION:
        said = row["predicted_class"]
        answers = [(said, tables.written(float(row[f"prob_{said}"])), row["true_class"])]
    elif run.kind == MULTILABEL:
        wrong = wrong_labels(split)[mistake["row"]]
        worst = [place for place in np.argsort(-np.nan_to_num(wrong), kind="stable") if wrong[place] > 0]
        answers = [(name, tables.written(float(row[f"prob_{name}"])),
                    "is there" if row[f"true_{name}"] == 1 else "is not there")
                   for name in (run.names[place] for place in worst[:MOST_LABELS])]
    else:
        pairs = [(target, float(row[f"pred_{target}"]), float(row[f"true_{target}"])) for target in run.names]
        answers = [(target, tables.written(said), tables.written(true) if true == true else "unknown")
                   for target, said, true in pairs]
    case = ""
    if split.images_of_cases is not None:
        weights = ", ".join(f"{weight:.2f}" for weight in mistake["weights"])
        case = f"{row['case']}: weights {weights} of {row['images']} images"
    return mistake | {"file": mistake["path"].replace("\\", "/").rsplit("/", 1)[-1], "answers": answers,
                      "case": case}


def _again(run: Run) -> dict[str, object]:
    """The commands that repeat the run, and what is unknown of it."""
    commit, processes = str(run.facts.get("commit") or ""), run.facts.get("processes")
    again = {"commit": commit.removesuffix("+"), "is_changed": commit.endswith("+"),
             "report": report_command(run.folder)}
    if run.options:
        known, checkpoint = isinstance(processes, int), run.folder / "checkpoint-best.pth"
        again["train"], again["unknown"] = training_command(run.kind, run.options, processes if known else 1)
        again["evaluate"] = checkpoint.exists() and evaluation_command(run.kind, run.options, checkpoint)
    return again


def _page(run: Run, parts: dict[str, object]) -> str:
    """The HTML of the whole. parts: what was computed of the sections."""
    warnings = words.warnings_of(run)
    sections = {"metrics": f"Metrics of {run.main.name}",
                **{f"charts-{split['name']}": f"Charts of {split['name']}" for split in parts["splits"]},
                "mistakes": parts["mistakes_heading"], "learning": parts["learning"] and "Learning curves",
                "data": "Data", "run": "What was run", "intervals": "How the intervals were made",
                "again": "How to repeat it"}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    return environment.get_template(PAGE).render(
        parts, run=run, sections=[(key, heading) for key, heading in sections.items() if heading],
        warnings=warnings, subtitle=words.subtitle(run), tables=tables,
        only_notes=[text for text, _ in warnings] == [words.NOTES],
        data=words.data_table(run), facts=words.facts_of(run),
        data_source=run.options.get("csv_file") or run.options.get("data_path"), again=_again(run),
        made=time.strftime("%Y-%m-%d %H:%M"))
