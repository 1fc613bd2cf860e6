"""Images that nobody here drew: scikit-learn's handwritten digits, a small vision transformer from
scratch."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import start_process


def write_digits(folder):
    """The 1,797 images of 8 x 8 pixels as PNG folders: 1,100 train, 300 val, 397 test."""
    digits = load_digits()
    for place, number in enumerate(np.random.RandomState(0).permutation(len(digits.target))):
        split = "train" if place < 1100 else "val" if place < 1400 else "test"
        path = folder / split / str(digits.target[number]) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8)).save(path)
    return folder


@pytest.mark.slow
def test_digits_are_learned(tmp_path):
    data = write_digits(tmp_path / "digits")
    run = start_process("--model", "timm", "--model_arch", "test_vit", "--input_size", 64, "--nb_classes", 10,
                        "--epochs", 90,
                        "--batch_size", 16, "--lr", 1e-3, "--warmup_epochs", 5, "--layer_decay", 1,
                        "--drop_path", 0,
                        "--aa", "none", "--reprob", 0, "--crop_scale", 0.7, 1, "--hflip", 0, "--precision",
                        "fp32",
                        "--num_workers", 0, "--device", "cpu", "--task", "digits", "--data_path", data,
                        folder=tmp_path, timeout=900)
    assert run.returncode == 0, run.stderr
    found = pd.read_csv(tmp_path / "output_dir/digits/metrics_test.csv")
    assert found["n"][0] == 397
    assert found["accuracy"][0] >= 0.90
