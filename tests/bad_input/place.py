"""Where a case happens: an empty folder of its own, and what all cases share (images, checkpoints), made
once."""

import contextlib
import io
import os
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.conftest import picture, start_process
from util.core.ending import exit_code_of

MODEL = ["--model", "timm", "--model_arch", "test_vit", "--input_size", 32]
MACHINE = ["--num_workers", 0, "--device", "cpu", "--precision", "fp32"]
TRAINING = [*MODEL, *MACHINE, "--batch_size", 8, "--epochs", 1, "--lr", "1e-3", "--aa", "none"]
CLASSES = ("dry", "wet")
EACH = {"train": 3, "val": 2, "test": 2}  # images of a class
SECONDS = 60  # a case that takes longer hangs


class Hang(BaseException):
    """No Exception, so that no program takes it for its own."""


def _main(program: str):
    import compare
    import latent_feature
    import main_finetune
    import main_regression
    import predict
    from jobs import (
        search,  # noqa: F401  (now: a user without rights may not read them later)
    )
    from util.data.public import prepare

    rooms = {
        "main_finetune.py": main_finetune,
        "main_regression.py": main_regression,
        "predict.py": predict,
        "latent_feature.py": latent_feature,
        "compare.py": compare,
        "util.prepare": prepare,
    }
    return rooms[program].main


@dataclass
class Ended:
    """How a start ended."""

    code: int
    out: str
    err: str


def started(program: str, words, environment: dict[str, str] | None = None) -> Ended:
    """The program in this process, in the folder that we stand in; Hang after SECONDS."""

    def ring(*_):
        raise Hang(f"{program} {' '.join(map(str, words))}: no end after {SECONDS} s")

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before = {name: os.environ.get(name) for name in environment or {}}
    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    os.environ.update(environment or {})
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = exit_code_of(_main(program), list(map(str, words)))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    return Ended(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def started_for_real(program: str, words, folder: Path, environment: dict[str, str] | None = None) -> Ended:
    """The program in a process of its own."""
    run = start_process(*words, folder=folder, program=program, timeout=3 * SECONDS, real=True,
                        **(environment or {}))
    return Ended(run.returncode, run.stdout, run.stderr)


class Kit:
    """What the cases share: nobody changes it."""

    def __init__(self, folder: Path):
        self.folder = folder
        rng = np.random.default_rng(3)
        for split, number in EACH.items():
            for level, name in enumerate(CLASSES):
                place = folder / "data" / split / name
                place.mkdir(parents=True)
                for count in range(number):
                    picture(rng, 2 * level, 24).save(place / f"{count}.png")
        self.data = folder / "data"
        rows = [
            (path.relative_to(folder), path.parent.name, path.parent.parent.name)
            for split in EACH
            for path in sorted(self.data.glob(f"{split}/*/*.png"))
        ]
        self.rows = [[str(path), label, split, f"{number * 0.5:g}"]
                     for number, (path, label, split) in enumerate(rows)]
        here = os.getcwd()
        os.chdir(folder)
        try:
            self._train("main_finetune.py", "--data_path", self.data, "--task", "kit")
            self.csv = self.write_csv(folder / "all.csv")
            self._train(
                "main_regression.py",
                "--csv_file",
                self.csv,
                "--targets",
                "depth",
                "--finetune",
                "",
                "--task",
                "numbers",
                "--head_depth",
                1,
            )
        finally:
            os.chdir(here)
        self.best, self.last = (folder / "output_dir/kit" / f"checkpoint-{which}.pth"
                                for which in ("best", "last"))
        self.numbers, self.numbers_last = (
            folder / "output_dir/numbers" / f"checkpoint-{which}.pth" for which in ("best", "last")
        )

    def _train(self, program: str, *words) -> None:
        ended = started(program, [*TRAINING, *words])
        assert ended.code == 0, ended

    def write_csv(self, file: Path, encoding="utf-8", separator=",", end="\n",
                  header=("path", "label", "split", "depth")):
        """The kit's images as a CSV in the kit's folder's terms; absolute paths."""
        lines = [separator.join(header),
                 *(separator.join([str(self.folder / row[0]), *row[1:]]) for row in self.rows)]
        file.write_bytes((end.join(lines) + end).encode(encoding))
        return file


@dataclass
class Place:
    """The folder of one case; `pictures` and `skipped` are what its outcome is held to."""

    folder: Path
    kit: Kit
    # rows that must be predicted, or the files that the start's counts must add up to
    pictures: int | None = None
    skipped: list[str] = field(default_factory=list)  # ends of the paths that must be listed
    marks: list[Path] = field(default_factory=list)  # files that must not come to be
    as_nobody: bool = False  # start as a user that owns nothing

    def data(self) -> Path:
        """A copy of the kit's folder of train, val and test."""
        shutil.copytree(self.kit.data, self.folder / "data")
        return self.folder / "data"

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
        )
        return path

    def some_pictures(self, name="pictures") -> Path:
        """A folder with three good images."""
        place = self.folder / name
        place.mkdir()
        for path in (
            sorted((self.kit.data / "test/dry").iterdir())
            + sorted((self.kit.data / "test/wet").iterdir())[:1]
        ):
            shutil.copy(path, place / f"{path.parent.name}{path.name}")
        return place

    def mark(self) -> Path:
        """A file that hostile content would leave."""
        self.marks.append(self.folder / f"MARK{len(self.marks)}")
        return self.marks[-1]


def train(place: Place, *words) -> list:
    """main_finetune.py on a folder up to the point where training would begin."""
    return [*TRAINING, "--dry_run", *words]


def predicting(place: Place, source, *words, checkpoint=None) -> list:
    return ["--resume", checkpoint or place.kit.best, "--input", source, "--output", place.folder / "out.csv",
            *MACHINE, *words]
