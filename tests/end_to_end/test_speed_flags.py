"""Flags that are there for speed change no figure: the image cache, --compile, loader processes."""

import os
import shutil

import numpy as np
import pytest

from tests.conftest import SMALL, start_process
from util.data.images import cache_choice
from util.metrics.predictions import read_predictions

AUGMENTED = ("--aa", "rand-m9-mstd0.5-inc1", "--reprob", 0.25)


def predictions(tmp_path, task):
    return (tmp_path / f"output_dir/{task}/predictions_test.csv").read_bytes()


def test_a_cache_changes_the_time_alone(start, tmp_path):
    code, out, err = start("--task", "kept", "--image_cache", "cache", *AUGMENTED)
    assert code == 0, err
    assert "87 decoded once to cache/68-scaled-2-colour-shown" in out  # 32 / sqrt(0.3 * 3 / 4)
    code, out, err = start("--task", "again", "--image_cache", "cache", *AUGMENTED, "--num_workers", 2)
    assert code == 0 and "87 found decoded" in out
    code, out, err = start("--task", "each", "--image_cache", "off", *AUGMENTED)
    assert code == 0 and "decoded once" not in out and "short side of 68" in out
    assert predictions(tmp_path, "kept") == predictions(tmp_path, "again") == predictions(tmp_path, "each")
    # scored as it was trained, with the cache and without
    for more in ((), ("--image_cache", "cache")):
        code, out, err = start("--task", "kept", "--eval", "--resume", "auto", *more)
        assert code == 0 and predictions(tmp_path, "kept") == predictions(tmp_path, "each"), err
    shutil.rmtree("cache")


def test_a_cache_and_a_resumed_run(start):
    assert start("--task", "a", "--epochs", 1, "--image_cache", "cache")[0] == 0
    code, out, err = start("--task", "a", "--epochs", 1, "--image_cache", "cache", "--resume", "same")
    assert code == 0 and "this run is complete" in out, err
    code, out, err = start("--task", "a", "--epochs", 1, "--image_cache", "elsewhere", "--resume", "same")
    assert code == 0, err  # where it lies is no matter of the run
    code, out, err = start("--task", "a", "--epochs", 1, "--resume", "same")
    assert code == 0, err  # nor whether there is one
    code, out, err = start("--task", "a", "--epochs", 1, "--resume", "same", "--cache_size", "own")
    assert code == 2 and "--cache_size 68 -> own" in err
    code, out, err = start("--task", "a", "--epochs", 2, "--resume", "auto")
    assert code == 0 and "reduced to a short side of 68" in out


def test_a_cache_for_a_checkpoint_that_was_trained_without(start):
    code, out, err = start("--task", "a", "--epochs", 1, "--cache_size", "own")
    assert code == 0 and "reduced" not in out, err
    code, out, err = start("--task", "a", "--eval", "--resume", "auto", "--image_cache", "cache")
    assert code == 0 and "--image_cache does nothing" in out and not os.path.exists("cache")
    code, out, err = start("--task", "a", "--eval", "--resume", "auto", "--image_cache", "cache",
                           "--cache_size", 40)
    assert code == 0 and "decoded once to cache/40-scaled-2-colour-shown" in out


def test_two_processes_share_a_cache(pictures, tmp_path):
    run = start_process(*SMALL, "--epochs", 1, "--data_path", pictures, "--task", "x", "--image_cache",
                        "cache", folder=tmp_path, processes=2)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("decoded once") == 1 and len(list((tmp_path / "cache").glob("*/*.npy"))) == 1


@pytest.mark.slow
def test_compiled_models_learn_the_same(start, tmp_path):
    same = ("--epochs", 1, "--drop_path", 0, "--precision", "fp32")
    assert start("--task", "eager", *same)[0] == 0
    code, out, err = start("--task", "compiled", *same, "--compile")
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        assert code == 2 and "needs a C++ compiler" in err
        return
    assert code == 0, err
    one, other = (read_predictions(tmp_path / f"output_dir/{task}/predictions_test.csv")
                  for task in ("eager", "compiled"))
    logits = [name for name in one if name.startswith("logit_")]
    np.testing.assert_allclose(one[logits], other[logits], atol=1e-3)


def test_compile_without_a_compiler(start, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("shutil.which", lambda name: None)
    code, out, err = start("--task", "a", "--compile")
    assert code == 2 and "needs a C++ compiler" in err


@pytest.mark.parametrize("words", [("--cache_size", 0), ("--lp_views", 0), ("--cache_size", "big")])
def test_wrong_values(start, words):
    code, out, err = start(*words)
    assert code == 2 and len(err.strip().splitlines()) == 1 and words[0] in err


def test_the_cache_decides_for_itself_and_changes_no_figure(start, pictures, tmp_path, monkeypatch):
    code, out, err = start("--task", "without", *AUGMENTED)
    assert code == 0 and "decoded in every epoch" in out and not os.path.exists("output_dir/.pictures"), err
    monkeypatch.setattr(cache_choice, "LEAST_SAVED", 0)
    monkeypatch.setattr(cache_choice, "_seconds_of_writing", lambda pixels, folder: 0)
    code, out, err = start("--task", "with", *AUGMENTED)
    assert code == 0 and "kept decoded in output_dir/.pictures" in out, out
    assert predictions(tmp_path, "with") == predictions(tmp_path, "without")
    read_again = sum(len(list(pictures.glob(f"{split}/*/*"))) for split in ("train", "val"))
    assert f"{read_again} decoded once to output_dir/.pictures/68-" in out
    code, out, err = start("--task", "again", *AUGMENTED, "--image_cache", "off")
    assert code == 0 and "decoded" not in out.replace("decoding", ""), err
