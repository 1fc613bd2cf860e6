"""The rate of an iteration, against numbers worked out by hand."""

import math

import pytest
import torch

from util.model.lr_schedule import learning_rate_at, set_learning_rate, usable_warmup


@pytest.mark.parametrize("position, rate", [
    (0, 0.0), (5, 0.5), (10, 1.0),  # linear to the peak at the end of warm-up
    (30, 0.1 + 0.9 / 2),  # half way down: cos(pi / 2) = 0
    (20, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2), (50, 0.1), (60, 0.1),
])
def test_warmup_and_half_cosine(position, rate):
    assert learning_rate_at(position, 1.0, 0.1, 10, 50) == pytest.approx(rate, abs=1e-12)


def test_warmup_longer_than_the_run():
    assert usable_warmup(10, 5) == 1.0
    assert usable_warmup(10, 100) == 10
    assert learning_rate_at(3, 1.0, 0.0, 5, 5) == pytest.approx(0.6)
    assert learning_rate_at(0, 1.0, 0.0, 0, 5) == 1.0


def test_every_group_gets_its_share():
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr_scale": scale} for scale in (0.25, 1.0)]
    optimizer = torch.optim.AdamW([*groups, {"params": [torch.nn.Parameter(torch.ones(1))]}], lr=9.0)
    set_learning_rate(optimizer, 0.4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.4, 0.4])
