"""What was found of image files before, kept in a file and told apart by path, size and time of change."""

import hashlib
import os

import numpy as np

from util.data.images.files import reason_of


class Remembered:
    """What was found of files before, kept in a file, so that a second start looks at new ones alone.

    A file is its absolute path, size and time of change (ns), of which 8 bytes of a hash are kept; entries are sorted by
    them. `note` says so (else it is "") when the file was not usable; it is then written anew.
    """

    dtype = np.dtype([("identity", "<u8")])  # and what a kind of memory adds
    again = ""  # what the next start does where it can't be kept

    def __init__(self, file):
        self.file, self.note = file, ""
        self._known, self._new = np.empty(0, self.dtype), []
        try:
            known = np.load(file, allow_pickle=False)
            if known.dtype != self.dtype or known.ndim != 1:
                raise ValueError("not a list of what is remembered of files")
            self._known = known
        except FileNotFoundError:
            pass  # the first start
        except (OSError, ValueError, EOFError, AttributeError) as error:  # AttributeError: np.load gave an archive
            self.note = f"{file} is not usable ({reason_of(error)}): {self.again}"

    def unknown(self, paths):
        """(N,) bool: which of `paths` nothing is remembered of, or have changed since."""
        return ~np.isin(identities(paths), self._known["identity"])

    def save(self):
        """Write the file, under another name first, then renamed; where that fails, `note` says so."""
        everything = np.concatenate([self._known, *self._new])
        self._known = everything[np.unique(everything["identity"], return_index=True)[1]]
        self._new = []
        partial = f"{self.file}.{os.getpid()}.partial"
        try:
            os.makedirs(os.path.dirname(self.file) or ".", exist_ok=True)
            with open(partial, "wb") as stream:
                np.save(stream, self._known)
            os.replace(partial, self.file)
        except OSError as error:
            self.note = f"{self.file} cannot be written ({reason_of(error)}): the next time {self.again}"
        finally:
            if os.path.exists(partial):
                os.remove(partial)

    def _entries(self, paths):
        """What is remembered of files -> (entries, (N,) bool: which of them are of these files; the others mean nothing)."""
        if not len(self._known):
            return np.zeros(len(paths), self.dtype), np.zeros(len(paths), bool)
        wanted = identities(paths)
        places = np.minimum(np.searchsorted(self._known["identity"], wanted), len(self._known) - 1)
        return self._known[places], self._known["identity"][places] == wanted


def identities(paths):
    """(N,) uint64: `file_identity` of each."""
    folder = os.getcwd()
    return np.fromiter((file_identity(os.path.join(folder, path)) for path in paths), np.uint64, len(paths))


def file_identity(path):
    """64-bit number of a file as it is now; 0, which is never remembered, when it cannot be looked at."""
    try:
        stat = os.stat(path)
    except OSError:
        return 0  # the check itself will name it with its reason
    text = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
