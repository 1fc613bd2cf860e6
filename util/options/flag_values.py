"""Whether a value that was read from a file is one that a flag could have given: by the flag's own reader."""

import argparse

LONGEST_TEXT = 4096  # letters; a path's bound
LARGEST_NUMBER = 10**18  # beyond it Python would spell out digits for as long as it takes


def is_value_of(action: argparse.Action, value) -> bool:
    """Whether a flag could have given this value."""
    if value is None:
        return action.default is None
    if action.nargs == 0:
        return isinstance(value, bool)
    if isinstance(value, str | list) and len(value) > LONGEST_TEXT:
        return False
    if isinstance(value, list):
        if action.nargs is None:  # one word that stands for several, as --dataratio 0.1,1
            return (
                isinstance(action.default, list)
                and all(_is_scalar(entry) for entry in value)
                and _reads(action, ",".join(map(str, value)))
            )
        return (not isinstance(action.nargs, int) or len(value) == action.nargs) and all(
            _is_one(action, entry) for entry in value
        )
    return action.nargs in (None, "?") and _is_one(action, value)


def _is_one(action: argparse.Action, value) -> bool:
    if action.type is None:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT and (action.choices is None or value in action.choices)
    return _is_scalar(value) and _reads(action, str(value)) and (action.choices is None or value in action.choices)


def _is_scalar(value) -> bool:
    return (
        isinstance(value, float | int | str)
        and not isinstance(value, bool)
        and (not isinstance(value, int) or abs(value) < LARGEST_NUMBER)
    )


def _reads(action: argparse.Action, text: str) -> bool:
    try:
        action.type(text)
    except (argparse.ArgumentTypeError, ValueError):
        return False
    return True
