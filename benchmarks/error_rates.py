"""How often the paired tests of compare.py call two equally good models different.

    python benchmarks/error_rates.py                      # 800 test sets of each kind, two minutes
    python benchmarks/error_rates.py --quick              # 20 of each: that it runs, no more

A good test at the level of 0.05 does so for 5 % of the test sets (four standard errors of 800 sets: 1.9 to
8.1 %). Two models see the same images with errors of their own; with patients, half of an error is shared by
the two images of a patient.

The joint test of several models rests on the covariance of their AUCs, so it needs more images the more
models there are. Of 2000 test sets it calls different, by images of the rarer class for a degree of freedom:
with 20 or more 5.7 to 7.5 %, with 10 to 15 6.8 to 8.5 %, with 4 to 8 7.0 to 13.3 %; hence comparison.ENOUGH.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.metrics import delong
from util.metrics.classification import predictions_table
from util.study.comparison import ENOUGH, JOINT, LEVEL, compare
from util.study.comparison_runs import Group, Run, align

METRICS = ["roc_auc", "f1", "ece"]
SKILL, DRAWS = 1.2, 400  # of a class's own logit, in standard deviations of the errors; resamples


@dataclass(frozen=True)
class Setting:
    """300 images of so many classes."""

    name: str
    classes: int
    positives: int | None = None  # about so many of the second class; None: all classes alike
    images_a_patient: int = 1


SETTINGS = (
    Setting("3 classes", 3),
    Setting("2 classes, 50 positives", 2, 50),
    Setting("3 classes, 150 patients", 3, None, 2),
)

JOINT_SETTINGS = ((3, 300, 150), (3, 300, 50), (3, 60, 30), (3, 43, 12), (5, 300, 150), (5, 200, 80),
                  (5, 80, 40), (5, 60, 30), (8, 300, 150), (8, 140, 70),
                  (8, 60, 30))  # models, images, of them positives


def one_set(setting: Setting, rng: np.random.Generator) -> list[Run]:
    """Two models of equal skill on the same 300 images."""
    units = 300 // setting.images_a_patient
    chances = None if setting.positives is None else (1 - setting.positives / 300, setting.positives / 300)
    of_unit = rng.choice(setting.classes, units, p=chances)
    labels = np.repeat(of_unit, setting.images_a_patient)
    several = setting.images_a_patient > 1
    patients = [str(n // setting.images_a_patient) if several else "" for n in range(300)]
    samples = pd.DataFrame({"index": np.arange(300), "path": [f"{n:03d}.png" for n in range(300)],
                            "split": "test", "target": labels, "patient": patients})
    names = [str(k) for k in range(setting.classes)]
    runs = []
    for _ in range(2):
        errors = rng.normal(size=(300, setting.classes))
        if several:
            shared = np.repeat(rng.normal(size=(units, setting.classes)), setting.images_a_patient, axis=0)
            errors = (errors + shared) / np.sqrt(2)
        logits = errors + SKILL * np.eye(setting.classes)[labels]
        runs.append(Run(None, "classification", {}, 0, {}, predictions_table(samples, logits, names)))
    align(runs)
    return runs


def rates(setting: Setting, sets: int, seed: int) -> dict[tuple[str, str], float]:
    """{(metric, test): share of the test sets whose p is below the level}."""
    rng, called = np.random.default_rng(seed), Counter()
    for number in range(sets):
        first, second = one_set(setting, rng)
        groups = [Group("A", [first]), Group("B", [second])]
        for test in compare(groups, METRICS, "test", DRAWS, number).tests:
            called[test.metric, test.method] += test.p < LEVEL
    return {key: count / sets for key, count in called.items()}


def joint_rate(models: int, images: int, positives: int, sets: int, seed: int) -> float:
    """Share of the test sets of two classes in which the joint test of so many equal models has a p below the
    level."""
    rng, called = np.random.default_rng(seed), 0
    is_class = np.arange(images) < positives
    for _ in range(sets):
        aucs, influences = zip(*(delong.auc_influence(is_class, rng.normal(size=images) + SKILL * is_class)
                                 for _ in range(models)), strict=True)
        called += delong.joint_test(np.array(aucs), np.array(influences))[2] < LEVEL
    return called / sets


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20 test sets of each setting")
    parser.add_argument("--sets", type=int, default=800, help="test sets of each setting")
    parser.add_argument("--seed", type=int, default=0, help="of the test sets")
    options = parser.parse_args(argv)
    sets = 20 if options.quick else options.sets
    for setting in SETTINGS:
        for (metric, method), rate in rates(setting, sets, options.seed).items():
            print(f"{setting.name:<26} {metric:<8} {method:<17} {rate:6.1%}", flush=True)
    for models, images, positives in JOINT_SETTINGS:
        each = positives / (models - 1)
        rate = joint_rate(models, images, positives, sets, options.seed)
        print(f"{f'{models} models, {positives} of {images} images':<26} {'roc_auc':<8} {JOINT:<17} "
              f"{rate:6.1%}  {each:.0f} positives for a degree of freedom, {ENOUGH} are enough", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
