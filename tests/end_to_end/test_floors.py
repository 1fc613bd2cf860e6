"""The lowest releases that requirements.txt admits are enough: installed alone, one process and two of a
launcher train with them."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SMALL = ("--epochs", "1", "--batch_size", "4", "--input_size", "32", "--warmup_epochs", "0")


def floors(text: str) -> list[str]:
    """A requirement file with each name at its lowest release."""
    found = [re.match(r"([\w-]+)>=([\d.]+),<\d", line) for line in text.splitlines() if line[:1].isalpha()]
    return [f"{match[1]}=={match[2]}" for match in found]


def run(*command, folder, **environment) -> str:
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True,
                          env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
                          | environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_training_and_a_launcher_on_the_lowest_releases(tmp_path, pictures):
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lowest = tmp_path / "floors.txt"
    lowest.write_text("\n".join(floors(text)) + "\n")
    assert len(floors(text)) == sum(line[:1].isalpha() for line in text.splitlines())
    run(sys.executable, "-m", "venv", tmp_path / "venv", folder=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-cache-dir", "-r", lowest, folder=tmp_path)
    known = {"PYTHON": str(python), "DATA_PATH": str(pictures), "NUM_CLASS": "3", "MODEL": "timm",
             "MODEL_ARCH": "test_vit", "FINETUNE": "", "OMP_NUM_THREADS": "1"}
    for processes in ("1", "2"):
        out = run("sh", ROOT / "train.sh", *SMALL, "--parallel", "fsdp", folder=tmp_path, **known,
                  GPUS=processes, TASK=processes)
        assert f"device     cpu ({processes} process" in out and "best epoch 0" in out
        assert (tmp_path / "output_dir" / processes / "report.html").exists()
    shutil.rmtree(tmp_path / "venv")  # 6 GB, which pytest would keep
