"""The flags of main_regression.py: pinned, resolved, and refused where they contradict each other."""

import json

import pytest

from util.core.errors import InputError
from util.options import checks, parsing
from util.options.flag import FINETUNE, REGRESSION
from util.options.table import flags_of, own_values

DOCUMENTED = {
    "csv_file": None, "path_col": "path", "split_col": "split",
    "targets": ["tc", "ldl", "hdl", "tg", "apoa", "apob"],
    "huber_beta": 1.0, "head_embed_dim": None, "head_depth": 2, "head_num_heads": 4, "head_mlp_ratio": 2.0,
    "head_dropout": 0.1,
    "batch_size": 64, "epochs": 30, "accum_iter": 2, "blr": 2e-3, "warmup_epochs": 5, "num_workers": None,
    "task": "",
    "pretrained": False, "model": "RETFound_dinov2", "finetune": "RETFound_dinov2_meh",
    "crop_scale": [0.8, 1.0],
    "optuna_trials": 0, "optuna_epochs": 10, "optuna_timeout": None, "optuna_direction": "maximize",
    "optuna_storage": None,
    "optuna_study_name": None, "optuna_resume": False, "optuna_seed": None, "optuna_pruner": "none",
    "optuna_eval_test": False,
    "optuna_n_jobs": 1, "optuna_sampler": "tpe", "patient_col": None, "covariates": [],
    "target_transform": ["none"],
    "dropna": False, "adaptation": "finetune", "weight_decay": 0.05, "layer_decay": 0.65, "drop_path": 0.2,
    "seed": 0,
}


def parse(text):
    return parsing.parse(REGRESSION, "", text.split())


def test_documented_flags_keep_name_and_default():
    found = own_values(parse(""))
    assert {name: found[name] for name in DOCUMENTED} == DOCUMENTED


def test_every_flag_of_a_classification_is_understood():
    of_classes = {"label_col", "label_cols", "multilabel", "class_weights", "balanced_sampling",
                  "class_order", "positive_class", "case_size", "external", "recalibrate",
                  "recalibrate_share", "ignore_unlabeled"}
    other = {flag.name for flag in flags_of(FINETUNE)} - of_classes
    assert other <= {flag.name for flag in flags_of(REGRESSION)}


def test_documented_command_line():
    options = parse("--csv_file data/retina.csv --batch_size 32 --epochs 40 --optuna_trials 20 "
                    "--optuna_epochs 10 --optuna_direction maximize")
    options, lines = checks.check_search(checks.check_combinations(options))
    assert lines == [] and options.search.optuna_metric == "r2"


@pytest.mark.parametrize(
    "text, says",
    [
        ("--optuna_trials -1", "at least 0"),
        ("--optuna_trials two", "whole number"),
        ("--huber_beta 0", "above 0"),
        ("--optuna_pruner hyperband", "invalid choice"),
        ("--target_transform sqrt", "invalid"),
        ("--optuna_trial 3", "did you mean --optuna_trials"),
        ("--optuna_trials 3 --resume auto", "--optuna_resume"),
        ("--optuna_trials 3 --eval --resume x.pth", "pass one of them"),
        ("--optuna_trials 3 --optuna_metric r2 --optuna_direction minimize", "contradicts it"),
    ],
)
def test_wrong_command_lines(text, says):
    with pytest.raises(InputError, match=says):
        checks.check_search(checks.check_combinations(parse(text)))


def test_params_are_taken_unless_typed(tmp_path):
    path = tmp_path / "optuna_best.json"
    path.write_text(json.dumps({"params": {"lr": 1e-3, "head_depth": 3}}))
    options, lines = checks.take_params(parse(f"--params {path} --head_depth 1"))
    assert (options.training.lr, options.head.head_depth) == (1e-3, 1) and "lr" in options.typed
    assert "lr 0.001" in lines[0] and "typed values win" in lines[1] and "head_depth" in lines[1]
    options, _ = checks.take_params(parse(f"--params {path} --blr 1e-3"))
    assert options.training.lr is None  # --blr is a typed rate too


@pytest.mark.parametrize("text", ["[]", "{}", '{"params": [1]}', '{"params": {"lr": "high"}}', "no json"])
def test_params_that_are_none(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(InputError, match="p.json"):
        checks.take_params(parse(f"--params {path}"))


@pytest.mark.parametrize("text, model, arch, finetune, task", [
    ("", "RETFound_dinov2", None, "RETFound_dinov2_meh", "retfound_dinov2_tc_ldl_hdl_tg_apoa_apob"),
    ("--model efficientnet_b4 --targets age", "timm", "efficientnet_b4", "", "efficientnet_b4_age"),
    ("--model RETFound_mae --targets age", "RETFound_mae", None, "", "retfound_mae_age"),
    ("--model timm --model_arch resnet18 --finetune w.pth --task t", "timm", "resnet18", "w.pth", "t"),
    ("--model resnet18 --pretrained --task t", "timm", "resnet18",
     "hf:timm/resnet18.a1_in1k/model.safetensors", "t"),
])
def test_names(text, model, arch, finetune, task):
    from jobs.tasks.regression import resolve_names

    options = resolve_names(parse(text))
    asked = options.model
    assert (asked.model, asked.model_arch, asked.finetune, options.run.task) == (model, arch, finetune, task)
