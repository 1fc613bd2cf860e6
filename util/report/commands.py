"""The command lines that repeat a run, made from the options that its run.json holds."""

import shlex
from pathlib import Path

from util.options.flag import FINETUNE, REGRESSION, Flag
from util.options.table import flags_of

PROGRAMS = {"classification": FINETUNE, "multilabel": FINETUNE, "regression": REGRESSION}
# How a run was launched, not what it was.
NOT_REPEATED = {"resume", "eval", "dry_run", "world_size", "local_rank"}
# What stands in run.json where nothing was typed, beside the parser's None: the program fills it in again.
FILLED_IN = {"decode": ("scaled", "full"), "fc_norm_passes": (1,)}


def training_command(kind: str, options: dict, processes: int = 1) -> tuple[str, list[str]]:
    """(the command that trains the run again, options of run.json that this program's command line does not
    know).

    Only flags that differ from their defaults stand in it. options: run.json's; kind: "classification" or
    "regression".
    """
    program, words = PROGRAMS[kind], []
    known = {flag.name: flag for flag in flags_of(program)}
    for name, flag in known.items():
        value = options.get(name, flag.default)
        is_filled_in = flag.default is None and value in FILLED_IN.get(name, ())
        if name not in NOT_REPEATED and value != flag.default and not is_filled_in:
            words += _words(flag, value)
    unknown = [f"{name} = {value!r}" for name, value in options.items() if name not in known]
    launcher = ["torchrun", f"--nproc_per_node={processes}"] if processes > 1 else ["python"]
    return _lines([*launcher, program], words), unknown


def evaluation_command(kind: str, options: dict, checkpoint: Path) -> str:
    """The command that scores the run's best weights on test again; the folder and the images come from the
    checkpoint."""
    defaults = {"task": "", "output_dir": "./output_dir", "device": "cuda"}
    words = [["--eval"], ["--resume", str(checkpoint)],
             *([f"--{name}", str(options[name])] for name, default in defaults.items()
               if options.get(name) not in (None, "", default))]
    return _lines(["python", PROGRAMS[kind]], words)


def report_command(folder: Path) -> str:
    return f"python -m util.report {shlex.quote(str(folder))}"


def _words(flag: Flag, value: object) -> list[list[str]]:
    """A flag with its values, [] where it can't say the value."""
    option = f"--{flag.name}"
    if flag.is_switch:
        return [[option]] if value is True else [[flag.off[0]]] if value is False and flag.off else []
    if isinstance(value, list) and flag.words is not None:
        return [[option, *map(str, value)]]
    if isinstance(value, list):
        return [[option, ",".join(map(str, value))]]
    if value is None:
        return []
    return [[f"{option}={value}"] if str(value).startswith("-") else [option, str(value)]]


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
