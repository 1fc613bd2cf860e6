"""Public data sets, as their owners publish them -> the folders that training reads.

    python -m util.prepare PAPILA downloads/PAPILA data/PAPILA      # seed 0: 55 % train, 15 % val, 30 % test
    python -m util.prepare IDRID downloads/IDRID data/IDRID --val 0.2 --link  # IDRID keeps its published test
    python -m util.prepare MESSIDOR2 downloads/M2 data/M2 --split_list colleague/split_list.csv

OUT_DIR/{train,val,test}/<class>/ is made whole or not at all: beside its place, then renamed. The split is
drawn a class, by the seed, and the same for the same images wherever they lie. Images of one patient, and
images that are equal in every byte, are never parted by it. OUT_DIR/split_list.csv tells which image went
where; it is also a --csv_file for training (with --label_col class --patient_col patient, so that intervals
are made of patients), and the --split_list with which somebody else makes the same folders.
util/data/public/sets.py knows the sets.
"""

import csv
import hashlib
import io
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from util.core.errors import InputError, RunError
from util.options.parsing import OneLineParser

SPLITS = ("train", "val", "test")
LIST_FILE = "split_list.csv"
LIST_COLUMNS = ("path", "class", "patient", "split", "sha256", "source")


@dataclass
class Item:
    """An image on its way: where it lies, its path below RAW_DIR, what is known of it, and its split ("" so
    far)."""

    path: Path
    source: str
    label: str
    patient: str
    split: str
    sha256: str


# The split


def draw_split(items: list[Item], classes, val: float, test: float, seed: int) -> list[str]:
    """A split for every item, in their order; those whose owner says "val" or "test" keep theirs.

    Groups (patients; images equal in every byte) stay together. val, test: shares of all groups of a class,
    at least one group each; a part that the owner publishes is not drawn again. A group's class is its last
    one in `classes`, the worst of a patient's two eyes. Raises InputError where a class has too few groups,
    or none in one of the splits.
    """
    import numpy as np

    shares = {"test": test, "val": val}
    published = {item.split for item in items}
    drawn = {split: share for split, share in shares.items() if split not in published}
    position = {name: number for number, name in enumerate(classes)}
    strata = {}
    for group in _groups(items):
        strata.setdefault(max(position[items[row].label] for row in group), []).append(group)
    splits = [item.split if item.split in shares else "train" for item in items]
    for stratum, groups in sorted(strata.items()):
        pool = [group for group in groups if not any(items[row].split in shares for row in group)]
        pool.sort(key=lambda group: min(items[row].sha256 for row in group))  # the same on every disk
        sizes = {split: max(1, round(share * len(groups))) for split, share in drawn.items()}
        if sizes and sum(sizes.values()) >= len(pool):
            kind = "patients" if any(item.patient for item in items) else "images"
            raise InputError(f"class {classes[stratum]} has {len(pool)} {kind} to share out, too few for "
                             f"{' and '.join(f'{size} in {split}' for split, size in sizes.items())} and "
                             "some to train on; take smaller --val and --test, or give a --split_list")
        # RandomState's streams are frozen by numpy for good; one a class, so that classes do not move each
        # other.
        order = np.random.RandomState([seed, stratum]).permutation(len(pool))
        start = 0
        for split, size in sizes.items():
            for group in order[start:start + size]:
                for row in pool[group]:
                    splits[row] = split
            start += size
    there = {(item.label, split) for item, split in zip(items, splits, strict=True)}
    for split in SPLITS:
        absent = [name for name in classes if (name, split) not in there]
        if absent:
            raise InputError(f"no image of {', '.join(absent)} falls to {split}: take another --seed or "
                             "larger shares")
    return splits


def _groups(items: list[Item]) -> list[list[int]]:
    """Rows that must stay together: of one patient, or equal in every byte, or linked by a chain of these."""
    leader = list(range(len(items)))

    def root(row):
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    first = {}
    for row, item in enumerate(items):
        for key in [("sha256", item.sha256)] + [("patient", item.patient)] * bool(item.patient):
            leader[root(row)] = root(first.setdefault(key, row))
    groups = {}
    for row in range(len(items)):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())


def read_split_list(place: str) -> list[dict[str, str]]:
    """A split list -> [{"path", "split", "class", "sha256"}], the last two "" where it does not say.

    place: a CSV with the columns path and split, and class, sha256 and source (the path below RAW_DIR, taken
    before path) if it has them, as `split_list.csv` does; or a folder with train/, val/ and test/, whose
    images are the list. Raises InputError.
    """
    from util.data.csv_columns import read_columns, refuse_empty, refuse_unknown
    from util.data.image_endings import EXTENSIONS
    from util.data.tables import SPLIT_NAMES

    if os.path.isdir(place):
        paths = [path for split in SPLITS for path in sorted(Path(place, split).rglob("*"))
                 if path.name.lower().endswith(EXTENSIONS) and not path.name.startswith(".")]
        if not paths:
            raise InputError(f"--split_list {place}: no images in {place}/train, val or test")
        return [{"path": path.name, "split": path.relative_to(place).parts[0], "class": "",
                 "sha256": _sha256(path)}
                for path in paths]
    optional = ("class", "sha256", "source")
    (paths, splits, labels, digests, sources), lines, _ = read_columns(
        place, ["path", "split", *optional], {"path": "--split_list", "split": "--split_list"}, ragged=True,
        optional=optional)
    for column, texts in (("path", paths), ("split", splits)):
        refuse_empty(place, column, texts, lines)
    refuse_unknown(place, "split", splits, lines, SPLIT_NAMES)
    return [
        {
            "path": source or path,
            "split": SPLIT_NAMES[split.lower()],
            "class": label,
            "sha256": digest.lower(),
        }
        for path, split, label, digest, source in zip(paths, splits, labels, digests, sources, strict=True)
    ]


def apply_split_list(items: list[Item], entries: list[dict[str, str]], classes, place: str):
    """Items and a list -> ([items that it names, each with its split], notes).

    An image is found by its content (sha256), else by its path below RAW_DIR, else by its name without the
    ending, where only one image has it. Raises InputError for a name that fits several images, an image named
    twice in two splits, a class that differs from the label, and a list that names no image at all.
    """
    from util.data.csv_columns import some
    from util.data.public.sets import counted

    keys = [("sha256", lambda item: item.sha256), ("path", lambda item: item.source.lower()),
            ("name", lambda item: _stem(item.source))]
    rows_of = {kind: {} for kind, _ in keys}
    for row, item in enumerate(items):
        for kind, key in keys:
            rows_of[kind].setdefault(key(item), []).append(row)
    split_of, absent = {}, []
    for entry in entries:
        named = _stem(entry["path"])
        path = entry["path"].replace("\\", "/").removeprefix("./").lower()
        rows = rows_of["sha256"].get(entry["sha256"],
                                     []) or rows_of["path"].get(path, []) or rows_of["name"].get(named, [])
        for fits in (  # equal images under several names, or one name in several folders
                lambda row, named=named: _stem(items[row].source) == named,
                lambda row, path=path: items[row].source.lower() == path,
                lambda row, entry=entry: items[row].label == entry["class"],
                # as published
                lambda row, entry=entry: (items[row].split == "test") == (entry["split"] == "test"),
                lambda row: row not in split_of):
            rows = [row for row in rows if fits(row)] or rows
        if len({items[row].sha256 for row in rows}) > 1:
            raise InputError(f"--split_list {place}: {entry['path']} could be "
                             f"{some([items[row].source for row in rows])}; give its path below RAW_DIR, or "
                             "a column sha256")
        if not rows:
            absent.append(entry["path"])
            continue
        item, split = items[rows[0]], entry["split"]
        if split_of.setdefault(rows[0], split) != split:
            raise InputError(f"--split_list {place}: {entry['path']} is in {split_of[rows[0]]} and in "
                             f"{split}; keep one row")
        if entry["class"] in classes and entry["class"] != item.label:
            raise InputError(f"--split_list {place}: {entry['path']} has class {entry['class']}, by the "
                             f"owner's labels it is {item.label}; mend the list")
    if not split_of:
        raise InputError(f"--split_list {place}: none of its {len(entries)} images is among the {len(items)} "
                         f"of RAW_DIR, such as {entries[0]['path']}; is it a list of another data set?")
    left = [item.source for row, item in enumerate(items) if row not in split_of]
    notes = [
        *counted(f"named in {place}, but not in RAW_DIR", absent),
        *counted(f"not named in {place}, left out", left),
    ]
    for row, split in split_of.items():
        items[row].split = split
    kept = [item for row, item in enumerate(items) if row in split_of]
    there = {(item.label, item.split) for item in kept}
    lacking = [f"{split} has no {name}" for split in SPLITS for name in classes if (name, split) not in there]
    notes += ["training needs every class in every split, and by this list "
              f"{some(lacking)}"] if lacking else []
    return kept, notes


def _stem(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0].lower()


def parted(items: list[Item]) -> dict[str, int]:
    """How many patients, and how many images (by their bytes), the splits of `items` have in two splits or
    more."""
    counts = {}
    for kind, key in (("patients", lambda item: item.patient), ("images", lambda item: item.sha256)):
        splits = {}
        for item in items:
            splits.setdefault(key(item), set()).add(item.split)
        splits.pop("", None)
        counts[kind] = sum(len(parts) > 1 for parts in splits.values())
    return counts


# The folders


def _sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _destinations(items: list[Item]) -> list[str]:
    """SPLIT/CLASS/NAME for each; a name that is taken gets its folder's name before it. Capitals do not tell
    names apart."""
    taken, paths = set(), []
    for item in items:
        folder, _, name = item.source.rpartition("/")
        candidates = [name, f"{folder.rpartition('/')[2]}_{name}", f"{item.sha256[:16]}_{name}",
                      f"{item.sha256[:16]}_{hashlib.sha256(item.source.encode()).hexdigest()[:8]}_{name}"]
        path = next(path for path in (f"{item.split}/{item.label}/{candidate}" for candidate in candidates)
                    if path.lower() not in taken)
        taken.add(path.lower())
        paths.append(path)
    return paths


def _list_text(items: list[Item], paths: list[str]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(LIST_COLUMNS)
    rows = [(path, item.label, item.patient, item.split, item.sha256, item.source)
            for path, item in zip(paths, items, strict=True)]
    table.writerows(sorted(rows))
    return text.getvalue()


def _is_complete(out: Path, text: str, items: list[Item], paths: list[str]) -> bool:
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
    lost = [path for path, item in zip(paths, items, strict=True)
            if not (out / path).is_file() or (out / path).stat().st_size != item.path.stat().st_size]
    if lost:
        raise InputError(f"OUT_DIR {out}: {len(lost)} of {len(paths)} images are missing or cut short, such "
                         f"as {lost[0]}; remove that folder and run this again")
    return True


def _build(out: Path, text: str, items: list[Item], paths: list[str], link: bool) -> None:
    """All images and the list into a folder beside OUT_DIR, which then takes its name; on any end before,
    nothing."""
    from tqdm import tqdm

    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a killed run that had the same number
    try:
        for folder in {os.path.dirname(path) for path in paths}:
            (part / folder).mkdir(parents=True, exist_ok=True)
        for item, path in tqdm(list(zip(items, paths, strict=True)), desc="linking" if link else "copying",
                               disable=None):
            if link:
                (part / path).symlink_to(item.path.resolve())
            else:
                shutil.copyfile(item.path, part / path)
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


def _items(found, raw) -> list[Item]:
    from tqdm import tqdm

    items = []
    for picture in tqdm(found.pictures, desc="reading", disable=None):
        source = picture.path.relative_to(raw.folder).as_posix()
        try:
            source.encode()
            digest = _sha256(picture.path)
        except UnicodeEncodeError:
            raise InputError(f"file name is not valid UTF-8: {os.fsencode(picture.path)!r}; rename "
                             "it") from None
        except OSError as error:
            raise InputError(f"{picture.path} cannot be read ({error.strerror}); get it again or remove "
                             "it") from error
        items.append(Item(picture.path, source, picture.label, picture.patient, picture.split, digest))
    return items


def _repeats(items: list[Item]) -> list[str]:
    """A note on images that are equal in every byte."""
    labels_of = {}
    for item in items:
        labels_of.setdefault(item.sha256, []).append(item.label)
    again = sum(len(labels) - 1 for labels in labels_of.values())
    unlike = sum(len(set(labels)) > 1 for labels in labels_of.values())
    other_label = f"; under two labels: {unlike}" if unlike else ""
    return [f"equal to another image in every byte: {again}{other_label}"] if again else []


def prepare(name: str, raw_dir: str, out_dir: str, *, val: float = 0.15, test: float = 0.3, seed: int = 0,
            split_list: str | None = None, link: bool = False) -> list[str]:
    """Make OUT_DIR of RAW_DIR, as the module says -> the lines to print. Raises InputError, RunError."""
    from util.data.public.sets import SETS, RawFolder

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
    notes += _repeats(items)
    if split_list:
        items, more = apply_split_list(items, read_split_list(split_list), public_set.classes, split_list)
        notes += more
    else:
        kept = [split for split in ("val", "test") if any(item.split == split for item in items)]
        notes += [f"{' and '.join(kept)} as the owner publishes it; nothing of it is drawn"] if kept else []
        for item, split in zip(items, draw_split(items, public_set.classes, val, test, seed), strict=True):
            item.split = split
    paths = _destinations(items)
    text = _list_text(items, paths)
    if _is_complete(out, text, items, paths):
        notes.append(f"{out_dir} was complete already: the same split, nothing was done")
    else:
        _build(out, text, items, paths, link)
    return [f"{name}: {len(items)} images -> {out_dir}", *_counts(items, public_set.classes),
            *_patients(items),
            *(f"  note: {note}" for note in notes), f"  which image is where: {out / LIST_FILE}"]


def _counts(items: list[Item], classes) -> list[str]:
    """Images a class and split, as lines."""
    counts = Counter((item.label, item.split) for item in items)
    width = max(map(len, classes))
    return [f"  {'':{width}}" + "".join(f"{split:>8}" for split in SPLITS),
            *(f"  {label:{width}}" + "".join(f"{counts[label, split]:8}" for split in SPLITS)
              for label in classes)]


def _patients(items: list[Item]) -> list[str]:
    """What is known of patients, and a warning where the splits part what belongs together."""
    patients = len({item.patient for item in items} - {""})
    lines = [
        f"  patients: {patients}" if patients else "  patients: not published, the split is one of images"
    ]
    lines += [f"  WARNING: {kind} in two splits, as given: {count}; figures on test will flatter"
              for kind, count in parted(items).items() if count]
    return lines


def make_parser() -> OneLineParser:
    from util.data.public.sets import SETS

    parser = OneLineParser(prog="python -m util.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", choices=SETS, help=f"the data set: {', '.join(SETS)}")
    parser.add_argument("raw_dir", metavar="RAW_DIR", help="the files as downloaded, archives unpacked")
    parser.add_argument(
        "out_dir", metavar="OUT_DIR", help="the folder to make: new, empty, or made so before"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another split")
    parser.add_argument(
        "--val", type=float, default=0.15, help="share of all patients, or images, of a class that val gets"
    )
    parser.add_argument("--test", type=float, default=0.3,
                        help="share that test gets; no effect where the owner publishes a test split (IDRID)")
    parser.add_argument("--split_list", default=None, metavar="FILE",
                        help="take this split, draw none: a CSV with path and split, or a folder with "
                             "train/, val/, test/")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--copy", action="store_true", help="copy the images; this is what happens without --link"
    )
    how.add_argument(
        "--link", action="store_true", help="symbolic links to RAW_DIR, which must then stay where it is"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line: see the module's docstring."""
    options = make_parser().parse_args(argv)
    if min(options.val, options.test) <= 0 or not options.val + options.test < 1:
        raise InputError(f"--val {options.val} --test {options.test}: both above 0, together below 1")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed {options.seed}: 0 to {2**32 - 1}")
    try:
        lines = prepare(options.name, options.raw_dir, options.out_dir, val=options.val, test=options.test,
                        seed=options.seed, split_list=options.split_list, link=options.link)
    except KeyboardInterrupt:
        print(f"interrupted: nothing was made of {options.out_dir}", file=sys.stderr)
        return 130
    print("\n".join(lines))
    return 0
