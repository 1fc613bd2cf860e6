"""util/env.sh and util/environment.py in copies of the clone, without any download."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile

import numpy
import pytest

from tests.clone import CLONE, copy_scripts, executable, in_every_shell, refused

STARTED = "started with "


@pytest.fixture
def clone(tmp_path):
    """The scripts, and one more that does nothing but prepare Python."""
    folder = copy_scripts(tmp_path)
    (folder / "start.sh").write_text(f'set -eu\n. "$ROOT/util/env.sh"\nprintf "{STARTED}%s\\n" "$PYTHON"\n')
    return folder


@pytest.fixture
def bin_folder(tmp_path):
    """The only folder on PATH: its python3 is the one that runs the tests."""
    executable(tmp_path / "bin" / "python3", f'exec "{sys.executable}" "$@"\n')
    return tmp_path / "bin"


def environment(clone, bin_folder, **more):
    """Variables of a start: nothing of this machine but the shell's own commands, and no network for pip."""
    variables = {"ROOT": str(clone), "PATH": str(bin_folder), "HOME": str(clone), "PIP_NO_INDEX": "1"}
    # pip splits this list of folders at spaces
    variables |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(clone.with_name("wheels"))}
    return variables | {name: str(value) for name, value in more.items()}


def start(clone, bin_folder, shell=("sh",), **more):
    command = [shutil.which(shell[0]), *shell[1:], str(clone / "start.sh")]
    return subprocess.run(command, env=environment(clone, bin_folder, **more), capture_output=True, text=True)


def add_wheel(clone, version, needs=""):
    """Puts the smallest package that pip installs where pip looks for it."""
    folder = clone.with_name("wheels")
    folder.mkdir(exist_ok=True)
    info = f"tiny_retina-{version}.dist-info"
    tag = "Root-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"tiny_retina-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_retina.py", f"version = '{version}'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-retina\nVersion: "
                                           f"{version}\n{needs}")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\n{tag}")
        wheel.writestr(f"{info}/RECORD", "")


# ---- which Python ----


@in_every_shell
def test_the_active_python_is_used_where_it_satisfies(clone, bin_folder, shell):
    finished = start(clone, bin_folder, shell)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, f"{STARTED}python3\n", "")
    assert not (clone / ".venv").exists()


def test_python_is_taken_where_there_is_no_python3(clone, bin_folder):
    (bin_folder / "python3").rename(bin_folder / "python")
    assert start(clone, bin_folder).stdout == f"{STARTED}python\n"


@in_every_shell
def test_a_python_too_old_is_one_line(clone, bin_folder, shell):
    pretend = f"""[ "$1" = --version ] && echo Python 3.9.18 && exit
code=$2; shift 2
exec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 18)
$code" "$@"
"""
    executable(bin_folder / "python3", pretend)
    line = refused(start(clone, bin_folder, shell))
    assert "3.11" in line and "Python 3.9.18" in line and "PYTHON=" in line


def test_no_python_is_one_line(clone, bin_folder):
    (bin_folder / "python3").unlink()
    assert "no python3" in refused(start(clone, bin_folder))


def test_a_newer_python_beside_an_old_one_is_found(clone, bin_folder):
    (bin_folder / "python3").rename(bin_folder / "python3.12")
    executable(bin_folder / "python3", "exit 1\n")
    assert start(clone, bin_folder).stdout == f"{STARTED}python3.12\n"


@in_every_shell
def test_a_named_python_is_used_or_refused(clone, bin_folder, shell, tmp_path):
    named = executable(tmp_path / "named" / "py thon", f'exec "{sys.executable}" "$@"\n')
    assert start(clone, bin_folder, shell, PYTHON=named).stdout == f"{STARTED}{named}\n"
    (clone / "requirements.txt").write_text("numpy>=999\nnone-such>=2\n")
    line = refused(start(clone, bin_folder, shell, PYTHON=named))
    assert f"numpy>=999 (has {numpy.__version__}), none-such" in line
    assert "nothing/here" in refused(start(clone, bin_folder, shell, PYTHON="nothing/here"))
    assert not (clone / ".venv").exists()


# ---- a .venv made here ----


def test_the_venv_from_a_cut_start_to_the_last(clone, bin_folder):
    """One story, since a .venv costs seconds: two starts complete a cut one, a later one finds it, needs
    change."""
    requirements, venv = clone / "requirements.txt", clone / ".venv"
    python = venv / "bin" / "python"
    requirements.write_text("tiny-retina>=1\n")
    add_wheel(clone, "1.0")
    # A cut installation can leave packages that are half there: nothing of it may survive.
    (venv / "lib").mkdir(parents=True)
    (venv / "lib" / "half.py").touch()
    (venv / "stamp").write_text("unfinished\n")
    command = [shutil.which("sh"), str(clone / "start.sh")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    two = [subprocess.Popen(command, env=environment(clone, bin_folder), **pipes) for _ in range(2)]
    printed = [process.communicate() for process in two]
    assert [process.returncode for process in two] == [0, 0], printed
    assert [out for out, _ in printed] == [f"{STARTED}{python}\n"] * 2
    assert all("python3 lacks tiny-retina" in err for _, err in printed)
    assert sum("installing requirements.txt" in err for _, err in printed) == 1
    assert sum("waiting" in err for _, err in printed) == 1
    assert not (venv / "lib" / "half.py").exists()
    version = [python, "-c", "import tiny_retina; print(tiny_retina.version)"]
    assert subprocess.check_output(version, text=True) == "1.0\n"

    # The next start installs nothing: it works where pip cannot start, and without the Python that made the
    # .venv.
    packages = next((venv / "lib").glob("python*/site-packages"))
    (packages / "pip" / "__main__.py").rename(packages / "away")
    (bin_folder / "python3").rename(bin_folder / "hidden")
    again = start(clone, bin_folder)
    assert (again.returncode, again.stdout, again.stderr) == (
        0,
        f"{STARTED}{python}\n",
        f"Python: {python}\n",
    )
    (bin_folder / "hidden").rename(bin_folder / "python3")
    (packages / "away").rename(packages / "pip" / "__main__.py")

    # Another requirement is added to what stands there.
    requirements.write_text("tiny-retina>=2\n")
    add_wheel(clone, "2.0")
    (packages / "kept.py").touch()
    raised = start(clone, bin_folder)
    assert (raised.returncode, (packages / "kept.py").exists()) == (0, True), raised.stderr
    assert subprocess.check_output(version, text=True) == "2.0\n"

    # pip fails: one line says so under pip's own, and the .venv is not taken for a good one.
    requirements.write_text("tiny-retina>=3\n")
    failed = start(clone, bin_folder)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "pip could not install requirements.txt" in failed.stderr.splitlines()[-1]
    assert (venv / "stamp").read_text() == "unfinished\n"


def test_a_cut_installation_is_not_ready(clone):
    """Even where the metadata of all packages is there already."""
    tool = [sys.executable, "-P", clone / "util" / "environment.py", "ready", clone]
    (clone / ".venv").mkdir()
    assert subprocess.run(tool).returncode == 0
    (clone / ".venv" / "stamp").write_text("unfinished\n")
    assert subprocess.run(tool).returncode == 1


def test_somebody_elses_venv_is_left_alone(clone, bin_folder):
    (clone / "requirements.txt").write_text("none-such\n")
    (clone / ".venv").mkdir()
    (clone / ".venv" / "mine").touch()
    finished = start(clone, bin_folder)
    assert finished.returncode == 2
    assert "was not made by this program" in finished.stderr.splitlines()[-1]
    assert [child.name for child in (clone / ".venv").iterdir()] == ["mine"]


def test_a_missing_venv_module_names_the_package(clone, bin_folder, tmp_path):
    """Debian's python3 without python3-venv: ensurepip is not there."""
    (clone / "requirements.txt").write_text("none-such\n")
    site = tmp_path / "site"
    site.mkdir()
    hide = ["import importlib.util as util", "find = util.find_spec"]
    hide += ["util.find_spec = lambda name: None if name == 'ensurepip' else find(name)"]
    (site / "sitecustomize.py").write_text("\n".join(hide))
    finished = start(clone, bin_folder, PYTHONPATH=site)
    assert finished.returncode == 2
    assert f"apt install python3.{sys.version_info.minor}-venv" in finished.stderr.splitlines()[-1]


def test_packages_beside_leave_the_interpreter_alone(clone, bin_folder):
    """What test.sh does where pytest is missing: a folder for PYTHONPATH, made once."""
    add_wheel(clone, "1.0")
    needs = clone / "needs.txt"
    needs.write_text("tiny-retina\n")
    target = clone / ".test-packages"
    tool = [sys.executable, "-P", clone / "util" / "environment.py"]
    variables = environment(clone, bin_folder)
    for _ in range(2):
        subprocess.run([*tool, "target", target, needs], env=variables, check=True, capture_output=True)
        # the second call finds the stamp and needs no wheel
        shutil.rmtree(clone.with_name("wheels"), ignore_errors=True)
    alone = subprocess.run([*tool, "unmet", needs], env=variables, capture_output=True, text=True)
    assert (alone.returncode, alone.stdout) == (1, "tiny-retina\n")
    beside = subprocess.run([*tool, "unmet", needs], env=variables | {"PYTHONPATH": str(target)},
                            capture_output=True)
    assert beside.returncode == 0


def test_packages_beside_bring_no_second_copy_of_what_the_interpreter_has(clone, bin_folder):
    """peft needs torch: pip's --target alone would fetch it again. Here numpy, which is in no folder that pip
    may look into."""
    add_wheel(clone, "1.0", needs="Requires-Dist: numpy>=1.26\n")
    needs = clone / "needs.txt"
    needs.write_text("tiny-retina\n")
    tool = [sys.executable, "-P", clone / "util" / "environment.py"]
    done = subprocess.run([*tool, "target", clone / ".test-packages", needs],
                          env=environment(clone, bin_folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (clone / ".test-packages").iterdir()
                  if path.name != "__pycache__") == [
        "stamp", "tiny_retina-1.0.dist-info", "tiny_retina.py"]


def test_todays_releases_satisfy_the_requirements():
    """The interpreter that runs the tests has them; every line can be read, and none is pinned."""
    finished = subprocess.run(
        [sys.executable, "-P", CLONE / "util" / "environment.py", "unmet", CLONE / "requirements.txt"],
        capture_output=True,
        text=True,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "\n", "")
    assert "==" not in (CLONE / "requirements.txt").read_text()


def test_the_licence_is_the_official_text():
    text = (CLONE / "LICENSE").read_bytes()
    assert hashlib.md5(text).hexdigest() == "3b83ef96387f14655fc854ddc3c6bd57"
