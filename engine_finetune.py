"""The loops: train one epoch, compute outputs. The same for every task: what is trained, and on what, is
decided elsewhere."""

import hashlib
import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from timm.data import Mixup
from tqdm import tqdm

from util.core import signals
from util.core.errors import RunError
from util.data.dataset import ImagesOfCases
from util.data.loader import Loader, loaded
from util.data.sampling import StepPlan
from util.model.case_attention import attended
from util.model.lr_schedule import learning_rate_at, set_learning_rate
from util.model.precision import Precision
from util.parallel.compiled import filled_up, is_compiled
from util.parallel.processes import Agreement, World
from util.parallel.sharding import average_gradients, is_sharded, send_gradients, without_gradients

if TYPE_CHECKING:
    from util.data.dataset import ImageDataset, Pixels
    from util.model.frozen_features import FeatureDataset

READ_EVERY = 10  # steps, or batches of an evaluation, after which the host reads from the device
# devices whose fused AdamW leaves the weights alone when it is told that a loss is not finite: MPS's does not
HEED_FOUND_INF = ("cpu", "cuda")
CHUNK_SECONDS = 20  # of work between two pieces of `output_chunks`: what a crash costs at most
# a loader's, each with the progress bar; None in the place of one that only other processes have
Batches = Iterator[tuple[list[torch.Tensor], tqdm] | None]


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run: linear warm-up, then half a cosine; positions in epochs."""

    peak: float
    minimum: float
    warmup_epochs: float
    epochs: int

    def at(self, position: float) -> float:
        return learning_rate_at(position, self.peak, self.minimum, self.warmup_epochs, self.epochs)


class ClassificationLoss(torch.nn.Module):
    """Cross-entropy a sample, (B, K) logits and (B,) labels or (B, K) soft labels -> (B,), in fp32.

    smoothing      share of a label spread over all K classes (Szegedy et al. 2016)
    class_weights  (K,) weights, or None; a soft label's weight is the mean of its classes' weights
    """

    def __init__(self, num_classes: int, smoothing: float = 0.0,
                 class_weights: torch.Tensor | None = None) -> None:
        super().__init__()
        self.num_classes, self.smoothing = num_classes, smoothing
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.ndim == 1:
            labels = torch.nn.functional.one_hot(labels, self.num_classes).to(torch.float32)
            labels = labels * (1 - self.smoothing) + self.smoothing / self.num_classes
        losses = -(labels * torch.log_softmax(logits.float(), dim=1)).sum(dim=1)
        if self.class_weights is not None:
            losses = losses * (labels @ self.class_weights)
        return losses


class MultilabelLoss(torch.nn.Module):
    """Binary cross-entropy an image, (B, T) logits and labels from 0 to 1, NaN where not known -> (B,), in
    fp32.

    known_a_picture  the training images' mean number of known labels, by which the sum over an image's labels
                     is divided, so that the mean over all images is the mean over all that is known
    smoothing        as `ClassificationLoss` smooths two classes
    class_weights    (T, 2) weights of without and with each label, or None
    """

    def __init__(self, known_a_picture: float, smoothing: float = 0.0,
                 class_weights: torch.Tensor | None = None) -> None:
        super().__init__()
        self.known_a_picture, self.smoothing = known_a_picture, smoothing
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        known = ~labels.isnan()
        labels = labels.nan_to_num().float() * (1 - self.smoothing) + self.smoothing / 2
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels,
                                                                      reduction="none")
        if self.class_weights is not None:
            without, there = self.class_weights.unbind(dim=1)
            losses = losses * (labels * there + (1 - labels) * without)
        return (losses * known).sum(dim=1) / self.known_a_picture


class RegressionLoss(torch.nn.Module):
    """Smooth L1 an image, (B, T) outputs and (B, T) standardised targets, NaN where missing -> (B,), in fp32.

    A missing target adds nothing. The sum over an image's targets is divided by `known_a_picture`, the
    training images' mean number of known targets, so that the mean over all images is the mean over all known
    values.
    """

    def __init__(self, beta: float, known_a_picture: float) -> None:
        super().__init__()
        self.beta, self.known_a_picture = beta, known_a_picture

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        known = ~targets.isnan()
        losses = torch.nn.functional.smooth_l1_loss(outputs.float(), targets.nan_to_num(), beta=self.beta,
                                                    reduction="none")
        return (losses * known).sum(dim=1) / self.known_a_picture


class Mixing(Mixup):
    """timm's mixup and cutmix on a batch: (B, 3, S, S), (B,) -> the same images mixed, (B, K) soft labels.

    timm's takes even batches alone; an odd one is mixed with its first image repeated, which is then taken
    off.
    """

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = len(images)
        if size % 2:
            images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
        images, labels = super().__call__(images.clone(), labels)
        return images[:size], labels[:size].to(torch.float32)


class LabelMixing(Mixing):
    """The same of several labels, (B, T): those of mixed images are mixed alike, and not known (NaN) where
    one of them is not."""

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.num_classes = len(images)  # whose shares of a mixed image are asked for
        images, shares = super().__call__(images, torch.arange(len(images), device=labels.device))
        mixed, unknown = shares @ labels.nan_to_num(), shares @ labels.isnan().to(shares.dtype)
        return images, mixed.masked_fill(unknown > 0, torch.nan)


def balanced_class_weights(counts: np.ndarray) -> torch.Tensor:
    """N / (K * n_class), (K,): each class weighs the same in all, and the mean over the images is 1.

    K counts the classes that have images; a class without any weighs 0.
    """
    counts = np.asarray(counts, dtype=np.float64)
    present = counts > 0
    weights = np.divide(counts.sum(), present.sum() * counts, out=np.zeros(len(counts)), where=present)
    return torch.tensor(weights, dtype=torch.float32)


@dataclass
class Trainer:
    """What a training step needs, and nothing else. `model` may be wrapped; `eval_mode` for a frozen
    backbone."""

    model: torch.nn.Module
    loss: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    plan: StepPlan
    precision: Precision
    world: World
    seed: int
    clip_grad: float | None = None
    mixing: Mixing | None = None
    eval_mode: bool = False
    keeps_gradients: bool = True  # of several micro-steps, for one message to the other processes
    images_a_sample: int = 1  # at most: of a case several


@dataclass(frozen=True)
class Progress:
    """Where an epoch stands: optimizer steps that are done, and the sum of their losses over their images."""

    epoch: int
    steps: int = 0
    loss: float = 0.0


def seed_step(seed: int, epoch: int, micro_step: int, rank: int, device: torch.device) -> None:
    """All generators from where the run stands: drop path, dropout and mixing are the same after a
    restart."""
    digest = hashlib.blake2b(f"{seed},{epoch},{micro_step},{rank}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    for_torch = number >> 1  # which takes 63 bits
    # not torch.manual_seed: for each kind of device that is not in use it writes down the whole call stack
    torch.default_generator.manual_seed(for_torch)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(for_torch)
    np.random.seed(number % 2**32)
    random.seed(number)


class StepLosses:
    """The losses of an epoch's optimizer steps, kept on the device and read once in `READ_EVERY` steps.

    The host never waits for a step: a loss that is not finite is noticed on the device, where it keeps the
    optimizer from changing anything, in all processes and from that step on; the host learns of it at the
    next reading. Whether a process was asked to end goes the same way, so that all end after the same step.
    """

    def __init__(self, trainer: Trainer, dataset: "ImageDataset | FeatureDataset", done: Progress) -> None:
        self.trainer, self.dataset, self.epoch = trainer, dataset, done.epoch
        self.device = trainer.world.device
        self.stopped = torch.zeros((), device=self.device)  # 1 from the first loss on that is not finite
        self.total, self.first = done.loss, done.steps
        self.wishes = Agreement(trainer.world)
        self.losses, self.suspects, self.of_step = [], [], torch.zeros((), device=self.device)

    def add(self, loss: torch.Tensor, positions: torch.Tensor) -> None:
        """A micro-step's loss, summed over its images."""
        self.of_step = self.of_step + loss.detach()
        self.suspects.append((positions, loss.detach()))

    def end_step(self) -> None:
        """Add the losses of all processes, and tell the optimizer whether it may step."""
        together = self.trainer.world.sum_of_step(torch.stack([self.of_step, self.wishes.mine()]))
        self.losses.append(together[0])
        self.wishes.add(together[1])
        self.of_step = torch.zeros((), device=self.device)
        self.stopped = torch.maximum(self.stopped, (~self.losses[-1].isfinite()).to(self.stopped.dtype))
        if not self.trainer.scaler.is_enabled():  # a loss scaler tells the optimizer itself
            self.trainer.optimizer.found_inf = self.stopped

    def read(self) -> float | None:
        """The last step's loss (None where there is no new one); RunError, in all processes, for one that is
        not finite."""
        if not self.losses:
            return None
        values = torch.stack(self.losses).tolist()
        for number, value in enumerate(values):
            if not math.isfinite(value):
                wrong = [place for positions, loss in self.suspects if not math.isfinite(loss.item())
                         for place in positions.tolist()]
                raise _not_finite(self.trainer.world, self.dataset, wrong, self.epoch, self.first + number)
            self.total += value  # one by one: the same sum however often it is read
        self.first += len(values)
        self.losses, self.suspects = [], []
        return values[-1]


def set_mode(model: torch.nn.Module, training: bool) -> None:
    """Training mode for what is trained, evaluation mode for parts that are frozen as a whole: they are read
    as they were pre-trained, without drop path or dropout, and batch norm's statistics stand still like the
    weights."""
    model.train(training)
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def train_one_epoch(trainer: Trainer, loader: Loader, done: Progress,
                    keep: Callable[[Progress], None] | None = None, keep_every: int | None = None,
                    then: Callable[[], None] | None = None) -> tuple[dict[str, float], Progress]:
    """One pass over the training images, or what `done` leaves of it -> {"train_loss", "lr"} (the mean loss
    of all images, the last learning rate), and the finished progress.

    An optimizer step's gradient is the mean over its images, however many processes and micro-steps they were
    dealt to. `keep` writes a checkpoint: every `keep_every` steps of the epoch, and when the run is asked to
    end. `then` is called when the last images are read.
    RunError, in all processes and before the optimizer step changes a weight, when a loss is not finite.
    StopRequested, in all processes and after the same step, when one of them was asked to end.
    """
    t, plan, device, epoch = trainer, trainer.plan, trainer.world.device, done.epoch
    first = done.steps * plan.of_a_step
    loader.batch_sampler.set_epoch(epoch, first)
    set_mode(t.model, not t.eval_mode)
    t.optimizer.zero_grad(set_to_none=True)
    losses = StepLosses(t, loader.dataset, done)
    rate = t.schedule.at(epoch + max(0, done.steps - 0.5) / plan.steps)
    covariates = on_device(loader.dataset.covariates, device)
    has_batch_norm = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
                         for module in t.model.modules())
    # batch norm counts each image, and needs two: one that is alone is taken twice
    rows = (2 * t.model.training if has_batch_norm else
            plan.samples_of(0, 0) * t.images_a_sample if is_compiled(t.model) else 0)
    batches = loaded(loader, f"epoch {epoch}", t.world, then)
    for micro_step, ((images, labels, positions), bar) in enumerate(batches, first):
        step = micro_step // plan.of_a_step
        if micro_step % plan.of_a_step == 0:
            # the middle of the step: at its start the learning rate of a warm-up's first step would be 0
            rate = t.schedule.at(epoch + (step + 0.5) / plan.steps)
            set_learning_rate(t.optimizer, rate)
        seed_step(t.seed, epoch, micro_step, t.world.rank, device)
        owners = None  # of each image the case, where cases are the samples
        if isinstance(images, ImagesOfCases):
            images, owners = images.images, images.owners.to(device, non_blocking=True)
        images, labels = to_device(images, device), labels.to(device, non_blocking=True)
        if t.mixing is not None:
            images, labels = t.mixing(images, labels)
        ends_step = plan.ends_step(micro_step)
        if t.world.size > 1:
            send_gradients(t.model, ends_step or not t.keeps_gradients)
        inputs = (images,)
        if covariates is not None:
            inputs += (covariates[positions.to(device, non_blocking=True)],)
        inputs = tuple(filled_up(values, rows) for values in inputs)
        with t.precision.autocast():
            predicted = t.model(*inputs)[:len(images)]
        if owners is not None:
            predicted = attended(predicted, owners, len(labels))
        loss = t.loss(predicted, labels).sum()
        if plan.samples_of(micro_step, t.world.rank) == 0:
            loss = loss * 0  # another process's image, computed so that all take part in the step
        losses.add(loss, positions)
        # compiled, read ahead, cached: from here on nobody lets the others wait for long
        if micro_step == first:
            t.world.barrier()
        # DistributedDataParallel takes the mean over the processes
        t.scaler.scale(loss * (t.world.size / plan.samples_of_step(step))).backward()
        if ends_step:
            losses.end_step()
            # the scaler skips one step alone, others none: so read before every step
            last = losses.read() if t.scaler.is_enabled() or device.type not in HEED_FOUND_INF else None
            _optimizer_step(t)
            last = losses.read() if len(losses.losses) >= READ_EVERY else last
            if last is not None:
                bar.set_postfix(loss=f"{last / plan.samples_of_step(step):.4f}", lr=f"{rate:.2e}")
            ends = losses.wishes.reached()
            if keep and (ends or (keep_every and (step + 1) % keep_every == 0)):
                losses.read()
                keep(Progress(epoch, step + 1, losses.total))
            if keep and ends:  # without, the signal itself ends it
                raise signals.StopRequested(f"epoch {epoch} stands at step {step + 1} of {plan.steps} in the "
                                            "last checkpoint", together=True)
    losses.read()
    return ({"train_loss": losses.total / plan.num_samples, "lr": rate},
            Progress(epoch, plan.steps, losses.total))


def on_device(covariates: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """All images' covariates, (N, C), once: a step's copy of its own would wait for the device."""
    return None if covariates is None else covariates.to(device)


def to_device(images: "torch.Tensor | Pixels", device: torch.device) -> torch.Tensor:
    """A batch of images on the device, channels last (as convolutions want them), without waiting for it."""
    images = images.to(device, non_blocking=True) if isinstance(images, torch.Tensor) else images.on(device)
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def _optimizer_step(trainer: Trainer) -> None:
    if is_sharded(trainer.model):
        average_gradients(trainer.model, trainer.world)
    if trainer.clip_grad is not None:
        trainer.scaler.unscale_(trainer.optimizer)
        torch.nn.utils.clip_grad_norm_(
            (p for group in trainer.optimizer.param_groups for p in group["params"]), trainer.clip_grad)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)


def _not_finite(world: World, dataset: "ImageDataset | FeatureDataset", positions: list[int], epoch: int,
                step: int) -> RunError:
    files = [path for paths in world.gather([dataset.path(p) for p in positions]) for path in paths]
    shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    return RunError(f"the loss is not finite at epoch {epoch}, step {step} (images of the batch: {shown}): "
                    "stopped before this step changed the weights; lower --lr or --blr, or try --precision "
                    "fp32", everywhere=True)


def outputs(model: torch.nn.Module, loader: Loader, precision: Precision, world: World, title: str,
            then: Callable[[], None] | None = None) -> np.ndarray:
    """A row an image of the loader's data set, (N, K) in the order of positions, in fp32, in every process.

    `then` is called when the last images are read. StopRequested, in all processes after the same batch, when
    signals are held and one was asked to end.
    """
    return np.concatenate(list(output_chunks(model, loader, precision, world, title, then=then)))


def _in_rounds(batches: Batches, rounds: int, world: World) -> Batches:
    """The batches, None at the end in a process that has one less than the others."""
    every = 1 if world.device.type == "cpu" else READ_EVERY  # where the host reads anyway
    for number in range(1, rounds + 1):
        yield next(batches, None)
        is_read = number % every == 0 or number == rounds
        if signals.is_held() and is_read and world.any(signals.asked()):
            raise signals.StopRequested(together=True)


def output_chunks(model: torch.nn.Module, loader: Loader, precision: Precision, world: World, title: str,
                  most_batches: int = sys.maxsize,
                  then: Callable[[], None] | None = None) -> Iterator[np.ndarray]:
    """The same rows piece by piece, each of whole batches and some CHUNK_SECONDS of work: (n, K) in every
    process. most_batches: of a process in a piece.

    Rows are gathered by position: no image twice, none missing, whatever the number of processes. What the
    caller does with a piece is done while the loaders go on reading.
    """
    model.eval()
    batches = loaded(loader, title, world, then)
    rows = loader.batch_sampler.batch_size if is_compiled(model) else 0
    rounds, done, size, first = max(world.gather(len(loader))), 0, 1, 0
    while done < rounds:
        began = time.monotonic()
        piece: Batches = itertools.islice(batches, size)
        if is_sharded(model) or signals.is_held():
            piece = _in_rounds(piece, min(size, rounds - done), world)
        gathered = world.gather(_rows(model, piece, loader.dataset, precision, world, rows))
        where = np.concatenate([positions for positions, _ in gathered])
        values = np.concatenate([rows for positions, rows in gathered if len(positions)])
        order = np.argsort(where, kind="stable")
        if not np.array_equal(where[order], np.arange(first, first + len(where))):
            raise AssertionError("the processes did not see each image once")
        yield values[order]
        done, first = done + size, first + len(where)
        # the first piece is one batch; how fast that was says how many the next takes, at most ten times as
        # many
        wanted = size * CHUNK_SECONDS / max(time.monotonic() - began, 1e-3)
        size = world.from_main(round(min(10 * size, max(1, wanted), most_batches)))
    batches.close()
    if first != len(loader.dataset):
        raise AssertionError("the processes did not see each image once")


def _rows(model: torch.nn.Module, batches: Batches, dataset: "ImageDataset | FeatureDataset",
          precision: Precision, world: World, size: int) -> tuple[np.ndarray, np.ndarray]:
    """This process's (n,) positions and (n, K) outputs of some batches, each filled up to `size` images.

    Where a batch is None, a sharded model runs an image that is not counted: its parts are gathered from all
    processes.
    """
    covariates = on_device(dataset.covariates, world.device)

    def output(images: "torch.Tensor | Pixels", where: torch.Tensor) -> torch.Tensor:
        inputs: tuple[torch.Tensor, ...] = (to_device(images, world.device),)
        if covariates is not None:
            inputs += (covariates[where.to(world.device, non_blocking=True)],)
        inputs = tuple(filled_up(values, size) for values in inputs)
        with without_gradients(model), precision.autocast():
            return model(*inputs)[:len(where)].float()

    positions, rows = [], []
    waiting = []  # on the device: the host reads them a few batches later, so that it does not wait for each
    for batch in batches:
        if batch is not None:
            (images, _, where), _ = batch
            waiting.append(output(images, where))
            positions.append(where.numpy())
        elif is_sharded(model):
            output(dataset.collate([dataset[0, 0]])[0], torch.zeros(1, dtype=torch.long))
        if len(waiting) == READ_EVERY:
            rows += [values.cpu().numpy() for values in waiting]
            waiting = []
    rows += [values.cpu().numpy() for values in waiting]
    if not rows:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    return np.concatenate(positions), np.concatenate(rows)
