"""A study as a YAML file: backbones x adaptations x shares of the training images x seeds, one run a cell.

    name: aptos                       # results: OUTPUT_DIR/aptos/CELL
    program: main_finetune.py         # or main_regression.py
    flags: {data_path: /data/APTOS2019, nb_classes: 5, epochs: 50}     # of every run
    backbones:
      - retfound: {model: RETFound_dinov2, finetune: RETFound_dinov2_meh}
      - dinov3: --model Dinov3 --model_arch dinov3_vits16 --finetune dinov3_vits16_pretrain.pth
    adaptations: [finetune, lp]
    dataratios: [0.1, 1]
    seeds: [0, 1, 2]

The file is read as nodes, not as Python values: every error then has its line, a key that stands twice is
seen, and 1e-3 stays what was typed (YAML 1.1 takes it for text, and "no" for false).
"""

import difflib
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from util.core.errors import InputError
from util.options.checks import check_combinations
from util.options.flag import TRAINING, Flag
from util.options.groups import Options
from util.options.parsing import parse
from util.options.table import FLAGS, flags_of, own_values

KEYS = ("name", "program", "output_dir", "flags", "backbones", "adaptations", "dataratios", "seeds")
DEFAULTS = ("{program: main_finetune.py, output_dir: ./output_dir, flags: {}, adaptations: [finetune], "
            "dataratios: [1], seeds: [0]}")
# Flags that the grid itself gives to a run, with the key that says them.
OF_THE_GRID = {"task": "name", "output_dir": "output_dir", "dataratio": "dataratios", "seed": "seeds",
               "resume": None, "eval": None, "dry_run": None, "help": None}
OF_A_SEARCH = "optuna_trials"
Flags = dict[str, tuple[list[str], int]]  # {flag: (its words on the command line, its line)}


@dataclass(frozen=True)
class Cell:
    """One run."""

    name: str  # of its folder
    group: str  # the cell without its seed, without what all cells share
    task: str
    folder: Path
    arguments: tuple[str, ...]  # of the program
    options: Options


@dataclass(frozen=True)
class Grid:
    """What a file asks for."""

    path: str
    program: str
    folder: Path  # OUTPUT_DIR/NAME
    cells: list[Cell]


@dataclass(frozen=True)
class Setting:
    """One value of an axis: a name and the flags that it stands for, each with its words and its line."""

    name: str
    flags: Flags
    line: int


def read_grid(path: str) -> Grid:
    """Read and check a study. InputError with line and key for whatever is not understood."""
    return _Reader(path).grid()


class _Reader:
    def __init__(self, path: str) -> None:
        self.path = path

    def grid(self) -> Grid:
        given = self.mapping(self._root(), "the file")
        for key, (_, line) in given.items():
            self.require(key in KEYS, line, key, f"unknown; {_near(key, KEYS)}")
        for key in ("name", "backbones"):
            if key not in given:
                raise InputError(f"{self.path}: {key} is not given; a grid needs name and backbones")
        given = self.mapping(yaml.compose(DEFAULTS), "") | given
        nodes = {key: node for key, (node, _) in given.items()}
        name = self.checked_name(self.text(nodes["name"], "name"), given["name"][1], "name")
        self.program = self.text(nodes["program"], "program")
        self.require(self.program in TRAINING, given["program"][1], "program",
                     f"{self.program} is none of {', '.join(TRAINING)}")
        self.rows = {flag.name: flag for flag in flags_of(self.program)}
        self.off = {flag.off[0].lstrip("-"): flag for flag in self.rows.values() if flag.off}
        output_dir = self.text(nodes["output_dir"], "output_dir")
        common = self.flags(nodes["flags"], "flags")
        axes = {"backbones": self.backbones(nodes["backbones"]),
                "adaptations": self.adaptations(nodes["adaptations"]),
                "dataratios": self.numbers(nodes["dataratios"], "dataratios", "dataratio", float),
                "seeds": self.numbers(nodes["seeds"], "seeds", "seed", int)}
        for key, settings in axes.items():
            seen: dict[str, Setting] = {}
            for setting in settings:
                before = seen.setdefault(setting.name, setting)
                self.require(before is setting, setting.line, key,
                             f"{setting.name} stands there twice (line {before.line}): its runs would be one "
                             "folder; give one another name or value")
        return Grid(self.path, self.program, Path(output_dir) / name,
                    self.cells(name, output_dir, common, list(axes.values())))

    # ---- cells

    def cells(self, name: str, output_dir: str, common: Flags, axes: list[list[Setting]]) -> list[Cell]:
        asked: dict[str, Cell] = {}
        for chosen in itertools.product(*axes):
            names = [setting.name for setting in chosen]
            cell = "_".join(names)
            varied = [one for one, of_axis in zip(names[:3], axes[:3], strict=True) if len(of_axis) > 1]
            group = " ".join(varied) or "_".join(names[:3])
            backbone, adaptation, ratio, seed = chosen  # adaptation wins over backbone, backbone over all
            given = common | backbone.flags | adaptation.flags | ratio.flags | seed.flags
            arguments = [word for words, _ in given.values() for word in words]
            options = self.parse(arguments, given, backbone)
            arguments += ["--output_dir", output_dir, "--task", f"{name}/{cell}"]
            one = Cell(cell, group, f"{name}/{cell}", Path(output_dir) / name / cell, tuple(arguments),
                       options)
            before = asked.setdefault(repr(sorted(own_values(options).items())), one)
            self.require(before is one, backbone.line, "backbones",
                         f"{cell} and {before.name} are the same run: their flags don't differ")
        return list(asked.values())

    def parse(self, arguments: list[str], given: Flags, backbone: Setting) -> Options:
        """What the program itself will say to these flags is said before any run is begun."""
        try:
            options = check_combinations(parse(self.program, "", arguments))
        except InputError as error:
            line, key = next(((line, name) for name, (_, line) in given.items()
                              if re.search(rf"--{name}\b", str(error))), (backbone.line, backbone.name))
            raise self.error(line, key, str(error)) from error
        _, line = given.get(OF_A_SEARCH, ([], 0))
        self.require(not options.value(OF_A_SEARCH), line, OF_A_SEARCH,
                     "a study trains given settings; search first, and pass params")
        return options

    # ---- axes

    def backbones(self, node: yaml.Node) -> list[Setting]:
        settings = []
        for name, value, line in self.named(node, "backbones"):
            given = self.flags(value, "backbones")
            if name is None:
                named_by = [given[flag][0][-1] for flag in ("model_arch", "model") if flag in given]
                self.require(named_by, line, "backbones", "neither model nor model_arch is given")
                name = re.sub(r"[^\w.-]", "-", named_by[0])
            settings.append(Setting(self.checked_name(name, line, "backbones"), given, line))
        return settings

    def adaptations(self, node: yaml.Node) -> list[Setting]:
        settings, choices = [], FLAGS["adaptation"].choices
        for name, value, line in self.named(node, "adaptations", scalars=True):
            self.require(name is not None, line, "adaptations",
                         "an entry is finetune, lp, or a name with flags: lp: {epochs: 100}")
            given = {} if value is None else self.flags(value, "adaptations")
            self.require("adaptation" in given or name in choices, line, "adaptations",
                         f"{name} is none of {', '.join(choices)}; a name of your own needs the flag "
                         "adaptation beside it")
            given.setdefault("adaptation", (["--adaptation", name], line))
            settings.append(Setting(self.checked_name(name, line, "adaptations"), given, line))
        return settings

    def numbers(self, node: yaml.Node, key: str, flag: str, kind: type[int] | type[float]) -> list[Setting]:
        settings, what = [], {int: "whole number", float: "number"}[kind]
        for item in self.sequence(node, key):
            text, line = self.text(item, key), _line(item)
            try:
                value = kind(text)
            except ValueError:
                raise self.error(line, key, f"{text!r} is no {what}") from None
            name = f"ratio{value:g}" if kind is float else f"{flag}{value}"
            settings.append(Setting(name, {flag: ([f"--{flag}", text], line)}, line))
        return settings

    def named(self, node: yaml.Node, key: str,
              scalars: bool = False) -> Iterator[tuple[str | None, yaml.Node | None, int]]:
        """(name or None, flags' node or None, line) of each entry: a mapping's, or a list's of one-key
        mappings (a name and its flags), of flags (as a mapping or as typed), of plain words where
        `scalars`."""
        if isinstance(node, yaml.MappingNode):
            for name, (value, line) in self.mapping(node, key).items():
                yield name, value, line
            return
        for item in self.sequence(node, key):
            line = _line(item)
            if isinstance(item, yaml.MappingNode):
                found = self.mapping(item, key)
                name, (value, line_of_name) = next(iter(found.items()), ("", (None, line)))
                if len(found) == 1 and (isinstance(value, yaml.MappingNode) or self.flag(name) is None):
                    yield name, value, line_of_name
                else:
                    yield None, item, line
            elif isinstance(item, yaml.ScalarNode) and item.value.startswith("-"):
                yield None, item, line
            else:
                self.require(isinstance(item, yaml.ScalarNode) and scalars, line, key,
                             "an entry is a name with its flags, or flags alone")
                yield self.text(item, key), None, line

    # ---- flags

    def flags(self, node: yaml.Node, key: str) -> Flags:
        """Of a mapping, or of a text such as "--model timm --lr 1e-3"."""
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            found = self.of_words(node, key)
        else:
            found = {name: (self.words(name, value), line)
                     for name, (value, line) in self.mapping(node, key).items()}
        for name, (_, line) in found.items():
            said = OF_THE_GRID.get(name)
            self.require(name not in OF_THE_GRID, line, name,
                         f"the grid's own key {said} says it" if said else "the study decides it itself")
        return found

    def of_words(self, node: yaml.ScalarNode, key: str) -> Flags:
        found, line = {}, _line(node)
        try:
            words = shlex.split(node.value)
        except ValueError as error:
            raise self.error(line, key, f"{node.value!r}: {error}") from error
        for word in words:
            if re.match(r"--?[A-Za-z]", word):
                flag, equals, value = word.partition("=")
                row, known = self.flag(flag.lstrip("-")), _near(flag.lstrip("-"), [*self.rows, *self.off])
                self.require(row, line, key, f"unknown flag {flag}; {known}")
                self.require(row.name not in found, line, key, f"{flag} stands there twice")
                found[row.name] = ([flag, *([value] if equals else [])], line)
            else:
                self.require(found, line, key, f"{word!r} is no flag: --model NAME …, or a mapping of flags")
                found[row.name][0].append(word)
        return found

    def words(self, name: str, node: yaml.Node) -> list[str]:
        """A flag's words from its value in the file. `savemodel: false` is --no_savemodel; a switch that is
        off by default and has no opposite is left out."""
        line, flag = _line(node), self.flag(name)
        self.require(flag, line, name, f"unknown flag; {_near(name, [*self.rows, *self.off])}")
        if isinstance(node, yaml.SequenceNode):
            self.require(flag.words is not None, line, name, "takes one value, not a list")
            return [f"--{name}", *(self.text(item, name) for item in node.value)]
        is_bool = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:bool"
        if not flag.is_switch:
            self.require(not is_bool or node.value.lower() not in ("true", "false"), line, name,
                         f"takes a value, not {node.value}")
            return [f"--{name}", self.text(node, name)]
        self.require(is_bool, line, name, "is a switch: true or false")
        if node.value.lower() in ("true", "yes", "on"):
            return [f"--{name}"]
        if name in self.off:
            return [f"--{flag.name}"]
        self.require(flag.off or not flag.default, line, name, "can't be switched off")
        return [flag.off[0]] if flag.off else []

    def flag(self, name: str) -> Flag | None:
        """The row of a flag's name, or of the one that turns it off."""
        return self.rows.get(name) or self.off.get(name)

    # ---- nodes

    def _root(self) -> yaml.Node:
        try:
            text = Path(self.path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--run {self.path}: can't be read "
                             f"({getattr(error, 'strerror', None) or error})") from error
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise InputError(f"{self.path}{where}: no YAML "
                             f"({getattr(error, 'problem', None) or error})") from error
        except RecursionError as error:
            raise InputError(f"{self.path}: no grid but brackets in brackets without end") from error
        if root is None:
            raise InputError(f"{self.path} is empty: a grid needs name and backbones (see "
                             "examples/grid.yaml)")
        return root

    def mapping(self, node: yaml.Node, key: str) -> dict[str, tuple[yaml.Node, int]]:
        """{key: (node, line)}; a key twice is an error."""
        self.require(isinstance(node, yaml.MappingNode), _line(node), key, "needs keys with values")
        found: dict[str, tuple[yaml.Node, int]] = {}
        for name_node, value in node.value:
            name, line = self.text(name_node, key), _line(name_node)
            _, before = found.get(name, (None, 0))
            self.require(name not in found, line, name, f"stands there twice (line {before})")
            found[name] = (value, line)
        return found

    def sequence(self, node: yaml.Node, key: str) -> list[yaml.Node]:
        self.require(isinstance(node, yaml.SequenceNode), _line(node), key, "needs a list: [a, b]")
        self.require(node.value, _line(node), key, "is an empty list")
        return node.value

    def text(self, node: yaml.Node, key: str) -> str:
        self.require(isinstance(node, yaml.ScalarNode), _line(node), key,
                     "needs one value, not a list or keys")
        self.require(node.tag != "tag:yaml.org,2002:null", _line(node), key,
                     "has no value; leave it out, or write \"\" for an empty one")
        return node.value

    def checked_name(self, name: str, line: int, key: str) -> str:
        self.require(re.fullmatch(r"\w[\w.-]*", name), line, key,
                     f"{name!r} is no name for a folder: letters, digits, _ . - alone")
        return name

    def require(self, is_so: object, line: int, key: str, problem: str) -> None:
        if not is_so:
            raise self.error(line, key, problem)

    def error(self, line: int, key: str, problem: str) -> InputError:
        return InputError(f"{self.path}, line {line} ({key}): {problem}")


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(known[:12])}" + (", …" if len(known) > 12 else "")
