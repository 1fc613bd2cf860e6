"""A command line -> the options, by the table of flags; wrong input is one line."""

import argparse
import difflib
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from util.core.errors import InputError
from util.options.flag import USE
from util.options.groups import Options
from util.options.table import FLAGS, PROGRAMS


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the nearest flag's name for a misspelt one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.ArgumentDefaultsHelpFormatter,
                            **options})

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0]
        if unknown != message.split(" ")[0] and unknown.startswith("--"):
            near = difflib.get_close_matches(unknown, re.findall(r"--[a-z]\w*", self.format_usage()), 1)
            message += f" (did you mean {near[0]}?)" if near else " (--help lists the flags)"
        raise InputError(message)


class _LaunchLinesAsTheyAre(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with defaults, and a description whose lines are not filled anew."""


def parser_of(program: str, documentation: str, defaults: bool = True) -> OneLineParser:
    """The parser of a program. documentation: of its module, whose first line begins its help, or all of it
    where the launch lines belong there. Without `defaults` what is not typed is not among the options."""
    description = {"description": documentation.split("\n")[0]}
    if program in USE:
        description = {"description": documentation, "formatter_class": _LaunchLinesAsTheyAre}
    parser = OneLineParser(prog=program, **description)
    for heading, names in PROGRAMS[program]:
        group = parser.add_argument_group(heading)
        for name in names:
            FLAGS[name].in_program(program).add_to(group.add_argument, defaults)
            if name == "local_rank":  # as older launchers spell it
                group.add_argument("--local-rank", dest="local_rank", type=int, help=argparse.SUPPRESS,
                                   default=argparse.SUPPRESS)
    return parser


def parse(program: str, documentation: str, argv: list[str] | None,
          other_defaults: Mapping[str, str] | None = None) -> Options:
    """Read a command line; InputError for anything that the program does not understand. other_defaults: of
    the name that the program was started under."""
    parser = parser_of(program, documentation)
    parser.set_defaults(**(other_defaults or {}))
    values, typed = (vars(one.parse_args(argv)) for one in (parser, parser_of(program, documentation, False)))
    return Options.of(program, values, typed)
