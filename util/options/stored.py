"""The options of a run as they are stored in its checkpoint: compared with those of today, and taken from there."""

import argparse
import json
from argparse import Namespace

from util.options.flag import UNSET, Flag, normalisation
from util.options.table import FLAGS

# What runs did before there was a flag for it, so that typing the flag is a difference.
BEFORE = {flag.name: flag.before for flag in FLAGS.values() if flag.before is not UNSET}
_OTHER = Flag(name="")  # of an option that has no flag any more


def differences(stored: dict, options: Namespace, typed: set[str] | None = None) -> list[str]:
    """`--name stored -> now` for the options of a run that differ (of those typed alone, where given).

    Where the checkpoint is only scored, for those that its metrics depend on.
    """
    now = vars(options)
    names = [name for name in stored if name in now and not FLAGS.get(name, _OTHER).of_launch]
    if options.eval:
        names = [name for name in names if FLAGS.get(name, _OTHER).of_scoring]
    if typed is not None:
        names = [name for name in names if name in typed]
    return [f"--{name} {_text(stored[name])} -> {_text(now[name])}" for name in names if stored[name] != now[name]]


def take_stored(stored: dict, options: Namespace, typed: set[str]) -> None:
    """Options that were not typed take the value that the checkpoint's run had."""
    for name, value in stored.items():
        if hasattr(options, name) and not FLAGS.get(name, _OTHER).of_launch and name not in typed:
            setattr(options, name, value)


def as_now(stored: dict) -> dict:
    """A run's options in today's words. Before --norm had a meaning any word could stand there: it was the backbone's own.
    What a later flag says of an earlier run stands in its row."""
    stored = BEFORE | stored
    try:
        return stored | {"norm": normalisation(str(stored.get("norm", "backbone")))}
    except argparse.ArgumentTypeError:
        return stored | {"norm": "backbone"}


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
