"""How often the intervals of util/metrics/intervals.py hold the truth: on test sets drawn from known
distributions.

    python benchmarks/coverage.py                         # 2000 test sets of each kind, some minutes
    python benchmarks/coverage.py --quick                 # 20 of each: that it runs, no more
    python benchmarks/coverage.py --drops                 # of drops from one set to another, external one
    python benchmarks/coverage.py --json FILE

A good 95 % interval holds the truth in 92.5 to 97 % of the test sets. Two classes: scores from two normal
distributions; more classes: a normal distribution each, in a row, as grades are. Probabilities are made too
extreme on purpose. The truths are metrics of a million images drawn alike.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.metrics.classification import predictions_table
from util.metrics.intervals import classification_intervals, drops, entry
from util.metrics.weighted import Images, operating_thresholds

SETS, IMAGES, OF_TRUTH = 2000, 500, 1_000_000
SHOWN = ("roc_auc", "accuracy", "balanced_accuracy", "f1", "kappa", "qwk", "average_precision", "precision",
         "recall", "jaccard", "score", "loss", "brier", "mae_grades", "ece", "calibration_slope",
         "calibration_intercept")
LEAST, MOST = 0.925, 0.97


@dataclass(frozen=True)
class Kind:
    """Test sets of `images` images: shares of the classes, distance of neighbours' means, images a patient
    that share half of the standard deviation."""

    name: str
    shares: tuple[float, ...]
    distance: float
    a_patient: int = 1
    images: int = IMAGES


KINDS = (
    Kind("two classes, 250 + 250, AUC 0.70", (0.5, 0.5), 0.7416),
    Kind("two classes, 250 + 250, AUC 0.90", (0.5, 0.5), 1.8124),
    Kind("two classes, 450 + 50, AUC 0.70", (0.9, 0.1), 0.7416),
    Kind("two classes, 450 + 50, AUC 0.90", (0.9, 0.1), 1.8124),
    Kind("two images a patient, 450 + 50, AUC 0.90", (0.9, 0.1), 1.8124, 2),
    Kind("five grades, 250 + 4 x 62", (0.5, 0.125, 0.125, 0.125, 0.125), 1.2),
)


def draw(kind: Kind, images: int, rng: np.random.Generator) -> pd.DataFrame:
    """A predictions table of a kind."""
    patients, classes = images // kind.a_patient, np.arange(len(kind.shares))
    of_patient = rng.choice(len(kind.shares), patients, p=kind.shares)
    true = np.repeat(of_patient, kind.a_patient)
    own, common = rng.normal(size=len(true)), np.repeat(rng.normal(size=patients), kind.a_patient)
    noise = own if kind.a_patient == 1 else (own + common) / np.sqrt(2)
    position = kind.distance * true + noise
    log_likelihood = -((position[:, None] - kind.distance * classes) ** 2) / 2 + np.log(kind.shares)
    patient = np.repeat(np.arange(patients), kind.a_patient).astype(str) if kind.a_patient > 1 else ""
    rows = pd.DataFrame({"index": np.arange(len(true)), "path": "", "split": "test", "target": true,
                         "patient": patient})
    return predictions_table(rows, 1.3 * log_likelihood, [str(k) for k in classes])


def truth(kind: Kind) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics, and the thresholds of the operating points, which are chosen on other images than they are
    tried on."""
    table = draw(kind, OF_TRUTH, np.random.default_rng(1))
    thresholds = operating_thresholds(Images.of(table))
    entries = classification_intervals(table, draws=2, thresholds=thresholds)
    return {name: found["value"] for name, found in entries.items()}, thresholds


def holds(kind: Kind, known: tuple[dict[str, float], dict[str, float]], start: int,
          stop: int) -> dict[str, tuple[int, int, int, float, str]]:
    """{metric: (sets, below, above, sum of widths, method)} of the test sets of these numbers; below: below
    the truth."""
    found, (true, thresholds) = {}, known
    for number in range(start, stop):
        table = draw(kind, kind.images, np.random.default_rng((number, 7)))
        for name, one in classification_intervals(table, seed=number, thresholds=thresholds).items():
            lower, upper = one["lower"], one["upper"]
            if math.isnan(lower):  # none is claimed
                continue
            before = found.get(name, (0, 0, 0, 0.0, ""))
            found[name] = (before[0] + 1, before[1] + (upper < true[name]), before[2] + (lower > true[name]),
                           before[3] + upper - lower, one["method"])
    return found


@dataclass(frozen=True)
class Pair:
    """An internal and an external test set."""

    internal: Kind
    external: Kind

    @property
    def name(self) -> str:
        return f"from {self.internal.name} to {self.external.name} ({self.external.images} images)"


PAIRS = (
    Pair(KINDS[1], Kind("125 + 125, AUC 0.80", (0.5, 0.5), 1.1902, images=250)),
    Pair(KINDS[3], Kind("900 + 100, AUC 0.80", (0.9, 0.1), 1.1902, images=1000)),
    Pair(KINDS[4], Kind("two images a patient, 450 + 50, AUC 0.80", (0.9, 0.1), 1.1902, 2)),
    Pair(KINDS[5], Kind("five grades, nearer, 250 + 4 x 62", (0.5, 0.125, 0.125, 0.125, 0.125), 0.9)),
)


def true_drops(pair: Pair) -> tuple[dict[str, float], dict]:
    known = [truth(kind)[0] for kind in (pair.internal, pair.external)]
    sets = [{name: entry(value, value, value) for name, value in values.items()} for values in known]
    return {name: found["value"] for name, found in drops(*sets).items()}, {}


def drop_holds(pair: Pair, known: tuple[dict[str, float], dict], start: int,
               stop: int) -> dict[str, tuple[int, int, int, float, str]]:
    """As `holds`, of the drops."""
    found, (true, _) = {}, known
    for number in range(start, stop):
        sets = [classification_intervals(draw(kind, kind.images, np.random.default_rng((number, place))),
                                         seed=number)
                for place, kind in enumerate((pair.internal, pair.external))]
        for name, one in drops(*sets).items():
            before = found.get(name, (0, 0, 0, 0.0, ""))
            found[name] = (before[0] + 1, before[1] + (one["upper"] < true[name]),
                           before[2] + (one["lower"] > true[name]), before[3] + one["upper"] - one["lower"],
                           sets[0][name]["method"])
    return found


def table_of(kinds: Sequence[Kind | Pair], sets: int, processes: int) -> list[dict]:
    rows = []
    with ProcessPoolExecutor(processes) as pool:
        for kind in kinds:
            find, known_of = (drop_holds, true_drops) if isinstance(kind, Pair) else (holds, truth)
            known = true, _ = known_of(kind)
            step = max(1, sets // (4 * processes))
            parts = list(pool.map(find, *zip(*((kind, known, at, min(sets, at + step))
                                                for at in range(0, sets, step)), strict=True)))
            for name in dict.fromkeys(name for part in parts for name in part):
                number, below, above, widths = (sum(part[name][place] for part in parts if name in part)
                                                for place in range(4))
                method = next(part[name][4] for part in parts if name in part)
                rows.append({"kind": kind.name, "figure": name, "truth": true[name], "method": method,
                             "sets": number, "coverage": 1 - (below + above) / number,
                             "too low": below / number, "too high": above / number,
                             "mean width": widths / number})
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--drops", action="store_true", help="of drops to an external set")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sets", type=int, default=SETS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="also the figures of single classes")
    options = parser.parse_args(argv)
    kinds = PAIRS if options.drops else KINDS
    rows = table_of(kinds[-1:] if options.quick else kinds, 20 if options.quick else options.sets,
                    options.processes)
    print(f"{'figure':<32} {'truth':>8} {'method':<20} {'coverage':>8} {'too low':>8} {'too high':>8} "
          f"{'width':>7}")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        print(f"-- {kind}, {max(row['sets'] for row in rows if row['kind'] == kind):,} test sets")
        for row in rows:
            if row["kind"] == kind and (options.all or row["figure"] in SHOWN):
                mark = "" if LEAST <= row["coverage"] <= MOST else "  <-"
                print(f"{row['figure']:<32} {row['truth']:>8.4f} {row['method']:<20} {row['coverage']:>8.1%} "
                      f"{row['too low']:>8.1%} {row['too high']:>8.1%} {row['mean width']:>7.4f}{mark}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
