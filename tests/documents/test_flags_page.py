"""docs/flags.md is what the parsers say, read back from the page; docs/zh/flags.md has a Chinese text for
each flag."""

import argparse
import re

import pytest

from tests.documents import flags_page
from tests.documents.flags_page import PROGRAMS, WORDS
from tests.documents.pages import bare, headings, read, section, table_rows

PAGES = {"en": "docs/flags.md", "zh": "docs/zh/flags.md"}
LANGUAGES = pytest.mark.parametrize("language", PAGES)


@LANGUAGES
def test_the_page_is_what_would_be_made(language):
    assert read(PAGES[language]) == flags_page.page(language), "python -m tests.documents --write"


def test_each_flag_has_a_chinese_text():
    """docs/zh/flags.json; where programs know a flag differently, `--flag PROGRAM` is the key of the later
    ones."""
    keys, texts = [row.key for row in flags_page.rows()], flags_page.read_texts()
    assert len(set(keys)) == len(keys)
    assert not set(keys) - set(texts["flags"]), "flags without a Chinese text"
    assert not set(texts["flags"]) - set(keys), "texts that belong to no flag"
    assert list(texts["programs"]) == list(PROGRAMS)
    assert set(texts["groups"]) == {row.group for row in flags_page.rows()} - set(PROGRAMS)
    for kind in ("programs", "groups", "flags"):
        assert not [key for key, text in texts[kind].items() if not re.search("[一-鿿]", text)]


# ---- what the page says, held to the parsers without the code that made it ---------------------------------

def actions_of(program: str) -> dict[str, dict[str, argparse.Action]]:
    """{group's title: {flag or argument: action}} of a program, hidden flags and --help left out."""
    found: dict[str, dict[str, argparse.Action]] = {}
    for group in PROGRAMS[program]()._action_groups:
        shown = {action.option_strings[0] if action.option_strings else action.metavar or action.dest: action
                 for action in group._group_actions
                 if action.help != argparse.SUPPRESS and "--help" not in action.option_strings}
        if shown:
            found.setdefault(program if group.title in ("positional arguments", "options") else group.title,
                             {}).update(shown)
    return found


def shown_default(action: argparse.Action) -> str | list[float]:
    """A flag's default as the English page writes it; numbers as a list, so that 5e-3 and 0.005 are the
    same."""
    if action.required and action.nargs != "*":
        return "required"
    if isinstance(action, argparse._StoreTrueAction):
        return "on" if action.default else "off"
    if isinstance(action, argparse._StoreConstAction):
        return "off"  # another word for a value that is not the default
    if action.default is None:
        return "none"
    if isinstance(action.default, str):
        return f"`{action.default}`" if action.default else "empty"
    if action.default == []:
        return "empty"
    if isinstance(action.default, list) and isinstance(action.default[0], str):
        return f"`{' '.join(action.default)}`"
    return list(action.default) if isinstance(action.default, list) else [action.default]


def rows_of(language: str, heading: str | None = None) -> list[tuple[str, str, str, str, list[str]]]:
    """(flag, default, meaning, choices, programs) of the page's lines, or of those under a heading."""
    text = read(PAGES[language]) if heading is None else section(heading, read(PAGES[language]))
    text = text.replace("\\|", "/")
    rows = [row for row in table_rows(text) if len(row) == 5]
    return [(bare(flag), default, meaning, choices, programs.split(WORDS[language]["comma"]))
            for flag, default, meaning, choices, programs in rows]


def of_program(default: str, program: str, first: bool, language: str) -> str:
    """What a cell of defaults says of one program: its own entry, else the first."""
    general, *own = default.split(WORDS[language]["semicolon"])
    named = dict(entry.split(WORDS[language]["colon"], 1) for entry in own)
    return general if first else named.get(program, general)


@LANGUAGES
@pytest.mark.parametrize("program", PROGRAMS)
def test_flags_of_a_program(program, language):
    """Each flag of the program stands there once as its own, with its default and choices, and no other
    does."""
    name = flags_page.short(program)
    own = [row for row in rows_of(language) if name in row[4]]
    rows = {row[0]: row for row in own}
    assert len(rows) == len(own)
    actions = {flag: action for group in actions_of(program).values() for flag, action in group.items()}
    assert set(rows) == set(actions)
    words = {WORDS["zh"][key]: WORDS["en"][key] for key in ("on", "off", "none", "empty", "required")}
    for flag, action in actions.items():
        _, default, meaning, choices, programs = rows[flag]
        said = of_program(default, name, programs[0] == name, language)
        said, expected = words.get(said, said), shown_default(action)
        if isinstance(expected, list):
            assert [float(word) for word in said.split()] == pytest.approx(expected, rel=1e-3), flag
        else:
            assert said == expected, flag
        assert choices == WORDS[language]["comma"].join(f"`{choice}`" for choice in action.choices or ()), (
            flag
        )
        if language == "en":  # markup aside, the flag's own help
            plain = re.sub(r"\[(\w+\.md)\]\(\1\)", r"docs/\1", meaning).replace("`", "")
            assert plain == action.help.replace("|", "/"), flag
        else:
            assert meaning


def test_groups_are_those_of_the_help():
    """Under the heading of each of its groups stand the flags of main_finetune.py in the order of its help,
    and those of main_regression.py; the headings of the page are the groups and nothing else."""
    titles = [title for _, title in headings(read("docs/flags.md"))][1:]
    groups = {title for program in PROGRAMS for title in actions_of(program)}
    lowered = {title if title in PROGRAMS else title[0].lower() + title[1:] for title in titles}
    assert lowered <= groups and len(titles) == len(lowered)
    for program in ("main_finetune.py", "main_regression.py"):
        for title, actions in actions_of(program).items():
            found = [row[0] for row in rows_of("en", title[0].upper() + title[1:])
                     if flags_page.short(program) in row[4]]
            assert sorted(found) == sorted(actions)
            assert program == "main_regression.py" or found == list(actions)


def test_defaults_that_differ_are_shown_and_no_other():
    """Against README.md's list of before: the shared flags whose default is another one in a regression."""
    differing = {row[0]: row[1].split("main_regression: ")[1] for row in rows_of("en")
                 if "main_regression: " in row[1]}
    assert differing == {"--finetune": "`RETFound_dinov2_meh`", "--crop_scale": "0.8 1", "--batch_size": "64",
                         "--epochs": "30",
                         "--accum_iter": "2", "--blr": "0.002", "--warmup_epochs": "5"}
    assert not [row for row in rows_of("en") if "predict: " in row[1] or "latent_feature: " in row[1]]
