"""The names of the splits: which images train, which choose, and which sets are scored at the end.

train, val and test, in a table also iv for val and ev for test. A further test set has a name of its own.
In a table test:NAME is another internal one, of the same source as train, and ev:NAME an external one, of
another hospital or camera; as folders they are test_NAME and ev_NAME. In the table of images, in names of
files and in the report both are test_NAME.
"""

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd

from util.core.errors import InputError

OUT_OF_FOLD = "test_oof"  # of a run of --folds, the fold that it scores
SPLITS = ("train", "val", "test")
TEST = "test"
# internal, external
SPLIT_NAMES = {"train": "train", "val": "val", "test": "test", "iv": "val", "ev": "test"}
KNOWN = (*SPLIT_NAMES, "test:NAME", "ev:NAME")
_FURTHER = re.compile(r"(test|ev)[:_](.+)", re.IGNORECASE)
_NAME = re.compile(r"\w[\w.-]{0,59}")  # what a file's name can hold on every system


def split_of(cell: str) -> str | None:
    """The split that a table's cell, or a folder's name, means; None for no such word. InputError for a
    further test set whose name no file can have."""
    if cell.lower() in SPLIT_NAMES:
        return SPLIT_NAMES[cell.lower()]
    further = _FURTHER.fullmatch(cell)
    if further is None:
        return None
    if not _NAME.fullmatch(further[2]):
        raise InputError(f"split {cell!r}: {further[2]!r} becomes part of file names, so it takes letters, "
                         "numbers and . _ - alone (at most 60)")
    return f"{TEST}_{further[2]}"


def external_of(cells: Iterable[str]) -> tuple[str, ...]:
    """The external test sets among a table's cells. InputError for a name that is both internal and
    external, and for two names that differ in upper and lower case alone."""
    kinds: dict[str, set[str]] = {}
    for cell in set(cells):
        further = _FURTHER.fullmatch(cell)
        if further is not None:
            kinds.setdefault(f"{TEST}_{further[2]}", set()).add(further[1].lower())
    spelt: dict[str, str] = {}
    for name in sorted(kinds):
        first = spelt.setdefault(name.lower(), name)
        if first != name:
            one, other = (word.removeprefix(f"{TEST}_") for word in (first, name))
            raise InputError(f"test sets {one} and {other} differ in upper and lower case alone: spell them "
                             "alike, or give one another name")
    both = [name.removeprefix(f"{TEST}_") for name, kind in kinds.items() if len(kind) > 1]
    if both:
        raise InputError(f"test set {both[0]} is both internal (test:{both[0]}) and external (ev:{both[0]}): "
                         "give one another name")
    return tuple(sorted(name for name, kind in kinds.items() if "ev" in kind))


def is_test(split: str) -> bool:
    """Whether it is a test set, the plain one or a further one."""
    return split == TEST or split.startswith(f"{TEST}_")


def plain(split: str) -> str:
    """train, val or test: what is done with the split."""
    return TEST if is_test(split) else split


def in_order(found: Collection[str], external: Collection[str] = ()) -> list[str]:
    """Splits in the order in which they are shown: train, val, test, further internal test sets by name, then
    external ones."""
    further = sorted(split for split in found if split not in SPLITS)
    return [*(split for split in SPLITS if split in found),
            *(split for split in further if split not in external),
            *(split for split in further if split in external)]


def test_sets(found: Sequence[str]) -> list[str]:
    """Those of the splits that are test sets, in the same order."""
    return [split for split in found if is_test(split)]


# ---- folds -------------------------------------------------------------------------------------------------


def pooled(splits: pd.Series, folds: int | None) -> pd.Series:
    """A table's splits, those of val as train where folds are dealt of both."""
    return splits if folds is None else splits.where(splits != "val", "train")


def needed(splits: Sequence[str], folds: int | None) -> Sequence[str]:
    """Those of the splits that a table must have. Where folds are dealt they are val, and a test set."""
    return ("train",) if folds is not None and "train" in splits else splits


def deal(table: pd.DataFrame, folds: int, seed: int) -> np.ndarray:
    """(N,) the fold, 1…folds, of each image of train in the table of images; 0 of the others.

    The images of a patient stay together, else those of a case, else each image is dealt alone. These units
    are dealt in turn, shuffled by the seed, class by class (a unit of several is of its rarest one, as in
    Sechidis et al., ECML 2011), the larger ones first, so that the folds' numbers of a class differ by one at
    most; of a regression K neighbours by the first target go to the K folds. InputError where there are fewer
    units than folds, or a run's training images lack a class.
    """
    rows = table[table["split"] == "train"]
    names = rows["path"]
    if "case" in rows:
        names, patients = rows["case"], rows.groupby("case")["patient"].transform("max")
    else:
        patients = rows["patient"]
    names = names.where(patients == "", patients.map(lambda name: f"patient {name}"))
    owners, units = pd.factorize(names)
    what = "patients" if (patients != "").any() else "cases" if "case" in rows else "images"
    if len(units) < folds:
        raise InputError(f"--folds {folds}: train and val have {len(units)} {what}, and a fold has at least "
                         f"one: pass at most {len(units)}")
    kinds, strata = _strata(rows, owners, folds)
    order = np.random.RandomState(seed % 2**32).permutation(len(units))
    sizes = np.bincount(owners) if kinds else np.zeros(len(units))
    order = order[np.lexsort((-sizes[order], strata[order]))]
    of_unit = np.empty(len(units), np.int64)
    of_unit[order] = np.arange(len(units)) % folds + 1
    found = np.zeros(len(table), np.int64)
    found[(table["split"] == "train").to_numpy()] = of_unit[owners]
    for name, has in kinds.items():
        there = set(of_unit[has])
        lacking = [number for number in range(1, folds + 1)
                   if not there - {number, next_fold(number, folds)}]
        if lacking:
            raise InputError(f"--folds {folds}: {has.sum()} {what} of train and val have {name}, and the "
                             f"training images of fold {lacking[0]} would have none: pass other folds, merge "
                             "it with another, or add images")
    return found


def in_fold(of_images: pd.Series, dealt: np.ndarray | pd.Series, fold: int, folds: int) -> pd.Series:
    """The splits of the run of a fold: those of the images with a fold (`deal`) become train, val and
    OUT_OF_FOLD."""
    found = of_images.mask(dealt > 0, "train").mask(dealt == next_fold(fold, folds), "val")
    return found.mask(dealt == fold, OUT_OF_FOLD)


def next_fold(fold: int, folds: int) -> int:
    """The fold that chooses epoch, thresholds and temperature where this one is scored."""
    return fold % folds + 1


def _strata(rows: pd.DataFrame, owners: np.ndarray,
            folds: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """({what each training must have: (U,) which units have it}, (U,) the stratum of each unit)."""
    number, labels = int(owners.max()) + 1, [name for name in rows if name.startswith("true_")]

    def units_with(is_one: np.ndarray) -> np.ndarray:
        return np.bincount(owners, is_one, number) > 0

    if labels and "target" not in rows:
        values = rows[labels[0]].to_numpy(np.float64)
        known = ~np.isnan(values)
        counts = np.bincount(owners, known, number)
        means = np.bincount(owners, np.where(known, values, 0), number) / np.maximum(counts, 1)
        return {}, np.lexsort((means, counts == 0)).argsort(kind="stable") // folds
    if labels:
        kinds = {f"label {name.removeprefix('true_')}": units_with(rows[name].to_numpy() == 1)
                 for name in labels}
        others = {f"images without {name}": units_with(rows[f"true_{name.removeprefix('label ')}"] == 0)
                  for name in kinds}
    else:
        kinds = {f"class {name}": units_with((rows["label"] == name).to_numpy())
                 for name in sorted(set(rows["label"]))}
        others = {}
    rarest_first = sorted(kinds, key=lambda name: (kinds[name].sum(), name))
    strata = np.full(number, len(kinds))
    for place, name in reversed(list(enumerate(rarest_first))):
        strata[kinds[name]] = place
    return kinds | others, strata
