"""The pages for users say what the programs do: their commands, links, flags, files and messages are held to
the code."""

import argparse
import ast
import re
import shlex

import pytest

import models_vit
from jobs.tasks.regression import resolve_names
from tests.documents import weights_table
from tests.documents.flags_page import PROGRAMS, anchor
from tests.documents.pages import (
    CHINESE,
    PAGES,
    ROOT,
    bare,
    headings,
    inline_commands,
    read,
    section,
    shell_lines,
    table_rows,
    without_blocks,
)
from util.core.errors import InputError
from util.metrics.classification import METRIC_COLUMNS
from util.metrics.multilabel.figures import metric_columns
from util.options import checks
from util.options.flag import REGRESSION, TRAINING
from util.options.parsing import OneLineParser
from util.options.parsing import parse as parse_options

README, README_ZH = "README.md", CHINESE["README.md"]
PAGE = pytest.mark.parametrize("page", PAGES)


# ---- README.md and the pages behind it ---------------------------------------------------------------------

@pytest.mark.parametrize("page", [README, README_ZH])
def test_the_readme_is_short(page):
    assert len(read(page).splitlines()) <= 250


@pytest.mark.parametrize(("readme", "folder"), [(README, "docs"), (README_ZH, "docs/zh")])
def test_the_readme_names_every_page(readme, folder):
    pages = {page for page in PAGES if page.rpartition("/")[0] == folder}
    assert len(pages) >= 13 and pages <= set(re.findall(r"\]\(([^()\s]+)\)", read(readme)))


@PAGE
def test_a_page_begins_with_what_it_is_for(page):
    """One title, then a sentence or more before any code, table or further heading."""
    title, first = read(page).split("\n\n")[:2]
    assert re.fullmatch(r"# .+", title)
    first = read(page).split("\n\n")[2] if first.startswith("[") else first  # the link to the other language
    assert re.match(r"[\w`一-鿿]", first) and len(first) > 30, first
    assert [marks for marks, _ in headings(read(page))].count("#") == 1


@PAGE
def test_headings_do_not_skip_a_level(page):
    levels = [len(marks) for marks, _ in headings(read(page))]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


# ---- weights -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("language", weights_table.PAGES)
def test_table_of_weights_is_what_would_be_made(language):
    assert weights_table.PAGES[language].read_text(encoding="utf-8") == weights_table.page(language), (
        "python -m tests.documents --write")


@pytest.mark.parametrize(("page", "heading"), [(README, "Weights"), (README_ZH, "权重")])
def test_table_of_weights(page, heading):
    *rows, timm_row = table_rows(section(heading, read(page)))
    expected = [(row, name) for row in models_vit.BACKBONES for name in row.weights]
    assert len(expected) == len(rows) == 26
    words = weights_table.WORDS["en" if page == README else "zh"]
    for (backbone, name), (model, arch, finetune, parameters, source, licence, compared) in zip(
        expected, rows, strict=True
    ):
        assert (bare(model), bare(arch), bare(finetune)) == (backbone.model, backbone.arch, name)
        assert [licence, compared] == [words.get(said, said)
                                       for said in (backbone.licence, backbone.compared)]
        number = re.fullmatch(r"(\d+(?:\.(\d+))?) M", parameters)
        assert round(backbone.parameters / 1e6, len(number[2] or "")) == float(number[1]), name
        assert (
            (weights_table.repository_of(name) in source)
            if backbone.on_hub or name.startswith("hf:")
            else ("hub" not in source.replace("github", ""))
        )
    assert bare(timm_row[0]) == models_vit.TIMM
    if page == README:
        assert timm_row[5] == models_vit.find_backbone(models_vit.TIMM, "resnet18").licence


# ---- links -------------------------------------------------------------------------------------------------

@PAGE
def test_links_lead_somewhere(page):
    """From the page's own folder; to a heading, where one is named."""
    targets = re.findall(r"\]\(([^()\s]+)\)", without_blocks(read(page)))
    assert targets or page in ("docs/design.md", "docs/what_can_go_wrong.md", "CHANGELOG.md")
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.is_file(), target
        if heading:
            anchors = {anchor(title) for _, title in headings(file.read_text(encoding="utf-8"))}
            assert heading in anchors, target


def test_pages_that_the_code_names_exist():
    """In messages, help, comments and the notebook."""
    folders = [".", "benchmarks", "examples", "jobs/**", "tests/**", "util/**"]
    sources = [path for folder in folders for ending in ("py", "sh", "ipynb", "toml", "yaml")
               for path in ROOT.glob(f"{folder}/*.{ending}")]
    named = {
        name
        for path in sources
        for name in re.findall(r"docs/[\w/]+\.(?:md|json|png)", path.read_text(encoding="utf-8"))
    }
    assert len(named) >= 10
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_pictures_are_small():
    pictures = list((ROOT / "docs").glob("*.png"))
    assert pictures and sum(path.stat().st_size for path in pictures) < 300_000


# ---- commands ----------------------------------------------------------------------------------------------

SCRIPTS = ("train.sh", "eval.sh", "search.sh", "test.sh")
# and what they start
BATCH = {"examples/slurm/nodes.sh": "train.sh", "examples/slurm/tasks.sh": "main_finetune.py"}
OTHERS = ("#", "hf auth login", "python3 -m venv .venv")  # comments, other programs


def parser_of(program: str) -> argparse.ArgumentParser:
    if program == "search.sh" or program.endswith("回归任务.py"):
        program = "main_regression.py"
    return PROGRAMS[program if program in PROGRAMS else "main_finetune.py"]()


def script_variables(script: str) -> set[str]:
    """The variables that a script takes from the environment."""
    return set(re.findall(r"^([A-Z_]+)=\$\{\1:?-", read(script), re.M)) | {"PYTHON"}


def check_command(line: str, whole: bool = True) -> str:
    """Hold a command to what it starts -> what that is: a program of `PROGRAMS`, a script, or a file.
    AssertionError where it is unknown, InputError where its parser refuses it. whole: a command without
    arguments is one, not a program's name."""
    words = shlex.split(line.removesuffix(" &"), comments=True)
    if words[0] == "pip" or words[0].endswith("/pip"):
        files = [word for before, word in zip(words, words[1:], strict=False) if before == "-r"]
        assert words[1] == "install" and all((ROOT / file).is_file() for file in files), line
        return "pip"
    if words[:2] == ["python", "-c"]:  # the store of several machines: end_to_end/test_nodes.py starts it
        assert words[2].startswith("import signal, torch.distributed"), line
        return "python -c"
    start = next((number for number, word in enumerate(words) if word.endswith((".py", ".sh"))
                  or word == "-m"), None)
    assert start is not None, f"nothing known is started: {line}"
    variables = {word.partition("=")[0] for word in words[:start] if re.match(r"[A-Z_]+=", word)}
    assert all(word in ("sh", "python", "torchrun", "sbatch", ".venv/bin/python") or "=" in word
               or word.startswith("--")
               for word in words[:start]), line
    if words[start] == "-m":
        start += 1
        name, file = f"python -m {words[start]}", words[start].replace(".", "/")
        assert (ROOT / f"{file}.py").is_file() or (ROOT / file / "__main__.py").is_file(), line
    else:
        name = words[start]
        assert (ROOT / name).is_file(), line
    arguments, name = words[start + 1:], BATCH.get(name, name)
    if name in SCRIPTS:
        assert variables <= script_variables(name) | {"OMP_NUM_THREADS"}, line
    if name == "test.sh" or "--help" in arguments or not (whole or arguments):
        return name
    if name in PROGRAMS or name in SCRIPTS or name.endswith("任务.py"):
        parse(name, arguments, line)
    else:  # benchmarks and tests: their flags stand in their source
        source = file if name.startswith("python -m ") else name
        found = [path for path in (ROOT / source, ROOT / f"{source}.py", ROOT / source / "__main__.py")
                 if path.is_file()]
        for flag in (word for word in arguments if word.startswith("--")):
            assert f'"{flag}"' in found[0].read_text(encoding="utf-8"), line
    return name


def parse(name: str, arguments: list[str], line: str) -> None:
    parser = parser_of(name)
    if not isinstance(parser, OneLineParser) or parser.prog not in TRAINING:
        parser.parse_args(arguments)  # an InputError names the flag
        return
    options = parse_options(parser.prog, "", arguments)
    options, _ = checks.check_search(checks.check_combinations(options))  # a file of --params is not there
    if parser.prog == REGRESSION:
        options = resolve_names(options)
    models_vit.find_backbone(options.model.model, options.model.model_arch)


@PAGE
def test_commands_are_understood(page):
    """Of every fenced shell block, by the parser of what it starts."""
    for line in shell_lines(read(page)):
        if not line.startswith(OTHERS):
            check_command(line)


def test_there_are_commands_of_every_program():
    lines = [line for page in PAGES for line in shell_lines(read(page))]
    assert (
        sum("main_finetune.py" in line for line in lines) >= 5
        and sum("train.sh" in line for line in lines) >= 5
    )
    started = {check_command(line) for line in lines if not line.startswith(OTHERS)}
    assert {*PROGRAMS, *SCRIPTS} - started <= {"python -m util.demo_data"}


@PAGE
def test_commands_in_the_text_are_understood(page):
    """Those that have arguments to be filled in (`python PROGRAM --help`) are left out."""
    for line in inline_commands(read(page)):
        if not re.search(r"PROGRAM|…|'psycopg", line):
            check_command(line, whole=False)


@pytest.mark.parametrize("page", ["docs/cluster.md", CHINESE["docs/cluster.md"]])
def test_batch_scripts_are_the_files_themselves(page):
    """Those that tests/end_to_end/test_slurm.py runs."""
    shown = re.findall(r"^```bash\n(.*?)^```$", read(page), re.M | re.S)
    assert shown == [read(script) for script in BATCH]
    assert all(f"`{script}`" in read(page) for script in BATCH)


def test_a_wrong_command_is_found():
    for line in (
        "sh train.sh --epoch 3",
        "python predict.py --resume a.pth --input b",
        "python -m util.nothing",
        "python benchmarks/speed.py --onyl step",
        "WRONG=1 sh train.sh",
        "pip install -r no.txt",
        "make all",
        "python compare.py a --metrics f1",
        "python main_finetune.py --model Dinov3",
        "sh search.sh --optuna_trial 3",
        "sbatch examples/slurm/nodes.sh --epoch 3",
    ):
        with pytest.raises((AssertionError, InputError)):
            check_command(line)


@pytest.mark.parametrize(("script", "pages"), [("train.sh", ["train"]), ("eval.sh", ["evaluate", "train"]),
                                               ("search.sh", ["search", "train"])])
@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
def test_variables_of_the_scripts_are_explained(script, pages, folder):
    text = "".join(read(f"{folder}/{page}.md") for page in pages)
    missing = {name for name in script_variables(script) if f"`{name}`" not in text}
    assert not missing, script


# ---- flags -------------------------------------------------------------------------------------------------

@PAGE
def test_flags_named_in_the_text_exist(page):
    """Flags of other programs (pip, torchrun, git …) stand in commands alone, which have tests of their
    own."""
    known = {option for parser in PROGRAMS.values() for action in parser()._actions
             for option in action.option_strings}
    text = without_blocks(read(page))
    for command in inline_commands(text):
        text = text.replace(f"`{command}`", "")
    named = set(re.findall(r"(?<![\w-])--[a-z]\w+", text)) - {
        "--logdir", "--shm", "--gpus", "--requeue", "--signal"}  # TensorBoard's; docker's --shm-size; Slurm's
    assert not named - known


# ---- what is written, what is said -------------------------------------------------------------------------

@pytest.mark.parametrize("page", ["docs/outputs.md", CHINESE["docs/outputs.md"]])
def test_columns_of_the_metrics_files(page):
    written = read(page).replace("\n", " ").replace("、", ", ")
    assert ", ".join(f"`{column}`" for column in METRIC_COLUMNS) in written
    assert ", ".join(f"`{column}`" for column in metric_columns([])) in written  # of several labels
    explained = {bare(part) for row in table_rows(read(page)) for part in row[0].split(", ")}
    assert {column for column in METRIC_COLUMNS if column not in ("epoch", "val_loss")} <= explained


def literals() -> list[str]:
    """Every text of the source, with … for what is filled in."""
    texts = []
    for path in [*ROOT.glob("*.py"), *ROOT.glob("jobs/**/*.py"), *ROOT.glob("util/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…"
                                     for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    for path in [*ROOT.glob("*.sh"), *ROOT.glob("util/*.sh")]:
        texts += [re.sub(r"\$\w+|\$\{[^}]*\}", "…", text)
                  for text in re.findall(r'"([^"\n]*)"', path.read_text())]
    return [re.sub("…+", "…", text) for text in texts]


@pytest.mark.parametrize(("page", "heading"),
                         [("docs/errors.md", "Messages"), (CHINESE["docs/errors.md"], "信息")])
def test_quoted_messages_are_the_programs_own(page, heading):
    rows = [row for row in table_rows(section(heading, read(page))) if row[0].startswith("`")]
    assert len(rows) >= 20
    texts = literals()
    for message, remedy in rows:
        fixed = bare(message).strip("… ")
        assert len(fixed) > 10 and remedy
        assert any(fixed in text for text in texts), f"nothing in the source says {message}"


@pytest.mark.parametrize("page", ["docs/errors.md", CHINESE["docs/errors.md"]])
def test_exit_codes(page):
    codes = {row[0] for row in table_rows(read(page)) if row[0].isdigit()}
    assert codes == {"0", "1", "2", "99", "130"}


@pytest.mark.parametrize("page", ["docs/outputs.md", CHINESE["docs/outputs.md"]])
def test_files_that_are_named_are_written(page):
    """Each file of the table has its name, or the parts of it, in the source."""
    patterns = [re.compile(".+".join(map(re.escape, text.split("…")))) for text in set(literals())
                if len(text) < 60]
    names = {bare(name) for row in table_rows(read(page)) for name in row[0].split(", ")
             if re.search(r"\.\w+`$", name)}
    assert len(names) >= 20
    for name in names:
        assert any(pattern.fullmatch(name) for pattern in patterns if len(pattern.pattern) > 6), name


# ---- the pages in Chinese ----------------------------------------------------------------------------------

def code_of(text: str) -> list[list[str]]:
    """The lines of every fenced block, without comments and drawings of folders."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    return [[line.split(" #")[0].rstrip() for line in block.split("\n")] for block in blocks
            if "──" not in block]


def in_english(cell: str) -> str:
    """A cell of defaults of the Chinese page, in the words of the English one."""
    for word, english in {"开": "on", "关": "off", "未设": "none", "空": "empty", "必填": "required"}.items():
        cell = re.sub(rf"^{word}(?=$|；)", english, cell)
    return cell.replace("；", "; ").replace("：", ": ")


@pytest.mark.parametrize("page", CHINESE)
def test_the_chinese_page_says_the_same(page):
    english, chinese = read(page), read(CHINESE[page])
    assert [marks for marks, _ in headings(english)] == [marks for marks, _ in headings(chinese)]
    ours, theirs = code_of(english), code_of(chinese)
    assert len(ours) == len(theirs)
    for block, other in zip(ours, theirs, strict=True):
        # a comment that fills its line is translated; everything else is the same command
        assert [line for line in block if line] == [line for line in other if line]
    rows, others = table_rows(english), table_rows(chinese)
    assert [len(row) for row in rows] == [len(row) for row in others]
    for row, other in zip(rows, others, strict=True):
        if row[0].startswith("`"):
            assert row[0] == other[0]
        if page == "docs/flags.md" and len(row) == 5:
            assert row[1] == in_english(other[1]), row[0]


def test_every_page_has_a_chinese_one():
    assert {page for page in PAGES if page.startswith("docs/zh/")} == set(CHINESE.values()) - {README_ZH}
