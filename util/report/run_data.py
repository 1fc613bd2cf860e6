"""A run's folder, read for its report: whatever of it is there, and a line about what is not.

Only files of the folder are read, and nothing in it is trusted to be whole: a report is also made of a run
that was cut, of an older program's, or of one whose files were copied away.
"""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from util.core.errors import InputError
from util.core.run_files import read_log, read_metrics_json, read_object
from util.data.splits import in_order, plain, test_sets
from util.metrics.classification import classification_metrics
from util.metrics.multilabel.figures import figures_of as label_figures
from util.metrics.multilabel.predictions import labels_of, stored_decisions
from util.metrics.predictions import kind_and_names, read_predictions, unit_of
from util.metrics.regression import figures_of, pairs_of
from util.metrics.table import CLASSIFICATION, MULTILABEL, REGRESSION, of_kind
from util.metrics.weighted import Images, WeightedFigures


@dataclass
class Split:
    """What stands of val or of a test set: its predictions and its metrics, {name: {"value", "lower",
    "upper", …}}."""

    name: str
    table: pd.DataFrame | None
    entries: dict[str, dict]
    is_external: bool = False
    groups: list[dict[str, str]] = field(default_factory=list)  # rows of groups_*.csv and gaps_*.csv
    gaps: list[dict[str, str]] = field(default_factory=list)
    images_of_cases: pd.DataFrame | None = None  # with the weight of each

    @property
    def images(self) -> int:
        if self.table is not None:
            return len(self.table)
        return int(self.entries.get("n", {}).get("value") or 0)

    @property
    def unit(self) -> str:
        return "images" if self.table is None else unit_of(self.table)

    @property
    def patients(self) -> int:
        """How many are known; an image without one is not counted."""
        if self.table is None or "patient" not in self.table:
            return 0
        return int(self.table.loc[self.table["patient"] != "", "patient"].nunique())


@dataclass
class Run:
    """A run's folder in memory. names: classes or labels in the model's order, or a regression's targets."""

    folder: Path
    kind: str  # classification, multilabel or regression
    names: list[str]
    facts: dict  # run.json
    splits: dict[str, Split]
    log: list[dict]
    best_epoch: int | None
    leakage: dict | None
    skipped: list[tuple[str, str]]  # path and reason of each image that was left out
    heat_maps: dict[str, Path]  # absolute path of an image -> its overlay
    recalibrations: dict[str, dict]  # by test set (jobs/recalibration.py)
    missing: list[str]  # what a reader may look for and does not find, with the reason

    def part(self, name: str) -> dict:
        """An object of run.json, {} where there is none."""
        return as_dict(self.facts.get(name))

    @property
    def options(self) -> dict:
        return self.part("options")

    @property
    def title(self) -> str:
        return str(self.options.get("task") or self.folder.resolve().name)

    @property
    def main(self) -> Split:
        """The split that the report is headed by."""
        return next(iter(self.splits.values()))


def read_run(folder: str | Path) -> Run:
    """Everything of a run's folder. InputError where it holds neither predictions nor metrics."""
    folder, missing = Path(folder), []
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name a run's, OUTPUT_DIR/TASK")
    facts = _read(folder / "run.json", missing, "what was run, and how to repeat it, is not known",
                  is_needed=True) or {}
    names, kind = _names_in(facts)
    splits, external = {}, _external(folder, facts)
    for name in _scored_splits(folder, external):
        table = _read(folder / f"predictions_{name}.csv", missing,
                      f"{name} is shown by its stored metrics alone", read_predictions)
        entries = _read(folder / f"metrics_{name}.json", missing, "the predictions alone count",
                        read_metrics_json)
        if table is not None:
            kind, names = kind_and_names(table)
            if not len(table):
                missing.append(f"predictions_{name}.csv holds no image")
                table = None
        if table is not None or entries:
            groups, gaps = (_read(folder / f"{kind}_{name}.csv", missing, "groups are not shown", _rows) or []
                            for kind in ("groups", "gaps"))
            splits[name] = Split(name, table, _without_nan(entries or {}), name in external, groups, gaps)
            if splits[name].unit == "cases":
                splits[name].images_of_cases = _read(
                    folder / f"images_{name}.csv", missing, f"the images of {name}'s cases are not shown",
                    read_predictions)
    if not splits:
        raise InputError(f"{folder} holds neither predictions_test.csv nor predictions_val.csv of a run, nor "
                         "figures: name a run's folder, OUTPUT_DIR/TASK")
    for name, split in splits.items():
        if not split.entries:
            missing.append(f"metrics_{name}.json is not there: figures of {name} are computed again from its "
                           "predictions, without intervals")
            figures = _computed(split.table, as_dict(facts.get("options")).get("class_order"))
            split.entries = _without_nan({metric: {"value": value} for metric, value in figures.items()})
        elif split.table is None:
            missing.append(f"predictions_{name}.csv is not there: no curves and no images of {name}")
    missing += [f"no {name} split was scored in this folder" for name in ("test", "val")
                if name not in map(plain, splits)]
    log, bad = read_log(folder / "log.txt")
    if bad:
        missing.append(f"log.txt: {bad} line{'s' if bad > 1 else ''} that tell of no epoch")
    leakage = _read(folder / "leakage.json", missing, "leakage is not reported")
    skipped = _read_skipped(folder / "skipped_images.csv", missing)
    maps = _read(folder / "heatmaps/heatmaps.json", missing, "heat maps are not shown") or {}
    overlays = {str(path): folder / "heatmaps" / Path(str(name)).name for path, name in maps.items()}
    recalibrations = {
        path.stem.removeprefix("recalibration_"): found
        for path in sorted(folder.glob("recalibration_test*.json"))
        if (found := _read(path, missing, "what a recalibration does is not shown",
                           _read_recalibration))}
    return Run(folder, kind or "classification", names, facts, splits, log,
               _best_epoch(folder, next(iter(splits))), leakage,
               skipped, overlays, recalibrations, missing)


def _computed(table: pd.DataFrame, order: list[str] | None) -> dict[str, float]:
    kind, names = kind_and_names(table)
    if kind == REGRESSION:
        return figures_of(table, names)
    return label_figures(table) if kind == MULTILABEL else classification_metrics(table, order)[0]


# ---- files -------------------------------------------------------------------------------------------------

def as_dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _read_recalibration(path: Path) -> dict:
    return read_object(path, "labels" if "labels" in read_object(path) else "metrics")


def _read(path: Path, missing: list[str], consequence: str,
          read: Callable[[Path], dict | list | pd.DataFrame] = read_object,
          is_needed: bool = False) -> dict | list | pd.DataFrame | None:
    """What `read` makes of a file, or None and a line with the consequence; no line of a file that is neither
    needed nor there."""
    if not is_needed and not path.exists():
        return None
    try:
        return read(path)
    except InputError as error:
        missing.append(f"{str(error).removeprefix(f'{path.parent}/')}: {consequence}")
    return None


def _rows(path: Path) -> list[dict[str, str]]:
    """A CSV's rows. InputError where it can't be read."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _without_nan(entries: dict[str, dict]) -> dict[str, dict]:
    """Value and bounds that are not finite as None."""
    return {str(name): entry | {part: number(entry.get(part)) for part in ("value", "lower", "upper")}
            for name, entry in entries.items()}


def number(value: object) -> float | None:
    """A finite number, else None."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_one else None


def _external(folder: Path, facts: dict) -> list[str]:
    """Its external test sets: those of its training, and of later evaluations those with a drop."""
    found = as_dict(facts.get("data")).get("external")
    trained = [str(name) for name in found] if isinstance(found, list) else []
    return [*trained, *(path.stem.removeprefix("drop_") for path in folder.glob("drop_test_*.csv"))]


def _scored_splits(folder: Path, external: list[str]) -> list[str]:
    """The test sets that were scored here, internal ones first, then val."""
    there = {"test", "val"} | {path.stem.partition("_")[2] for begin in ("predictions", "metrics")
                               for path in folder.glob(f"{begin}_test_*.*")
                               if path.suffix in (".csv", ".json")}
    return [*test_sets(in_order(there, external)), "val"]


def _names_in(facts: dict) -> tuple[list[str], str]:
    data = as_dict(facts.get("data"))
    if isinstance(data.get("class_names"), list):
        return [str(name) for name in data["class_names"]], "classification"
    if isinstance(data.get("label_names"), list):
        return [str(name) for name in data["label_names"]], MULTILABEL
    targets = as_dict(data.get("targets")).get("names") or as_dict(facts.get("options")).get("targets")
    return ([str(name) for name in targets], "regression") if isinstance(targets, list) else ([], "")


def _best_epoch(folder: Path, main: str) -> int | None:
    """The epoch whose weights were scored on the main test set last: of its metrics_*.csv's last row that
    names one."""
    try:
        with open(folder / f"metrics_{main}.csv", encoding="utf-8", newline="") as file:
            epochs = [row.get("epoch") for row in csv.DictReader(file)]
    except (OSError, csv.Error, UnicodeDecodeError):
        return None
    named = [epoch for epoch in epochs if epoch and epoch.isdigit()]
    return int(named[-1]) if named else None


def _read_skipped(path: Path, missing: list[str]) -> list[tuple[str, str]]:
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return [(row[0], row[1] if len(row) > 1 else "") for row in list(csv.reader(file))[1:] if row]
    except (OSError, csv.Error) as error:
        missing.append(f"{path.name} cannot be read ({error}): images that were left out are not counted")
        return []


# ---- what is computed from a table -------------------------------------------------------------------------

def class_metrics(images: Images, entries: dict[str, dict]) -> list[dict[str, dict]]:
    """Of each class {metric: {"value", "lower", "upper"}}: the stored entries; values are computed where
    those lack."""
    metrics = [metric.name for metric in of_kind(CLASSIFICATION, "per_class")]
    wanted = {f"{metric}_{name}" for metric in metrics for name in images.names}
    computed = {} if wanted <= entries.keys() else WeightedFigures(images).values()
    entries = _without_nan({name: {"value": value} for name, value in computed.items()}) | entries
    return [{metric: entries[f"{metric}_{name}"] for metric in metrics} for name in images.names]


def worst_first(run: Run, split: Split, most: int) -> tuple[list[int], int]:
    """Rows of the table to look at, and how many there are in all: the mistakes of highest probability (of
    several labels, of the one that is furthest off), or, of a regression, the images of the largest error (in
    standard deviations of the truth, the largest of an image's targets)."""
    table = split.table
    if run.kind == "classification":
        badness = table[[f"prob_{name}" for name in run.names]].to_numpy(np.float64).max(axis=1)
        is_wrong = (table["true_class"] != table["predicted_class"]).to_numpy()
    elif run.kind == MULTILABEL:
        wrong = wrong_labels(split)
        badness, is_wrong = np.nanmax(np.where(np.isnan(wrong), 0, wrong), axis=1), (wrong > 0).any(axis=1)
    else:
        badness = standardised_errors(table, run.names)
        is_wrong = np.isfinite(badness)
    rows = np.flatnonzero(is_wrong)
    return rows[np.argsort(-badness[rows], kind="stable")[:most]].tolist(), len(rows)


def wrong_labels(split: Split) -> np.ndarray:
    """(N, T) how far the probability of a label is from what is true where it is called wrongly (by val's
    threshold), 0 where rightly, NaN where it is not known; rows as in the table."""
    table = split.table.reset_index(drop=True)
    names = kind_and_names(table)[1]
    decided = stored_decisions(split.entries, names)
    found = np.full((len(table), len(names)), np.nan)
    order = np.argsort(table["index"].to_numpy(), kind="stable")
    for place, label in enumerate(labels_of(table, decided)):
        images = label.images
        off = np.abs(images.probabilities[:, 1] - images.true)
        found[order[label.known], place] = np.where(images.predicted == images.true, 0.0, off)
    return found


def standardised_errors(table: pd.DataFrame, targets: list[str]) -> np.ndarray:
    """(N,) the largest |predicted - true| of an image's targets, each over the standard deviation of its
    truth; NaN where no truth is known."""
    worst = np.full(len(table), np.nan)
    for true, predicted in pairs_of(table, targets).values():
        known = np.isfinite(true)
        spread = true[known].std() if known.any() else 0.0
        worst = np.fmax(worst, np.where(known, np.abs(predicted - true) / (spread or 1.0), np.nan))
    return worst
