"""File names that are alike but for the eye: a hint that two images are of one patient, where nobody told
which."""

import os
import re
from collections.abc import Sequence

import numpy as np

# left and right in full, also beside a number; short ones alone between other signs, or behind a number at
# the end
_EYE = re.compile(
    r"(?<![a-z])(left|right)(?![a-z])|(?<![a-z0-9])(od|os|oi|re|le|l|r)(?![a-z0-9])|(?<=\d)(od|os|l|r)$"
)


def pairs_across(paths: Sequence[str], splits: np.ndarray) -> tuple[int, tuple[str, str] | None]:
    """How many images of one split have, by their names alone, the other eye in another split, and the first
    such pair."""
    by_rest: dict[str, list[tuple[str, int]]] = {}
    for row, path in enumerate(paths):
        stem = os.path.splitext(os.path.basename(path))[0].lower()
        found = list(_EYE.finditer(stem))
        if found:
            last = found[-1]
            rest = stem[:last.start()] + "*" + stem[last.end():]
            if any(letter.isalnum() for letter in rest):  # left.png says nothing
                by_rest.setdefault(rest, []).append((last.group(), row))
    number, first = 0, None
    for same in by_rest.values():
        eyes: dict[str, dict[str, int]] = {}
        for eye, row in same:
            eyes.setdefault(eye, {}).setdefault(splits[row], row)
        across = [(one, other) for eye, rows in eyes.items() for split, one in rows.items()
                  for other_eye, other_rows in eyes.items() if other_eye != eye
                  for other_split, other in other_rows.items() if other_split != split]
        if across:
            number += len({row for pair in across for row in pair})
            first = first or tuple(paths[row] for row in sorted(across[0]))
    return number, first
