"""The same image, or the same patient, in two splits: then the metrics on val and test are too good.

    python -m util.leakage demo_data                                # a folder with train, val, test
    python -m util.leakage data.csv --patient_col patient --json found.json
    python -m util.leakage demo_data --patient_regex '(p\\d+)_'     # patients by the names of the files
    python -m util.leakage demo_data --leakage stop                 # exit code 2 where something is found

Every image of a later split is looked up in every earlier one (train, val, test), and its best match is a
finding:
    same bytes        files of the same content (sizes first, then the last bytes, then a hash of all)
    same pixels       other files that decode to the same image (judged on the full decode of near duplicates)
    near duplicate    resized, recompressed, mirrored, cropped: near_duplicates.py says how, and how surely
    same patient      one finding a patient, by the column or the expression that names patients
Training runs it before the first epoch (--leakage) and writes leakage.json into the run's folder.
"""

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from util.core.errors import InputError
from util.core.machine import usable_cores
from util.core.run_files import write_whole
from util.data import csv_columns, tables
from util.data.images.files import ImageError, ImageSource
from util.data.images.reading_pass import read_images
from util.data.leakage.eye_names import pairs_across
from util.data.splits import SPLITS, in_order, is_test, plain
from util.options.flag import FINETUNE
from util.options.parsing import OneLineParser
from util.options.table import FLAGS

if TYPE_CHECKING:
    from util.data.leakage.fingerprints import Fingerprints

KINDS = ("same bytes", "same pixels", "near duplicate", "same patient")
PLURALS = {"near duplicate": "near duplicates"}
CANNOT_SEE = ("crops off the centre by 2 % of the side or more, crops to less than 78 % of the side, "
              "rotations of more than 3 degrees, upside-down copies, strongly retouched ones, another "
              "photograph of the same eye, and an image with next to no contrast unless its pixels are the "
              "same; patients are seen only where a column or --patient_regex names them. A near duplicate "
              "may be a mistake: look at the pair")
NOT_DECODED = ("images were not decoded (--skip_file_check), so only files with the same bytes were looked "
               "for; ")
TOO_MANY = ("images were not decoded: above {:,} comparing each with each takes hours; python -m "
            "util.leakage does it all the same; ")
MOST_COMPARED = 100_000  # images that a training compares with each other
MOST_LISTED = 10_000  # findings of a kind in leakage.json
TAIL = 4096  # bytes at a file's end that are read before all of it is
# near duplicates above it, of the same size, are decoded in full: are their pixels the same?
SAME_SIMILARITY = 0.95
MOST_PLAIN = 10  # images without contrast that one of the same look is compared with, pixel by pixel


def check(table: pd.DataFrame, prints: "Fingerprints | None" = None, decode: bool = True,
          workers: int | None = None, progress: bool = True,
          most_compared: int | None = MOST_COMPARED) -> dict:
    """What the splits of a table of images (path, split, patient: util/data/tables.py) have in common ->
    plain values.

    prints: fingerprints that are known already; those that it lacks are computed. decode: off looks for the
    same bytes and patients alone, as with more than `most_compared` images (None: no bound). workers:
    threads; None takes one a core. Returns {"pictures": N, "patients": those whose patient is known,
    "checked": those that could be read, "seconds", "unreadable": [path], "findings": [{"kind", "splits",
    "paths" or "patient" and "counts", "similarity"}], "counts": {kind: all there are}, "within splits": files
    with the bytes of another one of their split, "cannot see": text, "notes": [text]}. Of a kind, findings
    beyond 10,000 are counted alone.
    """
    begun, workers = time.monotonic(), workers or usable_cores()
    paths, splits = list(table["path"]), table["split"].to_numpy()
    rows = {split: np.flatnonzero(splits == split) for split in in_order(set(splits))}
    compared = decode and is_compared(table, most_compared)
    content, unreadable = _contents(paths, workers)
    notes, values = [], None
    if compared:
        from util.data.leakage.fingerprints import Fingerprints

        prints = prints or Fingerprints(None)
        unreadable |= dict(read_images([(prints, paths)], workers, progress))
        notes += [prints.note] if prints.note else []
        values = prints.of(paths)
    within = pd.DataFrame({"split": splits, "content": content})[content >= 0].duplicated().sum()
    findings = []
    for earlier, later in itertools.combinations(rows, 2):
        if is_test(earlier) and is_test(later):
            continue  # nothing is learned from either
        pairs = _copies(content, rows[earlier], rows[later])
        if values is not None:
            left = np.setdiff1d(rows[later], [row for _, _, row, _ in pairs])
            pairs += _alike(paths, values, rows[earlier], left, workers)
        findings += [{"kind": kind, "splits": [earlier, later], "paths": [paths[one], paths[other]],
                      "similarity": similarity}
                     for kind, one, other, similarity in pairs]
    findings += _patients(table)
    notes += _eyes(table)
    by_kind = {kind: [finding for finding in findings if finding["kind"] == kind] for kind in KINDS}
    cannot = "" if compared or len(rows) < 2 else TOO_MANY.format(most_compared) if decode else NOT_DECODED
    return {"pictures": len(paths), "checked": len(paths) - len(unreadable),
            "seconds": round(time.monotonic() - begun, 2),
            "unreadable": [path for path in paths if path in unreadable], "within splits": int(within),
            "counts": {kind: len(found) for kind, found in by_kind.items()},
            "findings": [finding for listed in by_kind.values() for finding in listed[:MOST_LISTED]],
            "patients": int((table["patient"] != "").sum()), "cannot see": cannot + CANNOT_SEE,
            "notes": notes}


def is_compared(table: pd.DataFrame, most_compared: int | None = MOST_COMPARED) -> bool:
    """Whether `check` compares the images of a table by their fingerprints."""
    return (most_compared is None or len(table) <= most_compared) and table["split"].nunique() > 1


# ---- the same bytes ----------------------------------------------------------------------------------------

def _contents(paths: Sequence[str], workers: int) -> tuple[np.ndarray, dict[str, str]]:
    """(N,) numbers, the same for files of the same bytes, -1 for one that is like no other; {path: why it
    can't be read}."""
    numbers, unreadable = np.full(len(paths), -1), {}
    alike = pd.Series(0, range(len(paths)))  # rows that may be like another one -> the number of their group
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for look in (os.path.getsize, _tail, _digest):
            found = pool.map(_tried(look), [paths[row] for row in alike.index], chunksize=64)
            found = pd.DataFrame({"group": alike, "value": pd.Series(list(found), alike.index, dtype=object)})
            failed = found["value"].map(lambda value: isinstance(value, OSError)).astype(bool)
            unreadable |= {paths[row]: (error.strerror or str(error)).lower()
                           for row, error in found["value"][failed].items()}
            found = found[~failed & (found["value"] != 0)]  # an empty file is no image
            alike = found[found.duplicated(keep=False)].groupby(["group", "value"]).ngroup()
    numbers[alike.index] = alike
    return numbers, unreadable


def _tried(look: Callable[[str], object]) -> Callable[[str], object]:
    def run(path: str) -> object:
        try:
            return look(path)
        except OSError as error:
            return error
    return run


def _tail(path: str) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL))
        return hashlib.blake2b(stream.read(), digest_size=16).digest()


def _digest(path: str) -> bytes:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


Pair = tuple[str, int, int, float | None]  # kind, row of the earlier split, row of the later one, similarity


def _copies(content: np.ndarray, earlier: np.ndarray, later: np.ndarray) -> list[Pair]:
    first = {}
    for row in earlier[content[earlier] >= 0].tolist():
        first.setdefault(content[row], row)
    return [("same bytes", first[content[row]], row, None) for row in later.tolist() if content[row] in first]


# ---- the same image ----------------------------------------------------------------------------------------

def _alike(paths: Sequence[str], prints: np.ndarray, earlier: np.ndarray, later: np.ndarray,
           workers: int) -> list[Pair]:
    """For each image of the later split the most similar one of the earlier split, where there is one."""
    from util.data.leakage.near_duplicates import nearest

    matches = nearest(prints[later], prints[earlier])
    hits = np.flatnonzero(matches.place >= 0)
    pairs = [(earlier[matches.place[hit]], later[hit], float(matches.similarity[hit])) for hit in hits]
    shape = np.stack([prints["width"], prints["height"]], axis=1)
    maybe = [not matches.mirrored[hit] and similarity >= SAME_SIMILARITY
             and (shape[one] == shape[other]).all()
             for hit, (one, other, similarity) in zip(hits, pairs, strict=True)]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        same = list(pool.map(lambda pair: pair[0] and _same_pixels(paths[pair[1][0]], paths[pair[1][1]]),
                             zip(maybe, pairs, strict=True)))
    found = [("same pixels" if is_same else "near duplicate", int(one), int(other), round(similarity, 3))
             for is_same, (one, other, similarity) in zip(same, pairs, strict=True)]
    return found + _plain_alike(paths, prints, earlier, later)


def _plain_alike(paths: Sequence[str], prints: np.ndarray, earlier: np.ndarray,
                 later: np.ndarray) -> list[Pair]:
    """The same pixels among images without contrast, which have no pattern to compare."""
    from util.data.leakage.near_duplicates import LEAST_CONTRAST

    # a width of 0: it could not be read
    plain = (prints["contrast"] < LEAST_CONTRAST) & (prints["width"] > 0)
    look = {row: (*prints[["width", "height"]][row].tolist(), prints["thumbnail"][row].tobytes())
            for row in [*earlier[plain[earlier]].tolist(), *later[plain[later]].tolist()]}
    known, pairs = {}, []
    for row in earlier[plain[earlier]].tolist():
        known.setdefault(look[row], []).append(row)
    for row in later[plain[later]].tolist():
        twins = (one for one in known.get(look[row], [])[:MOST_PLAIN] if _same_pixels(paths[one], paths[row]))
        twin = next(twins, None)
        pairs += [("same pixels", twin, row, 1.0)] if twin is not None else []
    return pairs


def _same_pixels(one: str, other: str) -> bool:
    try:
        return np.array_equal(ImageSource(one).part(), ImageSource(other).part())
    except ImageError:
        return False  # gone or changed since its fingerprint was made: similar is all that is known


# ---- the same patient --------------------------------------------------------------------------------------

def _patients(table: pd.DataFrame) -> list[dict]:
    known = table[table["patient"] != ""]
    counts = known.groupby(["patient", "split"], sort=False).size().unstack(fill_value=0)
    counts = counts[in_order(counts.columns)]
    of_test = [split for split in counts if is_test(split)]
    purposes = counts.drop(columns=of_test).assign(tests=counts[of_test].sum(axis=1))
    found = counts[(purposes > 0).sum(axis=1) > 1]
    return [{"kind": "same patient", "splits": [split for split, number in row.items() if number],
             "patient": str(patient),
             "counts": {split: int(number) for split, number in row.items() if number}, "similarity": None}
            for patient, row in zip(found.index, found.to_dict("records"), strict=True)]


def _eyes(table: pd.DataFrame) -> list[str]:
    """A note where names of images whose patient nobody told look like the two eyes of one."""
    unknown = table[table["patient"] == ""]
    number, first = pairs_across(list(unknown["path"]), unknown["split"].to_numpy())
    return [f"nobody told which patient, and {number:,} images look by their names as if the other eye were "
            f"in another split, such as {first[0]} and {first[1]}: name the patients (--patient_col, "
            "--patient_regex)"] if first else []


def name_patients(table: pd.DataFrame, expression: str,
                  must_match: bool = True) -> tuple[pd.DataFrame, list[str]]:
    """The table with the column `patient` read from the files' names, and lines about names that say none.

    expression: a regular expression with one group, searched in each file's name. Raises InputError where it
    is none, has another number of groups, or (with must_match) is found in no name.
    """
    patients, lines = csv_columns.names_in_paths(table["path"], expression, "patient", must_match)
    return table.assign(patient=patients), lines


# ---- what is said and kept ---------------------------------------------------------------------------------

def summary(found: dict) -> str:
    """The counts in a few words: 3 same bytes, 1 same patient; '' where nothing was found."""
    return ", ".join(f"{number:,} {PLURALS.get(kind, kind) if number > 1 else kind}"
                     for kind, number in found["counts"].items() if number)


def describe(found: dict, where: str = "") -> list[str]:
    """Lines for the terminal, at most six and one for each note: one where nothing was found. where: the file
    that lists everything."""
    parts = [f"{found['checked']:,} images, {found['seconds']:.1f} s"]
    if found["unreadable"]:
        parts.append(f"{len(found['unreadable']):,} more can't be read")
    if not found.get("patients", 1):  # what was written before says nothing of it
        parts.append("patients not known")
    if found["within splits"]:
        parts.append(f"{found['within splits']:,} copies within a split, which is no leakage")
    notes = [f"           note: {note}" for note in found["notes"]]
    if found["cannot see"].startswith("images were not"):
        notes.append(f"           note: {found['cannot see'].split('; ')[0]}")
    if not summary(found):
        return [f"leakage    none seen between the splits ({'; '.join(parts)})", *notes]
    lines = [f"leakage    warning: the splits share {summary(found)} ({'; '.join(parts)})"]
    lines += [f"           {first_of(found, kind)}" for kind in KINDS if found["counts"][kind]]
    lines.append("           figures of val and test will be too good: keep one of each pair, and each "
                 "patient in one split" + (f"; all are listed in {where}" if where else ""))
    return [*lines, *notes]


def first_of(found: dict, kind: str) -> str:
    """The first finding of a kind in one line."""
    finding = next(finding for finding in found["findings"] if finding["kind"] == kind)
    if kind == "same patient":
        return f"{kind}: {finding['patient']} in " + " and ".join(
            f"{split} ({number:,})" for split, number in finding["counts"].items())
    alike = f" (similarity {finding['similarity']:.2f})" if kind == "near duplicate" else ""
    return f"{kind}: {' = '.join(finding['paths'])}{alike}"


def refusal(found: dict, where: str = "") -> InputError:
    """What `--leakage stop` ends with."""
    kind = next(kind for kind in KINDS if found["counts"][kind])
    return InputError(f"--leakage stop: the splits share {summary(found)}; the first: "
                      f"{first_of(found, kind)}: keep one of each pair, and each patient in one "
                      "split" + (f" ({where} lists them)" if where else ""))


def write(found: dict, path: str | os.PathLike) -> None:
    """leakage.json, whole or not at all. OSError where it can't be written."""
    write_whole(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


# ---- on its own --------------------------------------------------------------------------------------------

def read_table(data: str, path_col: str = "path", split_col: str = "split",
               patient_col: str | None = None) -> tuple[pd.DataFrame, list[str]]:
    """A folder with at least two of train, val and test, or a CSV with paths and splits -> (the table, lines
    for the user). Raises InputError."""
    notes = []
    if os.path.isdir(data):
        there = set(map(plain, tables.split_folders(data)))
        table = tables.read_folder(data, in_order(there) or SPLITS).table
    else:
        cells, splits, notes = csv_columns.read_images_csv(data, path_col, split_col, patient_col, {})
        table, more = tables.csv_table(data, cells, splits, path_col, patient_col, [""] * len(cells))
        notes = notes + more
    if table["split"].nunique() < 2:
        raise InputError(f"{data}: only {table['split'].iloc[0]} is there, and leakage is between splits: "
                         "name two or more")
    return table, notes


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m util.leakage", description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder with train, val and test, a folder a class in each; or a CSV")
    for name in ("path_col", "split_col", "patient_col", "patient_regex"):
        FLAGS[name].in_program(FINETUNE).add_to(parser.add_argument)
    parser.add_argument("--leakage", choices=("warn", "stop"), default="warn",
                        help="stop: exit code 2 where anything is found")
    parser.add_argument("--json", default=None, metavar="FILE", help="write there everything that was found")
    parser.add_argument("--cache", default=None, metavar="FILE",
                        help="keep fingerprints there, for the next start")
    return parser


def main(argv: Iterable[str] | None = None) -> int:
    """Command line: see the module's docstring. Exit codes: 0 done, 2 wrong input, or findings with --leakage
    stop."""
    options = make_parser().parse_args(argv)
    if options.patient_col and options.patient_regex:
        raise InputError("--patient_col and --patient_regex both name the patients: pass one of them")
    table, lines = read_table(options.data, options.path_col, options.split_col, options.patient_col)
    if options.patient_regex:
        table, more = name_patients(table, options.patient_regex)
        lines = lines + more
    print(*lines, sep="\n", end="\n" if lines else "")
    from util.data.leakage.fingerprints import Fingerprints

    found = check(table, Fingerprints(options.cache), most_compared=None)
    if options.json:
        try:
            write(found, options.json)
        except OSError as error:
            raise InputError(f"--json {options.json}: can't be written ({error.strerror})") from error
    if summary(found) and options.leakage == "stop":
        raise refusal(found, options.json or "")
    print(*describe(found, options.json or ""), f"           cannot see: {found['cannot see']}", sep="\n")
    return 0
