"""Flags: names, types and defaults are pinned; what is wrong is one line; nothing is accepted in silence."""

import subprocess
import sys
from pathlib import Path

import pytest

from util.core.errors import InputError
from util.options import checks, parsing, stored
from util.options.flag import FINETUNE
from util.options.table import own_values

ROOT = Path(__file__).parents[2]
# SPEC: names and defaults of the original's flags, which people's command lines rely on
DOCUMENTED = {
    "batch_size": 128, "epochs": 50, "accum_iter": 1, "model": "RETFound_dinov2", "model_arch": None,
    "input_size": None,
    "drop_path": 0.2, "global_pool": True, "clip_grad": None, "weight_decay": 0.05, "lr": None, "blr": 5e-3,
    "layer_decay": 0.65, "min_lr": 1e-6, "warmup_epochs": 10, "color_jitter": None,
    "aa": "rand-m9-mstd0.5-inc1",
    "smoothing": 0.1, "reprob": 0.25, "remode": "pixel", "recount": 1, "resplit": False, "mixup": 0,
    "cutmix": 0,
    "cutmix_minmax": None, "mixup_prob": 1.0, "mixup_switch_prob": 0.5, "mixup_mode": "batch", "finetune": "",
    "task": "",
    "adaptation": "finetune", "data_path": "./data/", "nb_classes": 8, "output_dir": "./output_dir",
    "log_dir": "./output_logs", "dataratio": [1.0], "stratified": False, "device": "cuda", "seed": 0,
    "resume": "",
    "start_epoch": 0, "eval": False, "dist_eval": False, "num_workers": None, "pin_mem": True, "world_size": 1,
    "local_rank": -1, "dist_on_itp": False, "dist_url": "env://", "savemodel": True, "norm": "backbone",
    "enhance": False, "datasets_seed": 2026, "crop_scale": [0.08, 1.0], "hflip": 0.5, "vflip": 0.0,
}


def parse(*argv):
    return checks.check_combinations(parsing.parse(FINETUNE, "", [str(word) for word in argv]))


def test_documented_flags_keep_name_and_default():
    options = own_values(parse())
    assert {name: options[name] for name in DOCUMENTED} == DOCUMENTED


def test_documented_command_lines():
    line = ("--model RETFound_dinov2 --model_arch retfound_dinov2 --finetune RETFound_dinov2_meh --savemodel "
            "--global_pool --batch_size 24 --world_size 1 --epochs 50 --nb_classes 5 --data_path DIR "
            "--input_size 224 --task NAME --adaptation finetune")
    options = parse(*line.split())
    assert options.model.finetune == "RETFound_dinov2_meh" and options.run.savemodel
    assert "batch_size" in options.typed and "seed" not in options.typed
    line = ("--model RETFound_dinov2 --model_arch retfound_dinov2 --savemodel --global_pool --batch_size 128 "
            "--world_size 1 --nb_classes 5 --data_path DIR --input_size 224 --task NAME --adaptation "
            "finetune --eval --resume ./x.pth")
    assert parse(*line.split()).run.eval
    assert parse("--dist_on_itp", "--local-rank", "2", "--dist_url", "env://").compatibility.local_rank == 2


@pytest.mark.parametrize("words, says", [
    (["--batch_sise", "3"], "did you mean --batch_size"),
    (["--batch_size", "three"], "'three' is no whole number"),
    (["--batch_size", "0"], "out of range: at least 1"),
    (["--lr", "nan"], "out of range"),
    (["--drop_path", "1"], "below 1"),
    (["--adaptation", "lora2"], "choose from"),
    (["--mixup_prob", "1.5"], "at most 1"),
    (["--dataratio", "0"], "above 0"),
    (["--dataratio", "0.1,0.1"], "twice"),
    (["--dataratio", ","], "names no share"),
    (["--crop_scale", "0.9", "0.2"], "the first may not be above"),
    (["--crop_scale", "0.9", "1.2"], "at most 1"),
    (["--eval"], "--eval needs --resume"),
    (["--eval", "--resume", "auto"], "needs --task"),
    (["--lr", "1e-7"], "--min_lr 1e-06 is above --lr 1e-07"),
    (["--start_epoch", "50"], "leaves nothing"),
    (["--task", ".."], "no name for a folder"),
    (["--seed", "-1"], "at least 0"),
    (["--data_path", "a", "--csv_file", "b"], "pass one of them"),
    (["stray"], "unrecognized arguments: stray"),
])
def test_wrong_command_lines(words, says):
    with pytest.raises(InputError) as caught:
        parse(*words)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_flags_without_effect_are_named_once():
    assert checks.without_effect(parse()) == []
    lines = checks.without_effect(parse("--world_size", "1", "--norm", "IMAGENET", "--resplit"))
    assert len(lines) == 1 and all(f"--{name}" in lines[0]
                                   for name in ("world_size", "resplit")) and "norm" not in lines[0]


def test_normalisation_is_a_name_or_six_numbers():
    assert [parse("--norm", word).model.norm for word in ("IMAGENET", "imagenet", "Half", "backbone")] == [
        "backbone", "imagenet", "half", "backbone"]
    assert parse("--norm", "0.5,.5,0.50,0.25,1,0.125").model.norm == "0.5,0.5,0.5,0.25,1,0.125"
    assert parse("--norm", "0.48145466,0,0,1,1,1").model.norm == "0.48145466,0,0,1,1,1"
    # Python alone reads these
    for flag, text in (("--norm", "0_1,0,0,1,1,1"), ("--epochs", "1_0"), ("--lr", "1_0.0")):
        with pytest.raises(InputError):
            parse(flag, text)
    for before in ("IMAGENET", "anything", ""):  # did nothing, whatever it was
        assert stored.as_now({"norm": before, "epochs": 3}) == stored.BEFORE | {
            "norm": "backbone",
            "epochs": 3,
        }
    assert stored.as_now({"norm": "half", "fundus_crop": "auto"}) == stored.BEFORE | {
        "norm": "half",
        "fundus_crop": "auto",
    }
    assert stored.as_now({}) == stored.BEFORE | {"norm": "backbone"}


def test_list_of_ratios_is_one_run_after_the_other():
    runs = checks.one_run_a_ratio(parse("--dataratio", "0.1,0.5,1", "--task", "x"))
    assert [(run.run.task, run.data.dataratio) for run in runs] == [
        ("x_ratio0.1", [0.1]), ("x_ratio0.5", [0.5]), ("x_ratio1", [1.0])]
    assert checks.one_run_a_ratio(parse("--dataratio", "0.5", "--task", "x"))[0].run.task == "x"


def test_what_is_stored_gives_way_to_what_is_typed():
    options = parse("--epochs", "7", "--task", "new")
    before = {"epochs": 3, "blr": 0.1, "task": "old", "num_workers": 0}
    assert stored.differences(before, options, typed_alone=True) == ["--epochs 3 -> 7"]
    now = stored.with_stored(options, before)
    assert (now.training.epochs, now.training.blr, now.run.task, now.run.num_workers) == (7, 0.1, "new", None)
    assert options.training.blr == 5e-3  # what was asked for stays what it was


def test_help_does_not_import_torch():
    code = ("import sys, main_finetune\ntry: main_finetune.main(['--help'])\nexcept SystemExit: pass\nheavy "
            "= {'torch', 'timm', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)\nassert not heavy, "
            "heavy")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name in own_values(parse()):
        assert f"--{name}" in run.stdout or name == "global_pool"


def test_exit_codes_of_a_start():
    run = subprocess.run([sys.executable, "main_finetune.py", "--epochs", "many"], cwd=ROOT,
                         capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert run.stderr.strip() == "error: argument --epochs: 'many' is no whole number"
    assert run.stdout == ""
