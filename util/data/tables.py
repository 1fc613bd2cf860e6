"""A folder or a CSV -> one table of images.

The table is a pandas DataFrame with a row an image and a RangeIndex; after it was read nobody asks where it
came from:
    index    int64, 0…N-1 over the table as it was read: says which image a row is, also after rows were taken
             out
    path     str, as the user would type it
    label    str, the name of the class
    target   int64, the label's position in the order of classes
    split    "train", "val", "test", or "test_NAME" of a further test set (util/data/splits.py)
    patient  str, "" where it is not known
    case     str, where images are judged together (util/data/cases.py)
Everything a user can get wrong here is an `InputError` before anything is built.
"""
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
import pandas as pd

from util.core.errors import InputError
from util.core.machine import usable_cores
from util.core.run_files import write_whole
from util.data import cases, covariates, groups
from util.data import splits as split_names
from util.data.csv_columns import (
    UNLABELLED,
    joined,
    patients_of,
    read_images_csv,
    refuse_absent,
    refuse_empty,
    refuse_repeated,
    refuse_two_spellings,
    require_splits,
    require_utf8,
    some,
)
from util.data.image_endings import EXTENSIONS, left_out
from util.data.images.files import ImageError, file_status
from util.data.images.fundus_fields import Fields
from util.data.images.reading_pass import Reader, read_images
from util.data.images.scan import NO_FACTS, ImageFacts, some_to_look_at
from util.data.own_images import is_marker, own_pictures
from util.data.splits import SPLITS
from util.metrics import class_order
from util.options.data import DataOptions

# class names -> them in their order, and lines about it
OrderOf = Callable[[list[str]], tuple[list[str], list[str]]]


@dataclass
class Data:
    """What was read: the table, the class names in order, lines worth telling the user, the external ones of
    its test sets; and what the pass over the files found: the round fields, with --fundus_crop auto, and the
    facts (`ImageFacts.of`)."""

    table: pd.DataFrame
    class_names: list[str]
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""
    fields: Fields | None = None
    facts: np.ndarray = field(default_factory=lambda: NO_FACTS)
    external: tuple[str, ...] = ()

    @property
    def splits(self) -> list[str]:
        """Those that the table has, in order."""
        return split_names.in_order(set(self.table["split"]), self.external)

    @property
    def test_sets(self) -> list[str]:
        """Those that are scored at the end."""
        return split_names.test_sets(self.splits)


def sorted_alone(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Class names as text has them: so the original's checkpoints know them."""
    return sorted(names), []


# Reading a folder


def read_folder(data_path: str, splits: Sequence[str] = SPLITS,
                order_of: OrderOf = class_order.in_order, others: Sequence[str] = (),
               folds: int | None = None) -> Data:
    """DIR/{train,val,test}/<class>/ and folders below, in the order of torchvision's ImageFolder -> Data.
    Folders test_NAME and ev_NAME are further test sets (util/data/splits.py). others: folders of external
    test sets, OTHER/test/<class>/ or OTHER/<class>/, named after themselves.

    order_of: class names -> them in their order, and lines about it (`util.metrics.class_order.in_order`).
    splits: those to read; each must be there (with `folds`, of --folds, train alone, and val is read as
    train), with the same classes and no class empty. Hidden files and folders (.DS_Store, ._copy.jpg,
    .ipynb_checkpoints) and other file types are left out and counted. Raises InputError.
    """
    if not os.path.isdir(data_path):
        raise InputError(f"--data_path {data_path}: "
                         f"{'not a folder' if os.path.exists(data_path) else 'not there'}")
    found, ignored, folders = {}, [], split_folders(data_path)
    for split in split_names.needed(splits, folds):
        if split not in map(split_names.plain, folders):
            raise InputError(
                f"--data_path {data_path}: no folder {split}; there is "
                f"{some(_folders(data_path)) or 'no folder'}; expected "
                f"{os.path.join(data_path, '{' + ','.join(splits) + '}', 'CLASS', 'image files')}")
    external = split_names.external_of(folders.values())
    folders = {split: os.path.join(data_path, folder) for split, folder in folders.items()}
    for other in others:
        split, folder = _external_folder(other)
        if split in folders:
            raise InputError(f"--external {other}: {folders[split]} has the same name, and each test set "
                             "needs its own: rename one")
        folders[split], external = folder, (*external, split)
    folders = {split: folders[split] for split in split_names.in_order(folders, external)
               if split_names.plain(split) in splits}
    for split, folder in folders.items():
        classes = _folders(folder)
        if not classes:
            raise InputError(f"{folder}: no class folder in it; expected {os.path.join(folder, 'CLASS')} "
                             "with images")
        found[split] = {name: pictures_below(os.path.join(folder, name), ignored) for name in classes}
    _same_classes(data_path, found)
    for split, classes in found.items():
        empty = [os.path.join(folders[split], name) for name, paths in classes.items() if not paths]
        if empty:
            raise InputError(f"no image ({', '.join(e[1:] for e in EXTENSIONS)}) in {some(empty)}: add some, "
                             "or remove the class from every split"
                             + "".join(f"; {line}" for line in left_out(ignored)))
    class_names, lines = order_of(sorted(set().union(*found.values())))
    for split, classes in found.items():
        lines = [*lines, *_absent_classes(class_names, split, classes)]
    rows = [(path, name, split) for split in found for name in class_names
            for path in found[split].get(name, ())]
    paths, labels, row_splits = zip(*rows, strict=True)
    row_splits = split_names.pooled(pd.Series(row_splits, dtype=object), folds)
    table = picture_table(paths, labels, row_splits, [""] * len(rows))
    table.insert(3, "target", _targets(table, class_names))
    return Data(table, class_names, lines + left_out(ignored), external=external)


def _external_folder(place: str) -> tuple[str, str]:
    """(split, the folder of its classes) of an external test set. InputError."""
    if not os.path.isdir(place):
        raise InputError(f"--external {place}: {'not a folder' if os.path.exists(place) else 'not there'}")
    name = os.path.basename(os.path.abspath(place))
    below = os.path.join(place, "test")
    return split_names.split_of(f"ev:{name}"), below if os.path.isdir(below) else place


def split_folders(data_path: str) -> dict[str, str]:
    """{split: name of its folder}. InputError for one split in two folders (test and ev)."""
    found: dict[str, str] = {}
    for name in _folders(data_path):
        split = split_names.split_of(name) if name in SPLITS or name.startswith(("test_", "ev_")) else None
        if split in found:
            raise InputError(f"{data_path}: {found[split]} and {name} would both be the test set "
                             f"{split.removeprefix('test_')}: rename one")
        found |= {} if split is None else {split: name}
    return found


def _walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk of a folder with the links in it; InputError where one may not be read."""
    def unreadable(error: OSError) -> NoReturn:
        raise InputError(f"the folder {error.filename} cannot be read ({error.strerror.lower()}): mend its "
                         "rights, or remove it from the data") from error

    return os.walk(folder, onerror=unreadable, followlinks=True)


def _folders(folder: str) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out."""
    _, names, _ = next(_walk(folder))
    return sorted(name for name in names if not name.startswith("."))


def pictures_below(folder: str, ignored: list[str]) -> list[str]:
    """Paths of the images in a folder and below, in order; what is not taken is added to `ignored`: hidden
    files, other types, and charts, heat maps and sheets that this program wrote there."""
    by_folder, above = {}, {folder: ()}  # the real places of the folders that were passed on the way
    for current, folders, names in _walk(folder):
        passed = (*above.pop(current), os.path.realpath(current))
        hidden = [name for name in folders if name.startswith(".")]
        below = [os.path.join(current, name) for name in folders if name not in hidden]
        above |= {path: passed for path in below  # without links to their parents
                  if not (os.path.islink(path) and os.path.realpath(path) in passed)}
        folders[:] = [name for name in folders if os.path.join(current, name) in above]
        taken = [name for name in names if not name.startswith(".") and name.lower().endswith(EXTENSIONS)]
        by_folder[current] = sorted(set(taken) - own_pictures(taken, list(filter(is_marker, names))))
        ignored += [os.path.join(current, name)
                    for name in sorted({*hidden, *names} - set(by_folder[current]))]
    # ImageFolder's order: folders by their whole path, then files by name.
    return [os.path.join(current, name) for current in sorted(by_folder) for name in by_folder[current]]


def _same_classes(data_path: str, found: dict[str, dict[str, list[str]]]) -> None:
    """InputError where the classes of a split differ; a further test set may lack some."""
    everywhere = set().union(*(classes for split, classes in found.items() if split in SPLITS))
    missing = {split: sorted(everywhere - classes.keys()) for split, classes in found.items()
               if split in SPLITS}
    strange = {split: sorted(classes.keys() - everywhere) for split, classes in found.items()}
    if everywhere and any(strange.values()):
        lists = "; ".join(f"{split} has {some(names, 10)}" for split, names in strange.items() if names)
        raise InputError(f"--data_path {data_path}: test sets have classes that the others have not: {lists}")
    if any(missing.values()):
        lists = "; ".join(f"{split} lacks {some(names, 10)}" for split, names in missing.items() if names)
        raise InputError(f"--data_path {data_path}: the class folders differ between splits: {lists}")


# Reading a CSV


def read_csv(asked: DataOptions, splits: Sequence[str] = SPLITS,
             order_of: OrderOf = class_order.in_order) -> Data:
    """The CSV that is asked for, with an image a row -> Data; relative paths start at the CSV's folder.

    Labels are names: "01" stays "01". Splits are train, val (or iv), test (or ev) in any case; every row is
    checked, those of `splits` are kept, and each of `splits` must occur. order_of: as in `read_folder`.
    Raises InputError with the line of the file.
    """
    csv_file, path_col, patient_col = asked.csv_file, asked.path_col, asked.patient_col
    others = (groups.flags(asked) | cases.flags(asked)
              | covariates.flags(asked, (asked.label_col, path_col, asked.split_col)))
    cells, row_splits, notes = read_images_csv(csv_file, path_col, asked.split_col, patient_col,
                                               {asked.label_col: "--label_col", **others}, asked.path_suffix)
    row_splits, after = split_names.pooled(row_splits, asked.folds), ""
    if asked.ignore_unlabeled:
        lacking = cells[asked.label_col].str.lower().isin(UNLABELLED)
        notes.append(f"--ignore_unlabeled left out {lacking.sum():,} of {len(cells):,} rows, which have no "
                     "label")
        cells, row_splits, after = cells[~lacking], row_splits[~lacking], " after --ignore_unlabeled"
    labels = cells[asked.label_col]
    refuse_empty(csv_file, labels, "; --ignore_unlabeled leaves such rows out")
    refuse_two_spellings(csv_file, labels)
    refuse_repeated(csv_file, cells[path_col], {"in two splits": row_splits, "with two labels": labels})
    require_splits(csv_file, cells[asked.split_col], row_splits,
                   split_names.needed(splits, asked.folds), after)
    kept = row_splits.map(split_names.plain).isin(splits)
    labels = labels[kept]
    table, of_patients = csv_table(csv_file, cells[kept], row_splits[kept], path_col, patient_col, labels)
    class_names, lines = order_of(sorted(set(labels)))
    table.insert(3, "target", _targets(table, class_names))
    notes += groups.add(table, csv_file, cells[kept], asked)
    notes += cases.add(table, csv_file, cells[kept], asked)
    notes += covariates.add(table, csv_file, cells[kept], asked)
    data = Data(table, class_names, [*notes, *of_patients, *lines],
                external=split_names.external_of(cells[asked.split_col][kept]))
    return _csv_classes(csv_file, data, splits)


def _csv_classes(csv_file: str, data: Data, splits: Sequence[str]) -> Data:
    """InputError for classes that training never sees; one that val or test lacks is only worth a note."""
    if "train" not in splits:
        return data
    labels = data.table.groupby("split")["label"].unique()
    train = set(labels["train"])
    notes = list(data.notes)
    for split in data.splits:
        unseen = sorted(set(labels[split]) - train)
        if unseen:
            raise InputError(f"{csv_file}: {split} has classes that train has not: {some(unseen, 10)}")
        notes += _absent_classes(data.class_names, split, labels[split])
    return replace(data, notes=notes)


# What both have in common


def _targets(table: pd.DataFrame, class_names: Sequence[str]) -> pd.Series:
    """Each label's position in the order of classes."""
    return table["label"].map({name: target for target, name in enumerate(class_names)}).astype(np.int64)


def csv_table(csv_file: str, cells: pd.DataFrame, row_splits: pd.Series, path_col: str,
              patient_col: str | None, labels: Collection[str]) -> tuple[pd.DataFrame, list[str]]:
    """Rows of `csv_columns.read_images_csv` -> (`picture_table` of them, a line about patients that are not
    known). Raises InputError for files that are not there, and for a patient in two spellings."""
    paths = pd.Series(joined(os.path.dirname(csv_file), cells[path_col]), cells.index, dtype=object)
    refuse_absent(csv_file, paths)
    patients, notes = [""] * len(paths), []
    if patient_col:
        patients, notes = patients_of(csv_file, cells[patient_col])
    return picture_table(paths, labels, row_splits, patients), notes


def picture_table(paths: Collection[str], labels: Collection[str], splits: Collection[str],
                  patients: Collection[str]) -> pd.DataFrame:
    """Columns of equal length, in order -> the table. Raises InputError for names that no text file can
    hold."""
    require_utf8(paths)
    return pd.DataFrame({
        "index": np.arange(len(paths), dtype=np.int64),
        "path": list(paths),
        "label": list(labels),
        "split": list(splits),
        "patient": list(patients),
    })


def _absent_classes(class_names: Sequence[str], split: str, labels: Iterable[str]) -> list[str]:
    absent = sorted(set(class_names) - set(labels), key=list(class_names).index)
    return [f"{split} has no image of {some(absent, 10)}"] if absent else []


def check_classes(data: Data, nb_classes: int, explicit: bool) -> Data:
    """Data, once its number of classes is what was asked for; len(class_names) is the number to use.

    explicit: the user typed --nb_classes, so a disagreement is an InputError; else what was found is taken,
    with a note. Fewer than two classes are an InputError.
    """
    found = len(data.class_names)
    if found < 2:
        raise InputError(f"found {found} class ({some(data.class_names)}): at least 2 are needed")
    if found == nb_classes:
        return data
    names = some(data.class_names, 50)
    if explicit:
        raise InputError(f"--nb_classes {nb_classes}, but found {found} classes ({names}): pass --nb_classes "
                         f"{found}")
    return replace(data, notes=[*data.notes, f"{found} classes, as found in the data ({names})"])


def match_classes(data: Data, class_names: Sequence[str]) -> Data:
    """Data with targets in the order of a checkpoint's classes, matched by name.

    Classes that the checkpoint does not know are an InputError, classes that a split lacks a note.
    """
    unknown = [name for name in data.class_names if name not in class_names]
    if unknown:
        raise InputError(f"the checkpoint has no class {some(unknown, 10)}; its classes are "
                         f"{some(class_names, 50)}: rename yours")
    notes = list(data.notes)
    if data.class_names != [name for name in class_names if name in data.class_names]:
        notes.append(f"classes are taken by name, in the checkpoint's order: {some(class_names, 50)}")
    for split, rows in data.table.groupby("split", sort=False):
        notes += _absent_classes(class_names, split, rows["label"].unique())
    return replace(data, table=data.table.assign(target=_targets(data.table, class_names)),
                   class_names=list(class_names), notes=notes)


def check_files(data: Data, bad_images: str, facts: ImageFacts | None = None,
                skipped_file: str | os.PathLike | None = None, progress: bool = True,
                fields: Fields | None = None, others: Sequence[tuple[Reader, Sequence[str]]] = ()) -> Data:
    """Decode every image once -> Data without the bad ones.

    bad_images: "stop" makes any bad file an InputError that names them all; "skip" leaves their rows out (the
    others keep their `index`), counts them in a note and writes path,reason to the CSV `skipped_file`.
    facts: remember good files for the next launch. fields and others ([(a Reader, its paths)]) take what they
    lack in the same pass (util/data/images/reading_pass.py). Raises InputError also when a class of train, or
    a split, has no image left, OSError where `skipped_file` can't be written.
    """
    paths, facts = list(dict.fromkeys(data.table["path"])), facts if facts is not None else ImageFacts(None)
    of_fields = [] if fields is None else [(fields, paths)]
    bad = read_images([*of_fields, *others, (facts, paths)], usable_cores(), progress)
    notes = data.notes + [memory.note for memory in (facts, fields) if memory is not None and memory.note]
    if not bad:
        return replace(data, notes=notes)
    if bad_images == "stop":
        files = "; ".join(f"{path} ({reason})" for path, reason in bad)
        raise InputError(f"{len(bad)} of {len(paths)} images cannot be read; mend or pass --bad_images skip: "
                         f"{files}")
    table = data.table[~data.table["path"].isin([path for path, _ in bad])].reset_index(drop=True)
    for split, rows in data.table.groupby("split", sort=False):
        left = table[table["split"] == split]
        emptied = some(sorted(set(rows["label"]) - set(left["label"]))) if data.class_names else ""
        if left.empty or (emptied and split == "train"):
            of_classes = f" of {emptied}" if emptied else ""
            raise InputError(f"--bad_images skip leaves no readable image{of_classes} in {split}; see "
                             f"{bad[0][0]}")
        notes += [f"no readable image of {emptied} in {split}"] if emptied else []
    if skipped_file:
        write_whole(skipped_file, pd.DataFrame(bad, columns=["path", "reason"]).to_csv(index=False))
    written = f", listed in {skipped_file}" if skipped_file else ""
    notes.append(f"left out {len(bad)} of {len(paths)} images that cannot be read{written}")
    return replace(data, table=table, notes=notes)


def look_at_some(data: Data, facts: ImageFacts, fields: Fields | None = None, progress: bool = True,
                 others: Sequence[tuple[Reader, Sequence[str]]] = ()) -> Data:
    """Data, where its files are not checked: with some of them among the facts, and with the fields of all,
    where there are to be any; others: as of `check_files`. A file that can't be read is left to whoever reads
    it."""
    paths = list(dict.fromkeys(data.table["path"]))
    some_paths, note = some_to_look_at(paths)
    of_fields = [] if fields is None else [(fields, paths)]
    read_images([*of_fields, *others, (facts, some_paths)], usable_cores(), progress)
    notes = [note, *(memory.note for memory in (facts, fields) if memory is not None)]
    return replace(data, notes=[*data.notes, *filter(None, notes)])


def subset(table: pd.DataFrame, ratio: float, stratified: bool, seed: int) -> pd.DataFrame:
    """The share `ratio` (0…1] of the train rows, at least one (stratified: of each class); val and test
    whole.

    Depends on seed alone, and a smaller ratio's rows are among a larger one's. Order is kept. Raises
    InputError.
    """
    if not 0 < ratio <= 1:
        raise InputError(f"--dataratio {ratio}: above 0 and at most 1")
    train = np.flatnonzero(table["split"] == "train")
    # RandomState's streams are frozen by numpy for good, its newer generators' are not.
    shuffled = train[np.random.RandomState(seed % 2**32).permutation(len(train))]
    groups = [shuffled]
    if stratified:
        targets = table["target"].to_numpy()[shuffled]
        groups = [shuffled[targets == target] for target in np.unique(targets)]
    keep = (table["split"] != "train").to_numpy(copy=True)
    for group in groups:
        keep[group[:max(1, round(ratio * len(group)))]] = True
    return table[keep].reset_index(drop=True)


def patient_counts(table: pd.DataFrame, class_names: Sequence[str]) -> dict[str, dict[str, int]]:
    """{split: {class: patients}} where patients are known, "" for all of a split; {} where none is."""
    known = table[table["patient"] != ""]
    return {split: {class_names[target]: int(number)
                    for target, number in rows.groupby("target")["patient"].nunique().items()}
            | {"": int(rows["patient"].nunique())}
            for split, rows in known.groupby("split")}


def counts(table: pd.DataFrame, class_names: list[str]) -> pd.DataFrame:
    """Images a class (rows, in order) and a split (columns) as a DataFrame of int."""
    table = pd.crosstab(table["label"], table["split"])
    return table.reindex(index=class_names, columns=split_names.in_order(table.columns),
                         fill_value=0).astype(int)


def fingerprint(table: pd.DataFrame) -> str:
    """sha256 (hex) over path, label, split and file size of every row, in any order.

    Paths are taken below the folder that all have in common: data that were moved keep their fingerprint.
    """
    paths = joined(os.getcwd(), [os.path.normpath(path) for path in table["path"]])
    start = len(os.path.join(os.path.commonpath({os.path.dirname(path) for path in paths}), ""))
    rows = sorted("\0".join((path[start:].replace(os.sep, "/"), label, split, str(_size_of(path))))
                  for path, label, split in zip(paths, table["label"], table["split"], strict=True))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _size_of(path: str) -> int:
    try:
        return file_status(path).st_size
    except ImageError as error:
        raise InputError(f"{path} cannot be read ({error.reason}): mend or remove it") from error
