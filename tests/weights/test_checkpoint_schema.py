"""What a checkpoint stores beside its tensors is taken where this program could have written it, and only
there."""

import pytest

from util.core.errors import InputError
from util.options.flag import FINETUNE, REGRESSION
from util.options.parsing import parse
from util.options.table import own_values
from util.weights.checkpoint_schema import check_arguments, check_stored

CLASSES = {"format": 1, "class_names": ["a", "b"]}
TARGETS = {
    "format": 1,
    "task": "regression",
    "covariates": [],
    "targets": {"names": ["t"], "transforms": ["log"], "means": [0.5], "sds": [2.0]},
}


@pytest.mark.parametrize("program, rest", [(FINETUNE, CLASSES), (REGRESSION, TARGETS)])
def test_options_of_any_start_are_taken(program, rest):
    """Every flag's default, and a line with flags of all kinds: one that a later version adds is held to its
    own reader."""
    words = [
        "--dataratio",
        "0.1,1",
        "--crop_scale",
        "0.2",
        "0.9",
        "--lr",
        "1e-3",
        "--cutmix_minmax",
        "0.1",
        "0.2",
        "--cls_token",
        "--color_jitter",
        "0.4",
        "--fc_norm_passes",
        "2",
        "--image_cache",
        "x",
        "--clip_grad",
        "3",
        "--patient_regex",
        "(a)",
    ]
    for line in ([], words):
        check_stored("c.pth", rest | {"options": own_values(parse(program, "", line))})


@pytest.mark.parametrize(
    "option, value",
    [
        ("epochs", "x"),
        ("epochs", True),
        ("epochs", None),
        ("epochs", 0),
        ("epochs", 10**30),
        ("lr", float("nan")),
        ("lr", [0.1]),
        ("lr", -1),
        ("crop_scale", 0.5),
        ("crop_scale", [0.5]),
        ("crop_scale", [0.5, "x"]),
        ("model", 3),
        ("model", ["a"]),
        ("aa", "x" * 5000),
        ("global_pool", 1),
        ("precision", "int2"),
        ("dataratio", [2.0]),
        ("dataratio", [[1]]),
        ("seed", 2**32),
    ],
)
def test_other_values_are_named(option, value):
    with pytest.raises(InputError, match=f"c.pth: its option '{option}' is ") as caught:
        check_stored("c.pth", CLASSES | {"options": {option: value}})
    assert len(str(caught.value)) < 400


def test_a_value_that_contains_itself_is_not_spelt_out():
    endless = ["x"]
    for _ in range(60):
        endless = [endless] * 10
    for rest in (
        {"options": {"epochs": endless}},
        {"options": {"crop_scale": endless}},
        {"options": {}, "best": endless},
        {"options": {}, "weights": {"a": endless}},
        {"options": {}, "epoch": endless},
    ):
        with pytest.raises(InputError, match="a list of 10|a dict of 1"):
            check_stored("c.pth", CLASSES | rest)


def test_arguments_of_the_original_scripts():
    check_arguments(
        "c.pth", {"model": "RETFound_mae", "model_arch": "", "input_size": 224, "global_pool": True,
                  "blr": object()}
    )
    with pytest.raises(InputError, match="its argument 'input_size' is 'big'"):
        check_arguments("c.pth", {"input_size": "big"})


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="'class_names' is missing"):
        check_stored("c.pth", {"format": 1, "options": {}})


@pytest.mark.parametrize("decided", [
    {"temperatures": {"a": 0.0}}, {"temperatures": {"a": "x"}}, {"temperatures": [1.0]},
    {"temperatures": {"a": {"b": 1.0}}}, {"thresholds": {"threshold_a": "high"}}, {"thresholds": [0.5]}])
def test_what_was_decided_of_several_labels(decided):
    best = {"epoch": 0, "score": 0.5, "figures": {}, "thresholds": {"threshold_a": 0.3},
            "temperatures": {"a": 1.5}}
    rest = {"format": 1, "task": "multilabel", "class_names": ["a", "b"], "options": {}}
    check_stored("c.pth", rest | {"best": best})
    with pytest.raises(InputError, match="its entry 'best' is "):
        check_stored("c.pth", rest | {"best": best | decided})
    with pytest.raises(InputError, match="'class_names' is missing"):
        check_stored("c.pth", {"format": 1, "task": "multilabel", "options": {}})
