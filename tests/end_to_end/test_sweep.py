"""compare.py --run: a study of real trainings, killed in between, gone on with, compared."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd

from tests.conftest import ROOT, SMALL

NAMES = [f"{backbone}_{adaptation}_ratio1_seed{seed}" for backbone in ("vit", "resnet") for adaptation in ("finetune", "lp")
         for seed in (0, 1)]
FLAGS = dict(zip((word.removeprefix("--") for word in SMALL[::2]), SMALL[1::2], strict=True)) | {"epochs": "3"}


def grid(folder, pictures):
    flags = {name: value for name, value in FLAGS.items() if name not in ("model", "model_arch")}
    lines = ["name: study", "flags:", f"  data_path: {pictures}", *(f"  {name}: {value}" for name, value in flags.items()),
             "backbones:", "  - vit: {model: timm, model_arch: test_vit}", "  - resnet: --model timm --model_arch test_resnet",
             "adaptations: [finetune, lp: {epochs: 4}]".replace("lp: {epochs: 4}", "{lp: {epochs: 4}}"), "seeds: [0, 1]"]
    (folder / "grid.yaml").write_text("\n".join(lines) + "\n")


def begin(folder, *words):
    return subprocess.Popen([sys.executable, str(ROOT / "compare.py"), "--run", "grid.yaml", *words], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})


def epochs_logged(folder):
    log = folder / "log.txt"
    return [json.loads(line)["epoch"] for line in log.read_text().splitlines()] if log.exists() else []


def test_a_study_is_gone_on_with(tmp_path, pictures):
    grid(tmp_path, pictures)
    study = tmp_path / "output_dir/study"
    process = begin(tmp_path)
    second = study / NAMES[1]
    deadline = time.monotonic() + 120
    while not (second / "run.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert f"stopped in {NAMES[1]} by SIGINT" in err and f"{NAMES[0]} done" in out and not (study / NAMES[2]).exists()
    finished = (study / NAMES[0] / "metrics_test.json").stat().st_mtime_ns

    # a cell that cannot succeed: its checkpoint is no checkpoint
    broken = study / NAMES[2]
    broken.mkdir()
    (broken / "checkpoint-last.pth").write_bytes(b"no checkpoint")
    process = begin(tmp_path, "--metric", "roc_auc", "accuracy", "--draws", "200")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1, (out, err)
    assert "1 finished, 1 begun, 6 new" in out and f"{NAMES[2]} failed (exit code 2)" in err and "Traceback" not in err
    assert (study / NAMES[0] / "metrics_test.json").stat().st_mtime_ns == finished, "what is done is not done again"
    assert epochs_logged(second) == [0, 1, 2] and not list(second.glob("earlier-*"))
    table = pd.read_csv(study / "comparison.csv")
    assert list(table["group"]) == ["vit finetune", "vit lp", "resnet finetune", "resnet lp"]
    assert list(table["seeds"]) == [2, 1, 2, 2]
    assert len(pd.read_csv(study / "comparison_tests.csv")) == 6 * 3 and "vit finetune" in out

    (broken / "checkpoint-last.pth").unlink()
    process = begin(tmp_path, "--draws", "200")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, (out, err)
    assert "7 finished, 0 begun, 1 new" in out and out.count("run ") == 1
    assert list(pd.read_csv(study / "comparison.csv")["seeds"]) == [2, 2, 2, 2] and (study / "comparison.png").exists()
