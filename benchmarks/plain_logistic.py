"""scikit-learn's logistic regression on the features of latent_feature.py; the splits and figures are the
project's.

    python -m benchmarks.plain_logistic --data_path DIR --model_arch tf_efficientnet_lite0 \
        --finetune WEIGHTS --output DIR

The features are what a classifier's head reads (`pooled`), standardised by the training images. The inverse
strength C, of 1e-4 to 10 in half powers of ten, is the one with the best score on val (mean of macro F1, ROC
AUC and kappa).
"""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import latent_feature
from benchmarks.other_runs import write_run
from util.data.tables import read_folder
from util.metrics.classification import classification_metrics, predictions_table

METHOD = "logistic regression on features"
STRENGTHS = np.logspace(-4, 1, 11)


def features_of(options: argparse.Namespace, paths: pd.Series) -> np.ndarray:
    """(N, D) the features of images, by latent_feature.py."""
    with tempfile.TemporaryDirectory() as folder:
        weights = ("--random_weights", "--seed", options.seed)
        if options.finetune:
            weights = ("--finetune", options.finetune)
        crop = ("--fundus_crop", options.fundus_crop) if options.fundus_crop else ()
        words = ("--model", "timm", "--model_arch", options.model_arch, *weights,
                 "--input_size", options.input_size, "--input", options.data_path,
                 "--output", Path(folder) / "features.npz", *crop)
        latent_feature.main(list(map(str, words)))
        with np.load(Path(folder) / "features.npz") as file:
            place = {os.path.normpath(path): row for row, path in enumerate(file["paths"])}
            return file["pooled"][[place[os.path.normpath(path)] for path in paths]]


def logits_of(model: Pipeline, features: np.ndarray) -> np.ndarray:
    """(N, K); of two classes scikit-learn gives one column, the second one's."""
    found = model.decision_function(features)
    return np.stack([np.zeros_like(found), found], axis=1) if found.ndim == 1 else found


def main(argv: list[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    data = read_folder(options.data_path)
    features = features_of(options, data.table["path"])
    rows = {split: (data.table["split"] == split).to_numpy() for split in ("train", "val", "test")}
    targets = data.table["target"].to_numpy()

    def predicted(model: Pipeline, split: str) -> pd.DataFrame:
        return predictions_table(data.table[rows[split]], logits_of(model, features[rows[split]]),
                                 data.class_names)

    best, best_score = None, -np.inf
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=10_000))
        with warnings.catch_warnings():
            # weights that are not the solution are no result
            warnings.simplefilter("error", ConvergenceWarning)
            model.fit(features[rows["train"]], targets[rows["train"]])
        score = classification_metrics(predicted(model, "val"))[0]["score"]
        print(f"C {strength:g}: score on val {score:.4f}", flush=True)
        if score > best_score:
            best, best_score, best_strength = model, score, strength
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_run(Path(options.output), data, {"model": "timm", "adaptation": METHOD, **settings},
              {split: predicted(best, split) for split in ("val", "test")}, strength=float(best_strength))
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--model_arch", required=True)
    parser.add_argument("--finetune", default="",
                        help="weights under timm's names; empty: random ones of --seed")
    parser.add_argument("--input_size", type=int, default=224)
    parser.add_argument("--fundus_crop", choices=("off", "auto"), default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, help="the run's folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
