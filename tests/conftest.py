"""Small images and a small model for the tests that run the whole way."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import forks, undrawn

ROOT = Path(__file__).parent.parent
CLASSES = ("healthy", "mild", "severe")
SMALL = ["--model", "timm", "--model_arch", "test_vit", "--input_size", "32", "--nb_classes", "3",
         "--batch_size", "8",
         "--epochs", "2", "--lr", "1e-3", "--layer_decay", "1", "--num_workers", "0", "--aa", "none",
         "--reprob", "0",
         "--device", "cpu", "--precision", "fp32"]


# Whole programs, and what draws whole pages, calls models at full size or waits for a server.
LONG = ("end_to_end", "benchmarks", "scripts", "report/test_page.py", "report/test_page_gaps.py",
        "report/test_browser.py", "report/test_fonts.py", "report/test_labels_page.py", "weights/test_finding.py", "test_predict.py",
        "test_latent_feature.py", "report/test_regression_run.py")


def pytest_configure() -> None:
    """A shell starts what stands before `&` with Ctrl-C ignored, nohup with a hang-up ignored, and programs
    pass that on to theirs: tests that send these signals would then see them do nothing."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run whole programs are long, wherever they lie; others of some seconds are marked where they
    stand."""
    for item in items:
        path = item.path.relative_to(ROOT / "tests")
        if any(path.is_relative_to(place) for place in LONG) or "start" in item.fixturenames:
            item.add_marker("long")
    # first the files of long tests, so that no process is left alone with one at the end
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


def picture(rng: np.random.Generator, level: int, size: int = 40) -> Image.Image:
    """Noise whose share of bright dots tells the class."""
    grey = rng.integers(0, 90, (size, size, 3))
    dots = rng.random((size, size)) < 0.03 + 0.25 * level
    grey[dots] = (220, 200, 40 + 90 * level)
    return Image.fromarray(grey.astype(np.uint8))


def write_pictures(folder: Path, numbers=(14, 6, 8), classes=CLASSES) -> Path:
    """folder/{train,val,test}/<class>/NN.png, `numbers` of each class a split (a few more of the first)."""
    rng = np.random.default_rng(5)
    for split, number in zip(("train", "val", "test"), numbers, strict=True):
        for level, name in enumerate(classes):
            place = folder / split / name
            place.mkdir(parents=True)
            for count in range(number + (level == 0)):
                picture(rng, level).save(place / f"{count:02d}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(autouse=True)
def fonts_not_told(monkeypatch):
    """The line about a font that is not there comes once a process: here, once a test."""
    from util.report import fonts

    monkeypatch.setattr(fonts, "_told", [])


@pytest.fixture
def charts_are_not_drawn():
    """What looks at charts overrides it."""
    with pytest.MonkeyPatch.context() as patch:  # its own: tests undo theirs in the middle
        undrawn.install(patch.setattr)
        yield


@pytest.fixture
def start(tmp_path, monkeypatch, capsys, pictures, charts_are_not_drawn):
    """start(*words) runs main_finetune.py in this process, in an empty folder -> (exit code, stdout,
    stderr)."""
    import main_finetune
    from util.core.ending import exit_code_of

    monkeypatch.chdir(tmp_path)

    def run(*words, data=pictures, small=True):
        argv = [*(SMALL if small else []), *(["--data_path", str(data)] if data else []), *map(str, words)]
        capsys.readouterr()
        code = exit_code_of(main_finetune.main, argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def start_process(*words, folder: Path, processes: int = 1, timeout: float = 300,
                  program: str = "main_finetune.py",
                  real: bool = False, **environment):
    """Start a program in a process of its own, or in several that are ranks of one group -> CompletedProcess.

    real: as a user does, by Python itself, and under torchrun for several; else by a fork, which saves the
    imports.
    """
    words, found = (
        list(map(str, words)),
        os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    )
    environment = os.environ | {"PYTHONPATH": found, **environment}  # beside us: the tests' own packages
    if not real:
        return forks.run(ROOT / program, words, folder, environment, processes, timeout)
    command = [sys.executable, str(ROOT / program)]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   f"--nproc_per_node={processes}",
                   str(ROOT / program)]
    return subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True, timeout=timeout,
                          env=environment)


def not_installed(program: str) -> None:
    """Leave a test out for want of a program that is no part of the environment; where .ci/run was to install
    it, fail."""
    line = f"{program} is not installed here (.ci/run installs it: apt-get install {program.lower()})"
    pytest.fail(line) if os.environ.get("PROGRAMS_ARE_INSTALLED") else pytest.skip(line)


def needs_package(name: str):
    """A module that test.sh installs for the tests: without it a test is left out, but under .ci/run it
    fails."""
    return (
        importlib.import_module(name)
        if os.environ.get("PROGRAMS_ARE_INSTALLED")
        else pytest.importorskip(name)
    )


def weights_of(path: Path) -> dict:
    import torch

    return torch.load(path, weights_only=True)["model"]
