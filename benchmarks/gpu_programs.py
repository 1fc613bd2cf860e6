"""The programs as users start them, for benchmarks/gpu.py: what they do on a GPU, several processes, a run
that was ended and goes on, memory that is full."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

from benchmarks.gpu_device import on_device
from benchmarks.gpu_setting import ROOT, SMALL, Setting
from benchmarks.gpu_speed import compiler
from util.core import signals
from util.model.memory import GIB

MAIN, OUT_OF_MEMORY = "main_finetune.py", "error: the device's memory is full"
POLL_S, PATIENCE_S = 0.02, 120
FREE = {"auto": 4 * GIB, "full": 1.3 * GIB}  # that a program is left with, on a GPU whose memory is taken
SLACK = 0.05  # of a GPU's memory that --batch_size auto leaves free besides
LOGITS_APART = 1e-3  # of their norm, fp32 on a GPU and on the CPU


def small(setting: Setting, task: str, *more: object) -> list[object]:
    """A short training of a small model on the demo's images."""
    model = setting.choose(["--model", "timm", "--model_arch", "test_vit", "--input_size", 32],
                           ["--model", "Dinov2", "--model_arch", "dinov2_vits14", "--finetune", ""])
    return [MAIN, *model, "--data_path", setting.work / "demo", "--task", task, "--epochs", 2, "--batch_size",
            16, "--lr", 1e-4, "--leakage", "off", "--num_workers", setting.choose(0, 3), "--device",
            setting.device, *more]


def log_of(setting: Setting, task: str) -> list[dict]:
    """The rows of a run's log, without the seconds that they took."""
    path = setting.work / "output_dir" / task / "log.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


# ---- one program after the other, and what uses their checkpoints ------------------------------------------

def programs(setting: Setting) -> None:
    """Trainings of each kind; scores, predictions with heat maps and features of their checkpoints."""
    setting.demo()
    is_gpu = setting.device == "cuda"

    def run(name: str, task: str, *more: object, seconds: float = 150) -> Callable[[], object]:
        return partial(setting.program, name, small(setting, task, *more), seconds=seconds)

    runs = [run("--precision fp32, clipped, accumulated", "fp32", "--precision", "fp32", "--clip_grad", 1,
                "--accum_iter", 2),
            run("as it comes", "plain"),
            *_launched(setting)]
    if is_gpu:
        runs.append(run("--precision fp16", "fp16", "--precision", "fp16"))
    if is_gpu and compiler():
        runs.insert(0, run("--compile", "compile", "--compile", "--epochs", 1, seconds=175))
    if find_spec("peft"):
        runs.append(run("LoRA", "lora", "--adaptation", "lora", "--finetune", _weights(setting)))
    else:
        setting.put("LoRA", skipped="PEFT is not installed")
    if not setting.tiny:
        cnn = ["--model", "timm", "--model_arch", "efficientnet_b4", "--input_size", 224]
        runs += [run("linear probe", "probe", "--adaptation", "lp"),
                 run("mixup, class weights", "mixup", "--mixup", 0.8, "--class_weights", "balanced"),
                 run("activation checkpointing", "checkpointing", "--activation_checkpointing"),
                 run("image cache", "cache", "--image_cache", "cache"),
                 run("EfficientNet-B4", "cnn", *cnn)]
    setting.programs(runs)
    _used(setting)


def _weights(setting: Setting) -> Path:
    """Weights to start from: an adapter beside random ones is nothing that the program takes."""
    import timm

    path, architecture = setting.work / "start.pth", SMALL
    model = (timm.create_model("test_vit", num_classes=0, img_size=32) if setting.tiny
             else architecture.build(False))
    torch.save(model.state_dict(), path)
    return path


def _launched(setting: Setting) -> list[Callable[[], object]]:
    """Under torchrun, a process for each GPU that there is."""
    cards = torch.cuda.device_count() if setting.device == "cuda" else 2
    launch = ["util/parallel/torchrun.py", "--standalone", f"--nproc_per_node={cards}", ROOT / MAIN]
    kinds = ("ddp", "fsdp") if cards > 1 else ("ddp",)

    def run_all() -> None:
        for kind in kinds:
            setting.program(f"torchrun, {cards} processes, {kind}",
                            [*launch, *small(setting, kind, "--parallel", kind)[1:]])
        rows = [log_of(setting, kind) for kind in kinds]
        if len(rows) == 2 and all(rows):
            losses = [row[0]["train_loss"] for row in rows]
            far = abs(losses[0] - losses[1]) / abs(losses[0])
            setting.put("fsdp against ddp: the first epoch's loss", far <= 0.02, apart=far)

    return [run_all]


def _used(setting: Setting) -> None:
    """The checkpoints in use; logits in fp32 are those of the CPU."""
    folder, test = setting.work / "output_dir", setting.work / "demo" / "test"
    best, device = folder / "fp32/checkpoint-best.pth", ["--device", setting.device]
    predict = ["predict.py", "--resume", best, "--input", test, "--precision", "fp32"]
    runs = [partial(setting.program, "predict.py", [*predict, "--output", "gpu.csv", *device]),
            partial(setting.program, "predict.py on the CPU", [*predict, "--output", "cpu.csv", "--device",
                                                                "cpu"]),
            partial(setting.program, "predict.py --heatmaps", [*predict, "--output", "maps.csv", "--heatmaps",
                                                                "maps", *device])]
    if not setting.tiny:
        runs += [partial(setting.program, "predict.py --heatmaps, EfficientNet-B4",
                         ["predict.py", "--resume", folder / "cnn/checkpoint-best.pth", "--input", test,
                          "--output", "cnn.csv", "--heatmaps", "maps_cnn", *device]),
                 partial(setting.program, "--eval", small(setting, "scored", "--eval", "--resume", best)),
                 partial(setting.program, "latent_feature.py",
                         ["latent_feature.py", "--resume", best, "--input", test, "--output", "f.npz",
                          *device])]
    setting.programs(runs)
    setting.put("heat maps are written", any((setting.work / "maps").glob("*.png")))
    paths = [setting.work / name for name in ("gpu.csv", "cpu.csv")]
    if all(path.exists() for path in paths):
        found, expected = (pd.read_csv(path).filter(regex="^logit").to_numpy() for path in paths)
        far = float(((found - expected) ** 2).sum() ** 0.5 / (expected ** 2).sum() ** 0.5)
        setting.put("predictions in fp32 are the CPU's", found.size > 0 and far <= LOGITS_APART, apart=far)


# ---- a run that was ended and goes on ----------------------------------------------------------------------

def resume(setting: Setting) -> None:
    """A run with --deterministic that SIGTERM ends, and that goes on, has the losses, metrics and weights of
    one that was left alone."""
    setting.demo()
    more = ["--deterministic", "--epochs", 3, "--batch_size", 8, "--save_every_steps", 2, "--resume", "auto",
            "--mixup", 0.5, "--drop_path", 0.1]
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(setting.program, "left alone", small(setting, "whole", *more))
        if setting.tiny:
            whole.result()
        code = _end_early(setting, [str(word) for word in small(setting, "cut", *more)])
        setting.put("ended by SIGTERM", code == signals.EXIT_CODE, code=code)
        setting.program("resumed", small(setting, "cut", *more))
        whole.result()
    rows = [log_of(setting, task) for task in ("whole", "cut")]
    setting.put("losses and metrics of all epochs are the same", len(rows[0]) == 3 and rows[0] == rows[1],
                losses=[[row["train_loss"] for row in of] for of in rows])
    paths = [setting.work / "output_dir" / task / "checkpoint-last.pth" for task in ("whole", "cut")]
    if all(path.exists() for path in paths):
        one, other = (torch.load(path, weights_only=True)["model"] for path in paths)
        setting.put("weights are the same", one.keys() == other.keys()
                    and all(torch.equal(one[name], other[name]) for name in one))


def _end_early(setting: Setting, words: list[str]) -> int | None:
    """Start a training, ask it to end once its first checkpoint is there -> its exit code."""
    last, until = setting.work / "output_dir/cut/checkpoint-last.pth", time.monotonic() + PATIENCE_S
    with open(setting.work / "cut.txt", "wb") as file:
        process = subprocess.Popen([sys.executable, str(ROOT / words[0]), *words[1:]], cwd=setting.work,
                                   stdout=file, stderr=file)
    while process.poll() is None and not last.exists() and time.monotonic() < until:
        time.sleep(POLL_S)
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


# ---- memory that is full -----------------------------------------------------------------------------------

def full_memory(setting: Setting) -> None:
    """On a GPU whose memory another process holds: --batch_size auto finds what fits into the rest, and a
    batch that does not fit ends the program in one line."""
    if setting.device != "cuda":
        setting.put("skipped", why="a CPU's memory is not tried")
        return
    setting.demo()
    with on_device(setting) as world:
        total = torch.cuda.mem_get_info(world.device)[1]
        holder = _held(world.device, FREE["auto"] + SLACK * total)
        run = setting.program("--batch_size auto", small(setting, "auto", "--batch_size", "auto"),
                              says="tried on")
        number = re.search(r"--batch_size auto is (\d+)", run.stdout)
        setting.put("--batch_size auto found", number is not None and int(number[1]) > 1,
                    batch=number and int(number[1]), bounded="bounded by" in run.stdout)
        del holder
        torch.cuda.empty_cache()
        holder = _held(world.device, FREE["full"])
        run = setting.program("a batch that does not fit",
                              small(setting, "full", "--batch_size", 128, "--precision", "fp32"), 1)
        lines = run.stderr.strip().splitlines()
        setting.put("it ends in one line", bool(lines) and lines[-1].startswith(OUT_OF_MEMORY)
                    and sum(line.startswith("error") for line in lines) == 1, last_line=lines[-1:])
        del holder
    shutil.rmtree(setting.work / "output_dir/full", ignore_errors=True)


def _held(device: torch.device, left: float) -> torch.Tensor:
    """Memory that leaves others so many bytes."""
    free = torch.cuda.mem_get_info(device)[0]
    return torch.empty(max(1, int(free - left)), dtype=torch.uint8, device=device)
