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
# Flags that the grid itself gives to a run, with the key that says them.
OF_THE_GRID = {"task": "name", "output_dir": "output_dir", "dataratio": "dataratios", "seed": "seeds",
               "resume": None,
               "eval": None, "dry_run": None, "help": None}
OF_A_SEARCH = "optuna_trials"


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
    flags: dict[str, tuple[list[str], int]]
    line: int


def read_grid(path: str) -> Grid:
    """Read and check a study. InputError with line and key for whatever is not understood."""
    return _Reader(path).grid()


class _Reader:
    def __init__(self, path: str):
        self.path, self.program = path, TRAINING[0]

    def grid(self) -> Grid:
        top = self.mapping(self._root(), "the file")
        for key, (_, line) in top.items():
            if key not in KEYS:
                raise self.error(line, key, f"unknown; {_near(key, KEYS)}")
        for key in ("name", "backbones"):
            if key not in top:
                raise InputError(f"{self.path}: {key} is not given; a grid needs name and backbones")
        nodes = {key: node for key, (node, _) in top.items()}
        name = self.checked_name(self.text(nodes["name"], "name"), nodes["name"], "name")
        program = self.text(nodes["program"], "program") if "program" in nodes else TRAINING[0]
        if program not in TRAINING:
            raise self.error(
                _line(nodes["program"]), "program", f"{program} is none of {', '.join(TRAINING)}"
            )
        self.program = program
        self.off = {flag.off[0].lstrip("-"): flag for flag in flags_of(program) if flag.off}
        output_dir = self.text(nodes["output_dir"], "output_dir") if "output_dir" in nodes else "./output_dir"
        common = self.flags(nodes["flags"], "flags") if "flags" in nodes else {}
        axes = {
            "backbones": self.backbones(nodes["backbones"]),
            "adaptations": self.adaptations(nodes.get("adaptations")),
            "dataratios": self.numbers(nodes.get("dataratios"), "dataratios", "dataratio", float, "1"),
            "seeds": self.numbers(nodes.get("seeds"), "seeds", "seed", int, "0")}
        for key, settings in axes.items():
            self.refuse_repeated(key, settings)
        return Grid(self.path, program, Path(output_dir) / name, self.cells(name, output_dir, common, axes))

    # ---- cells

    def cells(self, name: str, output_dir: str, common: dict, axes: dict[str, list[Setting]]) -> list[Cell]:
        cells: list[Cell] = []
        asked: dict[str, Cell] = {}
        for chosen in itertools.product(*axes.values()):
            *without_seed, _ = (setting.name for setting in chosen)
            cell = "_".join(setting.name for setting in chosen)
            varied = [setting for setting, of_axis in zip(chosen[:3], list(axes.values())[:3], strict=True)
                      if len(of_axis) > 1]
            group = " ".join(setting.name for setting in varied) or "_".join(without_seed)
            given = dict(common)
            for setting in chosen:
                given |= setting.flags  # adaptation wins over backbone, backbone over what all share
            arguments = [word for words, _ in given.values() for word in words]
            options = self.parse(arguments, given, chosen)
            arguments += ["--output_dir", output_dir, "--task", f"{name}/{cell}"]
            same = repr(sorted(own_values(options).items()))
            if same in asked:
                raise self.error(
                    chosen[0].line,
                    "backbones",
                    f"{cell} and {asked[same].name} are the same run: their flags don't differ",
                )
            one = Cell(cell, group, f"{name}/{cell}", Path(output_dir) / name / cell, tuple(arguments),
                       options)
            asked[same] = one
            cells.append(one)
        return cells

    def parse(self, arguments: list[str], given: dict, chosen: tuple[Setting, ...]) -> Options:
        """What the program itself will say to these flags is said before any run is begun."""
        try:
            options = check_combinations(parse(self.program, "", arguments))
        except InputError as error:
            line, key = next(((line, name) for name, (_, line) in given.items()
                              if re.search(rf"--{name}\b", str(error))), (chosen[0].line, chosen[0].name))
            raise self.error(line, key, str(error)) from error
        if options.value(OF_A_SEARCH):
            raise self.error(
                given[OF_A_SEARCH][1],
                OF_A_SEARCH,
                "a study trains given settings; search first, and pass params",
            )
        return options

    # ---- axes

    def backbones(self, node) -> list[Setting]:
        settings = []
        for name, value, at in self.named(node, "backbones"):
            given = self.flags(value, "backbones")
            if name is None:
                named_by = next((given[flag][0][-1] for flag in ("model_arch", "model") if flag in given),
                                None)
                if named_by is None:
                    raise self.error(_line(at), "backbones", "neither model nor model_arch is given")
                name = re.sub(r"[^\w.-]", "-", named_by)
            settings.append(Setting(self.checked_name(name, at, "backbones"), given, _line(at)))
        return settings

    def adaptations(self, node) -> list[Setting]:
        if node is None:
            return [Setting("finetune", {"adaptation": (["--adaptation", "finetune"], 0)}, 0)]
        settings = []
        for name, value, at in self.named(node, "adaptations", scalars=True):
            if name is None:
                raise self.error(
                    _line(at),
                    "adaptations",
                    "an entry is finetune, lp, or a name with flags: lp: {epochs: 100}",
                )
            given = {} if value is None else self.flags(value, "adaptations")
            if "adaptation" not in given:
                choices = FLAGS["adaptation"].choices
                if name not in choices:
                    raise self.error(
                        _line(at),
                        "adaptations",
                        f"{name} is none of {', '.join(choices)}; a "
                        "name of your own needs the flag adaptation "
                        "beside it",
                    )
                given["adaptation"] = (["--adaptation", name], _line(at))
            settings.append(Setting(self.checked_name(name, at, "adaptations"), given, _line(at)))
        return settings

    def numbers(self, node, key: str, flag: str, kind: type, otherwise: str) -> list[Setting]:
        items = (
            [(otherwise, 0)]
            if node is None
            else [(self.text(item, key), _line(item)) for item in self.sequence(node, key)]
        )
        settings = []
        for text, line in items:
            try:
                value = kind(text)
            except ValueError:
                raise self.error(line, key, f"{text!r} is no "
                                            f"{'whole ' if kind is int else ''}number") from None
            name = f"ratio{value:g}" if kind is float else f"{flag}{value}"
            settings.append(Setting(name, {flag: ([f"--{flag}", text], line)}, line))
        return settings

    def named(self, node, key: str, scalars: bool = False):
        """(name or None, flags' node or None, its own node) of each entry: a mapping's, or a list's of
        one-key mappings (a name and its flags), of flags (as a mapping or as typed), of plain words where
        `scalars`."""
        if isinstance(node, yaml.MappingNode):
            self.mapping(node, key)
            for name, value in node.value:
                yield self.text(name, key), value, name
            return
        for item in self.sequence(node, key):
            if isinstance(item, yaml.ScalarNode) and item.value.startswith("-"):
                yield None, item, item
            elif isinstance(item, yaml.ScalarNode) and scalars:
                yield self.text(item, key), None, item
            elif isinstance(item, yaml.MappingNode):
                self.mapping(item, key)
                only = item.value[0] if len(item.value) == 1 else None
                if only and (isinstance(only[1], yaml.MappingNode)
                             or self.flag(self.text(only[0], key)) is None):
                    yield self.text(only[0], key), only[1], only[0]
                else:
                    yield None, item, item
            else:
                raise self.error(_line(item), key, "an entry is a name with its flags, or flags alone")

    def refuse_repeated(self, key: str, settings: list[Setting]) -> None:
        seen: dict[str, int] = {}
        for setting in settings:
            if setting.name in seen:
                raise self.error(
                    setting.line,
                    key,
                    f"{setting.name} stands there twice (line "
                    f"{seen[setting.name]}): its runs would be one folder; "
                    "give one another name or value",
                )
            seen[setting.name] = setting.line

    # ---- flags

    def flags(self, node, key: str) -> dict[str, tuple[list[str], int]]:
        """{flag: (its words on the command line, its line)} of a mapping, or of a text such as "--model timm
        --lr 1e-3"."""
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            found = self.of_words(node, key)
        else:
            found = {name: (self.words(name, value), line)
                     for name, (value, line) in self.mapping(node, key).items()}
        for name, (_, line) in found.items():
            if name in OF_THE_GRID:
                said = OF_THE_GRID[name]
                raise self.error(
                    line,
                    name,
                    f"the grid's own key {said} says it" if said else "the study decides it itself",
                )
        return found

    def of_words(self, node, key: str) -> dict[str, tuple[list[str], int]]:
        found, line = {}, _line(node)
        try:
            words = shlex.split(node.value)
        except ValueError as error:
            raise self.error(line, key, f"{node.value!r}: {error}") from error
        name = None
        for word in words:
            if re.match(r"--?[A-Za-z]", word):
                flag, equals, value = word.partition("=")
                row = self.flag(flag.lstrip("-"))
                if row is None:
                    raise self.error(line, key, f"unknown flag {flag}; "
                                                f"{_near(flag.lstrip('-'), self.names())}")
                name = row.name
                if name in found:
                    raise self.error(line, key, f"{flag} stands there twice")
                found[name] = ([flag, *([value] if equals else [])], line)
            elif name is None:
                raise self.error(line, key, f"{word!r} is no flag: --model NAME …, or a mapping of flags")
            else:
                found[name][0].append(word)
        return found

    def words(self, name: str, node) -> list[str]:
        """A flag's words from its value in the file."""
        line, flag = _line(node), self.flag(name)
        if flag is None:
            raise self.error(line, name, f"unknown flag; {_near(name, self.names())}")
        is_switch = flag.is_switch
        if isinstance(node, yaml.SequenceNode):
            if flag.words is None:
                raise self.error(line, name, "takes one value, not a list")
            return [f"--{name}", *(self.text(item, name) for item in node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:bool" and (
                is_switch or node.value.lower() in ("true", "false")):
            if not is_switch:
                raise self.error(line, name, f"takes a value, not {node.value}")
            return self.switch(name, flag, node.value.lower() in ("true", "yes", "on"), line)
        if is_switch:
            raise self.error(line, name, "is a switch: true or false")
        return [f"--{name}", self.text(node, name)]

    def switch(self, name: str, flag: Flag, wanted: bool, line: int) -> list[str]:
        """`savemodel: false` is --no_savemodel; a switch that is off by default and has no opposite is left
        out."""
        if wanted:
            return [f"--{name}"]
        if name in self.off:
            return [f"--{flag.name}"]
        if flag.off:
            return [flag.off[0]]
        if not flag.default:
            return []
        raise self.error(line, name, "can't be switched off")

    def flag(self, name: str) -> Flag | None:
        """The row of a flag's name, or of the one that turns it off."""
        found = FLAGS.get(name) or self.off.get(name)
        return found if found and self.program in found.programs else None

    def names(self) -> list[str]:
        return [*(flag.name for flag in flags_of(self.program)), *self.off]

    # ---- nodes

    def _root(self):
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

    def mapping(self, node, key: str) -> dict[str, tuple[object, int]]:
        """{key: (node, line)}; a key twice is an error."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(_line(node), key, "needs keys with values")
        found = {}
        for name_node, value in node.value:
            name = self.text(name_node, key)
            if name in found:
                raise self.error(_line(name_node), name, f"stands there twice (line {found[name][1]})")
            found[name] = (value, _line(name_node))
        return found

    def sequence(self, node, key: str) -> list:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(_line(node), key, "needs a list: [a, b]")
        if not node.value:
            raise self.error(_line(node), key, "is an empty list")
        return node.value

    def text(self, node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(_line(node), key, "needs one value, not a list or keys")
        if node.tag == "tag:yaml.org,2002:null":
            raise self.error(_line(node), key, "has no value; leave it out, or write \"\" for an empty one")
        return node.value

    def checked_name(self, name: str, node, key: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise self.error(_line(node), key, f"{name!r} is no name for a folder: letters, digits, _ . - "
                                               "alone")
        return name

    def error(self, line: int, key: str, problem: str) -> InputError:
        return InputError(f"{self.path}{f', line {line}' if line else ''} ({key}): {problem}")


def _line(node) -> int:
    return node.start_mark.line + 1


def _near(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return (
        f"did you mean {near[0]}?"
        if near
        else f"known are {', '.join(list(known)[:12])}{', …' if len(known) > 12 else ''}"
    )
