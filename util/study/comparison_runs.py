"""Run folders to compare: read, put on the same images, and put into groups of runs that differ in their seed
alone.

N is the number of images of the split.
"""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from util.core.errors import InputError, reject_if
from util.core.run_files import read_metrics_json, read_object
from util.metrics.predictions import kind_and_names, read_predictions
from util.metrics.table import CLASSIFICATION, MULTILABEL, REGRESSION
from util.options.stored import as_now
from util.options.table import FLAGS

# what tells groups apart, where it does
FIRST_NAMED = ("model_arch", "adaptation", "dataratio", "input_size", "finetune")
SPEAKS_FOR_ITSELF = ("model_arch", "adaptation")  # in a group's name without the option's name


@dataclass(eq=False)
class Run:
    """What one run folder says about one split."""

    folder: Path
    kind: str  # classification, multilabel or regression
    settings: dict  # the options that make it the run that it is, without its seed and its place
    seed: int | None
    entries: dict[str, dict]  # of metrics_SPLIT.json; NaN where that says null
    table: pd.DataFrame  # of predictions_SPLIT.csv
    fingerprint: str = ""  # of the images of all splits
    label: str = ""  # what its group is called, where that is known
    # whether its patients were another run's, so that its stored intervals know none
    patients_lent: bool = False

    @property
    def name(self) -> str:
        return self.folder.name or self.folder.resolve().name

    @property
    def labels(self) -> list[str]:
        """Its classes or labels in the order of the outputs, or its targets."""
        return kind_and_names(self.table)[1]


@dataclass
class Group:
    """Runs of the same settings, each with a seed of its own."""

    name: str
    runs: list[Run]
    settings: dict = field(default_factory=dict)  # those in which the groups differ


# ---- reading -----------------------------------------------------------------------------------------------

def read_runs(folders: list[str], split: str) -> list[Run]:
    """Read run folders. InputError for one that is named twice, is no run, or whose split was never
    scored."""
    seen: dict[Path, str] = {}
    for name in folders:
        real = Path(name).resolve()
        if real in seen:
            raise InputError(f"{name} and {seen[real]} are the same folder: name it once")
        seen[real] = name
    return [read_run(Path(name), split) for name in folders]


def read_run(folder: Path, split: str) -> Run:
    """One run folder. InputError: see read_runs."""
    problem = "not a folder" if folder.exists() else "not there"
    reject_if(
        (not folder.is_dir(), f"{folder}: {problem}; name the folder of a run, OUTPUT_DIR/TASK"),
        (not (folder / "run.json").exists(),
         f"{folder} holds no run.json, so it is no run's folder: name OUTPUT_DIR/TASK"))
    facts = read_object(folder / "run.json", "options")
    options = facts["options"]
    metrics, path = folder / f"metrics_{split}.json", folder / f"predictions_{split}.csv"
    lacking = [file.name for file in (metrics, path) if not file.exists()]
    if lacking:
        remedy = "its training was cut before the first epoch's end"
        if split != "val":
            remedy = ("score it: main_finetune.py (or main_regression.py) --eval --resume "
                      f"{folder}/checkpoint-best.pth --task {folder.name} with the flags of its data")
        raise InputError(f"{folder} has no {' and no '.join(lacking)}, so its {split} split was never "
                         f"scored: {remedy}")
    table = read_predictions(path)
    reject_if((table.empty, f"{path} holds no image"),
              (table["index"].duplicated().any(), f"{path} holds an index twice: it is damaged"))
    fingerprint = str((facts.get("data") or {}).get("fingerprint") or "")
    return Run(folder, kind_and_names(table)[0], _settings(options, facts, fingerprint), options.get("seed"),
               read_metrics_json(metrics), table, fingerprint)


def _settings(options: dict, facts: dict, fingerprint: str) -> dict:
    left_out = {"seed", "data_path", "csv_file", *(flag.name for flag in FLAGS.values() if flag.of_launch)}
    kept = {name: value for name, value in as_now(options).items() if name not in left_out}
    # the images themselves count, not where they are mounted
    place = options.get("csv_file") or options.get("data_path")
    return kept | {"data": fingerprint[:12] or place, "effective_batch": facts.get("effective_batch")}


# ---- the same images ---------------------------------------------------------------------------------------

def align(runs: list[Run]) -> list[str]:
    """Bring the tables of all runs into the order of the first one's (images, classes, patients); lines for
    the user.

    Images are known by their paths as stored. Where these differ by the folder that all have in common
    (another mount point), what stands below it counts, and a line says so. InputError where kinds, classes,
    targets, images, labels or patients differ, with how many and an example.
    """
    first, notes = runs[0], []
    first.table = first.table.sort_values("index", ignore_index=True)
    for run in runs[1:]:
        if run.kind != first.kind:
            raise InputError(f"{first.folder} is a {first.kind} and {run.folder} a {run.kind}: these do not "
                             "compare")
        notes += _same_labels(first, run)
        order, moved = _matched(first, run)
        run.table = run.table.iloc[order].reset_index(drop=True)
        notes += moved
        _same_truth(first, run)
    notes += _share_patients(runs)
    for run in runs:
        # intervals.py sorts by it: with the same numbers all runs are resampled alike
        run.table["index"] = np.arange(len(run.table))
    return list(dict.fromkeys(notes))


def _same_labels(first: Run, run: Run) -> list[str]:
    mine, theirs = first.labels, run.labels
    what, kinds = {CLASSIFICATION: ("classes", ("prob", "logit")),
                   MULTILABEL: ("labels", ("true", "prob", "logit")),
                   REGRESSION: ("targets", ("true", "pred"))}[first.kind]
    if set(mine) != set(theirs):
        only = [f"{name!r} only in {holder.folder}"
                for holder, names, others in ((first, mine, theirs), (run, theirs, mine))
                for name in names if name not in others]
        raise InputError(f"{first.folder} and {run.folder} have different {what} ({'; '.join(only[:4])}"
                         f"{'; …' if len(only) > 4 else ''}): these do not compare")
    if mine == theirs:
        return []
    kept = [name for name in run.table.columns if not name.startswith(tuple(f"{kind}_" for kind in kinds))]
    run.table = run.table[[*kept, *(f"{kind}_{name}" for kind in kinds for name in mine)]]
    line = f"{run.folder} has its {what} in another order than {first.folder}: they are matched by name"
    if what == "classes":
        line += ", and figures of grades (qwk, mae_grades) take the order of the first"
    return [line]


def _matched(first: Run, run: Run) -> tuple[np.ndarray, list[str]]:
    """(N,) the rows of `run` in the order of the first run's images, and lines."""
    whole = [[os.path.normpath(path) for path in each.table["path"]] for each in (first, run)]
    for part_of in (list, _below_common_folder):
        below = [part_of(paths) for paths in whole]
        order = _positions(*below)
        if order is not None:
            return order, [] if part_of is list else [_moved(first, run, order)]
    mine, theirs = min((whole, below), key=lambda pair: sum((Counter(pair[0]) - Counter(pair[1])).values()))
    lacking, added = (list((Counter(a) - Counter(b)).elements()) for a, b in ((mine, theirs), (theirs, mine)))
    holder, example = (first, lacking[0]) if lacking else (run, added[0])
    raise InputError(f"{first.folder} and {run.folder} were not scored on the same images: {len(lacking)} of "
                     f"{len(mine)} of the first are not among the {len(theirs)} of the second, {len(added)} "
                     f"the other way round (only in {holder.folder}: {example}); paired tests need the same "
                     "ones: score both on one test split with --eval")


def _positions(mine: list[str], theirs: list[str]) -> np.ndarray | None:
    """Where each of `mine` stands in `theirs`, an image that stands there twice by its occurrence; None
    unless all match."""
    place = {key: row for row, key in enumerate(_numbered(theirs))}
    found = [place.get(key, -1) for key in _numbered(mine)]
    return np.array(found) if len(mine) == len(theirs) and min(found) >= 0 else None


def _numbered(names: list[str]) -> list[tuple[str, int]]:
    return list(zip(names, pd.Series(names, dtype=object).groupby(names).cumcount(), strict=True))


def _below_common_folder(paths: list[str]) -> list[str]:
    if len({os.path.isabs(path) for path in paths}) > 1:
        return paths
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) if common else path for path in paths]


def _moved(first: Run, run: Run, order: np.ndarray) -> str:
    """What is said of images whose folder has another place. InputError where the files tell that they are
    others."""
    line = f"{run.folder} names its images by another folder than {first.folder}"
    if first.fingerprint and first.fingerprint == run.fingerprint:
        return f"{line}; both runs' data have the same fingerprint (names, labels and file sizes)"
    mine, theirs = list(first.table["path"]), list(run.table["path"].iloc[order])
    if not all(map(os.path.isfile, (*mine, *theirs))):
        return (f"warning: {line}: their names and labels agree, and nothing else could be checked, for the "
                "files are not here")
    other = [pair for pair in zip(mine, theirs, strict=True)
             if os.path.getsize(pair[0]) != os.path.getsize(pair[1])]
    if other:
        raise InputError(f"{line}, and {len(other)} of {len(mine)} files of the same name differ in size "
                         f"({other[0][0]} and {other[0][1]}): paired tests need the same images")
    return f"{line}; names, labels and file sizes agree"


def _same_truth(first: Run, run: Run) -> None:
    for name in [column for column in first.table if column.startswith("true_")]:
        mine, theirs = first.table[name].to_numpy(), run.table[name].to_numpy()
        differ = mine != theirs
        if first.kind != CLASSIFICATION:  # a transform and its inverse leave rounding in the last digits
            differ = ~np.isclose(mine, theirs, rtol=1e-6, atol=0, equal_nan=True)
        if differ.any():
            row = int(np.argmax(differ))
            raise InputError(f"{first.folder} and {run.folder} have different labels: {name} of "
                             f"{differ.sum()} of {len(mine)} images (the first: "
                             f"{first.table['path'].iloc[row]}, {mine[row]} and {theirs[row]}); score both "
                             "against the same labels with --eval")


def _share_patients(runs: list[Run]) -> list[str]:
    """The patients of the runs that know them into those that know none, so that all are resampled
    together."""
    knowing = [run for run in runs if (run.table["patient"] != "").any()]
    if not knowing:
        return []
    known, notes = knowing[0].table["patient"].to_numpy(dtype=object), []
    for run in runs:
        theirs = run.table["patient"].to_numpy(dtype=object)
        differ = known != theirs
        if run not in knowing:
            run.table["patient"], run.patients_lent = known, True
            notes.append(f"{run.folder} does not say which images are of one patient: {knowing[0].folder}'s "
                         "patients are taken")
        elif differ.any():
            row = int(np.argmax(differ))
            raise InputError(f"{knowing[0].folder} and {run.folder} have different patients: of "
                             f"{differ.sum()} of {len(known)} images (the first: "
                             f"{run.table['path'].iloc[row]}, {known[row]!r} and {theirs[row]!r}); score "
                             "both with the same --patient_col")
    return notes


# ---- groups ------------------------------------------------------------------------------------------------

def grouped(runs: list[Run], names: list[str] | None = None) -> tuple[list[Group], list[str]]:
    """Groups in the order of their first run, and lines for the user.

    names: of the groups, in that order. Without them a group is called by its runs' label, else by its folder
    where all groups are single runs, else by the options that tell the groups apart. Runs of the same
    settings and the same seed (of two releases of the code, say) are no repetition: the second one begins
    another group. InputError where the number of names is another one.
    """
    members: dict[tuple[str, int], list[Run]] = {}
    notes, taken = [], Counter()
    # an option that a run does not have is one that its release did not know, and is no choice
    known = set.intersection(*(set(run.settings) for run in runs))
    for run in runs:
        settings = json.dumps({name: run.settings[name] for name in sorted(known)}, default=str)
        again = taken[settings, run.seed]
        taken[settings, run.seed] += 1
        members.setdefault((settings, again), []).append(run)
        if again:
            notes.append(f"{run.folder} has the options and the seed of another run: they are compared, not "
                         "averaged")
    lists = list(members.values())
    varying, given = _varying(lists, known), names or []
    listed = "; ".join(", ".join(run.name for run in runs) for runs in lists)
    reject_if(
        (given and len(given) != len(lists),
         f"--names gives {len(given)} names to {len(lists)} groups ({listed}): one a group, in this order"),
        (len(set(given)) < len(given), "--names gives a name twice"))
    names = given or _names(lists, varying)
    return [Group(name, runs, {option: runs[0].settings.get(option) for option in varying})
            for name, runs in zip(names, lists, strict=True)], notes


def _varying(lists: list[list[Run]], known: set[str]) -> list[str]:
    """The options in which the groups differ, those that make good names first."""
    options = [name for name in dict.fromkeys([*FIRST_NAMED, *lists[0][0].settings]) if name in known]
    return [name for name in options if len({_text(runs[0].settings[name]) for runs in lists}) > 1]


def _names(lists: list[list[Run]], varying: list[str]) -> list[str]:
    folders = [runs[0].name for runs in lists]
    known = [runs[0].label for runs in lists]
    # of a study; where the number of processes changed in between, one of its groups has become two
    if all(known):
        return [name if known.count(name) == 1 else f"{name}, {folder}"
                for name, folder in zip(known, folders, strict=True)]
    if all(len(runs) == 1 for runs in lists) and len(set(folders)) == len(folders):
        return folders
    names = [""] * len(lists)
    for option in varying:
        values = [_text(runs[0].settings.get(option)) for runs in lists]
        said = [value if option in SPEAKS_FOR_ITSELF else f"{option} {value}" for value in values]
        longer = [", ".join(filter(None, pair)) for pair in zip(names, said, strict=True)]
        if len(set(longer)) > len(set(names)):  # an option that follows another tells nothing new
            names = longer
    if len(set(names)) == len(names) and all(names):
        return names
    named = [", ".join(filter(None, pair)) for pair in zip(names, folders, strict=True)]
    return named if len(set(named)) == len(named) else [str(runs[0].folder) for runs in lists]


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"
