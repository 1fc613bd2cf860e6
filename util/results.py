"""The folder of a run: what is written where, so that each epoch stands there once.

output_dir/TASK/  checkpoint-best.pth checkpoint-last.pth log.txt metrics_val.csv metrics_test.csv metrics_*.json
                  predictions_*.csv confusion_matrix_*.png learning_curves.png run.json
                  checkpoint-adapter.pth adapter/ (--adaptation lora)
log_dir/TASK/     TensorBoard
"""

import json
import math
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from util.errors import InputError, RunError
from util.report import learning_curves_figure
from util.run_files import (
    append_metrics_row,
    cut_log_after,
    cut_rows_after,
    has_columns,
    metrics_row,
    read_metrics_json,
    write_metrics_json,
    write_predictions,
)

OURS = ("checkpoint-*.pth", "log.txt", "metrics_*.csv", "metrics_*.json", "predictions_*.csv", "confusion_matrix_*.png",
        "agreement_*.png", "roc_*.png", "precision_recall_*.png", "reliability_*.png", "scores_*.png", "report.html",
        "probe_*.csv", "learning_curves.png", "run.json", "adapter", "skipped_images.earlier.csv", "leakage.earlier.json")


class RunFolder:
    """The files of one run. Only the main process writes; reading is for all.

    columns: of the metrics files; curves: the figures of val that are drawn (the others stand in log.txt).
    """

    def __init__(self, output_dir: str, log_dir: str, task: str, columns: tuple = (), curves: tuple = ()):
        self.columns, self.curves = columns, curves
        self.path = Path(output_dir) / task if task else Path(output_dir)
        self.tensorboard_path = Path(log_dir) / task if task else Path(log_dir)
        self._tensorboard = None

    def file(self, name: str) -> Path:
        return self.path / name

    def make(self) -> None:
        """InputError where the folder, or TensorBoard's, can't be made or written."""
        for flag, folder in (("--output_dir", self.path), ("--log_dir", self.tensorboard_path)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe = folder / f".writable.{platform.node()}.{os.getpid()}"
                probe.touch()
                probe.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"{flag}: {folder} can't be written ({error.strerror}); name another folder") from error

    def new_file(self, name: str) -> Path:
        """Where this start writes what it finds before it puts an earlier run aside; an earlier start's file gets another
        name."""
        path = self.file(name)
        if path.exists():
            path.replace(path.with_name(f"{path.stem}.earlier{path.suffix}"))
        return path

    def put_aside(self) -> str:
        """Move an earlier run's files to earlier-N, so that a new run of the same task loses nothing; a line or ''."""
        found = [path for pattern in OURS for path in sorted(self.path.glob(pattern))]
        if not found:
            return ""
        number = 1 + max((int(path.name[8:]) for path in self.path.glob("earlier-*") if path.name[8:].isdigit()),
                         default=0)
        aside = self.path / f"earlier-{number}"
        aside.mkdir()
        for path in found:
            path.rename(aside / path.name)
        events = sorted(self.tensorboard_path.glob("events.out.tfevents.*"))
        if events:
            (self.tensorboard_path / aside.name).mkdir(parents=True, exist_ok=True)
            for path in events:
                path.rename(self.tensorboard_path / aside.name / path.name)
        return f"{self.path} held an earlier run: it now stands in {aside} (--resume auto would have gone on with it)"

    def adopt(self, other: Path) -> None:
        """Take over the run in another folder, whose checkpoint this one goes on from: its best epoch and its rows."""
        if other.resolve() == self.path.resolve():
            return
        self.put_aside()
        for name in ("checkpoint-best.pth", "checkpoint-adapter.pth", "log.txt", "metrics_val.csv", "metrics_val.json",
                     "predictions_val.csv"):
            if (other / name).exists():
                with self.writing(self.file(name)):
                    shutil.copyfile(other / name, self.file(name))

    def cut_after(self, epoch: int) -> None:
        """Drop what a cut run wrote past its checkpoint of `epoch`."""
        self.tensorboard(purge_step=epoch + 1)
        cut_log_after(self.file("log.txt"), epoch)
        cut_rows_after(self.file("metrics_val.csv"), epoch, self.columns)

    def tensorboard(self, purge_step: int | None = None):
        from torch.utils.tensorboard import SummaryWriter

        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.tensorboard_path), purge_step=purge_step)
        return self._tensorboard

    def is_scored(self, epoch: int | None) -> bool:
        """Whether metrics_test.csv holds the test of this epoch's weights."""
        path = self.file("metrics_test.csv")
        if epoch is None or not path.exists() or not self.file("metrics_test.json").exists():
            return False
        return any(line.split(",")[0] == str(epoch) for line in path.read_text(encoding="utf-8").splitlines()[1:])

    def put_foreign_tables_aside(self) -> list[str]:
        """Rename metrics files with other columns (the original scripts'), so that rows can be appended; lines for the user."""
        lines = []
        for path in sorted(self.path.glob("metrics_*.csv")):
            if not has_columns(path, self.columns):
                number = sum(1 for _ in self.path.glob(f"{path.stem}.before*.csv"))
                other = path.with_name(f"{path.stem}.before{number or ''}.csv")
                path.replace(other)
                lines.append(f"{path} has other columns: it is now {other.name}")
        return lines

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        with self.writing(self.tensorboard_path):
            for name, value in values.items():
                if value is not None and not math.isnan(value):
                    self.tensorboard().add_scalar(name, value, step)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def add_log(self, *rows: dict) -> None:
        """One JSON object an epoch, flushed to the disk."""
        with self.writing(self.file("log.txt")) as path, open(path, "a", encoding="utf-8") as file:
            for row in rows:
                row = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
                file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def log_rows(self) -> list[dict]:
        path = self.file("log.txt")
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    def add_evaluation(self, split: str, predictions, figures: dict, epoch: int | None, keep: bool,
                       entries: dict[str, dict] | None = None) -> None:
        """One row of metrics_SPLIT.csv; with `keep` also the predictions, and the figures with their intervals (`entries`)."""
        with self.writing(self.path):
            if keep:
                write_predictions(predictions, self.file(f"predictions_{split}.csv"))
                write_metrics_json(self.file(f"metrics_{split}.json"), entries or figures)
            append_metrics_row(self.file(f"metrics_{split}.csv"), metrics_row(figures, self.columns, epoch), self.columns)

    def write_figures(self, split: str, entries: dict[str, dict]) -> None:
        """metrics_SPLIT.json anew, with intervals."""
        with self.writing(self.file(f"metrics_{split}.json")) as path:
            write_metrics_json(path, entries)

    def figures(self, split: str) -> dict[str, dict]:
        """What metrics_SPLIT.json holds: {name: {"value", "lower", "upper", …}}; NaN where it says null."""
        return read_metrics_json(self.file(f"metrics_{split}.json"))

    def draw_curves(self, best_epoch: int | None) -> None:
        shown = ("epoch", "lr", "train_loss", *(f"val_{name}" for name in self.curves))
        rows = [{name: row.get(name) for name in shown if row.get(name) is not None} for row in self.log_rows()]
        if len(rows) > 1:
            learning_curves_figure(rows, self.file("learning_curves.png"), best_epoch=best_epoch)

    def write_run(self, facts: dict, resumed_at: int | None = None) -> None:
        """run.json; a resumed run keeps the time of its start and adds a line to `resumed`."""
        before = self._earlier_run() if resumed_at is not None else {}
        if before:
            again = {"epoch": resumed_at, **{name: facts[name] for name in ("started", "processes", "device")}}
            facts = {**facts, "started": before.get("started"), "resumed": [*before.get("resumed", []), again]}
        with self.writing(self.file("run.json")) as path:
            temporary = path.with_name(".run.json.tmp")
            temporary.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(temporary, path)

    def _earlier_run(self) -> dict:
        try:
            return json.loads(self.file("run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # not there, or cut: it is written anew

    def writing(self, path: Path | None = None):
        """Turns a disk that can't be written into a RunError of one line."""
        return _Writing(path or self.path)


class _Writing:
    """Turns a disk that can't be written into a RunError of one line."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError):
            raise RunError(f"{self.path} can't be written ({error.strerror}): what was saved before stays; make room and "
                           "start again with --resume auto") from error


def versions() -> dict[str, str]:
    """Versions that a figure may depend on."""
    from importlib.metadata import version

    packages = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pandas", "pillow", "simplejpeg")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def commit() -> str:
    """The commit of this code (with + where files were changed), or '' outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        described = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"],
                                   capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip() if described.returncode == 0 else ""


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
