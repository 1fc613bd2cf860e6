"""What the programs that use trained weights check of their options: predict.py and latent_feature.py."""

import os
from pathlib import Path

from util.core.errors import InputError
from util.options.groups import Options

LONGEST_NAME = 200  # bytes of an output's name: 255 are allowed, and files beside it have longer ones


def check_weights(options: Options) -> None:
    """InputError unless exactly one source of weights is named."""
    named = [name for name in ("finetune", "resume", "random_weights") if options.value(name)]
    if len(named) > 1:
        raise InputError(f"{' and '.join(f'--{name}' for name in named)} each name the weights: pass one of "
                         "them")
    if not named:
        raise InputError("no weights are named: pass --finetune (a backbone's, see docs/weights.md) or "
                         "--resume (a trained checkpoint); features of random weights are made with "
                         "--random_weights alone")


def check_output(output: str, suffixes: tuple[str, ...], source: str) -> None:
    """InputError unless a file can be written there."""
    path = Path(output)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"--output {output}: the file's name has to end in {' or '.join(suffixes)}")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError(f"--output {output}: the file's name is too long: at most {LONGEST_NAME} bytes")
    if not os.path.isdir(path.parent):
        raise InputError(f"--output {output}: there is no folder {path.parent}; make it first, or name "
                         "another")
    if os.path.isdir(path):
        raise InputError(f"--output {output} is a folder: name a file")
    if os.path.exists(source) and path.exists() and os.path.samefile(source, path):
        raise InputError(f"--output {output} is the --input itself: name another file")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--output {output}: the folder {path.parent} can't be written; name another")
