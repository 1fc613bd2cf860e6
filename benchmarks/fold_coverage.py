"""How often the intervals of an out-of-fold table (--folds) hold the truth: by a fast learner on drawn data.

    python benchmarks/fold_coverage.py                    # 200 sets of each kind, some minutes
    python benchmarks/fold_coverage.py --sets 20          # that it runs, no more

Each set of images is drawn anew, dealt to K folds and learned K times by a logistic regression, as --folds
does; one class of two, in normal distributions. The truth is the mean metric, on 20,000 other images, of the
models of all sets: what a training on so many images comes to. "plain" are the intervals of the images alone,
"widened" those that a run of --folds writes (`util.metrics.folds.widened`).
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.data.splits import deal, next_fold
from util.metrics.classification import classification_metrics, predictions_table
from util.metrics.folds import out_of_fold, widened
from util.metrics.intervals import classification_intervals

SHOWN = ("roc_auc", "accuracy", "f1", "kappa", "average_precision", "loss", "brier")
OF_TRUTH, DRAWS, EFFECT, INFORMATIVE = 20_000, 500, 0.5, 3


@dataclass(frozen=True)
class Kind:
    """Images, features (three of which inform), share of the ill, folds."""

    images: int
    features: int
    share: float
    folds: int


KINDS = (Kind(100, 10, 0.5, 5), Kind(200, 20, 0.5, 3), Kind(200, 10, 0.5, 10), Kind(400, 50, 0.2, 5),
         Kind(1000, 10, 0.5, 5))


def draw(kind: Kind, images: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(features (N, F), classes (N,))."""
    true = (rng.random(images) < kind.share).astype(np.int64)
    features = rng.normal(size=(images, kind.features))
    features[:, :INFORMATIVE] += EFFECT * true[:, None]
    return features, true


def table_of(true: np.ndarray, log_odds: np.ndarray, index: np.ndarray) -> pd.DataFrame:
    rows = pd.DataFrame({"index": index, "path": "", "split": "test_oof", "target": true, "patient": ""})
    return predictions_table(rows, np.column_stack([np.zeros(len(true)), log_odds]), ["0", "1"])


def of_set(kind: Kind, number: int,
           others: tuple[np.ndarray, np.ndarray]) -> tuple[dict[str, dict], dict[str, float]]:
    """(the entries of the out-of-fold table, plain; the mean over its models of their metrics on others)."""
    features, true = draw(kind, kind.images, np.random.default_rng((number, 11)))
    images = pd.DataFrame({"path": [str(n) for n in range(kind.images)], "split": "train", "patient": "",
                           "label": true.astype(str)})
    dealt, tables, on_others = deal(images, kind.folds, number), {}, []
    for fold in range(1, kind.folds + 1):
        train = (dealt != fold) & (dealt != next_fold(fold, kind.folds))
        model = LogisticRegression(max_iter=500).fit(features[train], true[train])
        scored = np.flatnonzero(dealt == fold)
        tables[fold] = table_of(true[scored], model.decision_function(features[scored]), scored)
        on_others.append(classification_metrics(table_of(others[1], model.decision_function(others[0]),
                                                         np.arange(len(others[1]))))[0])
    means = {name: float(np.mean([one[name] for one in on_others])) for name in SHOWN}
    return classification_intervals(out_of_fold(tables), number, DRAWS), means


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--kinds", type=int, default=len(KINDS), help="the first ones alone")
    options = parser.parse_args(argv)
    for kind in KINDS[:options.kinds]:
        others = draw(kind, OF_TRUTH, np.random.default_rng(3))
        found = [of_set(kind, number, others) for number in range(options.sets)]
        print(f"-- {kind.images} images, {kind.features} features, {kind.share:.0%} ill, {kind.folds} folds, "
              f"{options.sets} sets", flush=True)
        for name in SHOWN:
            true, held = float(np.mean([means[name] for _, means in found])), []
            for is_widened in (False, True):
                own = [(widened(plain, kind.folds) if is_widened else plain)[name] for plain, _ in found]
                held.append(np.mean([one["lower"] <= true <= one["upper"] for one in own]))
            print(f"{name:<20} truth {true:.4f}   plain {held[0]:.1%}   widened {held[1]:.1%}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
