"""All candidate heads of a linear probe, trained together in one pass over stored features.

A head is a linear classifier with its own learning rate and weight decay, on the features as they are or on
normalised ones. The heads of a grid share every batch: their losses are summed, so that none feels the others
(as DINOv2's evaluation does, Oquab et al. 2023), and their AdamW steps are taken on one stack of weights.
Normalisation is folded into the winner's weights, so that it reads the backbone's features like any other
head.

G is the number of heads, K of classes, W the width of a feature, N of images.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from util.data.sampling import part

if TYPE_CHECKING:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
WEIGHT_DECAYS = (0.0, 1.0)
BETAS, EPSILON = (0.9, 0.999), 1e-8  # AdamW's usual ones
NEIGHBOURS = 20
MOST_ROWS = 10_000  # of train, for the nearest neighbours and the logistic regression
PENALTIES = (0.001, 0.01, 0.1)  # scikit-learn's C: features are many, so the weaker ones overfit
FEW_PRODUCTS = 2**24  # of a batch: with less, threads wait for each other longer than they help

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class HeadSetting:
    """One candidate."""

    learning_rate: float
    weight_decay: float
    normalised: bool


def grid(learning_rate: float, weight_decay: float) -> list[HeadSetting]:
    """The candidates: the usual learning rates and the run's own; no weight decay, a strong one and the run's
    own; raw and normalised."""
    rates, decays = sorted({*LEARNING_RATES, learning_rate}), sorted({*WEIGHT_DECAYS, weight_decay})
    return [HeadSetting(rate, decay, normalised)
            for normalised, rate, decay in itertools.product((False, True), rates, decays)]


class Heads:
    """A stack of linear heads: weight (G, K, W), bias (G, K). mean, deviation: (W,) of the training features,
    their mean and standard deviation."""

    rows_at_once = 8192  # of a split that is scored
    names: tuple[str, ...] = ("weight", "bias")  # of `parameters`, as a head in a model has them
    on_disk = False  # what they read: rows of a batch are then taken in its order

    def __init__(self, settings: Sequence[HeadSetting], num_classes: int, mean: torch.Tensor,
                 deviation: torch.Tensor) -> None:
        self.settings, self.mean = list(settings), mean
        # a feature that never changes tells nothing: it is not blown up
        self.deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation,
                                     torch.ones_like(deviation))
        self.raw = sum(not setting.normalised for setting in settings)
        if any(setting.normalised != (place >= self.raw) for place, setting in enumerate(settings)):
            raise ValueError("heads on the features as they are come before those on normalised ones")
        self.weight = mean.new_zeros(len(settings), num_classes, len(mean)).requires_grad_()
        self.bias = mean.new_zeros(len(settings), num_classes).requires_grad_()
        self.parameters = [self.weight, self.bias]

    def load(self, features: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
        return features[rows]

    def logits(self, features: torch.Tensor, weight: torch.Tensor | None = None,
               bias: torch.Tensor | None = None) -> torch.Tensor:
        """(B, W) features -> (G, B, K) logits, of these weights or of others of the same shape."""
        weight, bias = (self.weight, self.bias) if weight is None else (weight, bias)
        heads, classes, width = weight.shape
        flat, cut = weight.reshape(heads * classes, width), self.raw * classes
        parts = [features @ flat[:cut].T, self._normalised(features) @ flat[cut:].T]
        return torch.cat(parts, dim=1).view(len(features), heads, classes).transpose(0, 1) + bias[:, None]

    def learn(self, features: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The losses (G, B) of a batch; the gradients of their sum over heads, each head's mean, are in the
        parameters. Those of weights and biases come from that of the logits (G, B, K) by two products, which
        autograd would spread over some ten small steps a batch."""
        with torch.no_grad():
            logits = self.logits(features)
        losses = loss_by_head(logits.requires_grad_(), labels, loss)
        losses.mean(dim=1).sum().backward()
        heads, rows, classes = logits.shape
        flat, cut = logits.grad.transpose(0, 1).reshape(rows, heads * classes), self.raw * classes
        parts = [flat[:, :cut].T @ features, flat[:, cut:].T @ self._normalised(features)]
        self.weight.grad, self.bias.grad = torch.cat(parts).view_as(self.weight), logits.grad.sum(dim=1)
        return losses.detach()

    def _normalised(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.deviation

    def folded(self, head: int, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One head's (K, W) weight and (K,) bias -> those that read the features as they are."""
        if not self.settings[head].normalised:
            return weight.clone(), bias.clone()
        device = weight.device
        weight, bias, mean, deviation = (values.cpu().double()  # MPS has no float64
                                         for values in (weight, bias, self.mean, self.deviation))
        scaled = weight / deviation
        return scaled.float().to(device), (bias - scaled @ mean).float().to(device)


class StackedAdamW:
    """AdamW (Loshchilov and Hutter 2019) with a learning rate and a weight decay of its own for each head of
    a stack."""

    def __init__(self, heads: Heads) -> None:
        self.parameters = heads.parameters
        self.rates, self.decays = (
            torch.tensor([getattr(setting, name) for setting in heads.settings], device=heads.weight.device)
            for name in ("learning_rate", "weight_decay"))
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One step at `factor` times each head's learning rate; the weights alone are decayed."""
        self.steps += 1
        one, two = (1 - beta**self.steps for beta in BETAS)
        for parameter, (first, second) in zip(self.parameters, self.moments, strict=True):
            shape = (-1,) + (1,) * (parameter.ndim - 1)
            rates = (self.rates * factor).view(shape)
            if parameter.ndim == 3:
                parameter.mul_(1 - rates * self.decays.view(shape))
            first.lerp_(parameter.grad, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(parameter.grad, parameter.grad, value=1 - BETAS[1])
            # rates / one * first / (sqrt(second / two) + EPSILON), in as few passes as it can be
            divisor = second.sqrt().add_(EPSILON * math.sqrt(two)).mul_(one / math.sqrt(two) / rates)
            parameter.addcdiv_(first, divisor, value=-1)
            parameter.grad = None


@dataclass
class Candidate:
    """A head at an epoch: its setting's place in the grid, and its weights as trained (normalisation not
    folded in)."""

    head: int
    epoch: int
    values: tuple[torch.Tensor, ...]  # of the heads' parameters, in their order


@dataclass
class Trained:
    """What a pass came to: losses (epochs, G) of train (as the heads ran) and of val, and the weights worth a
    score."""

    heads: Heads
    train_loss: np.ndarray
    val_loss: np.ndarray
    last: tuple[torch.Tensor, ...]  # of each of the heads' parameters
    least: tuple[torch.Tensor, ...]  # of each head, where its loss on val was least

    def candidates(self) -> list[Candidate]:
        """Every head at its least loss on val and at the end, those alone whose losses are numbers."""
        found, end = [], len(self.val_loss) - 1
        for head, losses in enumerate(self.val_loss.T):
            best = int(np.nanargmin(losses)) if np.isfinite(losses).any() else end
            if best != end:
                found.append(Candidate(head, best, tuple(values[head] for values in self.least)))
            if np.isfinite(losses[end]):
                found.append(Candidate(head, end, tuple(values[head] for values in self.last)))
        return found

    def folded(self, candidate: Candidate) -> tuple[torch.Tensor, ...]:
        """A head's tensors as they go into the model, in the order of `Heads.names`."""
        return self.heads.folded(candidate.head, *candidate.values)


@dataclass(frozen=True)
class Pass:
    """What all heads of a pass have in common.

    loss      (B, K) logits and (B,) labels, or (B, K) of several, -> (B,): what is trained; val_loss: what
              the best epoch of a head is told by
    rate_at   from a position in epochs to the factor of every head's learning rate; order_at: from an epoch
              to its order of rows
    """

    num_classes: int
    loss: Loss
    val_loss: Loss
    epochs: int
    batch_size: int
    rate_at: Callable[[float], float]
    order_at: Callable[[int], np.ndarray]


def train_heads(views: Sequence[torch.Tensor], labels: torch.Tensor, val: torch.Tensor,
                val_labels: torch.Tensor, settings: Sequence[HeadSetting], run: Pass) -> Trained:
    """One pass for all heads, all of them from zero. views: (N, W) each, the training features; one view of
    the images after the other is taken, an epoch each."""
    products = run.batch_size * len(settings) * run.num_classes * views[0].shape[1]
    few = products < FEW_PRODUCTS and labels.device.type == "cpu"
    everything = views[0] if len(views) == 1 else torch.cat(list(views))
    with _threads(1 if few else torch.get_num_threads()):
        heads = Heads(settings, run.num_classes, everything.mean(dim=0), everything.std(dim=0, correction=0))
        del everything
        return train_stack(heads, views, labels, val, val_labels, run)


def train_stack(heads: Heads, views: Sequence[torch.Tensor] | Sequence[np.ndarray], labels: torch.Tensor,
                val: torch.Tensor | np.ndarray, val_labels: torch.Tensor, run: Pass) -> Trained:
    """The same of heads that are there; views and val are what their `load` takes."""
    optimizer, steps = StackedAdamW(heads), -(-len(labels) // run.batch_size)
    least = torch.full((len(heads.settings),), torch.inf, device=labels.device)
    kept = tuple(parameter.detach().clone() for parameter in heads.parameters)
    train_losses, val_losses = [], []
    for epoch in range(run.epochs):
        order = torch.from_numpy(run.order_at(epoch)).to(labels.device)
        total = torch.zeros_like(least)
        for step in range(steps):
            rows = order[slice(*part(len(order), steps, step))]
            rows = rows.sort().values if heads.on_disk else rows
            batch = heads.load(views[epoch % len(views)], rows)
            total += heads.learn(batch, labels[rows], run.loss).sum(dim=1)
            optimizer.step(run.rate_at(epoch + (step + 0.5) / steps))
        now = _mean_loss(heads, val, val_labels, run.val_loss)
        better = now < least
        least = torch.where(better, now, least)
        for stored, parameter in zip(kept, heads.parameters, strict=True):
            stored[better] = parameter.detach()[better]
        train_losses.append(total / len(labels))
        val_losses.append(now)
    curves = [torch.stack(losses).cpu().numpy() for losses in (train_losses, val_losses)]
    return Trained(heads, *curves, tuple(parameter.detach() for parameter in heads.parameters), kept)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def loss_by_head(logits: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    """(G, B, K) logits -> (G, B) losses."""
    heads, rows, classes = logits.shape
    repeated = labels.repeat(heads, *[1] * (labels.ndim - 1))
    return loss(logits.reshape(heads * rows, classes), repeated).view(heads, rows)


@torch.no_grad()
def _mean_loss(heads: Heads, val: torch.Tensor | np.ndarray, labels: torch.Tensor,
               loss: Loss) -> torch.Tensor:
    parts = [slice(start, start + heads.rows_at_once) for start in range(0, len(labels), heads.rows_at_once)]
    return sum(loss_by_head(heads.logits(heads.load(val, rows)), labels[rows], loss).sum(dim=1)
               for rows in parts) / len(labels)


def classic_classifiers(train: np.ndarray, labels: np.ndarray,
                        seed: int) -> "dict[str, list[KNeighborsClassifier | Pipeline]]":
    """{name: fitted scikit-learn classifiers to choose from}: neighbours by the cosine, logistic regression
    of standardised features. Above `MOST_ROWS` rows they see a random part of train."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    if len(labels) > MOST_ROWS:
        rows = np.random.RandomState(seed % 2**32).choice(len(labels), MOST_ROWS, replace=False)
        classes, first = np.unique(labels, return_index=True)
        rows = np.append(rows, first[~np.isin(classes, labels[rows])])  # none is left out as a whole
        train, labels = train[rows], labels[rows]
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(labels)), weights="distance", metric="cosine",
                                      algorithm="brute")
    logistic = [make_pipeline(StandardScaler(), LogisticRegression(C=penalty, tol=1e-2, max_iter=1000))
                for penalty in PENALTIES]
    # one thread: the many short products of a fit would wait for the pools of three libraries in turn
    with threadpool_limits(1):
        return {"k nearest neighbours": [neighbours.fit(train, labels)],
                "logistic regression": [classifier.fit(train, labels) for classifier in logistic]}


def probabilities(classifier: "KNeighborsClassifier | Pipeline", features: np.ndarray,
                  num_classes: int) -> np.ndarray:
    """(N, K) of a scikit-learn classifier; classes that it never saw have none."""
    found = np.zeros((len(features), num_classes))
    found[:, classifier.classes_] = classifier.predict_proba(features)
    return found
