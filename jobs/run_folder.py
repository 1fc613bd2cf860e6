"""The folder of a run: what is written where, so that each epoch stands there once.

output_dir/TASK/  checkpoint-best.pth checkpoint-last.pth log.txt metrics_val.csv metrics_test.csv
                  metrics_*.json predictions_*.csv confusion_matrix_*.png learning_curves.png run.json
                  checkpoint-adapter.pth adapter/ (--adaptation lora)
log_dir/TASK/     TensorBoard
"""

import contextlib
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from util.core import disk, run_lock, tensorboard
from util.core.errors import InputError
from util.core.run_files import (
    append_metrics_row,
    cut_log_after,
    cut_rows_after,
    has_columns,
    read_log,
    read_metrics_json,
    read_object,
    write_metrics_json,
    write_predictions,
    write_whole,
)
from util.data.splits import is_test
from util.metrics.predictions import Evaluated
from util.report.charts import save_png
from util.report.learning_curves import learning_curves
from util.weights.fitting import WeightFile

OURS = ("checkpoint-*.pth", "checkpoint-*.shards", "log.txt", "metrics_*.csv", "metrics_*.json",
        "predictions_*.csv", "images_*.csv", "drop_*.csv", "recalibration_*.json", "groups_*.csv",
        "gaps_*.csv", "confusion_matrix_*.png", "agreement_*.png", "roc_*.png",
        "precision_recall_*.png", "reliability_*.png", "scores_*.png", "report.html", "probe_*.csv",
        "learning_curves.png", "run.json", "adapter", "skipped_images.earlier.csv", "leakage.earlier.json",
        "fundus_crop.earlier.csv", "fundus_crop.earlier.png")


class RunFolder:
    """The files of one run. Only the main process writes; reading is for all.

    columns: of the metrics files; curves: the metrics of val that are drawn (the others stand in log.txt);
    again: how a run is resumed that the disk has stopped.
    """

    def __init__(self, output_dir: str, log_dir: str, task: str, columns: tuple[str, ...] = (),
                 curves: tuple[str, ...] = ()) -> None:
        self.columns, self.curves = columns, curves
        self.path = Path(output_dir) / task if task else Path(output_dir)
        self.tensorboard_path = Path(log_dir) / task if task else Path(log_dir)
        self.again = disk.AGAIN
        self._scalars = self._lock = None
        self._places: dict[Path, disk.Place] = {}

    def file(self, name: str) -> Path:
        return self.path / name

    def file_to_write(self, name: str) -> Path:
        """The same. RunError where the folder is gone: a file must not come to lie in another one of its
        name."""
        if self.path in self._places:
            self._places[self.path].require(self.again)
        return self.file(name)

    def hold(self, say: Callable[[str], None], shared: bool = False) -> None:
        """Lock the folder, if it is there, until `close` (main process): see util/core/run_lock.py.
        InputError where another run holds it."""
        try:
            is_there = self.path.is_dir()
        except OSError as error:  # a name that no folder can have
            raise InputError(f"--output_dir: {self.path} can't be written ({error.strerror}); name another "
                             "folder") from error
        if self._lock is None and is_there:
            self._lock = run_lock.hold(self.path, say, shared)

    def make(self) -> None:
        """InputError where the folder, or TensorBoard's, can't be made or written."""
        for flag, folder in (("--output_dir", self.path), ("--log_dir", self.tensorboard_path)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe = folder / f".writable.{platform.node()}.{os.getpid()}"
                probe.touch()
                probe.unlink(missing_ok=True)
                self._places[folder] = disk.Place(folder)
            except OSError as error:
                raise InputError(f"{flag}: {folder} can't be written ({error.strerror}); name another "
                                 "folder") from error

    def new_file(self, name: str) -> Path:
        """Where this launch writes what it finds before it puts an earlier run aside; an earlier launch's
        file gets another name."""
        with self.writing(self.file(name)) as path:
            if path.exists():
                path.replace(path.with_name(f"{path.stem}.earlier{path.suffix}"))
        return path

    def holds(self, file: WeightFile | None) -> bool:
        """Whether a checkpoint is this run's own, so that the run goes on in its folder."""
        return file is not None and file.path.parent.resolve() == self.path.resolve()

    def put_aside(self) -> list[str]:
        """Move an earlier run's files to earlier-N, so that a new run of the same task loses nothing; lines
        for the user."""
        found = [path for pattern in OURS for path in sorted(self.path.glob(pattern))]
        if not found:
            return []
        number = 1 + max((int(path.name[8:]) for path in self.path.glob("earlier-*")
                          if path.name[8:].isdigit()), default=0)
        aside = self.path / f"earlier-{number}"
        with self.writing(aside):
            aside.mkdir()
            for path in found:
                path.rename(aside / path.name)
        events = sorted(self.tensorboard_path.glob("events.out.tfevents.*"))
        if events:
            with self.writing(self.tensorboard_path / aside.name) as scalars_aside:
                scalars_aside.mkdir(exist_ok=True)
                for path in events:
                    path.rename(scalars_aside / path.name)
        return [f"{self.path} held an earlier run: it now stands in {aside} (--resume auto would have gone "
                "on with it)"]

    def adopt(self, other: Path) -> None:
        """Take over the run in another folder, whose checkpoint this one resumes: its best epoch and its
        rows."""
        if other.resolve() == self.path.resolve():
            return
        self.put_aside()
        for name in ("checkpoint-best.pth", "checkpoint-adapter.pth", "log.txt", "metrics_val.csv",
                     "metrics_val.json", "predictions_val.csv"):
            if (other / name).exists():
                with self.writing(self.file(name)):
                    shutil.copyfile(other / name, self.file(name))

    def cut_after(self, epoch: int) -> None:
        """Drop what a cut run wrote past its checkpoint of `epoch`."""
        self._scalars = tensorboard.ScalarFile(self.tensorboard_path, purge_step=epoch + 1)
        with self.writing():
            cut_log_after(self.file("log.txt"), epoch)
            cut_rows_after(self.file("metrics_val.csv"), epoch, self.columns)

    def is_scored(self, epoch: int | None, test_sets: Sequence[str]) -> bool:
        """Whether metrics_test.csv, and that of each further test set, holds the test of this epoch's
        weights, and all that comes after it was written, too."""
        if epoch is None or not self.file("report.html").exists():
            return False

        def holds(split: str) -> bool:
            path = self.file(f"metrics_{split}.csv")
            return self.file(f"metrics_{split}.json").exists() and path.exists() and any(
                line.split(",")[0] == str(epoch)
                for line in path.read_text(encoding="utf-8").splitlines()[1:])
        return all(map(holds, test_sets))

    def put_foreign_tables_aside(self) -> list[str]:
        """Rename metrics files with other columns (the original scripts'), so that rows can be appended;
        lines for the user."""
        lines = []
        for path in sorted(self.path.glob("metrics_*.csv")):
            if not has_columns(path, self.columns):
                number = sum(1 for _ in self.path.glob(f"{path.stem}.before*.csv"))
                other = path.with_name(f"{path.stem}.before{number or ''}.csv")
                with self.writing(path):
                    path.replace(other)
                lines.append(f"{path} has other columns: it is now {other.name}")
        return lines

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        self._scalars = self._scalars or tensorboard.ScalarFile(self.tensorboard_path)
        with self.writing(self.tensorboard_path):
            self._scalars.add(values, step)

    def close(self) -> None:
        """Let go of the folder: another run may begin in it."""
        if self._lock is not None:
            self._lock.close()
        for place in self._places.values():
            place.close()
        self._scalars = self._lock = None
        self._places = {}

    def add_log(self, *rows: dict) -> None:
        """One JSON object an epoch, flushed to the disk."""
        lines = [json.dumps({key: None if isinstance(value, float) and math.isnan(value) else value
                             for key, value in row.items()}) + "\n" for row in rows]
        with self.writing(self.file("log.txt")) as path:
            disk.append_whole(path, "".join(lines).encode())

    def log_rows(self) -> list[dict]:
        return read_log(self.file("log.txt"))[0]

    def add_evaluation(self, split: str, predictions: Evaluated | None, figures: dict[str, float],
                       epoch: int | None, entries: dict[str, dict] | None = None,
                       rest: Callable[[float], object] | None = None) -> None:
        """One row of metrics_SPLIT.csv; with predictions those, too, and the metrics with their intervals
        (`entries`). rest: see write_predictions."""
        with self.writing(self.path):
            if is_test(split) and epoch is not None:
                # it is written last: there again, all of this is whole
                self.file("report.html").unlink(missing_ok=True)
            if predictions is not None:
                if predictions.images is not None:
                    write_predictions(predictions.images(), self.file(f"images_{split}.csv"), rest)
                write_predictions(predictions.table, self.file(f"predictions_{split}.csv"), rest)
                write_metrics_json(self.file(f"metrics_{split}.json"), entries or figures)
            append_metrics_row(self.file(f"metrics_{split}.csv"), figures, self.columns, epoch)

    def figures(self, split: str) -> dict[str, dict]:
        """What metrics_SPLIT.json holds: {name: {"value", "lower", "upper", …}}; NaN where it says null."""
        return read_metrics_json(self.file(f"metrics_{split}.json"))

    def draw_curves(self, best_epoch: int | None) -> list[str]:
        """learning_curves.png; lines for the user."""
        shown = ("epoch", "lr", "train_loss", *(f"val_{name}" for name in self.curves))
        rows = [{name: row.get(name) for name in shown if row.get(name) is not None}
                for row in self.log_rows()]
        if len(rows) > 1:
            with self.writing(self.file("learning_curves.png")) as path:
                return save_png(learning_curves(rows, best_epoch), path)
        return []

    def write_run(self, facts: dict, resumed_at: int | None = None) -> None:
        """run.json; a resumed run keeps the time of its start and adds a line to `resumed`."""
        before = {}
        if resumed_at is not None:
            with contextlib.suppress(InputError):  # not there, or cut: it is written anew
                before = read_object(self.file("run.json"))
        if before:
            again = {"epoch": resumed_at,
                     **{name: facts[name] for name in ("started", "processes", "device")}}
            facts = {**facts, "started": before.get("started"),
                     "resumed": [*before.get("resumed", []), again]}
        with self.writing(self.file("run.json")) as path:
            write_whole(path, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")

    def writing(self, path: Path | None = None) -> contextlib.AbstractContextManager[Path]:
        """Turns a disk that can't be written, or a folder that is gone, into a RunError of one line -> a
        context, the path."""
        path = path or self.path
        folder = self.tensorboard_path if path.is_relative_to(self.tensorboard_path) else self.path
        return disk.writing(path, self._places.get(folder), self.again)


def versions() -> dict[str, str]:
    """Versions that a metric may depend on."""
    from importlib.metadata import version

    packages = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pandas", "pillow", "simplejpeg")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def commit() -> str:
    """The commit of this code (with + where files were changed), or '' outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        described = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty=+",
                                    "--abbrev=12"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip() if described.returncode == 0 else ""


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
