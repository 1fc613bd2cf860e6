"""File names that are alike but for the eye: a hint that two images are of one patient, where nobody told
which."""

import os
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

# left and right in full, also beside a number; short ones alone between other signs, or behind a number at
# the end
_EYE = re.compile(
    r"(?<![a-z])(left|right)(?![a-z])|(?<![a-z0-9])(od|os|oi|re|le|l|r)(?![a-z0-9])|(?<=\d)(od|os|l|r)$"
)


def pairs_across(paths: Sequence[str], splits: np.ndarray) -> tuple[int, tuple[str, str] | None]:
    """How many images of one split have, by their names alone, the other eye in another split, and the first
    such pair."""
    rows = []
    for path, split in zip(paths, splits, strict=True):
        stem = os.path.splitext(os.path.basename(path))[0].lower()
        found = list(_EYE.finditer(stem))
        if found:
            rest = stem[:found[-1].start()] + "*" + stem[found[-1].end():]
            if any(letter.isalnum() for letter in rest):  # left.png says nothing
                rows.append((rest, found[-1].group(), split, path))
    names = pd.DataFrame(rows, columns=["rest", "eye", "split", "path"])
    names = names.drop_duplicates(["rest", "eye", "split"])
    pairs = names.merge(names, on="rest")
    across = pairs[(pairs["eye_x"] != pairs["eye_y"]) & (pairs["split_x"] != pairs["split_y"])]
    first = next(across[["path_x", "path_y"]].itertuples(index=False, name=None), None)
    return across["path_x"].nunique(), first
