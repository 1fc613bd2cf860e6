"""What the programs that use trained weights check of their options: predict.py and latent_feature.py."""

import os
from pathlib import Path

from util.core.errors import reject_if
from util.options.groups import Options

LONGEST_NAME = 200  # bytes of an output's name: 255 are allowed, and files beside it have longer ones


def check_weights(options: Options) -> None:
    """InputError unless exactly one source of weights is named."""
    named = [name for name in ("finetune", "resume", "random_weights") if options.value(name)]
    reject_if(
        (len(named) > 1,
         f"{' and '.join(f'--{name}' for name in named)} each name the weights: pass one of them"),
        (not named,
         "no weights are named: pass --finetune (a backbone's, see docs/weights.md) or --resume (a trained "
         "checkpoint); features of random weights are made with --random_weights alone"))


def check_output(output: str, suffixes: tuple[str, ...], source: str) -> None:
    """InputError unless a file can be written there."""
    path = Path(output)
    reject_if(
        (path.suffix.lower() not in suffixes,
         f"--output {output}: the file's name has to end in {' or '.join(suffixes)}"),
        (len(os.fsencode(path.name)) > LONGEST_NAME,
         f"--output {output}: the file's name is too long: at most {LONGEST_NAME} bytes"),
        (not os.path.isdir(path.parent),
         f"--output {output}: there is no folder {path.parent}; make it first, or name another"),
        (os.path.isdir(path), f"--output {output} is a folder: name a file"),
        (os.path.exists(source) and os.path.exists(path) and os.path.samefile(source, path),
         f"--output {output} is the --input itself: name another file"),
        (not os.access(path.parent, os.W_OK),
         f"--output {output}: the folder {path.parent} can't be written; name another"))
