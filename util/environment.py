"""The Python environment behind util/env.sh: what an interpreter lacks, and a .venv made once.

    python util/environment.py unmet requirements.txt        what this interpreter lacks (exit code 1)
    python util/environment.py ready CLONE                   exit code 0 if it is CLONE's finished .venv
    python util/environment.py make CLONE                    makes or completes CLONE/.venv
    python util/environment.py target FOLDER requirements.txt
                                                             installs into FOLDER, for PYTHONPATH
    python util/environment.py fingerprint requirements.txt  what an installation depends on, hashed

Runs before anything is installed, so it needs the standard library alone and imports no other module. Exit
codes: 2 for what the user can fix, 1 for an installation that failed, 130 for Ctrl-C; each with one line.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

UNFINISHED = "unfinished"


class EnvironmentFault(Exception):
    """Why no environment could be made: the exit code and one line."""


def unmet(requirements: Path) -> list[str]:
    """What this interpreter lacks of a requirement file, as texts such as "timm>=1.0.23 (has 0.9.2)".

    Reads installed metadata only, so that the answer costs a fraction of a second (importing torch costs
    seconds).
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        # Without it huggingface_hub cannot be there either; pip's own copy names the rest that is missing.
        try:
            from pip._vendor.packaging.requirements import Requirement
        except ImportError:
            return ["packaging"]
    lines = Path(requirements).read_text(encoding="utf-8").splitlines()
    texts, lacking = [line.partition("#")[0].strip() for line in lines], []
    for needed in map(Requirement, filter(None, texts)):
        if needed.marker and not needed.marker.evaluate():
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            version = None
        if not version:
            lacking.append(needed.name)
        elif not needed.specifier.contains(version, prereleases=True):
            lacking.append(f"{needed.name}{needed.specifier} (has {version})")
    return lacking


def fingerprint(requirements: Path) -> str:
    """What an installation depends on: the requirement file and this Python's version."""
    return hashlib.sha256(Path(requirements).read_bytes() + sys.version.encode()).hexdigest()


def read_stamp(folder: Path) -> str | None:
    """How far an installation came: "unfinished", or the fingerprint that it reached; None where no stamp
    stands, that is, where somebody else made the folder."""
    path = Path(folder) / "stamp"
    return path.read_text().strip() if path.exists() else None


def write_stamp(folder: Path, text: str) -> None:
    """Written aside and renamed, so that a stamp is never half there."""
    part = Path(folder) / "stamp.part"
    part.write_text(text + "\n")
    part.replace(Path(folder) / "stamp")


def ready(clone: Path) -> bool:
    """Whether this interpreter, run from clone/.venv, satisfies requirements.txt and its installation was
    finished."""
    requirements = Path(clone) / "requirements.txt"
    return read_stamp(Path(clone) / ".venv") in (None, fingerprint(requirements)) and not unmet(requirements)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One maker at a time. The system frees the lock when its holder dies, so that none is ever left
    behind."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another start is installing here; waiting for it to finish")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            say("this file system has no locks: start nothing else here until the installation is done")
        yield


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def empty(folder: Path) -> None:
    """Removes what is in a folder but not the folder, which may be a link to a larger disk."""
    for child in Path(folder).iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def pip_install(python: Path | str, requirements: Path, *words: Path | str) -> None:
    """Runs pip on a requirement file (or on what `words` name), quietly where nobody watches. Raises
    EnvironmentFault where it fails; its own message stands above."""
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", *quiet, *words]
    # A `user = true` in pip's settings would install past the environment that is being made.
    if subprocess.run(command, env={**os.environ, "PIP_USER": "0"}, stdout=sys.stderr).returncode:
        raise EnvironmentFault(1, f"pip could not install {Path(requirements).name}: mend what it says "
                                  "above, then start again")


def make(clone: Path) -> None:
    """Makes clone/.venv, or completes it, with this interpreter.

    A .venv whose installation was cut is emptied first: a package can be half there and still be listed as
    installed.
    """
    venv, requirements = clone / ".venv", clone / "requirements.txt"
    python = venv / "bin" / "python"
    with locked(clone / ".venv.lock"):
        if python.exists() and subprocess.run([python, "-P", __file__, "ready", clone]).returncode == 0:
            return  # made by the launch that this one waited for
        venv.mkdir(exist_ok=True)
        stamp = read_stamp(venv)
        if stamp is None and any(venv.iterdir()):
            raise EnvironmentFault(2, f"{venv} was not made by this program: install requirements.txt into "
                                      "it, or move it away")
        if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise EnvironmentFault(2, f"{sys.executable} cannot make a .venv: its venv module is missing "
                                      f"(Debian, Ubuntu: apt install python{version}-venv)")
        say(f"installing requirements.txt into {venv}: some minutes, up to 6 GB")
        # the Python that it was made of may be gone
        starts = python.exists() and not subprocess.run([python, "-c", "import pip"],
                                                        stderr=subprocess.DEVNULL).returncode
        if stamp in (None, UNFINISHED) or not starts:
            empty(venv)
            write_stamp(venv, UNFINISHED)
            if subprocess.run([sys.executable, "-m", "venv", venv], stdout=sys.stderr).returncode:
                raise EnvironmentFault(1, f"{sys.executable} -m venv failed: mend what it says above, then "
                                          "start again")
        write_stamp(venv, UNFINISHED)
        pip_install(python, requirements, "-r", requirements)
        # Asked of the new interpreter: its version may differ from this one's where an older .venv was
        # completed.
        finished = subprocess.check_output([python, "-P", __file__, "fingerprint", requirements], text=True)
        write_stamp(venv, finished.strip())


def install_beside(folder: Path, requirements: Path) -> None:
    """Installs what this interpreter lacks of a requirement file into a folder of its own, which PYTHONPATH
    then names.

    pip itself would put every dependency there (a second torch, for peft), whatever the interpreter has: so
    it is asked first what it would add to the interpreter, and that alone is installed.
    """
    folder.mkdir(exist_ok=True)
    with locked(folder.with_name(folder.name + ".lock")):
        if read_stamp(folder) == fingerprint(requirements):
            return
        say(f"installing {requirements.name} into {folder}")
        empty(folder)
        report = folder / "report.json"
        pip_install(sys.executable, requirements, "--dry-run", "--report", report, "-r", requirements)
        packages = [entry["metadata"] for entry in json.loads(report.read_text(encoding="utf-8"))["install"]]
        report.unlink()
        exact = [f"{package['name']}=={package['version']}" for package in packages]
        if exact:
            pip_install(sys.executable, requirements, "--no-deps", "--target", folder, *exact)
        write_stamp(folder, fingerprint(requirements))


def main(arguments: list[str]) -> int:
    command, paths = arguments[0], [Path(path) for path in arguments[1:]]
    try:
        if command == "unmet":
            lacking = unmet(*paths)
            print(", ".join(lacking))
            return 1 if lacking else 0
        if command == "ready":
            return 0 if ready(*paths) else 1
        if command == "fingerprint":
            print(fingerprint(*paths))
        else:
            {"make": make, "target": install_beside}[command](*paths)
    except EnvironmentFault as fault:
        exit_code, line = fault.args
        say(line)
        return exit_code
    except OSError as error:
        say(f"the environment could not be made: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next start installs again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
