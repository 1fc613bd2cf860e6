"""Gated attention over the images of a case (M. Ilse, J. Tomczak and M. Welling, Attention-based Deep
Multiple Instance Learning, ICML 2018): a score an image, w . (tanh(V h) * sigmoid(U h)) of its feature h,
whose softmax over the case is the image's weight.

The classifier is linear, so the outputs of the weighted mean of features are the weighted mean of the images'
outputs: the model gives out an image's K logits and its score, and a case's logits are made of those of its
images, in whatever batches they were computed. Attention starts as the mean: w is 0.

The head keeps timm's names; beside head.weight and head.bias stand head.attention.tanh, .gate and .score.

B is the number of cases of a batch, M of their images, P of images of the largest case, W the width of a
feature, K of classes, G of heads that are trained together, H the width of the attention.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from util.model.probe_heads import Heads, HeadSetting, Loss, Pass, Trained, loss_by_head, train_stack

HIDDEN = 128  # H, as in the paper
LEARNING_RATES, WEIGHT_DECAYS = (3e-4, 1e-3, 3e-3), (0.0, 10.0)
# w counts so many times: the attention learns the faster by it. Without, the classifier fits the few
# training cases by their means before the attention has left them
SCALE = 10.0
CASES = 64  # whose features are in memory at a time, where no gradient is taken
NAMES = ("tanh.weight", "tanh.bias", "gate.weight", "gate.bias", "score.weight")


class GatedAttention(torch.nn.Module):
    """Features (M, W) -> scores (M, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        with torch.device("cpu"):  # so that it has values beside a backbone of shapes, too
            self.tanh, self.gate = (torch.nn.Linear(width, HIDDEN) for _ in range(2))
            self.score = torch.nn.Linear(HIDDEN, 1, bias=False)
        start = start_of(width, torch.initial_seed())
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(start[name])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return scores_of(features, *self.parameters())[:, None]


def scores_of(features: torch.Tensor, tanh: torch.Tensor, of_tanh: torch.Tensor, gate: torch.Tensor,
              of_gate: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """(..., W) features -> (...) scores; the tensors are those of NAMES."""
    linear = torch.nn.functional.linear
    gated = torch.tanh(linear(features, tanh, of_tanh)) * torch.sigmoid(linear(features, gate, of_gate))
    return SCALE * (gated @ score[0])


def start_of(width: int, seed: int) -> dict[str, torch.Tensor]:
    """What an attention starts with: a function of the seed alone, Xavier's uniform draw (Glorot and Bengio
    2010), biases and w at 0."""
    generator = torch.Generator("cpu").manual_seed(seed)
    bound = (6 / (width + HIDDEN)) ** 0.5
    shapes = dict(zip(NAMES, ((HIDDEN, width), (HIDDEN,)) * 2 + ((1, HIDDEN),), strict=True))
    return {name: torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)
            if name in ("tanh.weight", "gate.weight") else torch.zeros(shape, device="cpu")
            for name, shape in shapes.items()}


class CaseHead(torch.nn.Linear):
    """A linear classifier and the score of its attention, (M, W) -> (M, K + 1), in fp32 whatever the
    precision."""

    attention: GatedAttention

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            return torch.cat([super().forward(features), self.attention(features)], dim=1)


def put_attention(layer: torch.nn.Linear) -> None:
    """Attention beside a model's last linear layer, in place: the layer keeps its parameters and their
    names."""
    layer.__class__ = CaseHead
    layer.attention = GatedAttention(layer.in_features)


def attended(outputs: torch.Tensor, owners: torch.Tensor, number: int) -> torch.Tensor:
    """(M, K + 1) outputs of the images of a batch, owners (M,) the place of each image's case -> (B, K) of
    `number` cases. In fp32; the order of the images changes nothing but roundings."""
    logits, scores = outputs[:, :-1].float(), outputs[:, -1].float()
    highest = scores.new_full((number,), -torch.inf).scatter_reduce(0, owners, scores.detach(), "amax")
    shares = torch.exp(scores - highest[owners])
    total = shares.new_zeros(number).index_add(0, owners, shares)
    weights = shares / total[owners]
    return logits.new_zeros(number, logits.shape[1]).index_add(0, owners, logits * weights[:, None])


# ---- a probe: candidate heads, trained together on stored features -----------------------------------------

@dataclass
class CaseFeatures:
    """A split's features (N, W), and where those of each case are: places (N,), the cases' one after the
    other, from starts[c] to starts[c + 1]."""

    features: torch.Tensor
    places: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, features: torch.Tensor, owners: np.ndarray) -> "CaseFeatures":
        """owners: (N,) the number of each image's case."""
        order = np.argsort(owners, kind="stable")
        return cls(features, order, np.concatenate([[0], np.cumsum(np.bincount(owners))]))

    def padded(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, P, W) features of some cases, and (B, P) which of them are images."""
        sizes = np.diff(self.starts)[rows]
        places = self.starts[rows][:, None] + np.arange(sizes.max())
        is_image = np.arange(sizes.max()) < sizes[:, None]
        taken = self.places[np.where(is_image, places, 0)]
        device = self.features.device
        return (self.features[torch.from_numpy(taken).to(device)], torch.from_numpy(is_image).to(device))


class CaseHeads(Heads):
    """A stack of heads: weight (G, K, W), bias (G, K), and an attention each."""

    rows_at_once = CASES
    names = (*Heads.names, *(f"attention.{name}" for name in NAMES))

    def __init__(self, settings: Sequence[HeadSetting], num_classes: int, mean: torch.Tensor,
                 deviation: torch.Tensor, seed: int) -> None:
        super().__init__(settings, num_classes, mean, deviation)
        start = start_of(len(mean), seed)
        self.attention = [start[name].to(mean.device).repeat(len(settings), *[1] * start[name].ndim)
                          .requires_grad_() for name in NAMES]
        self.parameters += self.attention

    def load(self, features: CaseFeatures, rows: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        every = np.arange(len(features.starts) - 1)
        return features.padded(every[rows if isinstance(rows, slice) else rows.cpu().numpy()])

    def logits(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """(B, P, W) features, (B, P) which of them are images -> (G, B, K) logits."""
        features, is_image = batch
        features = self._normalised(features)
        found = []
        for head in range(len(self.settings)):
            scores = scores_of(features, *(values[head] for values in self.attention))
            weights = torch.softmax(scores.masked_fill(~is_image, -torch.inf), dim=1)
            mean = (weights[:, None] @ features)[:, 0]
            found.append(torch.nn.functional.linear(mean, self.weight[head], self.bias[head]))
        return torch.stack(found)

    def learn(self, batch: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor,
              loss: Loss) -> torch.Tensor:
        losses = loss_by_head(self.logits(batch), labels, loss)
        losses.mean(dim=1).sum().backward()
        return losses.detach()

    def folded(self, head: int, weight: torch.Tensor, bias: torch.Tensor,
               *attention: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One head's tensors -> those that read features as they are."""
        tanh, of_tanh, gate, of_gate, score = attention
        parts = [super(CaseHeads, self).folded(head, *part) for part in ((tanh, of_tanh), (gate, of_gate))]
        return *super().folded(head, weight, bias), *parts[0], *parts[1], score.clone()


def train_case_heads(views: Sequence[CaseFeatures], labels: torch.Tensor, val: CaseFeatures,
                     val_labels: torch.Tensor, run: Pass, seed: int) -> Trained:
    """As util/model/probe_heads.py's `train_heads`, of cases: labels are theirs, views the training features
    of their images."""
    everything = torch.cat([view.features for view in views])
    settings = [HeadSetting(rate, decay, True)
                for rate, decay in itertools.product(LEARNING_RATES, WEIGHT_DECAYS)]
    heads = CaseHeads(settings, run.num_classes, everything.mean(dim=0), everything.std(dim=0, correction=0),
                      seed)
    return train_stack(heads, views, labels, val, val_labels, run)


def case_outputs(features: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """(N, K + 1) of stored features by a head whose tensors are those of `CaseHeads.folded`."""
    weight, bias, *attention = tensors
    return torch.cat([torch.nn.functional.linear(features, weight, bias),
                      scores_of(features, *attention)[:, None]], dim=1)
