"""A copy of the clone in a temporary folder: what test_env.py and test_launch.py start their shells in."""

import shutil
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[1]

# The shells of this machine: Debian's sh is dash, macOS's is bash, small containers have busybox.
SHELLS = [["sh"]]
SHELLS += [[name, *rest] for name, *rest in (["dash"], ["bash", "--posix"], ["busybox", "sh"])
           if shutil.which(name)]
in_every_shell = pytest.mark.parametrize("shell", SHELLS, ids=" ".join)


def copy_scripts(tmp_path):
    """The scripts of the clone, under a path with spaces, quotes, a dollar sign and non-ASCII letters."""
    folder = tmp_path / "眼底 Köln's $HOME"
    (folder / "util").mkdir(parents=True)
    for name in ("train.sh", "eval.sh", "search.sh", "util/env.sh", "util/environment.py", "util/launch.sh"):
        shutil.copy(CLONE / name, folder / name)
    needs = ["# a comment", "numpy>=1  # which the tests' Python has", "none-such ; python_version < '3'"]
    (folder / "requirements.txt").write_text("\n".join(needs) + "\n")
    return folder


def executable(path, text):
    """Writes a shell script and returns its path."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def refused(finished, exit_code=2):
    """The one line of a start that ended with `exit_code` and printed nothing else."""
    lines = finished.stderr.splitlines()
    assert (finished.returncode, finished.stdout, len(lines)) == (exit_code, "", 1), (finished.stdout, lines)
    return lines[0]
