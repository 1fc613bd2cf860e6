"""The training step and the evaluation of a ViT-S/14 at batch 16 (a net of convolutions for the layout), and
what each part of ours gives."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import models_vit
from benchmarks.plain import Step
from benchmarks.timing import Measure, Row, compare, compare_apart, seconds
from engine_finetune import ClassificationLoss, Progress, Schedule, Trainer, train_one_epoch
from util.core.machine import keep_freed_memory, usable_cores
from util.data.dataset import Pixels
from util.data.sampling import StepPlan, TrainBatches
from util.model.lr_decay import parameter_groups
from util.model.precision import Precision, cpu_has_bf16
from util.parallel.compiled import compile_in_place
from util.parallel.processes import World

BATCH, STEPS, CLASSES = 16, 3, 5
A_STEP = Measure(of_plain=1 / STEPS, of_ours=1 / STEPS)  # of calls of STEPS steps


class Batches:
    """A loader whose images are there already: what is timed is the step."""

    class _Nothing:
        covariates = None

        @staticmethod
        def path(position: int) -> str:
            return str(position)

    def __init__(self, plan: StepPlan, images: torch.Tensor | Pixels, labels: torch.Tensor) -> None:
        self.batch_sampler, self.dataset = TrainBatches(plan, 0, 0), self._Nothing()
        self.batch = images, labels, torch.arange(len(images))

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[torch.Tensor | Pixels, torch.Tensor, torch.Tensor]]:
        return iter([self.batch] * len(self))


class Unfused(torch.optim.AdamW):
    """AdamW as it comes, which can't be told on the device to leave a step out."""

    found_inf = property(lambda self: None, lambda self, value: None)


def trainer_of(model: torch.nn.Module, name: str, batch: int, device: torch.device, steps: int = STEPS,
               fused: bool = True) -> Trainer:
    """The program's trainer for epochs of so many steps. name: of the precision."""
    precision = Precision(name, device.type)
    model = precision.place(model.to(device))
    groups = parameter_groups(model, 0.05, 0.65)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True) if fused else Unfused(groups, lr=1e-4)
    return Trainer(model, ClassificationLoss(CLASSES).to(device), optimizer, precision.scaler(),
                   Schedule(1e-4, 1e-6, 0, 1000), StepPlan(steps * batch, batch, 1, 1), precision,
                   World(device=device), 0)


def ours(model: torch.nn.Module, name: str, images: torch.Tensor | Pixels, labels: torch.Tensor,
         device: torch.device, fused: bool = True) -> Callable[[], object]:
    """A call that trains STEPS steps through the program's own loop. name: of the precision."""
    trainer = trainer_of(model, name, len(images), device, fused=fused)
    loader = Batches(trainer.plan, images, labels)
    return lambda: train_one_epoch(trainer, loader, Progress(0))


def plain(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, device: torch.device,
          bf16: bool = False) -> Callable[[], None]:
    step = Step(model.to(device).train(), bf16)

    def work() -> None:
        for _ in range(STEPS):
            step(images.to(device), labels.to(device))

    return work


def vit(size: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return models_vit.build_model(models_vit.find_backbone("Dinov2", "dinov2_vits14"), CLASSES, size, 0.2)


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a matrix product that is large enough for the device."""
    side = 8192 if device.type == "cuda" else 2048
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        (one @ other)[0, 0].item()  # waits for it

    product()
    return 2 * side**3 / min(seconds(product) for _ in range(8))


def rows(folder: Path, quick: bool) -> list[Row]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pairs, size = (1, 56) if quick else (5, 224)
    images, labels = torch.randn(BATCH, 3, size, size), torch.arange(BATCH) % CLASSES
    bf16 = device.type == "cuda" or cpu_has_bf16()
    name = "bf16" if bf16 else "fp32"

    def against(what: str, other: Callable[[], object], mine: Callable[[], object], goal: str = "") -> Row:
        return compare(f"training step, ViT-S/14, batch {BATCH}: {what}", other, mine, pairs, goal,
                       measure=A_STEP)

    found = [against("fp32 as it comes, ours", plain(vit(size), images, labels, device),
                     ours(vit(size), name, images, labels, device), ">= 1.7x, aim 2.3x" if bf16 else "")]
    whole = found[0]
    if bf16:
        found.append(_rate(whole, size, device))
        found.append(against("of it, autocast alone", plain(vit(size), images, labels, device),
                             plain(vit(size), images, labels, device, True)))
        fused = vit(size)
        found.append(against("of it, attention by plain products",
                             _fused_attention(ours(fused, name, images, labels, device), fused),
                             ours(vit(size), name, images, labels, device)))
    found.append(against("of it, fused AdamW", ours(vit(size), name, images, labels, device, fused=False),
                         ours(vit(size), name, images, labels, device)))
    if not quick and any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++"])):
        compiled = vit(size)
        compile_in_place(compiled, device)
        found.append(against("--compile against ours without", ours(vit(size), name, images, labels, device),
                             ours(compiled, name, images, labels, device)))
    found.append(_channels_last(quick, name, device))
    found += _evaluation(size, name, device, pairs)
    if device.type == "cpu":
        found.append(_threads(size, name, images, labels, pairs))
    return found


def _fused_attention(work: Callable[[], object], model: torch.nn.Module) -> Callable[[], object]:
    """The same call with PyTorch's fused attention, which `Precision.place` turns off on CPUs in bf16."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    return work


def operations(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Operations of a forward and a backward pass. Those of attention are counted as plain products, since
    the counter does not know the CPU's fused ones; shapes alone (meta) do."""
    for module in model.train().modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops()


def _rate(row: Row, size: int, device: torch.device) -> Row:
    """The step's matrix products a second, of what this machine's products alone reach."""
    counted = operations(vit(size).to(device), torch.randn(BATCH, 3, size, size, device=device))
    rate, limit = counted / (row.ours / 1e3), product_rate(torch.bfloat16, device)
    return Row("its products a second, of those of a matrix product alone in bf16", None, 100 * rate / limit,
               "%", goal=">= 50 %, aim 70 %",
               limit=f"{limit / 1e9:,.0f} GFLOP/s, reached {rate / 1e9:,.0f}")


def _channels_last(quick: bool, name: str, device: torch.device) -> Row:
    arch, size = ("test_resnet", 64) if quick else ("resnet50", 224)
    images, labels = torch.randn(BATCH, 3, size, size), torch.arange(BATCH) % CLASSES

    def build() -> torch.nn.Module:
        torch.manual_seed(0)
        return timm.create_model(arch, num_classes=CLASSES)

    return compare(f"training step, {arch}, batch {BATCH}: channels last against first, both {name}",
                   plain(build(), images, labels, device, name == "bf16"),
                   ours(build(), name, images, labels, device), 1 if quick else 5, measure=A_STEP)


def plain_evaluation(size: int, device: torch.device) -> Callable[[], None]:
    """Forward passes of 32 images in batches of 16, in fp32 and without gradients."""
    model, images = vit(size).to(device).eval(), torch.randn(2 * BATCH, 3, size, size)

    @torch.no_grad()
    def work() -> None:
        for part in images.split(BATCH):
            model(part.to(device)).cpu()

    return work


def our_evaluation(size: int, device: torch.device, name: str, batch: int,
                   keeps_memory: bool) -> Callable[[], None]:
    """The same at the training's precision; keeps_memory: as `keep_freed_memory` leaves the allocator."""
    if keeps_memory:
        keep_freed_memory()
    precision, images = Precision(name, device.type), torch.randn(2 * BATCH, 3, size, size)
    model = precision.place(vit(size).to(device)).eval()

    @torch.inference_mode()
    def work() -> None:
        with precision.autocast():
            for part in images.split(batch):
                model(part.to(device)).cpu()

    return work


def _evaluation(size: int, name: str, device: torch.device, pairs: int) -> list[Row]:
    mine, theirs = (our_evaluation, size, device, name, BATCH, True), (plain_evaluation, size, device)
    whole = compare_apart(f"evaluation, ViT-S/14, {2 * BATCH} images: fp32 as it comes, ours", theirs, mine,
                          pairs)
    if device.type == "cpu":
        given_back = (our_evaluation, size, device, name, BATCH, False)
        return [whole, compare_apart("evaluation, of it, freed memory kept", given_back, mine, pairs)]
    twice = (our_evaluation, size, device, name, 2 * BATCH, True)
    return [whole, compare_apart("evaluation, of it, twice training's batch", mine, twice, pairs)]


def _threads(size: int, name: str, images: torch.Tensor, labels: torch.Tensor, pairs: int) -> Row:
    """A process of torchrun gets one thread from it, and from us its share of the cores."""
    work, cores = ours(vit(size), name, images, labels, torch.device("cpu")), usable_cores()

    def single() -> None:
        torch.set_num_threads(1)
        work()
        torch.set_num_threads(cores)

    return compare(f"a process with its share of the cores (here {cores}), against the one thread that "
                   "torchrun sets", single, work, pairs, measure=A_STEP)
