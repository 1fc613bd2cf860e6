"""Checkpoints beside the training: what is written is what stood there when it was begun, and an error is
told."""

import collections
import functools
import os
import threading

import pytest
import torch

from util.core.errors import RunError
from util.weights import checkpoint
from util.weights.background import Background


def test_what_is_written_is_what_stood_there(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    free, names = threading.Event(), ("a.pth", "b.pth", "c.pth")
    with Background() as background:
        for number, name in enumerate(names):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 8, 8)).square().sum().backward()
            optimizer.step()
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": number}
            torch.save(content, tmp_path / f"now_{name}")
            copy = background.copied(content)
            assert isinstance(copy["model"], collections.OrderedDict) and copy["model"]._metadata
            free.clear()
            background.begin([free.wait, lambda name=name, copy=copy: checkpoint.write(tmp_path / name, copy)])
            with torch.no_grad():  # the next step is not waited for
                for parameter in model.parameters():
                    parameter.zero_()
            assert not (tmp_path / name).exists()
            free.set()
    for name in names:
        found, wanted = (torch.load(tmp_path / file, weights_only=True) for file in (name, f"now_{name}"))
        assert found["epoch"] == wanted["epoch"] and found["model"].keys() == wanted["model"].keys()
        assert all(torch.equal(found["model"][key], wanted["model"][key]) for key in wanted["model"])
        for key, state in wanted["optimizer"]["state"].items():
            assert all(torch.equal(found["optimizer"]["state"][key][part], state[part]) for part in state)
        assert found["optimizer"]["param_groups"] == wanted["optimizer"]["param_groups"]


@pytest.mark.parametrize("call", ["copied", "begin", "wait", "leave"])
def test_an_error_is_told_by_the_next_call_and_once(tmp_path, call):
    done = []
    with pytest.raises(RunError, match="could not be written"), Background() as background:
        background.begin([lambda: checkpoint.write(tmp_path / "gone" / "x.pth", {}), lambda: done.append(1)])
        if call == "copied":
            background.copied({})
        elif call == "begin":
            background.begin([])
        elif call == "wait":
            background.wait()
    assert done == [] and "beside" not in {thread.name for thread in threading.enumerate()}
    background.wait()


def test_a_rest_ends_when_somebody_waits():
    with Background() as background:
        for _ in range(2):
            background.begin([functools.partial(background.rest, 600)])
        background.wait()


def test_what_was_begun_becomes_whole_when_the_run_is_ended(tmp_path):
    content = {"model": {"weight": torch.zeros(1000, 1000)}}
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.begin([lambda: checkpoint.write(tmp_path / "x.pth", content)])
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["x.pth"] and torch.load(tmp_path / "x.pth", weights_only=True)
