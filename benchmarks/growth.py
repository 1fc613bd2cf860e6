"""Time and memory as the data grow: a CSV, a folder, and what an epoch and a result cost an image, without
the pixels."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.timing import Row

ROOT = Path(__file__).resolve().parent.parent
CLASSES, A_FOLDER = 5, 20_000


def make_files(folder: Path, count: int) -> list[str]:
    """Empty files, for what looks at names alone."""
    paths = []
    for number in range(count):
        place = folder / "pictures" / f"{number // A_FOLDER:03d}"
        if number % A_FOLDER == 0:
            place.mkdir(parents=True, exist_ok=True)
        path = place / f"{number:07d}.jpg"
        if not path.exists():
            path.touch()
        paths.append(f"pictures/{path.parent.name}/{path.name}")
    return paths


def make_csv(folder: Path, paths: list[str]) -> Path:
    file = folder / f"{len(paths)}.csv"
    splits = ("train", "train", "val", "test")
    with open(file, "w", encoding="utf-8") as stream:
        stream.write("path,label,split,patient\n")
        stream.writelines(f"{path},grade{number // 4 % CLASSES},{splits[number % 4]},p{number // 8}\n"
                          for number, path in enumerate(paths))
    return file


def make_folders(folder: Path, count: int) -> Path:
    data = folder / f"folders-{count}"
    for number in range(count):
        place = data / ("train", "val", "test")[number % 3] / f"grade{number // 3 % CLASSES}"
        if number < 3 * CLASSES:
            place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:07d}.jpg").touch()
    return data


def measured(work: str, *arguments: object) -> dict[str, float]:
    """`work` of this file in a process of its own -> its seconds, and the memory that it added, in MB."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.growth", work, *map(str, arguments)], cwd=ROOT,
                          check=True, capture_output=True, text=True)
    took, before, peak = map(float, done.stdout.split()[-3:])
    return {"seconds": took, "MB": peak - before, "peak": peak}


def rows(folder: Path, quick: bool) -> list[Row]:
    sizes = (1_000, 10_000) if quick else (1_000, 10_000, 100_000)
    largest, many = (10_000, 2_000) if quick else (1_000_000, 100_000)
    paths = make_files(folder, largest)
    csv = measured("read_csv", make_csv(folder, paths))
    found = [Row(f"read and check a CSV of {largest:,} rows", None, csv["seconds"], "s", goal="<= 10 s"),
             Row("its peak memory, PyTorch included", None, csv["peak"], "MB", goal="<= 1 GB"),
             Row(f"read a folder of {many:,} files", None,
                 measured("read_folder", make_folders(folder, many))["seconds"], "s", goal="<= 5 s")]
    for what, work in (("read a CSV", "read_csv"), ("an epoch's order and paths", "walk"),
                       ("figures and tables", "results")):
        figures = [measured(work, make_csv(folder, paths[:size])) for size in sizes]
        for figure, kind, unit, scale in (("seconds", "time", "us", 1e6), ("MB", "memory", "bytes", 2**20)):
            values = ", ".join(f"{scale * values[figure] / size:,.1f}"
                               for values, size in zip(figures, sizes, strict=True))
            found.append(Row(f"{what}, {kind} an image of {' / '.join(f'{size:,}' for size in sizes)}", None,
                             scale * figures[-1][figure] / sizes[-1], unit, goal="flat", limit=values))
    return found


# ---- what is measured, in a process of its own -------------------------------------------------------------

def _read_csv(file: str) -> Callable[[], object]:
    from util.data.tables import read_csv
    from util.options.data import DataOptions

    return lambda: read_csv(DataOptions(csv_file=file, patient_col="patient"))


def _read_folder(folder: str) -> Callable[[], object]:
    from util.data.tables import read_folder

    return lambda: read_folder(folder)


def _walk(file: str) -> Callable[[], None]:
    """An epoch's batches, and the path and place of every image of it."""
    from util.data.dataset import ImageDataset
    from util.data.sampling import StepPlan, TrainBatches
    from util.data.tables import read_csv
    from util.options.data import DataOptions

    table = read_csv(DataOptions(csv_file=file)).table
    dataset = ImageDataset(table, table["target"].to_numpy(), None, 0)

    def work() -> None:
        plan = StepPlan(len(table), 64, 1, 1)
        for batch in TrainBatches(plan, 0, 0):
            for _, position in batch:
                dataset.path(position)

    return work


def _results(file: str) -> Callable[[], None]:
    import numpy as np

    from util.core.run_files import write_predictions
    from util.data.tables import read_csv
    from util.metrics.classification import classification_metrics, predictions_table
    from util.options.data import DataOptions

    data = read_csv(DataOptions(csv_file=file))
    logits = np.random.default_rng(0).normal(size=(len(data.table), CLASSES))

    def work() -> None:
        predictions = predictions_table(data.table, logits, data.class_names)
        classification_metrics(predictions)
        write_predictions(predictions, Path(file).with_suffix(".predictions.csv"))

    return work


def main(arguments: list[str]) -> None:
    import torch  # noqa: F401  (its memory is there before)

    from benchmarks.timing import seconds

    makers = {"read_csv": _read_csv, "read_folder": _read_folder, "walk": _walk, "results": _results}
    work = makers[arguments[0]](arguments[1])
    before = _memory("VmRSS")
    took = seconds(work)
    print(took, before, _memory("VmHWM"))


def _memory(name: str) -> float:
    """MB of memory now (VmRSS) or at most so far (VmHWM)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 2**10


if __name__ == "__main__":
    main(sys.argv[1:])
