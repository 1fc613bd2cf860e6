"""Speed and memory of training steps on a GPU, for benchmarks/gpu.py: what the machine is, steps as they come
and compiled, timm's own step beside them, the largest model of the table."""

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import timm
import torch
import torchvision

import models_vit
from benchmarks.gpu_checks import TOLERANCES, apart
from benchmarks.gpu_device import on_device, telling
from benchmarks.gpu_setting import (
    CLASSES,
    CNN,
    DINOV3,
    LARGE,
    MAE,
    SMALL,
    Architecture,
    Setting,
)
from benchmarks.stepping import A_STEP, STEPS, operations, ours, plain, product_rate
from benchmarks.timing import compare, seconds
from util.core.machine import usable_cores
from util.data.dataset import Pixels
from util.model import lora
from util.model.memory import GIB
from util.model.precision import Precision
from util.parallel.compiled import compile_in_place

SEVEN = Architecture("DINOv3 ViT-7B/16", "Dinov3", "dinov3_vit7b16", 32)
TINY_SEVEN = Architecture("DINOv3 ViT-S/16", "Dinov3", "dinov3_vits16", 32)
NEEDED = 60 * GIB  # of the 7B: 25 for its weights, as much again and some for a step
NO_MEMORY = "the device's memory does not do"
CALLS = 7  # of STEPS steps each, whose median is taken


@dataclass(frozen=True)
class Measured:
    """A model and batch whose training steps are timed. peak: operations a second of a matrix product in
    bf16."""

    architecture: Architecture
    batch: int
    device: torch.device
    peak: float
    precision: str = "bf16"

    def __str__(self) -> str:
        return f"{self.architecture.name}, batch {self.batch}, {self.precision}"


# ---- the machine -------------------------------------------------------------------------------------------

def machine(setting: Setting) -> None:
    """What this is, before anything else is written; and what it reaches at most."""
    with on_device(setting) as world:
        gpu = {}
        if world.device.type == "cuda":
            found = torch.cuda.get_device_properties(world.device)
            gpu = {"card": found.name, "cards": torch.cuda.device_count(), "driver": driver(),
                   "cuda": torch.version.cuda, "GiB": found.total_memory / GIB,
                   "bf16": torch.cuda.is_bf16_supported(including_emulation=False)}
        setting.put("machine", device=setting.device, tiny=setting.tiny, **gpu, torch=torch.__version__,
                    timm=timm.__version__, torchvision=torchvision.__version__, python=sys.version.split()[0],
                    cores=usable_cores(), compiler=bool(compiler()), peft=bool(find_spec("peft")))
        setting.put("matrix product, bf16", tflops=product_rate(torch.bfloat16, world.device) / 1e12)


def driver() -> str | None:
    """The NVIDIA driver's version; None where nvidia-smi does not say it."""
    try:
        said = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip().splitlines()[0] if said.returncode == 0 and said.stdout.strip() else None


def compiler() -> str | None:
    """A compiler that --compile can use."""
    return next(filter(None, map(shutil.which, [os.environ.get("CXX", "g++"), "gcc", "clang++"])), None)


# ---- steps -------------------------------------------------------------------------------------------------

def pixels(batch: int, size: int, device: torch.device) -> tuple[Pixels, torch.Tensor]:
    """A batch as the loader sends it: 8 bits, page-locked for a GPU. The same each time."""
    values = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(1))
    images = Pixels(values, None, [], models_vit.IMAGENET_MEAN, models_vit.IMAGENET_STD)
    labels = torch.arange(batch) % CLASSES
    return (images.pin_memory(), labels.pin_memory()) if device.type == "cuda" else (images, labels)


def operations_an_image(architecture: Architecture, tiny: bool) -> float:
    size = architecture.size(tiny)
    with torch.device("meta"):
        model = architecture.build(tiny).to("meta")  # the head is drawn on the CPU
        return operations(model, torch.empty(2, 3, size, size)) / 2


def measure(setting: Setting, what: Measured, model: torch.nn.Module, name: str = "") -> float | None:
    """Images a second of a model's training steps; None, and a line, where the memory does not do."""
    device = what.device
    images, labels = pixels(what.batch, what.architecture.size(setting.tiny), device)
    name = f"{what}{name and ', '}{name}"
    try:
        work = ours(model, what.precision, images, labels, device)
        first = seconds(work)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        each = [seconds(work) / STEPS for _ in range(setting.choose(1, CALLS))]  # a call waits for its losses
    except torch.OutOfMemoryError:
        model.zero_grad(set_to_none=True)
        setting.put(name, skipped=NO_MEMORY)
        return None
    took, reached = statistics.median(each), {}
    # of a part that stands still fewer are needed than counted, of convolutions of single channels more are
    # counted than needed
    if what.architecture is not CNN and all(parameter.requires_grad for parameter in model.parameters()):
        rate = what.batch * operations_an_image(what.architecture, setting.tiny) / took
        reached = {"tflops": rate / 1e12, "of_peak": rate / what.peak}
    setting.put(name, images_s=what.batch / took, ms=1e3 * took, spread=max(each) / min(each), **reached,
                GiB=most_memory(device), first_s=first)
    return what.batch / took


def most_memory(device: torch.device) -> float | None:
    """GiB that PyTorch had allocated at most since its peak was forgotten; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def steps(setting: Setting) -> None:
    """Training steps through the program's own loop, uncompiled."""
    full = ((LARGE, "bf16", (24, 64, 128, 256)), (MAE, "bf16", (24, 128)), (DINOV3, "bf16", (24, 64)),
            (LARGE, "fp16", (64,)), (SMALL, "bf16", (24, 256)), (CNN, "bf16", (64,)))
    with on_device(setting) as world:
        peak = product_rate(torch.bfloat16, world.device)
        for architecture, precision, batches in setting.choose(((LARGE, "bf16", (2,)),), full):
            model = architecture.build(setting.tiny, 0.2)
            for batch in batches:
                measure(setting, Measured(architecture, batch, world.device, peak, precision), model)
            del model


def compiled(setting: Setting) -> None:
    """The same, compiled, with what compiling takes; the outputs are those of the model as it comes."""
    if not compiler():
        setting.put("skipped", why="no C++ compiler here, which --compile needs")
        return
    with on_device(setting) as world:
        peak = product_rate(torch.bfloat16, world.device)
        for architecture, batch in setting.choose(((SMALL, 2),), ((LARGE, 64),)):
            what = Measured(architecture, batch, world.device, peak)
            model = architecture.build(setting.tiny, 0.2)
            before = measure(setting, what, model, "as it comes")
            compile_in_place(model, world.device)
            after = measure(setting, what, model, "compiled")
            if before and after:
                setting.put(f"{what}, compiled against as it comes", ratio=after / before)
            model = telling(architecture.build(setting.tiny)).to(world.device)
            expected = _evaluated(setting, what, model)
            compile_in_place(model, world.device)
            far = apart(_evaluated(setting, what, model), expected)
            setting.put(f"{what}: outputs, compiled", far <= TOLERANCES["bf16"][0], outputs=far)
            del model


def _evaluated(setting: Setting, what: Measured, model: torch.nn.Module) -> torch.Tensor:
    images = pixels(2, what.architecture.size(setting.tiny), what.device)[0].on(what.device)
    precision = Precision(what.precision, what.device.type)
    with torch.inference_mode(), precision.autocast():
        return precision.place(model).eval()(images).float()


def beside_timm(setting: Setting) -> None:
    """timm's model in a plain loop (autocast in bf16, AdamW) and the program's own steps, in turn."""
    with on_device(setting) as world:
        for architecture, batch in setting.choose(((SMALL, 2),), ((MAE, 128), (LARGE, 24), (SMALL, 256))):
            size, device = architecture.size(setting.tiny), world.device
            changes = {"depth": 1} if setting.tiny else {}
            theirs = timm.create_model(architecture.row.timm_name, num_classes=CLASSES, img_size=size,
                                       drop_path_rate=0.2, **changes)
            images, labels = pixels(batch, size, device)
            normalised = images.on(torch.device("cpu")).contiguous()
            if device.type == "cuda":
                normalised = normalised.pin_memory()
            name = f"{architecture.name}, batch {batch}, bf16: timm in a plain loop, ours"
            try:
                row = compare(name, plain(theirs, normalised, labels, device, True),
                              ours(architecture.build(setting.tiny, 0.2), "bf16", images, labels, device),
                              setting.choose(1, CALLS), measure=A_STEP)
            except torch.OutOfMemoryError:
                setting.put(name, skipped=NO_MEMORY)
                continue
            setting.put(name, plain_ms=row.plain, ours_ms=row.ours, ratio=row.ratio, spread=row.spread,
                        plain_images_s=1e3 * batch / row.plain, ours_images_s=1e3 * batch / row.ours)


# ---- the largest model of the table ------------------------------------------------------------------------

def big(setting: Setting) -> None:
    """DINOv3's 7B: features as a linear probe reads them, in fp32 and bf16, and a step of LoRA."""
    with on_device(setting) as world:
        device, architecture = world.device, setting.choose(TINY_SEVEN, SEVEN)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else NEEDED
        if free < NEEDED:
            setting.put("skipped", why=f"{free / GIB:.0f} GiB of memory are free, {NEEDED / GIB:.0f} needed")
            return
        with device:  # drawn there: the CPU would take minutes
            model = telling(architecture.build(setting.tiny)).to(device)
        model.requires_grad_(False).eval()
        number = sum(p.numel() for name, p in model.named_parameters()
                     if not name.startswith(models_vit.head_names(model)))
        setting.put(f"{architecture.name}: parameters", setting.tiny or number == architecture.row.parameters,
                    number=number)
        size, batch = architecture.size(setting.tiny), setting.choose(2, 16)
        images = pixels(batch, size, device)[0].on(device)
        found = {}
        for name in ("fp32", "bf16"):
            read = _features(model, images, Precision(name, device.type), size)
            found[name] = read()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            took = min(seconds(lambda read=read: read().cpu()) for _ in range(setting.choose(1, 3)))
            setting.put(f"{architecture.name}: features, {name}", bool(found[name].isfinite().all()),
                        images_s=batch / took, GiB=most_memory(device))
        far = apart(found["bf16"], found["fp32"])
        setting.put(f"{architecture.name}: features, bf16 against fp32", far <= 2 * TOLERANCES["bf16"][0],
                    outputs=far)
        if find_spec("peft"):
            _lora(setting, architecture, model, device)
        else:
            setting.put(f"{architecture.name}: LoRA", skipped="PEFT is not installed")


def _features(model: torch.nn.Module, images: torch.Tensor, precision: Precision,
              size: int) -> Callable[[], torch.Tensor]:
    with precision.autocast():
        reader = models_vit.feature_reader(model, size)

    def read() -> torch.Tensor:
        with torch.inference_mode(), precision.autocast():
            return reader(images).float()

    return read


def _lora(setting: Setting, architecture: Architecture, model: torch.nn.Module, device: torch.device) -> None:
    """Steps of adapters beside a frozen model: they and the head move, nothing else does."""
    heads = models_vit.head_names(model)
    lora.inject(model, lora.Settings(8, 16.0, 0.0, "attention"), heads, architecture.row.timm_name)
    lora.draw(model, 0)
    for name in heads:
        model.get_submodule(name).requires_grad_(True)
    model.to(device)
    layer = model.get_submodule(lora.adapted_layers(model)[0])
    frozen = layer.get_base_layer().weight.detach().clone()
    peak = product_rate(torch.bfloat16, device)
    measure(setting, Measured(architecture, setting.choose(2, 8), device, peak), model, "LoRA")
    second = layer.lora_B["default"].weight
    setting.put(f"{architecture.name}: LoRA", bool(second.isfinite().all()) and bool(second.abs().max() > 0)
                and torch.equal(layer.get_base_layer().weight, frozen))
