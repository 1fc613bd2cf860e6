"""Time and memory of the figures with their intervals, from the table of predictions, on one core.

python benchmarks/intervals.py                        # 10,000 predictions of 2000 resamples; a million of 200
python benchmarks/intervals.py --quick                # 1,000: that it runs
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

if __name__ == "__main__":
    # one core: read when numpy is imported, here and in the processes that are started
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd

from util.metrics.bootstrap import draws_for
from util.metrics.classification import predictions_table
from util.metrics.intervals import classification_intervals


def table_of(images: int, classes: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    true = rng.integers(classes, size=images)
    noise = rng.normal(size=(images, classes)).astype(np.float32)
    logits = noise + 1.5 * np.eye(classes, dtype=np.float32)[true]
    rows = pd.DataFrame({"index": np.arange(images), "path": "p.jpg", "patient": "", "split": "test",
                         "target": true})
    return predictions_table(rows, logits, [f"grade {k}" for k in range(classes)])


def measure(images: int, classes: int, connection: Connection) -> None:
    table = table_of(images, classes)
    began = time.perf_counter()
    entries = classification_intervals(table, temperature=1.2)
    seconds = time.perf_counter() - began
    connection.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, len(entries)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    context = multiprocessing.get_context("spawn")
    sizes = [(1000, 5, "", "")] if options.quick else [(10_000, 5, "<= 20", ""), (10**6, 5, "<= 120", "<= 2")]
    print(f"{'predictions':>12} {'classes':>8} {'resamples':>10} {'figures':>8} {'seconds':>8} {'goal':>8} "
          f"{'peak GB':>8} {'goal':>6}")
    for images, classes, seconds, memory in sizes:
        here, there = context.Pipe()
        process = context.Process(target=measure, args=(images, classes, there))
        process.start()
        took, peak, figures = here.recv()
        process.join()
        print(f"{images:>12,} {classes:>8} {draws_for(images):>10,} {figures:>8} {took:>8.1f} {seconds:>8} "
              f"{peak:>8.2f} {memory:>6}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
