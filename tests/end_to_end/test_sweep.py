"""compare.py --run: a study of real trainings, stopped in between, gone on with, compared."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from tests.conftest import ROOT, SMALL

NAMES = [f"vit_{adaptation}_ratio1_seed{seed}" for adaptation in ("finetune", "lp") for seed in (0, 1)]
FLAGS = dict(zip((word.removeprefix("--") for word in SMALL[::2]), SMALL[1::2], strict=True))
GRID = """\
name: study
flags:
  data_path: {images}
  epochs: 6
{flags}
backbones: [vit: {{model: timm, model_arch: test_vit}}]
adaptations: [finetune, lp: {{epochs: 4}}]
seeds: [0, 1]
"""


def begin(folder, *words):
    return subprocess.Popen([sys.executable, str(ROOT / "compare.py"), "--run", "grid.yaml", *words],
                            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_a_study_is_gone_on_with(tmp_path, pictures):
    flags = "\n".join(f"  {name}: {value}" for name, value in FLAGS.items()
                      if name not in ("model", "model_arch", "epochs"))
    (tmp_path / "grid.yaml").write_text(GRID.format(images=pictures, flags=flags))
    study = tmp_path / "output_dir/study"
    first, second, third, _ = (study / name for name in NAMES)
    process = begin(tmp_path)
    deadline = time.monotonic() + 200
    while not (second / "checkpoint-last.pth").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert f"stopped in {second.name} by SIGINT" in err and f"{first.name} done" in out and not third.exists()
    finished = (first / "metrics_test.json").stat().st_mtime_ns

    process = begin(tmp_path, "--metric", "roc_auc", "accuracy", "--draws", "200")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, (out, err)
    assert "1 finished, 1 begun, 2 new" in out and out.count(" of 4: ") == 3 and "Traceback" not in err
    assert (first / "metrics_test.json").stat().st_mtime_ns == finished, "what is done is not done again"
    epochs = [json.loads(line)["epoch"] for line in (second / "log.txt").read_text().splitlines()]
    assert epochs == list(range(6)) and "resumed at epoch" in out and not list(second.glob("earlier-*"))
    table = pd.read_csv(study / "comparison.csv")
    assert list(table["group"]) == ["finetune", "lp"] and list(table["seeds"]) == [2, 2]
    assert list(pd.read_csv(study / "comparison_tests.csv")["metric"]) == ["roc_auc", "roc_auc", "accuracy"]
    assert (study / "comparison.png").exists() and "the stored" not in out

    # what trainings stored is what the grid asks for: nothing is left to do
    process = begin(tmp_path, "--draws", "200")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and "4 finished, 0 begun, 0 new" in out and " of 4: " not in out, (
        out,
        err,
    )
