"""A small disk of its own for a test (tmpfs), that can be filled, made read-only and taken away."""

import os
import shutil
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

MIB, PAGE = 2**20, 4096


class SmallDisk:
    """`path` is where it is mounted."""

    def __init__(self, path: Path, mebibytes: int, stack: ExitStack):
        self.path, self._stack = path, stack
        self._mount(path, "-t", "tmpfs", "-o", f"size={mebibytes}m", "none")

    def _mount(self, path: Path, *words: str) -> None:
        path.mkdir(exist_ok=True)
        subprocess.run(["mount", *words, str(path)], check=True, capture_output=True)
        self._stack.callback(subprocess.run, ["umount", "-l", str(path)], capture_output=True)

    def fill(self, leave: int = 0) -> None:
        """Take all room but some bytes (what another process takes meanwhile it keeps)."""
        found = os.statvfs(self.path)
        with open(self.path / "ballast", "ab", buffering=0) as file, suppress(OSError):
            for _ in range((found.f_bavail * found.f_frsize - leave) // PAGE):
                file.write(bytes(PAGE))

    def make_read_only(self, folder: Path) -> None:
        """Mount a folder of it once more, above itself: a disk that files are open on can't be made read-only
        otherwise."""
        self._mount(folder, "--bind", str(folder))
        self._mount(folder, "-o", "remount,bind,ro")

    def cover(self, folder: Path) -> None:
        """Let another, empty disk stand in a folder's place, as where one is unmounted."""
        self._mount(folder, "-t", "tmpfs", "none")

    def mend(self, folder: Path) -> None:
        """Make room, or the folder writable, or bring it back."""
        with suppress(FileNotFoundError):
            (self.path / "ballast").unlink()
        if folder != self.path:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(mebibytes) -> SmallDisk. Left out where nothing may be mounted."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounts a small disk, which root alone may")
    stack = ExitStack()
    try:
        yield lambda mebibytes: SmallDisk(tmp_path / "disk", mebibytes, stack)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no small disk can be mounted here: {error.stderr.decode().strip()}")
    finally:
        stack.close()
