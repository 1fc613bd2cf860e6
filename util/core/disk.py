"""What a disk can do to a run: fill up, become read-only, go away. Each is said in one line, and nothing is
torn.

Every file of a run is written aside and renamed, or appended whole; whoever writes one does it inside
`writing`.
"""

import contextlib
import errno
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from util.core.errors import RunError

Named = TypeVar("Named", Path, str)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENXIO)
AGAIN = "start again with --resume auto"


def reason(error: OSError) -> str:
    """The system's words. numpy's short writes have none, and mean a full disk in the words of a count."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def remedy(error: OSError) -> str:
    """What to do about it, as the start of a sentence."""
    for numbers, words in (((*FULL, None), "make room"), (READ_ONLY, "make the folder writable"),
                           (GONE, "bring the folder back")):
        if error.errno in numbers:
            return words
    return "look after the disk"


@contextlib.contextmanager
def writing(path: Named, place: "Place | None" = None, again: str = AGAIN) -> Iterator[Named]:
    """Turns a disk that can't be written into a RunError of one line. place: the folder that has to be there
    still; again: how the run is resumed."""
    if place is not None:
        place.require(again)
    try:
        yield path
    except BrokenPipeError:
        raise  # of standard output, and no disk's: util/core/errors.py says so
    except OSError as error:
        if place is not None:
            place.require(again)  # a folder that is gone says so itself
        raise RunError(f"{path} can't be written ({reason(error)}): what was saved before stays; "
                       f"{remedy(error)} and {again}") from error


class Place:
    """A folder that is written to for hours. Held open, so that it can be told from another one of the same
    name: under a disk that was unmounted lies an empty folder, and a run that wrote on there would be in two
    halves."""

    def __init__(self, path: Path) -> None:
        """OSError where the folder can't be opened."""
        self.path = path
        self._folder = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._folder)

    def require(self, again: str = AGAIN) -> None:
        """RunError unless the folder is still the one that was opened."""
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._folder))
            problem = "" if same else "another folder stands in its place"
        except OSError as error:
            problem = reason(error)
        if problem:
            raise RunError(f"{self.path} is gone ({problem}): bring it back (was its disk unmounted?) and "
                           f"{again}")


def free_of(folder: Path) -> tuple[int, int | None]:
    """Bytes that may still be written to a folder's disk, and files that may be made there (None where the
    file system doesn't count them). A folder that is not there yet is judged by the nearest one above it.
    Quotas are not seen."""
    folder = Path(os.path.abspath(folder))
    while not os.path.isdir(folder) and folder != folder.parent:  # also of a name that none can have
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path`, whose file gets the name `path` at the end: a reader never sees half a
    file, and where writing fails what stood there before stays. A killed process leaves .NAME.PID.tmp
    behind."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # on a disk that is gone; the first error is the one to tell
            temporary.unlink(missing_ok=True)


def append_whole(path: Path, content: bytes) -> None:
    """Add to a file, down to the disk, all or nothing: where the disk is full the file is as long as before.
    OSError."""
    with open(path, "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            left = memoryview(content)
            while left:
                left = left[file.write(left):]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.ftruncate(file.fileno(), before)
            raise
