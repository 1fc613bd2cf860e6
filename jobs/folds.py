"""--folds: K runs in TASK/fold_1 … fold_K, one after the other, and what they come to together in TASK.

Each fold's run is an ordinary one: it stands in its own folder, and is resumed and reported as any other.
TASK then holds, by the files of the folds alone, predictions_test_oof.csv (a row an image or case, by the
model that did not see it), the mean of the K models on each other test set, the metrics of both, folds.csv
(each model's own metrics) and a report of these.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from jobs import group_metrics, recalibration, terminal
from jobs.results import write_drops
from jobs.run_folder import RunFolder
from jobs.tasks.base import Task
from jobs.train import run
from util.core import run_files
from util.core.errors import InputError
from util.data.csv_columns import some
from util.data.splits import OUT_OF_FOLD, in_order, test_sets
from util.metrics import folds, selection
from util.metrics.bootstrap import mean_of_defined
from util.metrics.intervals import entry
from util.metrics.multilabel.predictions import POINTS, THRESHOLD
from util.metrics.predictions import Evaluated, kind_and_names, read_predictions
from util.metrics.table import CLASSIFICATION, COMPOSED, DECISIONS, SCORE_PARTS, row_of
from util.options import checks
from util.options.groups import Options
from util.parallel.processes import World
from util.report.page import write_report

TABLE = "folds.csv"


def run_folds(options: Options, world: World, *kinds: type[Task]) -> None:
    """`run`, once or a fold after the other; then, where all folds are there, what they come to."""
    runs = checks.one_run_a_fold(options)
    for one in runs:
        if one is not options:
            world.say(f"fold {one.data.fold} of {one.data.folds}: {one.run.task}")
        task = run(one, world, *kinds)
    if runs != [options] and not options.run.dry_run:
        world.main_alone(combine, options, world, task)


@dataclass(frozen=True)
class Fold:
    """What stands of one fold's run: the predictions of its test sets by name, and what its val decided."""

    folder: Path
    tables: dict[str, pd.DataFrame]
    images: dict[str, pd.DataFrame]  # of cases
    entries: dict[str, dict[str, dict]]
    decided: dict
    facts: dict

    @classmethod
    def of(cls, folder: Path, task: Task) -> "Fold":
        """InputError where a file of it can't be read."""
        names = [path.stem.removeprefix("metrics_") for path in sorted(folder.glob("metrics_test*.json"))]
        facts = run_files.read_object(folder / "run.json")
        return cls(folder,
                   {name: read_predictions(folder / f"predictions_{name}.csv") for name in names},
                   {name: read_predictions(path) for name in names
                    if (path := folder / f"images_{name}.csv").exists()},
                   {name: run_files.read_metrics_json(folder / f"metrics_{name}.json") for name in names},
                   task.decide(read_predictions(folder / "predictions_val.csv")), facts)


def combine(options: Options, world: World, task: Task) -> None:
    """Write what the folds come to into TASK, and tell it (main process). InputError, RunError."""
    run_options, number = options.run, options.data.folds
    folder = RunFolder(run_options.output_dir, run_options.log_dir, run_options.task, task.columns)
    places = {fold: folder.path / checks.fold_task("", fold) for fold in range(1, number + 1)}
    absent = [fold for fold, place in places.items() if not (place / "report.html").exists()]
    if absent:
        world.say(f"folds      {some(absent, 20)} of {number} are not complete: the out-of-fold table is "
                  "written when all are")
        return
    folder.make()
    folder.hold(world.say)
    try:
        if list(folder.path.glob("checkpoint-*")):
            world.say(*folder.put_aside())
        found = {fold: Fold.of(place, task) for fold, place in places.items()}
        _require_one_deal(options, found)
        task.take_facts(found[1].facts["data"])  # whichever fold ended last
        _write(folder, found, task, world)
    finally:
        folder.close()


def _require_one_deal(options: Options, found: dict[int, Fold]) -> None:
    """InputError where the folds' runs were dealt otherwise than this launch deals."""
    for fold, one in found.items():
        then = one.facts.get("options") or {}
        for name in ("folds", "datasets_seed"):
            if then.get(name) != options.value(name):
                raise InputError(f"{one.folder} was run with --{name} {then.get(name)}, and this launch has "
                                 f"{options.value(name)}: run all folds alike, or name another --task")
        if OUT_OF_FOLD not in one.tables:
            raise InputError(f"{one.folder} holds no predictions of {OUT_OF_FOLD}: run fold {fold} again")
    numbers = np.concatenate([one.tables[OUT_OF_FOLD]["index"] for one in found.values()])
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{next(iter(found.values())).folder.parent}: its folds share images, so they were "
                         "dealt otherwise: run all again in another --task")


def _write(folder: RunFolder, found: dict[int, Fold], task: Task, world: World) -> None:
    everywhere = set.intersection(*(set(one.tables) for one in found.values()))
    first, facts = next(iter(found.values())), next(iter(found.values())).facts
    external = (facts.get("data") or {}).get("external", [])
    of_means: dict[str, dict] = {}
    mean_tables: dict[str, pd.DataFrame] = {}
    for split in test_sets(in_order(everywhere, external)):
        tables = {fold: one.tables[split] for fold, one in found.items()}
        images = None
        if split == OUT_OF_FOLD:
            table = folds.out_of_fold(tables)
            of_models = {fold: one.decided for fold, one in found.items()}
            metrics, entries = _of_all(task, table, of_models)
            entries_of = partial(_entries_of_all, task, of_models)
            if split in first.images:
                images = partial(folds.out_of_fold, {fold: one.images[split] for fold, one in found.items()})
        else:
            mean_tables[split] = table = folds.mean_of(list(tables.values()))
            decided = folds.mean_decided([one.decided for one in found.values()])
            metrics, _ = task.metrics(table, decided)
            of_means[split] = entries = task.intervals(table, metrics, decided)
            entries_of = group_metrics.entries_by(task, decided)
            if split in first.images:
                images = partial(folds.mean_of, [one.images[split] for one in found.values()])
        with folder.writing():
            folder.file(f"metrics_{split}.csv").unlink(missing_ok=True)  # of an earlier launch
        folder.add_evaluation(split, Evaluated(table, images), metrics, None, entries)
        with folder.writing():
            notes = task.draw(folder, split)
        what = "out of fold" if split == OUT_OF_FOLD else f"the mean of the {len(found)} models"
        world.say(*(f"{split}: {note}" for note in notes), f"{split}: {what}",
                  *terminal.figures(task, split, entries, folder),
                  *group_metrics.write(task, folder, split, table, entries_of))
    if of_means:
        world.say(*write_drops(task, folder, of_means, mean_tables, external))
    recalibrated = task.options.metrics.recalibrate
    if recalibrated is not None:
        split = recalibration.split_of(recalibrated)
        world.say(*(recalibration.write(folder, split, mean_tables[split], task.options)
                    if split in mean_tables else
                    [f"recalibration of {split}: that of each fold's model is in its own folder"]))
    with folder.writing(folder.file(TABLE)) as path:
        run_files.write_whole(path, _table(found, everywhere, task))
    folder.write_run(_facts(facts, found, task.options))
    with folder.writing():
        world.say(f"each model's own metrics, their mean and standard deviation: {folder.file(TABLE)}",
                  *write_report(folder.path))


def _facts(of_one: dict, found: dict[int, Fold], options: Options) -> dict:
    """run.json of all folds, from that of one: without what is true of its own fold alone."""
    data = of_one.get("data") or {}
    notes = [f"{OUT_OF_FOLD}: the images of train and val, each scored by the one of {len(found)} models "
             "that neither trained on its fold nor was chosen by it; the intervals are widened for what the "
             "models have in common (see docs/train.md)",
             f"other test sets: the mean of the {len(found)} models; each model's own metrics: {TABLE}"]
    kept = {name: data[name] for name in ("class_names", "label_names", "external") if name in data}
    task = str(Path(options.run.task).parent)
    stored = (of_one.get("options") or {}) | {"fold": None, "task": "" if task == "." else task}
    return of_one | {"options": stored, "data": kept | {"notes": notes},
                     "folds": [one.folder.name for one in found.values()]}


def _of_all(task: Task, table: pd.DataFrame, decided: dict[int, dict]) -> tuple[dict, dict]:
    """The metrics of the out-of-fold table, and their entries: with the decisions and temperatures of each
    row's own model."""
    metrics, _ = task.metrics(table, {})
    entries = task.intervals(table, metrics, {})
    kind, names = kind_and_names(table)
    of_fold = {fold: table[folds.FOLD] == str(fold) for fold in decided}
    for point in (THRESHOLD, *POINTS):
        chosen = {fold: _thresholds(one, point, kind, names) for fold, one in decided.items()}
        common = set.intersection(*map(set, chosen.values()))
        if not common:
            continue
        parts = [folds.called(table[rows], {name: chosen[fold][name] for name in names if name in common})
                 for fold, rows in of_fold.items()]
        keys = {point if kind == CLASSIFICATION else f"{point}_{name}": 0.5 for name in common}
        found = task.intervals(pd.concat(parts), {}, {"thresholds": keys})
        if point == THRESHOLD:
            entries |= {name: one for name, one in found.items() if row_of(name).group == DECISIONS}
            entries |= {f"{THRESHOLD}_{name}": entry(float(np.mean([chosen[fold][name] for fold in chosen])))
                        for name in common}
            entries |= {name: entry(float(mean_of_defined(
                [entries[f"{part}{name.removeprefix('score')}"]["value"] for part in SCORE_PARTS])))
                for name in entries if name == "score" or name.startswith("score_")}
        else:
            mean = [point] if common == set(names) else []  # over the labels
            entries |= {name: found[name] for name in (*keys, *mean)}
    entries |= _after_temperatures(task, table, decided)
    metrics |= {name: entries[name]["value"] for name in metrics if name in entries}
    metrics |= selection.composed(task.options.metrics.select_metric, metrics)
    entries |= {COMPOSED: entries[COMPOSED] | {"value": metrics[COMPOSED]}} if COMPOSED in metrics else {}
    return metrics, folds.widened(entries, len(decided))


def _entries_of_all(task: Task, decided: dict[int, dict], part: pd.DataFrame) -> dict[str, dict]:
    """Those of some rows of the out-of-fold table."""
    return _of_all(task, part, decided)[1]


def _thresholds(decided: dict, point: str, kind: str, names: list[str]) -> dict[str, float]:
    """{class or label: the probability from which on it is called at a point}."""
    found = decided.get("thresholds") or {}
    if kind == CLASSIFICATION:
        return {names[-1]: found[point]} if point in found else {}
    return {name: found[f"{point}_{name}"] for name in names if f"{point}_{name}" in found}


def _after_temperatures(task: Task, table: pd.DataFrame, decided: dict[int, dict]) -> dict[str, dict]:
    """Entries of loss, Brier score and calibration error after each fold's own temperatures."""
    kind, names = kind_and_names(table)
    if kind == CLASSIFICATION:
        of_fold = {fold: dict.fromkeys(names, one["temperature"]) if one.get("temperature") else {}
                   for fold, one in decided.items()}
    else:
        of_fold = {fold: one.get("temperatures") or {} for fold, one in decided.items()}
    common = set.intersection(*map(set, of_fold.values()))
    if not common:
        return {}
    parts = [folds.cooled(table[table[folds.FOLD] == str(fold)], {name: one[name] for name in common})
             for fold, one in of_fold.items()]
    ones = {"temperature": 1.0} if kind == CLASSIFICATION else {"temperatures": dict.fromkeys(common, 1.0)}
    found = task.intervals(pd.concat(parts), {}, ones)
    middle = {name: float(np.mean([one[name] for one in of_fold.values()])) for name in common}
    kept = {name: one for name, one in found.items() if "_calibrated" in name}
    if kind == CLASSIFICATION:
        return kept | {"temperature": entry(middle[names[0]])}
    return kept | {f"temperature_{name}": entry(value) for name, value in middle.items()}


def _table(found: dict[int, Fold], splits: set[str], task: Task) -> str:
    """Each fold's metrics of each test set, with their mean and standard deviation between the folds."""
    rows = []
    for split in sorted(splits):
        names = [name for name, one in next(iter(found.values())).entries[split].items() if name != "n"]
        for name in names:
            values = [(one.entries[split].get(name) or {}).get("value", math.nan) for one in found.values()]
            known = [value for value in values if not math.isnan(value)]
            rows.append({"split": split, "metric": name,
                         **{f"fold_{fold}": value for fold, value in zip(found, values, strict=True)},
                         "mean": np.mean(known) if known else math.nan,
                         "sd": np.std(known, ddof=1) if len(known) > 1 else math.nan})
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
