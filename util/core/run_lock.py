"""One run a folder: a lock that the system frees when the run's main process ends, however it ends.

It is a POSIX record lock (fcntl.lockf) and no flock: a flock belongs to the open file, which the loader's
forked processes share, so that after `kill -9` of the main process the folder would stay locked until the
last of them is gone. A record lock belongs to the process alone, and no child has it. In return it is lost
when its process closes the file anywhere: nobody but this room opens it. Over NFS both are the server's and
are seen by other machines.
"""

import contextlib
import errno
import fcntl
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TextIO

from util.core.disk import reason
from util.core.errors import InputError

NAME = ".run.lock"
# for a run that is ending: a launcher starts the next attempt while the last one's main process dies
PATIENCE_S = 15.0
_LOOK_EVERY_S = 0.2


def hold(folder: Path, say: Callable[[str], None], shared: bool = False) -> TextIO | None:
    """The lock of a run's folder: an open file, held until it is closed or the process ends. None, and a
    line, where the file system has no locks.

    shared: beside others that share it, as processes that search together do. InputError, after some seconds
    of waiting, where another run holds it.
    """
    path, deadline = folder / NAME, None
    while True:
        with contextlib.ExitStack() as closing:
            try:
                file = closing.enter_context(open(path, "a+", encoding="utf-8", errors="replace"))
                is_ours = try_lock(file, fcntl.lockf, shared)
            except OSError as error:
                say(f"warning: {folder} can't be locked ({reason(error)}): don't start another run of this "
                    "--task while this one runs")
                return None
            if is_ours and _is_there(file, path):
                _sign(file, path)
                closing.pop_all()  # held by the caller
                return file
            if is_ours:
                continue  # deleted between opening and locking: whoever comes next would lock another file
            file.seek(0)
            line = file.readline(200).strip()
            holder = f" ({line})" if line else ""
        if deadline is None:
            deadline = time.monotonic() + PATIENCE_S
            say(f"{folder} is in use by another run{holder}: waiting up to {PATIENCE_S:.0f} s for it to end")
        if time.monotonic() > deadline:
            raise InputError(f"{folder} is in use by another run{holder}: wait for it or stop it, or name "
                             "this one otherwise with --task (TASK=...)")
        time.sleep(_LOOK_EVERY_S)


def try_lock(file: TextIO | BinaryIO | int, lock: Callable[[TextIO | BinaryIO | int, int], None],
             shared: bool = False) -> bool:
    """Whether an open file could be locked; False where another process holds it, OSError where there are no
    locks.

    lock: fcntl.lockf, which belongs to this process alone, or fcntl.flock, which belongs to the open file and
    so to all children that have it.
    """
    try:
        lock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_there(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _sign(file: TextIO, path: Path) -> None:
    """Say in the file who holds it."""
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, begun "
                   f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
    except OSError as error:
        raise InputError(f"--output_dir: {path} can't be written ({reason(error)}); make room, or name "
                         "another folder") from error
