"""The fingerprints of many images, computed in threads and remembered in a file, so that a second start computes only new
ones. See util/data/leakage/near_duplicates.py for what they are."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tqdm import tqdm

from util.data.images.files import ImageError
from util.data.images.remembered import file_identity
from util.data.leakage.near_duplicates import FINGERPRINT, VERSION, fingerprint

GROUP = 32  # images a thread takes at a time
MOST_KEPT = 100_000  # fingerprints in the file, some 450 MB: beyond, those of other data sets are dropped
VALUE = f"fingerprint of version {VERSION}"  # the field's name: a file of another version is then of another type
ENTRY = np.dtype([("identity", "<u8"), (VALUE, FINGERPRINT)])


@dataclass
class Fingerprints:
    """One for each of N paths; `unreadable` images have one of zeros. `note`: why the file of known ones was of no use."""

    values: np.ndarray
    unreadable: dict[str, str] = field(default_factory=dict)
    note: str = ""


def compute(paths: Sequence[str], workers: int, known_file: str | os.PathLike | None = None,
            progress: bool = True) -> Fingerprints:
    """The fingerprints of `paths`, in `workers` threads (the decoders work outside the interpreter's lock).

    known_file: where they are kept by a file's path, size and time of change; it holds this call's afterwards, also when
    the call is interrupted. progress: a bar, if stderr is a terminal. Images that don't decode are counted, with reasons.
    """
    here = os.getcwd()
    identities = np.fromiter((file_identity(os.path.join(here, path)) for path in paths), np.uint64, len(paths))
    found = Fingerprints(np.zeros(len(paths), FINGERPRINT))
    known, found.note = _read(known_file) if known_file else (np.empty(0, ENTRY), "")
    done = _take(known, identities, found.values)
    todo = np.flatnonzero(~done)
    Image.init()  # plugins loaded once, here, and not by several threads at a time
    pool = ThreadPoolExecutor(max(1, workers))
    bar = tqdm(total=len(todo), desc="comparing images", disable=not (progress and sys.stderr.isatty()), leave=False)
    try:
        with bar:
            groups = [todo[start:start + GROUP] for start in range(0, len(todo), GROUP)]
            futures = {pool.submit(_of_group, [paths[place] for place in group]): group for group in groups}
            for future in as_completed(futures):
                for place, result in zip(futures[future], future.result(), strict=True):
                    if isinstance(result, str):
                        found.unreadable[paths[place]] = result
                    else:
                        found.values[place], done[place] = result, True
                bar.update(len(futures[future]))
    finally:
        pool.shutdown(cancel_futures=True)
        if known_file and len(todo):
            found.note = _write(known_file, known, identities, found.values, done) or found.note
    return found


def _of_group(paths: Sequence[str]) -> list[np.ndarray | str]:
    """A fingerprint, or why there is none: one a path."""
    results = []
    for path in paths:
        try:
            results.append(fingerprint(path))
        except ImageError as error:
            results.append(error.reason)
    return results


def _read(file: str | os.PathLike) -> tuple[np.ndarray, str]:
    """What the file holds, mapped, in order of identities; and a note where it is of no use."""
    try:
        known = np.load(f"{file}", mmap_mode="r", allow_pickle=False)
        if known.dtype != ENTRY or known.ndim != 1:
            raise ValueError("other fingerprints than this program's")
        return known, ""
    except FileNotFoundError:
        return np.empty(0, ENTRY), ""  # the first start
    except (OSError, ValueError, EOFError, AttributeError) as error:  # AttributeError: np.load gave an archive
        return np.empty(0, ENTRY), f"{file} is not usable ({' '.join(str(error).split())}): all images are compared anew"


def _take(known: np.ndarray, identities: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Fill in the values that are known -> (N,) bool, which those are."""
    if not len(known):
        return np.zeros(len(identities), bool)
    stored = np.array(known["identity"])
    places = np.minimum(np.searchsorted(stored, identities), len(stored) - 1)
    done = (stored[places] == identities) & (identities != 0)
    values[done] = known[VALUE][places[done]]
    return done


def _write(file, known: np.ndarray, identities: np.ndarray, values: np.ndarray, done: np.ndarray) -> str:
    """Write these and, as long as there is room, the earlier ones, under another name first; a note where that fails."""
    place = np.flatnonzero(done & (identities != 0))
    place = place[np.unique(identities[place], return_index=True)[1]]
    others = np.flatnonzero(~np.isin(known["identity"], identities[place]))[:max(0, MOST_KEPT - len(place))]
    order = np.argsort(np.concatenate([identities[place], known["identity"][others]]))
    entries = np.empty(len(order), ENTRY)
    entries["identity"] = np.concatenate([identities[place], known["identity"][others]])[order]
    entries[VALUE] = np.concatenate([values[place], known[VALUE][others]])[order]
    partial = f"{file}.{os.getpid()}.partial"
    try:
        os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
        with open(partial, "wb") as stream:
            np.save(stream, entries)
        os.replace(partial, file)
    except OSError as error:
        return f"{file} can't be written ({(error.strerror or str(error)).lower()}): the next start compares all images anew"
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return ""
