"""The command lines that repeat a run, made from the options that its run.json holds."""

import shlex
from pathlib import Path

from util.options.flags import OneLineParser, add_classification_flags
from util.options.regression import add_regression_flags

PROGRAMS = {"classification": ("main_finetune.py", add_classification_flags),
            "regression": ("main_regression.py", add_regression_flags)}
# How a run was begun, not what it was.
NOT_REPEATED = {"resume", "eval", "dry_run", "world_size", "local_rank"}
# What stands in run.json where nothing was typed, beside the parser's None: the program fills it in again.
FILLED_IN = {"decode": ("scaled", "full"), "fc_norm_passes": (1,)}


def training_command(kind: str, options: dict, processes: int = 1) -> tuple[str, list[str]]:
    """(the command that trains the run again, options of run.json that this program's command line does not know).

    Only flags that differ from their defaults stand in it. options: run.json's; kind: "classification" or "regression".
    """
    program, add_flags = PROGRAMS[kind]
    parser = OneLineParser(prog=program)
    add_flags(parser)
    actions: dict[str, list] = {}
    for action in parser._actions:
        if action.dest != "help":
            actions.setdefault(action.dest, []).append(action)
    words = []
    for name, same in actions.items():
        value, default = options.get(name, same[0].default), parser.get_default(name)
        if name not in NOT_REPEATED and value != default and not (default is None and value in FILLED_IN.get(name, ())):
            words += _words(same, value)
    unknown = [f"{name} = {value!r}" for name, value in options.items() if name not in actions]
    return _lines([*_launcher(processes), program], words), unknown


def evaluation_command(kind: str, options: dict, checkpoint: Path) -> str:
    """The command that scores the run's best weights on test again; the folder and the pictures come from the checkpoint."""
    words = ["--eval", "--resume", str(checkpoint)]
    for name in ("task", "output_dir", "device"):
        if options.get(name) not in (None, "", {"output_dir": "./output_dir", "device": "cuda"}.get(name)):
            words += [f"--{name}", str(options[name])]
    return _lines(["python", PROGRAMS[kind][0]], _pairs(words))


def report_command(folder: Path) -> str:
    return f"python -m util.report {shlex.quote(str(folder))}"


def _launcher(processes: int) -> list[str]:
    return ["torchrun", f"--nproc_per_node={processes}"] if processes > 1 else ["python"]


def _words(actions: list, value) -> list[list[str]]:
    """One flag with its values, [] where none of the flags of that name can say the value."""
    for action in actions:
        flag = action.option_strings[0]
        if action.nargs == 0:
            if action.const == value:
                return [[flag]]
        elif isinstance(value, list) and action.nargs is not None:
            return [[flag, *map(str, value)]]
        elif isinstance(value, list):
            return [[flag, ",".join(map(str, value))]]
        elif value is not None:
            return [[f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]]
    return []


def _pairs(words: list[str]) -> list[list[str]]:
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


def _lines(program: list[str], groups: list[list[str]], width: int = 92) -> str:
    """Words quoted for a shell, on lines of about `width` letters; a flag and its values are not parted."""
    lines = [" ".join(program)]
    for group in groups:
        text = " ".join(map(shlex.quote, group))
        if len(lines[-1]) + len(text) + 1 > width:
            lines.append(f"    {text}")
        else:
            lines[-1] += f" {text}"
    return " \\\n".join(lines)
