"""The table of flags: rows that agree with themselves, and parsers that are made from them."""

from dataclasses import FrozenInstanceError, fields

import pytest

from util.core.errors import InputError
from util.options.flag import ALL, FEATURES, FINETUNE, PREDICT, REGRESSION, TRAINING, USE
from util.options.groups import PLACES, Options
from util.options.parsing import parse, parser_of
from util.options.table import FLAGS, PROGRAMS, flags_of, own_values

NEEDED = {PREDICT: ["--resume", "c.pth", "--input", "d", "--output", "o.csv"],
          FEATURES: ["--finetune", "w.pth", "--input", "d", "--output", "o.npz"]}


def test_a_flag_is_one_row():
    groups = [getattr(Options(), place) for place in dict.fromkeys(PLACES.values())]
    names = [field.name for group in groups for field in fields(group)]
    assert len(names) == len(set(names)) == len(FLAGS)
    assert all(flag.help for program in ALL for flag in flags_of(program))
    assert Options().values() == {flag.name: flag.default for flag in FLAGS.values()}


@pytest.mark.parametrize("program", ALL)
def test_a_program_has_the_flags_whose_rows_name_it(program):
    listed = [name for _, names in PROGRAMS[program] for name in names]
    assert sorted(listed) == sorted(flag.name for flag in FLAGS.values() if program in flag.programs)
    assert all(change in flag.programs for flag in FLAGS.values() for change in flag.at)
    options = own_values(parse(program, "", NEEDED.get(program, [])))
    assert set(options) == set(listed)
    typed = {word.removeprefix("--") for word in NEEDED.get(program, []) if word.startswith("--")}
    assert {name: value for name, value in options.items() if name not in typed} == {
        flag.name: flag.default for flag in flags_of(program) if flag.name not in typed}


def test_what_a_flag_belongs_to_does_not_contradict_itself():
    for flag in FLAGS.values():
        assert not (flag.of_launch and flag.of_scoring), flag.name
        assert not (flag.of_training and flag.of_scoring), flag.name
        assert not flag.of_checkpoint or set(flag.programs) & set(USE), flag.name
        assert not flag.of_training or set(flag.programs) & set(TRAINING), flag.name


@pytest.mark.parametrize("program, flag", [(program, flag) for program in ALL for flag in flags_of(program)],
                         ids=lambda value: getattr(value, "name", value))
def test_a_default_is_a_value_that_the_flag_takes(program, flag):
    assert flag.accepts(flag.default) or flag.required
    assert not flag.accepts(object()) and not flag.accepts({"a": 1})
    assert not flag.accepts("x" * 5000)


def test_what_was_typed_is_known_also_where_it_is_the_default():
    options = parse(FINETUNE, "", ["--epochs", "50", "--cls_token", "--tta"])
    assert options.typed == {"epochs", "global_pool", "tta"}
    assert (
        options.model.global_pool is False and options.model.tta == "mirror" and options.training.epochs == 50
    )
    assert parse(FINETUNE, "", ["--local-rank", "3"]).compatibility.local_rank == 3


def test_a_default_list_belongs_to_one_command_line_alone():
    one, other = (parse(REGRESSION, "", []).data for _ in range(2))
    one.targets.append("more")
    assert other.targets == FLAGS["targets"].default and "more" not in parse(REGRESSION, "", []).data.targets


def test_options_are_read_and_not_written():
    options = parse(FINETUNE, "", ["--epochs", "3"])
    for thing, name in ((options, "program"), (options.training, "epochs")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, name, 4)
    found = options.having(epochs=4, task="x").typing(lr=0.1)
    assert (found.training.epochs, found.run.task, found.training.lr) == (4, "x", 0.1)
    assert (options.training.epochs, options.run.task, options.typed) == (3, "", {"epochs"})
    assert found.typed == {"epochs", "lr"} and found.program == FINETUNE and found.data is options.data
    assert set(PLACES) == set(FLAGS) and all(options.value(name) == options.values()[name] for name in FLAGS)
    with pytest.raises(KeyError):
        Options().having(no_flag=1)


def test_a_misspelt_flag_is_answered_with_one_that_the_program_has():
    for typed, meant in (("--epohcs", "--epochs"), ("--no_savemodl", "--no_savemodel")):
        with pytest.raises(InputError, match=f"did you mean {meant}"):
            parse(FINETUNE, "", [typed, "1"])
    assert parser_of(PREDICT, "One line.\n    a launch line").format_help().count("    a launch line") == 1
