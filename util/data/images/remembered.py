"""What was found of image files before, kept in a file and told apart by path, size and time of change."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from util.core.disk import replacing
from util.data.images.files import ImageFile, reason_of


class Remembered(ABC):
    """What was found of files before, kept in a file, so that a second launch looks at new ones alone.

    A file is its absolute path, size and time of change (ns), of which 8 bytes of a hash are kept; entries
    are sorted by them. `note` says so (else it is "") when the file was not usable; it is then written anew.
    A `Reader` (util/data/images/reading_pass.py): a kind of memory says by `look` what it keeps of a file.
    """

    dtype = np.dtype([("identity", "<u8")])  # and what a kind of memory adds
    again = ""  # what the next launch does where it can't be kept
    mapped = False  # read from the disk where it is needed: large, and of one process alone
    # entries in the file; beyond, those that no call of this process asked for are dropped
    most: int | None = None

    def __init__(self, file: str | os.PathLike | None) -> None:
        """file: None keeps it in this process alone."""
        self.file, self.note = file, ""
        self._known, self._new, self._asked = np.empty(0, self.dtype), [], []
        if file is None:
            return
        try:
            known = np.load(os.fspath(file), mmap_mode="r" if self.mapped else None, allow_pickle=False)
            if known.dtype != self.dtype or known.ndim != 1:
                raise ValueError("not a list of what is remembered of files")
            self._known = known
        except FileNotFoundError:
            pass  # the first launch
        except (OSError, ValueError, EOFError, AttributeError) as error:  # the last one: it was an archive
            self.note = f"{file} is not usable ({reason_of(error)}): {self.again}"

    @abstractmethod
    def look(self, file: ImageFile) -> tuple:
        """The entry's fields behind the identity. Raises ImageError."""

    def lacks(self, paths: Sequence[str]) -> np.ndarray:
        """(N,) bool: which of `paths` nothing is remembered of, or have changed since."""
        wanted = identities(paths)
        self._asked.append(wanted)
        return ~np.isin(wanted, self._known["identity"])

    def take(self, paths: Sequence[str], found: Sequence[tuple]) -> None:
        """Remember what `look` found; `save` makes it last."""
        entries = [(identity, *one) for identity, one in zip(identities(paths), found, strict=True)
                   if identity]
        self._new.append(np.array(entries, self.dtype))

    def save(self) -> None:
        """Write the file, under another name first, then renamed; where that fails, `note` says so."""
        if not self._new and not self.note:
            return
        everything = np.concatenate([self._known, *self._new])
        everything = everything[np.unique(everything["identity"], return_index=True)[1]]
        if self.most is not None and len(everything) > self.most:
            others = np.flatnonzero(~np.isin(everything["identity"], np.concatenate(self._asked)))
            everything = np.delete(everything, others[max(0, self.most - (len(everything) - len(others))):])
        self._known, self._new = everything, []
        if self.file is None:
            return
        try:
            os.makedirs(os.path.dirname(self.file) or ".", exist_ok=True)
            with replacing(self.file) as partial, open(partial, "wb") as stream:
                np.save(stream, self._known)
        except OSError as error:
            self.note = f"{self.file} cannot be written ({reason_of(error)}): the next time {self.again}"

    def _entries(self, paths: Sequence[str | os.PathLike]) -> tuple[np.ndarray, np.ndarray]:
        """What is remembered of files -> (entries, (N,) bool: which of them are of these files; the others
        mean nothing)."""
        return entries_of(self._known, identities(paths))


def entries_of(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries in the order of their identities, and the identities of N files -> as `Remembered._entries`."""
    if not len(known):
        return np.zeros(len(wanted), known.dtype), np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(known["identity"], wanted), len(known) - 1)
    return known[places], known["identity"][places] == wanted


def identities(paths: Sequence[str | os.PathLike]) -> np.ndarray:
    """(N,) uint64 numbers of files as they are now."""
    folder = os.getcwd()
    return np.frombuffer(b"".join(file_identity(os.path.join(folder, path), 8) for path in paths), "<u8")


def file_identity(path: str, size: int) -> bytes:
    """A number of `size` bytes of a file as it is now; 0, which is never remembered, when it cannot be looked
    at."""
    try:
        stat = os.stat(path)
    except OSError:
        return bytes(size)  # the check itself will name it with its reason
    text = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=size).digest()
