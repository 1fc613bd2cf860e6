"""Images that this program writes itself: they are no photographs, wherever they lie below a folder that is
read."""

import fnmatch
import re
from collections.abc import Collection, Iterable

# A file that tells a folder of ours, and the names of the images that stand beside it.
_BESIDE = {
    "heatmaps.json": (re.compile(r".*_[0-9a-f]{10}\.png"),),  # util/model/heatmaps.py
    "run.json": tuple(re.compile(fnmatch.translate(pattern)) for pattern in (
        "confusion_matrix_*.png", "agreement_*.png", "roc_*.png", "precision_recall_*.png",
        "reliability_*.png", "scores_*.png", "learning_curves.png", "fundus_crop*.png")),
    "comparison.csv": (re.compile(r"comparison\.png"),),
    "optuna_best.json": (re.compile(r"optuna_.*\.png"),),
}
_SHEET, _TABLE = ".fundus_crop.png", ".fundus_crop.csv"  # beside an output of predict.py or latent_feature.py


def is_marker(name: str) -> bool:
    """Whether a file of this name says something about the images beside it."""
    return name in _BESIDE or name.endswith(_TABLE)


def own_pictures(names: Iterable[str], markers: Collection[str]) -> set[str]:
    """Of the file names of one folder, those of images that this program wrote there. markers: the names of
    its files that `is_marker` knows."""
    if not markers:
        return set()
    patterns = [pattern for marker, of_marker in _BESIDE.items() if marker in markers
                for pattern in of_marker]
    return {name for name in names
            if any(pattern.fullmatch(name) for pattern in patterns)
            or (name.endswith(_SHEET) and name.removesuffix(_SHEET) + _TABLE in markers)}
