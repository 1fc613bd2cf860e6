"""One process needs no group; devices that are not there; how an error leaves."""

import os
import re

import pytest
import torch

from tests.clone import executable
from util.core.ending import exit_code_of
from util.core.errors import InputError, PeerEnded, RunError
from util.parallel import processes
from util.parallel.processes import World, process_group


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_alone_everything_is_the_identity():
    world = World()
    assert world.is_main and world.any(True) and not world.any(False)
    assert world.gather("x") == ["x"] and world.from_main(3) == 3 and world.main_first(lambda: 5) == 5
    assert torch.equal(world.sum_of_step(torch.ones(2)), torch.ones(2))
    world.barrier()


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_falls_back_with_a_line(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with process_group(device) as world:
        assert world.device.type == "cpu" and world.note == f"no {device} device here: running on the CPU"
    with process_group("cpu") as world:
        assert world.note == ""


@pytest.mark.parametrize("visible, number", [(4, 3), (8, 3), (1, 0)])
def test_a_gpu_a_process(visible, number, monkeypatch):
    """That of its number, or the only one that its launcher lets it see; too few are refused."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert processes._device("cuda", 3, 4) == (torch.device("cuda", number), "")
    assert chosen == [torch.device("cuda", number)]
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(InputError, match="4 processes on this machine, but 3 GPUs are visible"):
        processes._device("cuda", 3, 4)


def test_two_processes_do_not_share_a_gpu():
    processes._require_own_gpus(["GPU-1 of a", "GPU-2 of a", "GPU-1 of b"])
    with pytest.raises(InputError, match="2 processes would share the GPU GPU-1 of a: start at most as many"):
        processes._require_own_gpus(["GPU-1 of a", "GPU-2 of a", "GPU-1 of a"])


@pytest.mark.parametrize("why", ["The NVIDIA driver on your system is too old (found version 11040).",
                                 "Torch not compiled with CUDA enabled"])
def test_a_gpu_that_pytorch_cannot_use_stops_the_run(why, monkeypatch, tmp_path):
    executable(tmp_path / "nvidia-smi", "echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(AssertionError(f"{why}\nPlease")))
    with pytest.raises(InputError, match=re.escape(f"can't use it ({why}): bring the driver")):
        processes._device("cuda", 0, 1)
    assert processes._device("cpu", 0, 1) == (torch.device("cpu"), "")
    for hidden in ("", "-1"):  # on purpose
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert processes._device("cuda", 0, 1)[0].type == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    executable(tmp_path / "nvidia-smi", "echo 'NVIDIA-SMI has failed' && exit 9\n")
    assert processes._device("cuda", 0, 1)[1] == "no cuda device here: running on the CPU"


def test_the_group_is_gone_after_an_error(monkeypatch, tmp_path):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ZeroDivisionError), process_group("cpu"):
        raise ZeroDivisionError
    assert not torch.distributed.is_initialized()


def test_repeating_bits():
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        processes.repeat_bits()
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"]
    finally:
        torch.use_deterministic_algorithms(False)
        if before is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG")


def raising(error):
    def main(argv):
        raise error
    return main


def test_exit_codes(capsys, monkeypatch):
    assert exit_code_of(lambda argv: 0) == 0 and exit_code_of(lambda argv: None) == 0
    for error, code in ((InputError("wrong"), 2), (RunError("failed"), 1), (PeerEnded("InputError", "x"), 2)):
        capsys.readouterr()
        assert exit_code_of(raising(error)) == code
        assert capsys.readouterr().err.count("\n") == 1
    assert exit_code_of(raising(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):  # our own bugs keep their traceback
        exit_code_of(raising(ZeroDivisionError()))
    monkeypatch.setattr("util.core.ending.LAUNCHER_GRACE_S", 0)
    capsys.readouterr()
    # none of a group's others: nobody else would say it
    for rank, size in (("1", None), ("5", "2"), ("x", "2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size) if size else monkeypatch.delenv("WORLD_SIZE", raising=False)
        assert exit_code_of(raising(InputError("a\x1b[1m\nb" + "c" * 999))) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: a\\x1b[1m\\nbccc") and said.count("\n") == 1 and len(said) < 300
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    capsys.readouterr()
    assert exit_code_of(raising(InputError("wrong"))) == 2
    assert capsys.readouterr().err == ""  # the main process has said it


def test_nonsense_in_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "zero")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="are no numbers"), process_group("cpu"):
        raise AssertionError("not reached")
    assert os.environ["RANK"] == "zero"
