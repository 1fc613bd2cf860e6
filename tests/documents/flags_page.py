"""The flags of all programs as a page, from their parsers: docs/flags.md, and docs/zh/flags.md with the texts
of flags.json."""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import compare
import latent_feature
import main_finetune
import main_regression
import predict
from util.data.leakage import search
from util.data.public import demo, prepare
from util.options.parsing import parser_of
from util.report import __main__ as report

ROOT = Path(__file__).parents[2]
TEXTS = ROOT / "docs/zh/flags.json"
PAGES = {"en": ROOT / "docs/flags.md", "zh": ROOT / "docs/zh/flags.md"}
PROGRAMS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    **{program: partial(parser_of, program, module.__doc__)
       for program, module in (("main_finetune.py", main_finetune), ("main_regression.py", main_regression),
                               ("predict.py", predict), ("latent_feature.py", latent_feature))},
    "compare.py": compare.make_parser,
    "python -m util.leakage": search.make_parser,
    "python -m util.prepare": prepare.make_parser,
    "python -m util.report": report.make_parser,
    "python -m util.demo_data": demo.make_parser,
}
WITHOUT_TITLE = ("positional arguments", "options")  # argparse's own groups
INTRODUCTION = """\
What each flag of each program does. The page is made from the programs' own help, `python PROGRAM --help`, by
`python -m tests.documents --write`.

A flag that several programs share is listed once, with their names in the last column. In the column of defaults, `on`
and `off` are the state of a switch that is not typed, `none` means not set, and `empty` is an empty text or list. Where
a program has another default, its name stands before it. Some defaults also depend on the backbone and its weights:
[see the table](train.md#defaults-by-backbone-and-initial-weights). `predict.py` needs the flags of the model only for
checkpoints that do not name their own, those of the original scripts."""
WORDS = {
    "en": {
        "title": "All flags",
        "programs": ("Program", "What it does", "Where its flags are"),
        "flags": ("Flag", "Default", "Meaning", "Choices", "Programs"),
        "colon": ": ", "semicolon": "; ", "comma": ", ",
        "on": "on", "off": "off", "none": "none", "empty": "empty", "required": "required",
    },
    "zh": {
        "title": "全部参数",
        "programs": ("程序", "作用", "参数所在的组"),
        "flags": ("参数", "默认值", "含义", "可选值", "程序"),
        "colon": "：", "semicolon": "；", "comma": "、",
        "on": "开", "off": "关", "none": "未设", "empty": "空", "required": "必填",
    },
}


@dataclass
class Row:
    """A line of the page: a flag as one program or several alike know it. actions: {program: its action}."""

    key: str  # of its text in docs/zh/flags.json
    name: str
    help: str
    group: str
    actions: dict[str, argparse.Action] = field(default_factory=dict)


def groups_of(program: str) -> Iterator[tuple[str, list[argparse.Action]]]:
    """(title, actions) of each group of a program's help that has any; what has no title is called as the
    program."""
    for group in PROGRAMS[program]()._action_groups:
        shown = [action for action in group._group_actions
                 if action.help != argparse.SUPPRESS and "--help" not in action.option_strings]
        if shown:
            yield program if group.title in WITHOUT_TITLE else group.title, shown


def name_of(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)


def rows() -> list[Row]:
    """All lines, group by group. Programs share a line where name, help and choices are the same."""
    found: list[Row] = []
    for program in PROGRAMS:
        for title, actions in groups_of(program):
            for action in actions:
                name = name_of(action)
                alike = [row for row in found if row.name == name]
                shared = [row for row in alike if row.help == action.help
                          and next(iter(row.actions.values())).choices == action.choices]
                if not shared:
                    key = f"{name} {short(program)}" if alike else name
                    found.append(Row(key, name, action.help, title))
                    shared = found[-1:]
                shared[0].actions[program] = action
    titles = list(dict.fromkeys(row.group for row in found))
    return sorted(found, key=lambda row: titles.index(row.group))


def short(program: str) -> str:
    """A program's name in a cell: predict, util.leakage."""
    return program.removeprefix("python -m ").removesuffix(".py")


def anchor(heading: str) -> str:
    """What GitHub makes of a heading's text."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def read_texts() -> dict:
    """docs/zh/flags.json: {"introduction": …, "programs": …, "groups": …, "flags": …}, the last by the rows'
    keys."""
    return json.loads(TEXTS.read_text(encoding="utf-8"))


def page(language: str) -> str:
    """The whole page, in Markdown."""
    words, texts = WORDS[language], read_texts() if language == "zh" else None
    all_rows = rows()
    introduction = "\n\n".join(texts["introduction"]) if texts else INTRODUCTION
    lines = [f"# {words['title']}", "", introduction, "", *_header(words["programs"])]
    for program, make_parser in PROGRAMS.items():
        description = (
            texts["programs"][program] if texts else _marked((make_parser().description or "").split("\n")[0])
        )
        titles = dict.fromkeys(_heading(row.group, texts) for row in all_rows if program in row.actions)
        links = words["comma"].join(f"[{title}](#{anchor(title)})" for title in titles)
        lines.append(f"| `{program}` | {description} | {links} |")
    for title in dict.fromkeys(row.group for row in all_rows):
        lines += ["", f"## {_heading(title, texts)}", "", *_header(words["flags"])]
        lines += [_line(row, texts["flags"][row.key] if texts else _marked(row.help), words)
                  for row in all_rows if row.group == title]
    return "\n".join(lines) + "\n"


def _header(cells: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(cells)} |", f"| {' | '.join(['---'] * len(cells))} |"]


def _heading(title: str, texts: dict | None) -> str:
    if title in PROGRAMS:
        return title
    return texts["groups"][title] if texts else title[0].upper() + title[1:]


def _line(row: Row, meaning: str, words: dict) -> str:
    first, *others = row.actions.items()
    default = _default(first[1], words)
    differing = [(program, _default(action, words)) for program, action in others]
    differing = [f"{short(program)}{words['colon']}{other}" for program, other in differing
                 if other != default]
    choices = words["comma"].join(f"`{choice}`" for choice in first[1].choices or ())
    cells = (f"`{row.name}`", words["semicolon"].join([default, *differing]), meaning.replace("|", "\\|"),
             choices,
             words["comma"].join(map(short, row.actions)))
    return f"| {' | '.join(cells)} |"


def _default(action: argparse.Action, words: dict) -> str:
    if action.required and action.nargs != "*":
        return words["required"]
    if action.nargs == 0:
        return words["on" if action.default is True and action.const is True else "off"]
    if action.default is None:
        return words["none"]
    if action.default in ("", []):
        return words["empty"]
    values = action.default if isinstance(action.default, list) else [action.default]
    if isinstance(values[0], str):
        return f"`{' '.join(values)}`"
    return " ".join(f"{value:.4g}" for value in values)


def _marked(text: str) -> str:
    """A help text as Markdown: flags, files and expressions as code, pages of docs/ as links."""
    text = re.sub(r"'(\([^']+)'", r"`'\1'`", text)
    text = re.sub(r"(?<![\w-])(--[a-z]\w+)", r"`\1`", text)
    text = re.sub(r"(?<![\w/`.])([\w-]+\.(?:pth|json|csv|npz|db|yaml|html))\b", r"`\1`", text)
    return re.sub(r"docs/(\w+)\.md", r"[\1.md](\1.md)", text)
