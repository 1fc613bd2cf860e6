"""README.md says what the program does: its flags, backbones, commands, files and messages are held to the code."""

import argparse
import ast
import re
import shlex
from pathlib import Path

import pytest

import compare
import latent_feature
import models_vit
import predict
from jobs.tasks.regression_start import resolve_names
from main_finetune import make_parser
from main_regression import make_parser as make_regression_parser
from util.data.leakage import search
from util.data.public import prepare
from util.metrics.classification import METRIC_COLUMNS
from util.options import flags, regression

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = "README_zh.md"
PARSERS = {"main_finetune.py": make_parser, "main_regression.py": make_regression_parser, "predict.py": predict.make_parser,
           "latent_feature.py": latent_feature.make_parser, "compare.py": compare.make_parser,
           "util.leakage": search.make_parser, "util.prepare": prepare.make_parser}
PAGES = ("README.md", CHINESE, "BENCHMARK.md")


def section(title: str, text: str = README) -> str:
    """What stands under a heading of any level, up to the next of the same or a higher one."""
    start = re.search(rf"^(#+) {re.escape(title)}$", text, re.M)
    assert start, f"no heading {title!r}"
    end = re.search(rf"^#{{1,{len(start[1])}}} ", text[start.end():], re.M)
    return text[start.end():][:end.start() if end else None]


def table_rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, without their headers and rules."""
    lines = text.split("\n")
    rules = [number for number, line in enumerate(lines) if re.fullmatch(r"\|( ?-+ ?\|)+", line)]
    headers = {number - 1 for number in rules}
    return [[cell.strip() for cell in line.strip("|").split("|")] for number, line in enumerate(lines)
            if line.startswith("|") and number not in headers.union(rules)]


def bare(cell: str) -> str:
    return cell.strip("`")


# ---- flags ----------------------------------------------------------------------------------------------------------

def shown_default(action: argparse.Action) -> str | list[float]:
    """A flag's default as the README writes it; numbers as a list, so that 5e-3 and 0.005 are the same."""
    if isinstance(action, argparse._StoreTrueAction):
        return "on" if action.default else "off"
    if isinstance(action, argparse._StoreFalseAction):
        return "off"
    if action.default is None:
        return "none"
    if isinstance(action.default, str):
        return f"`{action.default}`" if action.default else "empty"
    if action.default == []:
        return "empty"
    if isinstance(action.default, list) and isinstance(action.default[0], str):
        return f"`{' '.join(action.default)}`"
    return list(action.default) if isinstance(action.default, list) else [action.default]


def groups(parser=None) -> dict[str, dict[str, argparse.Action]]:
    """{group's title: {flag: action}} of a parser (main_finetune.py's), hidden flags and --help left out."""
    found = {group.title: {action.option_strings[0]: action for action in group._group_actions
                           if action.help != argparse.SUPPRESS and "--help" not in action.option_strings}
             for group in (parser or make_parser())._action_groups}
    return {title: actions for title, actions in found.items() if actions}


def check_table(actions: dict[str, argparse.Action], rows: list[list[str]]) -> None:
    """The rows name these flags, no other, each with its default and choices."""
    assert [bare(row[0]) for row in rows] == list(actions)
    for (flag, action), (_, default, meaning) in zip(actions.items(), rows, strict=True):
        expected = shown_default(action)
        if isinstance(expected, list):
            assert [float(word) for word in bare(default).split()] == pytest.approx(expected, rel=1e-3), flag
        else:
            assert default == expected, flag
        for choice in action.choices or ():
            assert f"`{choice}`" in meaning or default == f"`{choice}`", (flag, choice)


@pytest.mark.parametrize("title", groups())
def test_flags_of_a_group(title):
    """Each flag of the parser stands under its group with its default and choices, and no other flag stands there."""
    check_table(groups()[title], table_rows(section(title[0].upper() + title[1:], section("All flags"))))


OWN_GROUPS = {"head and loss": "Head and loss", "data": "CSV and targets", "search (Optuna)": "Search (Optuna)"}


@pytest.mark.parametrize("title", OWN_GROUPS)
def test_own_flags_of_a_regression(title):
    own = section("Flags of main_regression.py")
    check_table(groups(make_regression_parser())[title], table_rows(section(OWN_GROUPS[title], own)))


def test_defaults_of_a_regression_that_differ():
    """The table names the shared flags whose default is another one there, and no other."""
    own, shared = ({flag: action for actions in groups(parser).values() for flag, action in actions.items()}
                   for parser in (make_regression_parser(), make_parser()))
    elsewhere = {flag for title in OWN_GROUPS for flag in groups(make_regression_parser())[title]}
    differing = {flag: shown_default(action) for flag, action in own.items()
                 if flag in shared and flag not in elsewhere and shown_default(action) != shown_default(shared[flag])}
    first_table = section("Flags of main_regression.py").split("####")[0]
    rows = {bare(flag): [float(word) for word in default.split()] if default[0].isdigit() else default
            for flag, default in table_rows(first_table)}
    assert rows == differing


def test_no_flag_stands_outside_the_groups():
    titles = re.findall(r"^### (.+)$", section("All flags"), re.M)
    assert [title.lower() for title in titles] == [title.lower() for title in groups()]


OTHER_TABLES = {"Predict new pictures": "predict.py", "Features": "latent_feature.py", "Compare": "compare.py"}


@pytest.mark.parametrize(("title", "program"), OTHER_TABLES.items())
def test_own_flags_of_the_other_programs(title, program):
    """The tables of their sections name flags that are theirs, with their defaults and choices; compare.py's names all."""
    actions = {option: action for action in PARSERS[program]()._actions for option in action.option_strings}
    rows = [row for row in table_rows(section(title)) if row[0].startswith("`--")]
    check_table({bare(row[0]): actions[bare(row[0])] for row in rows}, rows)
    if program == "compare.py":
        assert {bare(row[0]) for row in rows} == {option for option in actions if option not in ("-h", "--help")}


def test_flags_named_in_the_text_exist():
    """--flags of other programs (pip, torchrun, git …) stand in fenced blocks alone."""
    known = {option for parser in PARSERS.values() for action in parser()._actions for option in action.option_strings}
    text = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
    named = set(re.findall(r"(?<![\w-])--[a-z]\w+", text)) - {"--logdir"}  # TensorBoard's
    assert not named - known


# ---- weights --------------------------------------------------------------------------------------------------------

def test_table_of_weights():
    rows = table_rows(section("Weights"))[:17]
    *rows, timm_row = rows
    expected = [(row, name) for row in models_vit.BACKBONES for name in row.weights]
    assert len(expected) == len(rows) == 16
    for (backbone, name), (model, arch, finetune, parameters, source, licence) in zip(expected, rows, strict=True):
        assert (bare(model), bare(arch), bare(finetune), licence) == (backbone.model, backbone.arch, name, backbone.licence)
        number = re.fullmatch(r"(\d+(?:\.(\d+))?) M", parameters)
        assert round(backbone.parameters / 1e6, len(number[2] or "")) == float(number[1]), name
        assert (models_vit.HUB_FILES[name][0] in source) if backbone.on_hub else ("hub" not in source.replace("github", ""))
    assert bare(timm_row[0]) == models_vit.TIMM
    assert timm_row[5] == models_vit.find_backbone(models_vit.TIMM, "resnet18").licence


# ---- links ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    targets = re.findall(r"\]\(([^()\s]+)\)", text)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (ROOT / target).is_file(), target


def test_pictures_are_small():
    pictures = list((ROOT / "docs").glob("*.png"))
    assert pictures and sum(path.stat().st_size for path in pictures) < 300_000


# ---- commands -------------------------------------------------------------------------------------------------------

def commands() -> list[str]:
    """Every command of a fenced shell block that starts main_finetune.py, by itself or by one of the scripts."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S):
            found += [line for line in block.replace("\\\n", " ").split("\n")
                      if re.search(r"(main_finetune\.py|main_regression\.py|任务\.py|train\.sh|eval\.sh|search\.sh)\b", line)]
    return found


def parser_of(program: str) -> argparse.ArgumentParser:
    return make_regression_parser() if program.endswith(("main_regression.py", "任务.py")) else make_parser()


def script_variables(script: str) -> set[str]:
    """The variables that a script takes from the environment."""
    return set(re.findall(r"^([A-Z_]+)=\$\{\1:?-", (ROOT / script).read_text(encoding="utf-8"), re.M)) | {"PYTHON"}


def test_commands_are_understood():
    lines = commands()
    assert sum("main_finetune.py" in line for line in lines) >= 5 and sum("train.sh" in line for line in lines) >= 5
    for line in lines:
        words = shlex.split(line.removesuffix(" &"), comments=True)
        start = next(number for number, word in enumerate(words)
                     if re.search(r"(main_finetune|main_regression|任务)\.py$|(train|eval|search)\.sh$", word))
        assert (ROOT / words[start]).is_file(), line
        variables = {word.partition("=")[0] for word in words[:start] if re.match(r"[A-Z_]+=", word)}
        if words[start].endswith(".sh"):
            assert variables <= script_variables(words[start]), line
        if "--help" in words:
            continue
        program = "main_regression.py" if words[start] == "search.sh" else words[start]
        parsed = flags.parse(parser_of(program), words[start + 1:])  # an InputError names the flag
        flags.check_combinations(parsed)
        if parser_of(program).prog == "main_regression.py":
            regression.check_search(parsed)
            resolve_names(parsed)
        models_vit.find_backbone(parsed.options.model, parsed.options.model_arch)


def test_variables_of_the_scripts_are_explained():
    for script in ("train.sh", "eval.sh", "search.sh"):
        missing = {name for name in script_variables(script) if f"`{name}`" not in README}
        assert not missing, script


# ---- what is written, what is said ----------------------------------------------------------------------------------

def test_columns_of_the_metrics_files():
    written = section("What is written").replace("\n", " ")
    assert ", ".join(f"`{column}`" for column in METRIC_COLUMNS) in written
    explained = {bare(part) for row in table_rows(section("What is written")) for part in row[0].split(", ")}
    assert {column for column in METRIC_COLUMNS if column not in ("epoch", "val_loss")} <= explained


def literals() -> list[str]:
    """Every text of the source, with … for what is filled in."""
    texts = []
    for path in [*ROOT.glob("*.py"), *ROOT.glob("jobs/**/*.py"), *ROOT.glob("util/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    for path in [*ROOT.glob("*.sh"), *ROOT.glob("util/*.sh")]:
        texts += [re.sub(r"\$\w+|\$\{[^}]*\}", "…", text) for text in re.findall(r'"([^"\n]*)"', path.read_text())]
    return [re.sub("…+", "…", text) for text in texts]


def test_quoted_messages_are_the_programs_own():
    rows = [row for row in table_rows(section("Errors and remedies")) if row[0].startswith("`")]
    assert len(rows) >= 20
    texts = literals()
    for message, remedy in rows:
        fixed = bare(message).strip("… ")
        assert len(fixed) > 10 and remedy
        assert any(fixed in text for text in texts), f"nothing in the source says {message}"


def test_exit_codes():
    codes = {row[0] for row in table_rows(section("Errors and remedies")) if row[0].isdigit()}
    assert codes == {"0", "1", "2", "99", "130"}


# ---- the page in Chinese --------------------------------------------------------------------------------------------

def code_of(text: str) -> list[list[str]]:
    """The lines of every fenced block, without comments and drawings of folders."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    return [[line.split(" #")[0].rstrip() for line in block.split("\n")] for block in blocks if "──" not in block]


def test_the_chinese_page_says_the_same():
    chinese = (ROOT / CHINESE).read_text(encoding="utf-8")
    headings = [re.findall(r"^(#+) ", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M) for text in (README, chinese)]
    assert headings[0] == headings[1]
    ours, theirs = code_of(README), code_of(chinese)
    assert len(ours) == len(theirs)
    for block, other in zip(ours, theirs, strict=True):
        # a comment that fills its line is translated; everything else is the same command
        assert [line for line in block if line] == [line for line in other if line]
    words = {"开": "on", "关": "off", "未设": "none", "空": "empty"}
    rows, others = table_rows(README), table_rows(chinese)
    assert [len(row) for row in rows] == [len(row) for row in others]
    for row, other in zip(rows, others, strict=True):
        if row[0].startswith("`"):
            assert row[0] == other[0]
        if row[0].startswith("`--") and len(row) == 3 and row[1][:1] in "`0123456789oneff-" and row[0] != "`--resume`":
            assert row[1] == words.get(other[1], other[1]), row[0]
