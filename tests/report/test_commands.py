"""The command that a report shows gives the options of the run back."""

import shlex
from pathlib import Path

import pytest

from util.options.checks import check_combinations
from util.options.flag import FINETUNE
from util.options.parsing import parse
from util.options.table import own_values
from util.report.commands import PROGRAMS, evaluation_command, report_command, training_command


def words(command):
    return shlex.split(command.replace("\\\n", " "))


@pytest.mark.parametrize(("kind", "typed"), [
    ("classification", ""),
    ("classification", "--model RETFound_mae --cls_token --finetune RETFound_mae_meh --task 'a b;$x' "
                       "--nb_classes 3 --lr 5e-05 --no_savemodel --no_pin_mem --crop_scale 0.2 0.9 "
                       "--cutmix_minmax 0.1 0.5 --dataratio 0.5,0.25 --csv_file d/a.csv --label_col=-grade "
                       "--adaptation lp --device cpu --stratified"),
    ("regression", "--csv_file a.csv --targets 'systolic (mmHg)' b --target_transform none log --covariates "
                   "age sex --lr 0.001 --finetune '' --accum_iter 1 --optuna_trials 3 --optuna_resume")])
def test_the_command_gives_the_options_back(kind, typed):
    options = own_values(parse(PROGRAMS[kind], "", shlex.split(typed)))
    command, unknown = training_command(kind, options | {"decode": "scaled"})
    program, *again = words(command)[1:]
    assert unknown == [] and program == {"classification": "main_finetune.py",
                                         "regression": "main_regression.py"}[kind]
    assert own_values(parse(PROGRAMS[kind], "", again)) == options


def test_only_what_differs_from_the_defaults_is_listed():
    options = own_values(parse(FINETUNE, "", ["--epochs", "7"]))
    resolved = options | {"decode": "scaled", "fc_norm_passes": 1, "resume": "auto", "eval": True,
                          "new_flag": [1]}
    assert training_command("classification", resolved) == (
        "python main_finetune.py --epochs 7",
        ["new_flag = [1]"],
    )
    assert training_command("classification", {},
                            processes=4)[0] == "torchrun --nproc_per_node=4 main_finetune.py"


def test_scoring_and_the_page_again():
    command = evaluation_command("classification",
                                 {"task": "t", "output_dir": "./output_dir", "device": "cuda"},
                                 Path("out put/t/checkpoint-best.pth"))
    assert words(command)[2:] == ["--eval", "--resume", "out put/t/checkpoint-best.pth", "--task", "t"]
    check_combinations(parse(FINETUNE, "", words(command)[2:]))
    assert words(report_command(Path("a b"))) == ["python", "-m", "util.report", "a b"]
