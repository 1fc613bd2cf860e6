"""Public data sets, as their owners publish them -> the folders that training reads.

    python -m util.prepare PAPILA downloads/PAPILA data/PAPILA      # seed 0: 55 % train, 15 % val, 30 % test
    python -m util.prepare IDRID downloads/IDRID data/IDRID --val 0.2 --link  # IDRID keeps its published test
    python -m util.prepare MESSIDOR2 downloads/M2 data/M2 --split_list colleague/split_list.csv

OUT_DIR/{train,val,test}/<class>/ is made whole or not at all: beside its place, then renamed. The split is
drawn a class, by the seed, and the same for the same images wherever they lie. Images of one patient, and
images that are equal in every byte, are never parted by it. OUT_DIR/split_list.csv tells which image went
where; it is also a --csv_file for training (with --label_col class --patient_col patient, so that intervals
are made of patients), and the --split_list with which somebody else makes the same folders.
Of a set with several labels an image (ODIR5K, RFMiD) there are no folders of classes: the list has a column
a label (--multilabel --label_cols N D G C A H M O), and a patient's split is drawn by the rarest label.
util/data/public/sets.py knows the sets.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from util.core.errors import InputError, RunError
from util.data.csv_columns import read_columns, refuse_empty, refuse_unknown, require_utf8, some
from util.data.image_endings import EXTENSIONS
from util.data.public.raw_folder import Found, Picture, PublicSet, RawFolder, counted
from util.data.public.sets import SETS
from util.data.splits import SPLIT_NAMES, SPLITS
from util.options.parsing import OneLineParser

LIST_FILE = "split_list.csv"
PARTED_BY, NO_LABEL = ";", "(no label)"
LIST_COLUMNS = ["path", "class", "patient", "split", "sha256", "source"]

# The images on their way are a table with a row an image: path (where it lies), label, patient and split (""
# where unknown), source (its path below RAW_DIR) and sha256.


# The split


def draw_split(items: pd.DataFrame, classes: tuple[str, ...], val: float, test: float,
               seed: int, several: bool = False) -> pd.Series:
    """A split for every item; those whose owner says "val" or "test" keep theirs. several: whether items have
    several labels.

    Groups (patients; images equal in every byte) stay together. val, test: shares of all groups of a class,
    at least one group each; a part that the owner publishes is not drawn again. A group's class is its last
    one in `classes`, the worst of a patient's two eyes; of several labels the rarest that it has. Raises
    InputError where a class has too few groups, or none in one of the splits.
    """
    shares = {"test": test, "val": val}
    drawn = {split: share for split, share in shares.items() if split not in set(items["split"])}
    published = items["split"].isin(shares)
    splits = items["split"].where(published, "train")
    group = _groups(items)
    groups = pd.DataFrame({
        "stratum": (_rarest(items["label"], group, classes) if several else
                    items["label"].map(classes.index).groupby(group).max()),
        "published": published.groupby(group).any(),
        "digest": items["sha256"].groupby(group).min(),
    })
    for stratum, of_class in groups.groupby("stratum"):
        pool = of_class[~of_class["published"]].sort_values("digest").index  # the same on every disk
        sizes = {split: max(1, round(share * len(of_class))) for split, share in drawn.items()}
        if sizes and sum(sizes.values()) >= len(pool):
            kind = "patients" if items["patient"].any() else "images"
            name = (*classes, NO_LABEL)[stratum]
            raise InputError(f"class {name} has {len(pool)} {kind} to share out, too few for "
                             f"{' and '.join(f'{size} in {split}' for split, size in sizes.items())} and "
                             "some to train on; take smaller --val and --test, or give a --split_list")
        # RandomState's streams are frozen by numpy for good; one a class, so that classes do not move each
        # other.
        order = pool[np.random.RandomState([seed, stratum]).permutation(len(pool))]
        for split, size in sizes.items():
            splits[np.isin(group, order[:size])] = split
            order = order[size:]
    for split, absent in _absent(items["label"], splits, classes, several).items():
        if absent and drawn:
            raise InputError(f"no image of {', '.join(absent)} falls to {split}: take another --seed or "
                             "larger shares")
    return splits


def _groups(items: pd.DataFrame) -> np.ndarray:
    """(N,) numbers, the same for rows that must stay together: of one patient, or equal in every byte, or
    linked by a chain of these."""
    from scipy.sparse import coo_array  # half a second, which --help need not wait for
    from scipy.sparse.csgraph import connected_components

    content, _ = pd.factorize(items["sha256"])
    patient, _ = pd.factorize(items["patient"].mask(items["patient"] == "", items["sha256"]))
    # a graph whose nodes are contents and patients, and whose edges are the rows
    patient += len(items)
    edges = coo_array((np.ones(len(items)), (content, patient)), shape=(2 * len(items), 2 * len(items)))
    return connected_components(edges, directed=False)[1][content]


def _rarest(labels: pd.Series, group: np.ndarray, classes: tuple[str, ...]) -> pd.Series:
    """Of each group the number of the label, among those that its images have, that fewest groups have; a
    further number where it has none."""
    there = pd.DataFrame({name: has.groupby(group).any() for name, has in _having(labels, classes).items()})
    number_of_groups = there.sum().to_numpy()
    counts = np.where(there.to_numpy(), number_of_groups, np.inf)
    return pd.Series(np.where(np.isinf(counts).all(axis=1), len(classes), counts.argmin(axis=1)), there.index)


def _having(labels: pd.Series, classes: tuple[str, ...]) -> dict[str, pd.Series]:
    """{label: (N,) which images have it}, of several labels an image."""
    names = labels.map(lambda text: frozenset(text.split(PARTED_BY)))
    return {name: names.map(lambda found, name=name: name in found) for name in classes}


def _counts(labels: pd.Series, splits: pd.Series, classes: tuple[str, ...],
            several: bool) -> pd.DataFrame:
    """Images of each class or label (rows, in order) and split (columns)."""
    if several:
        having = _having(labels, classes)
        counts = pd.DataFrame({name: has.groupby(splits).sum() for name, has in having.items()}).T
    else:
        counts = pd.crosstab(labels, splits)
    return counts.reindex(index=classes, columns=SPLITS, fill_value=0).rename_axis(
        index=None, columns=None)


def _absent(labels: pd.Series, splits: pd.Series, classes: tuple[str, ...],
            several: bool) -> dict[str, list[str]]:
    """{split: the classes of which it has no image}."""
    counts = _counts(labels, splits, classes, several)
    return {split: list(counts.index[counts[split] == 0]) for split in SPLITS}


def read_split_list(place: str) -> pd.DataFrame:
    """A split list -> its columns path, split, class and sha256, the last two "" where it does not say.

    place: a CSV with the columns path and split, and class, sha256 and source (the path below RAW_DIR, taken
    before path) if it has them, as `split_list.csv` does; or a folder with train/, val/ and test/, whose
    images are the list. Raises InputError.
    """
    if os.path.isdir(place):
        paths = [path for split in SPLITS for path in sorted(Path(place, split).rglob("*"))
                 if path.name.lower().endswith(EXTENSIONS) and not path.name.startswith(".")]
        if not paths:
            raise InputError(f"--split_list {place}: no images in {place}/train, val or test")
        return pd.DataFrame({"path": [path.name for path in paths],
                             "split": [path.relative_to(place).parts[0] for path in paths],
                             "class": "", "sha256": list(map(_sha256, paths))})
    optional = ("class", "sha256", "source")
    cells, _ = read_columns(place, ["path", "split", *optional],
                            {"path": "--split_list", "split": "--split_list"}, ragged=True, optional=optional)
    refuse_empty(place, cells["path"])
    refuse_empty(place, cells["split"])
    refuse_unknown(place, cells["split"], SPLIT_NAMES)
    return cells.assign(path=cells["source"].where(cells["source"] != "", cells["path"]),
                        split=cells["split"].str.lower().map(SPLIT_NAMES),
                        sha256=cells["sha256"].str.lower()).drop(columns="source")


def apply_split_list(items: pd.DataFrame, place: str,
                     public_set: PublicSet) -> tuple[pd.DataFrame, list[str]]:
    """Items and a list (`read_split_list`) -> (the items that it names, each with its split; notes).

    An image is found by its content (sha256), else by its path below RAW_DIR, else by its name without the
    ending, where only one image has it. Raises InputError for a name that fits several images, an image named
    twice in two splits, a class that differs from the label, and a list that names no image at all.
    """
    entries = read_split_list(place)
    everything = list(items.itertuples())
    keys_of = {row.Index: (row.sha256, row.source.lower(), _stem(row.source)) for row in everything}
    rows_of = [{}, {}, {}]
    for row, keys in keys_of.items():
        for known, key in zip(rows_of, keys, strict=True):
            known.setdefault(key, []).append(row)
    split_of, absent = {}, []
    for path, split, label, digest in entries[["path", "split", "class", "sha256"]].itertuples(index=False):
        wanted = digest, path.replace("\\", "/").removeprefix("./").lower(), _stem(path)
        rows = next((known[key] for known, key in zip(rows_of, wanted, strict=True) if key in known), None)
        if rows is None:
            absent.append(path)
            continue

        def fit(row: int, wanted: tuple[str, str, str] = wanted, split: str = split,
                label: str = label) -> tuple[bool, ...]:
            """Equal images under several names, or one name in several folders: what counts most first."""
            _, source, stem = keys_of[row]
            as_published = (everything[row].split == "test") == (split == "test")
            return (stem == wanted[2], source == wanted[1], everything[row].label == label, as_published,
                    row not in split_of)

        best = max(map(fit, rows))
        fitting = [everything[row] for row in rows if fit(row) == best]
        if len({item.sha256 for item in fitting}) > 1:
            raise InputError(f"--split_list {place}: {path} could be "
                             f"{some(item.source for item in fitting)}; give its path below RAW_DIR, or a "
                             "column sha256")
        item = fitting[0]
        if split_of.setdefault(item.Index, split) != split:
            raise InputError(f"--split_list {place}: {path} is in {split_of[item.Index]} and in {split}; "
                             "keep one row")
        if label in public_set.classes and label != item.label:
            raise InputError(f"--split_list {place}: {path} has class {label}, by the owner's labels it is "
                             f"{item.label}; mend the list")
    if not split_of:
        raise InputError(f"--split_list {place}: none of its {len(entries)} images is among the {len(items)} "
                         f"of RAW_DIR, such as {entries['path'].iloc[0]}; is it a list of another data set?")
    named = items.index.isin(list(split_of))
    kept = items[named].assign(split=items.index[named].map(split_of))
    absent_names = _absent(kept["label"], kept["split"], public_set.classes, public_set.several)
    lacking = [f"{split} has no {name}" for split, names in absent_names.items() for name in names]
    notes = [*counted(f"named in {place}, but not in RAW_DIR", absent),
             *counted(f"not named in {place}, left out", list(items["source"][~named]))]
    notes += ([f"training needs every class in every split, and by this list {some(lacking)}"] if lacking
              else [])
    return kept, notes


def _stem(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0].lower()


# The folders


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _destinations(items: pd.DataFrame) -> list[str]:
    """SPLIT/CLASS/NAME for each (SPLIT/NAME of several labels); a name that is taken gets its folder's name
    before it. Capitals do not tell names apart."""
    taken, paths = set(), []
    for item in items.itertuples():
        folder, _, name = item.source.rpartition("/")
        candidates = [name, f"{folder.rpartition('/')[2]}_{name}", f"{item.sha256[:16]}_{name}",
                      f"{item.sha256[:16]}_{hashlib.sha256(item.source.encode()).hexdigest()[:8]}_{name}"]
        path = next(path for path in (f"{item.split}/{item.folder}{candidate}" for candidate in candidates)
                    if path.lower() not in taken)
        taken.add(path.lower())
        paths.append(path)
    return paths


def _is_complete(out: Path, text: str, items: pd.DataFrame) -> bool:
    """Whether OUT_DIR holds exactly this already; InputError where it holds anything else."""
    if not os.path.lexists(out):
        return False
    if not out.is_dir():
        raise InputError(f"OUT_DIR {out} is a file: name a folder")
    if not any(out.iterdir()):
        return False
    if not (out / LIST_FILE).is_file():
        raise InputError(f"OUT_DIR {out} is not empty and not made by this command: name a new folder")
    if (out / LIST_FILE).read_text(encoding="utf-8") != text:
        raise InputError(f"OUT_DIR {out} holds another split ({LIST_FILE} differs): name a new folder, or "
                         "remove this one")
    lost = [path for path, file in zip(items["made"], items["path"], strict=True)
            if not (out / path).is_file() or (out / path).stat().st_size != file.stat().st_size]
    if lost:
        raise InputError(f"OUT_DIR {out}: {len(lost)} of {len(items)} images are missing or cut short, such "
                         f"as {lost[0]}; remove that folder and run this again")
    return True


def _build(out: Path, text: str, items: pd.DataFrame, link: bool) -> None:
    """All images and the list into a folder beside OUT_DIR, which then takes its name; on any end before,
    nothing."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a killed run that had the same number
    put = os.symlink if link else shutil.copyfile
    try:
        for folder in {os.path.dirname(path) for path in items["made"]}:
            (part / folder).mkdir(parents=True, exist_ok=True)
        for file, path in tqdm(list(zip(items["path"], items["made"], strict=True)),
                               desc="linking" if link else "copying", disable=None):
            put(file.resolve(), part / path)
        (part / LIST_FILE).write_text(text, encoding="utf-8", newline="")
        if out.is_dir():
            out.rmdir()  # it is empty
        part.rename(out)
    except PermissionError as error:
        raise InputError(f"no right to write {error.filename or out}: name another OUT_DIR") from error
    except OSError as error:
        raise RunError(f"making {out} failed: {error}; nothing was left there") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _items(found: Found, raw: RawFolder) -> pd.DataFrame:
    items = pd.DataFrame(found.pictures, columns=Picture._fields)
    sources = [path.relative_to(raw.folder).as_posix() for path in items["path"]]
    require_utf8(sources)  # before pandas holds them as text
    items["source"] = sources
    digests = []
    for path in tqdm(items["path"], desc="reading", disable=None):
        try:
            digests.append(_sha256(path))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); get it again or remove "
                             "it") from error
    return items.assign(sha256=digests)


def prepare(name: str, raw_dir: str, out_dir: str, *, shares: tuple[float, float] = (0.15, 0.3),
            seed: int = 0, split_list: str | None = None, link: bool = False) -> list[str]:
    """Make OUT_DIR of RAW_DIR, as the module says -> the lines to print. shares: those of val and test.
    Raises InputError, RunError."""
    public_set, out = SETS[name], Path(os.path.realpath(out_dir))
    both = [os.path.realpath(raw_dir), str(out)]
    if os.path.commonpath(both) in both:
        raise InputError(f"OUT_DIR {out_dir} and RAW_DIR {raw_dir}: one lies in the other; name a folder "
                         "beside it")
    raw = RawFolder(raw_dir, public_set)
    found = public_set.reader(raw)
    if found.no_patients and not split_list:
        raise InputError(f"{name}: {found.no_patients} below {raw_dir}, so a split could part a patient's "
                         f"eyes; get it with the images from {public_set.url}, or give a --split_list")
    notes = [*found.notes, *([found.no_patients] if found.no_patients else [])]
    if len(found.pictures) != public_set.pictures:
        notes.append(f"with a label: {len(found.pictures)}, of {public_set.pictures} in the whole set")
    items = _items(found, raw)
    again = items["sha256"].duplicated().sum()
    if again:
        unlike = (items.groupby("sha256")["label"].nunique() > 1).sum()
        other_label = f"; under two labels: {unlike}" if unlike else ""
        notes.append(f"equal to another image in every byte: {again}{other_label}")
    if split_list:
        items, more = apply_split_list(items, split_list, public_set)
        notes += more
    else:
        kept = [split for split in ("val", "test") if split in set(items["split"])]
        notes += [f"{' and '.join(kept)} as the owner publishes it; nothing of it is drawn"] if kept else []
        items["split"] = draw_split(items, public_set.classes, *shares, seed, public_set.several)
    items["folder"] = "" if public_set.several else items["label"] + "/"
    items["made"] = _destinations(items)
    listed = items.drop(columns="path").rename(columns={"made": "path", "label": "class"})
    columns = LIST_COLUMNS
    if public_set.several:
        listed = listed.assign(**{name: has.astype(int)
                                  for name, has in _having(items["label"], public_set.classes).items()})
        columns = [LIST_COLUMNS[0], *public_set.classes, *LIST_COLUMNS[2:]]
        notes.append(f"to train: --csv_file {out / LIST_FILE} --multilabel --label_cols "
                     f"{' '.join(public_set.classes)}{' --patient_col patient' * items['patient'].any()}")
    text = listed.sort_values("path").to_csv(index=False, columns=columns, lineterminator="\n")
    if _is_complete(out, text, items):
        notes.append(f"{out_dir} was complete already: the same split, nothing was done")
    else:
        _build(out, text, items, link)
    counts = _counts(items["label"], items["split"], public_set.classes, public_set.several)
    return [f"{name}: {len(items)} images -> {out_dir}",
            *(f"  {line}" for line in counts.to_string(col_space=7).splitlines()), *_patients(items),
            *(f"  note: {note}" for note in notes), f"  which image is where: {out / LIST_FILE}"]


def _patients(items: pd.DataFrame) -> list[str]:
    """What is known of patients, and a warning where the splits part what belongs together."""
    known = items[items["patient"] != ""]
    lines = [f"  patients: {known['patient'].nunique()}" if len(known)
             else "  patients: not published, the split is one of images"]
    for kind, rows, column in (("patients", known, "patient"), ("images", items, "sha256")):
        count = (rows.groupby(column)["split"].nunique() > 1).sum()
        if count:
            lines.append(f"  WARNING: {kind} in two splits, as given: {count}; figures on test will flatter")
    return lines


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m util.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", choices=SETS, help=f"the data set: {', '.join(SETS)}")
    parser.add_argument("raw_dir", metavar="RAW_DIR", help="the files as downloaded, archives unpacked")
    parser.add_argument("out_dir", metavar="OUT_DIR",
                        help="the folder to make: new, empty, or made so before")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another split")
    parser.add_argument("--val", type=float, default=0.15,
                        help="share of all patients, or images, of a class that val gets")
    parser.add_argument("--test", type=float, default=0.3,
                        help="share that test gets; no effect where the owner publishes a test split (IDRID)")
    parser.add_argument("--split_list", default=None, metavar="FILE",
                        help="take this split, draw none: a CSV with path and split, or a folder with "
                             "train/, val/, test/")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--copy", action="store_true",
                     help="copy the images; this is what happens without --link")
    how.add_argument("--link", action="store_true",
                     help="symbolic links to RAW_DIR, which must then stay where it is")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line: see the module's docstring."""
    options = make_parser().parse_args(argv)
    if min(options.val, options.test) <= 0 or not options.val + options.test < 1:
        raise InputError(f"--val {options.val} --test {options.test}: both above 0, together below 1")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed {options.seed}: 0 to {2**32 - 1}")
    try:
        lines = prepare(options.name, options.raw_dir, options.out_dir, shares=(options.val, options.test),
                        seed=options.seed, split_list=options.split_list, link=options.link)
    except KeyboardInterrupt:
        print(f"interrupted: nothing was made of {options.out_dir}", file=sys.stderr)
        return 130
    print("\n".join(lines))
    return 0
