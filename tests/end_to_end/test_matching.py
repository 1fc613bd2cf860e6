"""What has to fit together: a checkpoint's classes and the data's, weights and the model, the model's flags.
(What does not is in tests/bad_input.)"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests import parity
from tests.conftest import CLASSES


@pytest.fixture
def copy(pictures, tmp_path):
    return Path(shutil.copytree(pictures, tmp_path / "copy"))


def wrong(result, *says):
    code, out, err = result
    assert code == 2, (out, err)
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for words in says:
        assert words in err
    assert "epoch 0" not in out


def test_fp16_with_dinov3(start):
    wrong(start("--model", "Dinov3", "--model_arch", "dinov3_vits16", "--precision", "fp16"), "65504")


def test_model_and_architecture_contradict(start):
    wrong(start("--model", "Dinov2", "--model_arch", "dinov3_vits16"), "belongs to --model Dinov3")
    wrong(start("--model", "Dinov2", "--model_arch", "dinov2_vits14", "--input_size", 225), "224 and 238")


def test_weights_that_do_not_fit_stop_the_start(start, tmp_path):
    parity.weight_file(tmp_path / "dinov2.pth", "dinov2_vits14")
    wrong(start("--model", "Dinov3", "--model_arch", "dinov3_vits16", "--finetune", tmp_path / "dinov2.pth"),
          "does not fit --model Dinov3", "missing")
    torch.save({"blocks.0.norm1.weight": torch.ones(64)}, tmp_path / "one.pth")
    wrong(start("--finetune", tmp_path / "one.pth"), "1 of ")
    code, out, err = start("--finetune", tmp_path / "one.pth", "--allow_partial", "--epochs", 1)
    assert code == 0, err
    assert "PARTIAL (--allow_partial)" in out and "blocks.1.norm1.weight" in out


def test_eval_maps_classes_by_name(start, copy, tmp_path):
    """Folders in another order, one of them absent: the same predictions for the images that are there."""
    assert start("--task", "t", "--epochs", 1)[0] == 0
    best = tmp_path / "output_dir/t/checkpoint-best.pth"
    whole = pd.read_csv(tmp_path / "output_dir/t/predictions_test.csv")
    shutil.rmtree(copy / "test" / "healthy")
    code, out, err = start("--eval", "--resume", best, "--task", "two", data=copy)
    assert code == 0, err
    assert "no images of 1 of the 3 classes ('healthy')" in out
    two = pd.read_csv(tmp_path / "output_dir/two/predictions_test.csv")
    expected = whole[whole["true_class"] != "healthy"].reset_index(drop=True)
    columns = [f"logit_{name}" for name in CLASSES]
    assert np.allclose(two[columns], expected[columns], atol=1e-5)
    assert list(two["true_class"]) == list(expected["true_class"])
