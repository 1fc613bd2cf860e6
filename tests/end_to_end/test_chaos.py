"""Trainings that are killed and started again end with the bits of undisturbed ones (benchmarks/chaos.py
kills more often)."""

import random
from pathlib import Path

import pytest
import torch

from benchmarks.chaos import Tally, Training, differences, one_round, torn, undisturbed, write_pictures

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="looks for the processes in Linux's /proc"
)


@pytest.mark.slow
@pytest.mark.parametrize("processes, kinds", [(1, ["write", "term", "kill"]), (2, ["rank", "usr1"])])
def test_killed_and_started_again_it_ends_with_the_same_bits(tmp_path, processes, kinds):
    write_pictures(tmp_path / "pictures", 48)
    alone, start_s, train_s = undisturbed(tmp_path / "alone", tmp_path / "pictures", processes)
    rng, tally, out = random.Random(processes), Tally(), ""
    # a quick machine may be done before it is killed, or killed before there is anything to go on from
    while (tally.kills.total() < len(kinds) or "resumed at epoch" not in out) and tally.rounds < 5:
        training = Training(tmp_path / f"round{tally.rounds}", tmp_path / "pictures", processes)
        one_round(training, alone.run_folder, kinds, start_s, train_s, rng, tally)
        assert not tally.problems
        out += (training.folder / "out.txt").read_text()
    assert "resumed at epoch" in out and "best epoch" in out
    # what the comparison and the look for torn files are worth
    best = training.run_folder / "checkpoint-best.pth"
    content = torch.load(best, weights_only=True)
    content["model"]["head.bias"][0] += 1e-6
    torch.save(content, best)
    assert differences(alone.run_folder, training.run_folder) == ["checkpoint-best.pth: model"]
    best.write_bytes(best.read_bytes()[:-100])
    assert len(torn(training.run_folder)) == 1
