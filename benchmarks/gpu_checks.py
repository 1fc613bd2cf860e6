"""Checks of benchmarks/gpu.py that compute in their own process: a GPU against the CPU, losses that are not
finite, a process group of one, heat maps."""

import copy
import math
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from benchmarks.gpu_device import on_device, telling
from benchmarks.gpu_setting import ARCHITECTURES, CLASSES, CNN, MAE, SMALL, Setting
from benchmarks.stepping import Batches, trainer_of
from engine_finetune import ClassificationLoss, Progress, to_device, train_one_epoch
from util.core.errors import RunError
from util.data.sampling import StepPlan
from util.model.heatmaps import heat_maps as maps_of
from util.model.heatmaps import methods_of
from util.model.precision import Precision
from util.parallel import sharding
from util.parallel.processes import World

# (outputs, all gradients) relative to their norm; a single tensor's gradient may be WORST times as far, and a
# net with batch norms CNN_FURTHER times. On a CPU a ViT-L in bf16 is 0.018 and 0.013 away from fp32; fp16 has
# three bits more. A mistake is of the order of 1.
TOLERANCES = {"fp32": (1e-3, 1e-3), "bf16": (4e-2, 4e-2), "fp16": (1e-2, 1e-2)}
WORST, CNN_FURTHER = 4, 4
COUNTS = 1e-3  # of the whole gradient's norm: smaller tensors' are rounding alone
LOSS_SCALE = {"fp16": 1024.0}  # as the program scales its loss, so that small gradients are not lost
MAPS_APART = 0.02  # of a map's range of 0 to 1
BATCH, STEPS, BAD_STEP = 4, 12, 5  # read by the host after step 10 at the earliest
Gradients = dict[str, torch.Tensor]


# ---- a GPU against the CPU ---------------------------------------------------------------------------------

def computed(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, precision: Precision,
             device: torch.device) -> tuple[torch.Tensor, Gradients]:
    """Logits and gradients of a batch on a device, brought to the CPU in fp32."""
    model, scale = precision.place(model, device).train(), LOSS_SCALE.get(precision.name, 1.0)
    with precision.autocast():
        logits = model(to_device(images, device))
    loss = ClassificationLoss(CLASSES, 0.1).to(device)(logits, labels.to(device)).mean()
    (loss * scale).backward()
    return logits.detach().float().cpu(), {name: p.grad.float().cpu() / scale
                                           for name, p in model.named_parameters() if p.grad is not None}


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def gradients_apart(found: Gradients, expected: Gradients) -> tuple[float, float, str]:
    """Relative distance of all gradients together, and of the worst tensor, with its name."""
    if found.keys() != expected.keys():
        return math.inf, math.inf, ", ".join(sorted(found.keys() ^ expected.keys())[:3])
    whole = math.hypot(*(float(value.norm()) for value in expected.values()))
    far = math.hypot(*(float((found[name] - value).norm()) for name, value in expected.items()))
    worst = max((apart(found[name], value), name) for name, value in expected.items()
                if float(value.norm()) >= COUNTS * whole)
    return far / whole, *worst


def compare(setting: Setting, what: str, name: str, found: tuple[torch.Tensor, Gradients],
            expected: tuple[torch.Tensor, Gradients], further: float = 1.0) -> None:
    """Write how far logits and gradients in a precision are from those expected."""
    outputs, (gradients, worst, of) = apart(found[0], expected[0]), gradients_apart(found[1], expected[1])
    most = [further * value for value in TOLERANCES[name]]
    ok = outputs <= most[0] and gradients <= most[1] and worst <= WORST * most[1]
    setting.put(what, ok, outputs=outputs, gradients=gradients, worst=worst, worst_tensor=of)


def outputs(setting: Setting) -> None:
    """Logits and gradients of each architecture in each precision, against the CPU's in fp32."""
    cpu, names = torch.device("cpu"), ["fp32", "bf16", "fp16"]
    with on_device(setting) as world:
        for architecture in ARCHITECTURES:
            model, size = telling(architecture.build(setting.tiny)), architecture.size(setting.tiny)
            images = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(1))
            labels = torch.arange(BATCH) % CLASSES
            expected = computed(copy.deepcopy(model), images, labels, Precision("fp32", "cpu"), cpu)
            for name in names:
                # the program rejects fp16 for DINOv3; on CPUs it has no fp16
                if name == "fp16" and ("dinov3" in architecture.row.timm_name or world.device == cpu):
                    continue
                found = computed(copy.deepcopy(model), images, labels, Precision(name, world.device.type),
                                 world.device)
                compare(setting, f"{architecture.name}, {name}", name, found, expected,
                        CNN_FURTHER if architecture is CNN else 1)


def heat_maps(setting: Setting) -> None:
    """Each method's maps, against the CPU's."""
    with on_device(setting) as world:
        for architecture in (SMALL, MAE, CNN):
            model, size = telling(architecture.build(setting.tiny)).eval(), architecture.size(setting.tiny)
            images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
            methods = methods_of(model)
            expected = {method: maps_of(model, images, [0, 1], method) for method in methods}
            model.to(world.device)
            for method in methods:
                found = maps_of(model, images, [0, 1], method)
                far = float(abs(found - expected[method]).max())
                setting.put(f"{architecture.name}, {method}", far <= MAPS_APART and found.max() > 0.9,
                            apart=far)


# ---- a loss that is not finite -----------------------------------------------------------------------------

class OneIsBad(Batches):
    """The same batch STEPS times, one of them with an image that is no number; `before` is called ahead of
    that one."""

    def __init__(self, plan: StepPlan, images: torch.Tensor, labels: torch.Tensor,
                 before: Callable[[], None]) -> None:
        super().__init__(plan, images, labels)
        self.before = before

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for number in range(len(self)):
            images, *rest = self.batch
            if number == BAD_STEP:
                self.before()
                images = images.clone()
                images[1] = math.nan
            yield images, *rest


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def are_equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def not_finite(setting: Setting) -> None:
    """The run ends with a line, and its weights are those from before the step with the bad image: the host
    learns of it some steps later, the optimizer at once."""
    with on_device(setting) as world:
        for name in ("fp32", "bf16", "fp16"):
            model, size = SMALL.build(setting.tiny), SMALL.size(setting.tiny)
            images, labels = torch.randn(BATCH, 3, size, size), torch.arange(BATCH) % CLASSES
            trainer, before = trainer_of(model, name, BATCH, world.device, STEPS), []
            start = weights(trainer.model)

            def keep(before: list = before, model: torch.nn.Module = trainer.model) -> None:
                before.extend(weights(model))

            said = ""
            try:
                train_one_epoch(trainer, OneIsBad(trainer.plan, images, labels, keep), Progress(0))
            except RunError as error:
                said = str(error)
            after = weights(trainer.model)
            finds_it = f"step {BAD_STEP} " in said and "not finite" in said
            setting.put(name, finds_it and are_equal(after, before) and not are_equal(before, start),
                        said=said[:120], weights_stay=are_equal(after, before),
                        trained_before=not are_equal(before, start))


# ---- a process group of one --------------------------------------------------------------------------------

def groups(setting: Setting) -> None:
    """DistributedDataParallel and FSDP2 in a group of this process alone (NCCL on a GPU), against the plain
    model. What several GPUs give is checked by the stage of programs."""
    with on_device(setting) as world:
        is_gpu = world.device.type == "cuda"
        dist.init_process_group("nccl" if is_gpu else "gloo", store=dist.HashStore(), rank=0, world_size=1,
                                **({"device_id": world.device} if is_gpu else {}))
        try:
            _groups(setting, world)
        finally:
            dist.destroy_process_group()


def _groups(setting: Setting, world: World) -> None:
    size, device = SMALL.size(setting.tiny), world.device
    images = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(BATCH) % CLASSES
    fp32, bf16 = (Precision(name, device.type) for name in ("fp32", "bf16"))

    def fresh() -> torch.nn.Module:
        return telling(SMALL.build(setting.tiny))

    expected = computed(fresh(), images, labels, fp32, device)
    wrapped = torch.nn.parallel.DistributedDataParallel(
        fp32.place(fresh(), device), device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True)
    logits, gradients = computed(wrapped, images, labels, fp32, device)
    plain = {name.removeprefix("module."): value for name, value in gradients.items()}
    compare(setting, "DistributedDataParallel, fp32", "fp32", (logits, plain), expected)
    for precision, sent_as in ((fp32, torch.float32), (bf16, torch.bfloat16)):
        model = fresh()
        sharding.shard(model, world, sent_as=sent_as)
        model.to(device).train()
        with precision.autocast():
            logits = model(to_device(images, device))
        ClassificationLoss(CLASSES, 0.1).to(device)(logits, labels.to(device)).mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        whole = {name: value.float() for name, value in sharding.whole_tensors(gradients)}
        found = logits.detach().float().cpu(), whole
        compare(setting, f"FSDP2, {precision.name}", precision.name, found, expected)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        optimizer.found_inf = torch.zeros((), device=device)
        optimizer.step()
        finite = all(bool(value.isfinite().all()) for _, value in sharding.whole_tensors(model.state_dict()))
        setting.put(f"FSDP2, {precision.name}: a step of fused AdamW", finite)
