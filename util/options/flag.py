"""What is known of one flag: a row of the table of flags (util/options/table.py).

A row is a field of one of the groups of options, `name: type = flag(default, help, …)`. The parsers of all
programs, what is taken from a checkpoint and compared with it, docs/flags.md and the lines about flags that
do nothing come from the rows.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from util.core.plain_numbers import number_of

if TYPE_CHECKING:
    from util.options.groups import Options  # which imports the rows

FINETUNE, REGRESSION, PREDICT, FEATURES = (
    "main_finetune.py", "main_regression.py", "predict.py", "latent_feature.py")
TRAINING, USE = (FINETUNE, REGRESSION), (PREDICT, FEATURES)
ALL = (*TRAINING, *USE)
UNSET: Any = object()
LONGEST_TEXT = 4096  # letters; a path's bound
LARGEST_NUMBER = 10**18  # beyond it Python would spell out digits for as long as it takes


@dataclass(frozen=True)
class Idle:
    """When a flag that was typed does nothing; why, in the words after `does nothing`."""

    when: "Callable[[Options], bool]"
    why: str


@dataclass(frozen=True)
class Change:
    """What is otherwise in one program. no_effect: why the flag does nothing there."""

    default: Any = UNSET
    help: str = ""
    read: Callable[[str], Any] | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    words: str | None = None
    required: bool = False
    no_effect: str = ""
    idle: Idle | None = None


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A row. read: of one word, an argparse type; words: how many, as argparse's nargs; off: the flag that
    turns a switch off, and its help; also: a word of another script that stands for a value of this flag,
    that value, and its help.

    of_launch      it belongs to a machine or a launch, not to the run: neither taken from a checkpoint nor
                   compared with one
    of_scoring     a checkpoint's metrics depend on it where it is only scored
    of_training    training alone reads it
    of_checkpoint  predict.py and latent_feature.py take a checkpoint's value where it was not typed
    filled_in      the program finds a value where none was typed, so that a stored one says nothing against
                   that
    before         what runs did before there was the flag
    """

    name: str = ""
    default: Any = None
    help: str = ""
    read: Callable[[str], Any] | None = None
    words: int | str | None = None
    choices: tuple[str, ...] | tuple[int, ...] = ()
    metavar: str | tuple[str, str] | None = None
    const: Any = None
    off: tuple[str, str] | None = None
    also: tuple[str, str | bool, str] | None = None
    required: bool = False
    programs: tuple[str, ...] = TRAINING
    at: Mapping[str, Change] = field(default_factory=dict)
    of_launch: bool = False
    of_scoring: bool = False
    of_training: bool = False
    of_checkpoint: bool = False
    filled_in: bool = False
    before: Any = UNSET
    no_effect: str = ""
    idle: Idle | None = None

    @property
    def is_switch(self) -> bool:
        return isinstance(self.default, bool)

    def in_program(self, program: str) -> "Flag":
        """The row as it is in one program."""
        change = self.at.get(program, Change())
        other = {name: value for name, value in vars(change).items() if value is not getattr(Change, name)}
        other.setdefault("help", change.no_effect or self.no_effect or self.help)
        return replace(self, at={}, **other)

    def add_to(self, add_argument: Callable[..., object], defaults: bool = True) -> None:
        """The flag in a program's parser, by its or a group's add_argument; without `defaults` it is absent
        where it was not typed."""
        default, option = copy(self.default) if defaults else argparse.SUPPRESS, f"--{self.name}"
        self._add_option(add_argument, option, default)
        if self.also:
            word, const, text = self.also
            add_argument(word, help=text, default=default, action="store_const", const=const, dest=self.name)

    def _add_option(self, add_argument: Callable[..., object], option: str, default: object) -> None:
        if not self.is_switch:
            add_argument(option, help=self.help, default=default, type=self.read, nargs=self.words,
                         choices=self.choices or None, metavar=self.metavar, const=self.const,
                         required=self.required)
            return
        add_argument(option, help=self.help, default=default, action="store_true")
        if self.off:
            add_argument(self.off[0], help=self.off[1], default=default, action="store_false", dest=self.name)

    def accepts(self, value: object) -> bool:
        """Whether the flag, as it is in a program, could have given a value that was read from a file."""
        if value is None:
            return self.default is None or self.before is None
        if self.is_switch:
            return isinstance(value, bool)
        if isinstance(value, str | list) and len(value) > LONGEST_TEXT:
            return False
        if not isinstance(value, list):
            return self.words in (None, "?") and self._is_one(value)
        if self.words is None:  # one word that stands for several, as --dataratio 0.1,1
            return (isinstance(self.default, list) and all(map(_is_scalar, value))
                    and self._reads(",".join(map(str, value))))
        return (not isinstance(self.words, int) or len(value) == self.words) and all(map(self._is_one, value))

    def _is_one(self, value: object) -> bool:
        is_kind = isinstance(value, str) if self.read is None else _is_scalar(value)
        return is_kind and self._reads(str(value)) and (not self.choices or value in self.choices)

    def _reads(self, text: str) -> bool:
        try:
            (self.read or str)(text)
        except (argparse.ArgumentTypeError, ValueError):
            return False
        return True


def flag(default: Any, help: str = "", **row: Any) -> Any:
    """A field that is a row of the table."""
    metadata = {"flag": {"default": default, "help": help, **row}}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _is_scalar(value: object) -> bool:
    return (isinstance(value, float | int | str) and not isinstance(value, bool)
            and (not isinstance(value, int) or abs(value) < LARGEST_NUMBER))


# ---- readers of one word -----------------------------------------------------------------------------------

AUTO, OFF, OWN = "auto", "off", "own"


def _number(kind: type[int] | type[float], low: float | None = None, high: float | None = None,
            open_low: bool = False, open_high: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = number_of(text, kind)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        too_low = low is not None and (value < low or (open_low and value == low))
        too_high = high is not None and (value > high or (open_high and value == high))
        if value != value or too_low or too_high:
            left = "" if low is None else f"{'above' if open_low else 'at least'} {low:g}"
            right = "" if high is None else f"{'below' if open_high else 'at most'} {high:g}"
            raise argparse.ArgumentTypeError(
                f"{text} is out of range: {' and '.join(filter(None, (left, right)))}")
        return value
    return read


count = _number(int, 1, 10**9)
up_to_1000 = _number(int, 1, 1000)  # what is done one after the other: a mistyped number must not take a year
folds_number = _number(int, 3, 100)  # one is scored, one chooses, the others train
side = _number(int, 1, 8192)  # pixels, or the width of a head
whole = _number(int, 0, 10**9)
seed_number = _number(int, 0, 2**32 - 1)
width_ratio = _number(float, 0, 100, open_low=True)
positive = _number(float, 0, open_low=True, high=math.inf, open_high=True)
not_negative = _number(float, 0, high=math.inf, open_high=True)
share = _number(float, 0, 1)
share_above_0 = _number(float, 0, 1, open_low=True)
share_below_1 = _number(float, 0, 1, open_low=True, open_high=True)
below_one = _number(float, 0, 1, open_high=True)


def count_or_auto(text: str) -> int | str:
    return AUTO if text == AUTO else count(text)


def side_or_own(text: str) -> int | str:
    return OWN if text == OWN else side(text)


def normalisation(text: str) -> str:
    """`--norm` as it is stored: backbone, imagenet, half, or six numbers separated by commas."""
    # the original's default, in its command lines and in checkpoints: it meant the backbone's own
    if text == "IMAGENET":
        return "backbone"
    if text.lower() in ("backbone", "imagenet", "half"):
        return text.lower()
    try:
        numbers = [number_of(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or min(numbers[3:]) <= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of backbone, imagenet, half, nor six numbers parted by commas: "
            "three means and three standard deviations above 0, of values from 0 to 1")
    return ",".join(str(number).removesuffix(".0") for number in numbers)  # to the last digit


def ratios(text: str) -> list[float]:
    """`--dataratio`: one share of the training images or a comma-separated list, each in (0, 1]."""
    values = [share_above_0(part.strip()) for part in text.split(",") if part.strip()]
    if not values:
        raise argparse.ArgumentTypeError(f"{text!r} names no share")
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text!r} names a share twice")
    return values
