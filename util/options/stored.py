"""The options of a run as they are stored in its checkpoint: compared with those of today, and taken from
there."""

import argparse
import json

from util.options.flag import UNSET, normalisation
from util.options.groups import Options
from util.options.table import FLAGS, own_values

# What runs did before there was a flag for it, so that typing the flag is a difference.
BEFORE = {flag.name: flag.before for flag in FLAGS.values() if flag.before is not UNSET}


def differences(stored: dict, options: Options, typed_alone: bool = False) -> list[str]:
    """`--name stored -> now` for the options of a run that differ.

    Where the checkpoint is only scored, for those that its metrics depend on.
    """
    now = own_values(options)
    return [f"--{name} {_text(value)} -> {_text(now[name])}" for name, value in stored.items()
            if name in now and value != now[name] and not FLAGS[name].of_launch
            and (FLAGS[name].of_scoring or not options.run.eval)
            and (name in options.typed or not typed_alone)]


def with_stored(options: Options, stored: dict) -> Options:
    """The options with the values that the checkpoint's run had where nothing was typed."""
    return options.having(**{name: stored[name] for name in own_values(options)
                             if name in stored and not FLAGS[name].of_launch and name not in options.typed})


def as_now(stored: dict) -> dict:
    """A run's options in today's words. Before --norm had a meaning any word could stand there: it was the
    backbone's own. What a later flag says of an earlier run stands in its row."""
    stored = BEFORE | stored
    try:
        return stored | {"norm": normalisation(str(stored.get("norm", "backbone")))}
    except argparse.ArgumentTypeError:
        return stored | {"norm": "backbone"}


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
