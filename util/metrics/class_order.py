"""In which order classes stand: grades of a disease have one, diagnoses have none.

Metrics of distance (quadratic kappa, the mean distance of grades) mean something for classes whose order is
known alone: it was typed (--class_order), it is that of the whole numbers that the names begin with, or the
names are grades that are known here.
"""

import re
from collections.abc import Sequence

import numpy as np

from util.core.errors import InputError, reject_if

# A name that begins with a whole number (0_no, 10), but not with a chapter's (JSIEC's 0.0.Normal).
_NUMBER = re.compile(r"[+-]?\d+(?![\d]|\.\d)")
# Grades from none on; a set of names is known where all of them stand in one scale, each on a step of its
# own.
_NONE = {"no", "none", "normal", "healthy", "absent", "negative", "control"}
_SCALES = (
    (_NONE, {"mild"}, {"moderate"}, {"severe"}, {"proliferative", "proliferate", "pdr"}),
    (_NONE, {"early"}, {"intermediate"}, {"late", "advanced"}),
    ({"low"}, {"medium", "moderate", "intermediate"}, {"high"}),
)
# Words beside a grade that don't change it.
_BESIDE = {"dr", "npdr", "nonproliferative", "non", "diabetic", "retinopathy", "amd", "armd", "glaucoma",
           "apparent", "disease", "risk", "grade", "stage", "myopia", "cataract"}


def ranks(names: Sequence[str], typed: Sequence[str] | None = None) -> np.ndarray | None:
    """(K,) the place of each class in their order, from 0; None where no order is known. Two classes always
    have one."""
    if typed:
        return np.array([list(typed).index(name) for name in names])
    keys, _ = _keys(names)
    if keys is not None:
        return np.argsort(np.argsort(keys))
    return np.arange(len(names)) if len(names) <= 2 else None


def in_order(names: Sequence[str], typed: Sequence[str] | None = None,
             positive: str | None = None) -> tuple[list[str], list[str]]:
    """Class names in the order of a new run -> (names, lines about it). positive: of two classes, the one
    that metrics of a single class are of; it comes second. InputError where other names are typed."""
    if positive is not None:
        reject_if(
            (typed, "--class_order and --positive_class both say an order of the classes: pass one of them"),
            (len(names) != 2 or positive not in names,
             f"--positive_class {positive}: it is one of two classes, and there are "
             f"{', '.join(sorted(names))}"))
        return [next(name for name in names if name != positive), positive], []
    if typed:
        require_same(names, typed)
        return list(typed), []
    by_name = sorted(names)
    keys, what = _keys(by_name)
    found = by_name if keys is None else [by_name[place] for place in np.argsort(keys, kind="stable")]
    return found, [f"classes in the order of {what}: {', '.join(found)}"] if found != by_name else []


def require_same(names: Sequence[str], typed: Sequence[str]) -> None:
    """InputError unless both are the same classes, each once."""
    if sorted(names) != sorted(typed):
        raise InputError(f"--class_order {' '.join(typed)}: the classes are {', '.join(sorted(names))}: name "
                         "each of them once")


def _keys(names: Sequence[str]) -> tuple[list[int] | None, str]:
    """A number a class, by which they stand, and what it is; None where no order is known."""
    numbers = [int(match.group()) for match in map(_NUMBER.match, names) if match]
    if len(set(numbers)) == len(names):
        return numbers, "the numbers that their names begin with"
    words = [set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())) - _BESIDE
             for name in names]
    for scale in _SCALES:
        steps = [[number for number, step in enumerate(scale) if word <= step] if len(word) == 1 else []
                 for word in words]
        if all(len(step) == 1 for step in steps) and len({step[0] for step in steps}) == len(names):
            return [step[0] for step in steps], "their grades"
    return None, ""
