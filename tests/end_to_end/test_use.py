"""predict.py and latent_feature.py started for real: by several processes, killed in the middle and started
again."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import ROOT, SMALL, start_process, write_pictures

HERE = ["--device", "cpu", "--num_workers", "0", "--precision", "fp32", "--batch_size", "4"]
ALONE = {"OMP_NUM_THREADS": "1"}

# A program whose process is killed, as by the system, in the middle of writing to the disk for the nth time.
KILLED = """
import os, signal, sys
import engine_finetune
from util.core import partial_rows
import {program}

engine_finetune.CHUNK_SECONDS, written, append = 0, [], partial_rows.append_whole

def die(path, content):
    written.append(path)
    if len(written) == {times}:
        append(path, content[:len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    append(path, content)

partial_rows.append_whole = die
sys.exit({program}.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images, a checkpoint, and what one undisturbed process writes."""
    folder = tmp_path_factory.mktemp("use")
    write_pictures(folder / "pictures", numbers=(4, 2, 10))
    run = start_process(*SMALL, "--epochs", 1, "--calibrate", "--data_path", "pictures", "--task", "c",
                        folder=folder, **ALONE)
    assert run.returncode == 0, run.stderr
    for program, output, more in (("predict.py", "p.csv", ("--heatmaps", "maps")),
                                  ("latent_feature.py", "f.npz", ())):
        run = start_process(*words(output), *more, folder=folder, program=program, **ALONE)
        assert run.returncode == 0, run.stderr
    return folder


def words(output):
    return ["--resume", "output_dir/c/checkpoint-best.pth", "--input", "pictures/test", "--output", output,
            *HERE]


def start_and_kill(program, times, plan, folder):
    run = subprocess.run([sys.executable, "-c", KILLED.format(program=program, times=times), *map(str, plan)],
                         cwd=folder,
                         capture_output=True, text=True, env=os.environ | ALONE | {"PYTHONPATH": str(ROOT)})
    assert run.returncode == -signal.SIGKILL, run.stderr


def test_what_calibrate_fitted_is_used(trained):
    temperature = torch.load(trained / "output_dir/c/checkpoint-best.pth",
                             weights_only=True)["best"]["temperature"]
    table, names = pd.read_csv(trained / "p.csv"), ("healthy", "mild", "severe")
    logits, probabilities = (table[[f"{kind}_{name}" for name in names]].to_numpy()
                             for kind in ("logit", "prob"))
    assert temperature > 0 and temperature != 1
    assert np.allclose(np.log(probabilities[:, :1] / probabilities), (logits[:, :1] - logits) / temperature,
                       atol=1e-9)


def test_two_processes_write_the_same(trained):
    run = start_process(*words("p2.csv"), "--heatmaps", "maps2", folder=trained, processes=2,
                        program="predict.py", **ALONE)
    assert (
        run.returncode == 0 and "2 processes" in run.stdout and run.stdout.count("written to p2.csv") == 1
    ), run.stderr
    assert (trained / "p2.csv").read_bytes() == (trained / "p.csv").read_bytes()
    names = {path.name for path in (trained / "maps").glob("*.png")}
    assert len(names) == 31 and names == {path.name for path in (trained / "maps2").glob("*.png")}
    assert (trained / "maps2/heatmaps.json").read_bytes() == (trained / "maps/heatmaps.json").read_bytes()


def test_two_processes_say_an_error_once(trained):
    run = start_process(*words("nowhere/p.csv"), folder=trained, processes=2, program="predict.py", **ALONE)
    assert (
        run.returncode != 0
        and run.stderr.count("error: --output nowhere/p.csv: there is no folder nowhere") == 1
    )


@pytest.mark.parametrize(
    "program, output, times",
    [("predict", "p.csv", 5), ("predict", "p.csv", 6), ("latent_feature", "f.npz", 3)],
)
def test_killed_and_started_again(trained, tmp_path, program, output, times):
    """The kill falls into the writing of rows (odd times) or of their line (even ones): half of it stands on
    the disk."""
    again = f"again{times}_{output}"
    start_and_kill(program, times, words(again), trained)
    assert not (trained / again).exists() and (trained / f"{again}.partial").stat().st_size
    run = start_process(*words(again), folder=trained, program=f"{program}.py", **ALONE)
    whole = 4 * ((times - 1) // 2)
    assert run.returncode == 0 and f"{whole} are there from an earlier start" in run.stdout, (
        run.stdout,
        run.stderr,
    )
    if program == "predict":
        assert (trained / again).read_bytes() == (trained / output).read_bytes()
    else:
        one, two = np.load(trained / output), np.load(trained / again)
        assert all(np.array_equal(one[name], two[name]) for name in ("paths", "cls", "patch_mean", "pooled"))
    assert not list(trained.glob(f"*{again}.*"))


def test_pictures_that_changed_meanwhile_begin_anew(trained, tmp_path):
    folder = shutil.copytree(trained / "pictures/test", tmp_path / "some")
    plan = ["--resume", trained / "output_dir/c/checkpoint-best.pth", "--input", "some", "--output", "p.csv",
            *HERE]
    start_and_kill("predict", 5, plan, tmp_path)
    shutil.copy(folder / "severe/00.png", folder / "healthy/00.png")
    run = start_process(*plan, folder=tmp_path, program="predict.py", **ALONE)
    assert run.returncode == 0 and "is of other images: begun anew" in run.stdout, (run.stdout, run.stderr)
    logits = pd.read_csv(tmp_path / "p.csv").set_index("path")["logit_mild"]
    assert logits["some/healthy/00.png"] == pytest.approx(logits["some/severe/00.png"], abs=1e-6)
