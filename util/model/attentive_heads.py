"""Candidate attentive heads of a probe, trained together on stored tokens: a learned query averages the
tokens of an image, a linear layer reads the average (util/model/feature_kinds.py).

All heads start at zero, where a query attends to every token alike: the first step is that of a linear head
on the mean token. Tokens are standardised by the training tokens' mean and standard deviation of each
channel, which is folded into the winner's weights. The scale of a query's products is 1 / sqrt(W), as in a
transformer's attention (Vaswani et al. 2017).

G is the number of heads, K of classes, N of images, P of tokens an image, W their width.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from util.model.feature_kinds import averaged
from util.model.probe_heads import Heads, HeadSetting, Loss, Pass, Trained, loss_by_head, train_stack

LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # decays of 1 and 10 changed nothing: the best epochs come early
ROWS = 64  # images whose tokens are in memory at a time, where no gradient is taken


def attentive_grid() -> list[HeadSetting]:
    return [HeadSetting(rate, 0.0, True) for rate in LEARNING_RATES]


class AttentiveHeads(Heads):
    """A stack of attentive heads: weight (G, K, W), bias (G, K), query (G, W)."""

    rows_at_once, on_disk = ROWS, True
    names = (*Heads.names, "query")

    def __init__(self, settings: Sequence[HeadSetting], num_classes: int, mean: torch.Tensor,
                 deviation: torch.Tensor) -> None:
        super().__init__(settings, num_classes, mean, deviation)
        self.query = mean.new_zeros(len(settings), len(mean)).requires_grad_()
        self.parameters.append(self.query)

    def load(self, tokens: np.ndarray, rows: torch.Tensor | slice) -> torch.Tensor:
        return _load(tokens[rows.cpu().numpy() if torch.is_tensor(rows) else rows], self.mean.device)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, P, W) tokens -> (G, B, K) logits."""
        # averages are standardised, not tokens, which are many; the mean's product with a query is the same
        # for all of them
        queries = self.query / self.deviation / math.sqrt(tokens.shape[2])
        attention = torch.softmax(tokens @ queries.T, dim=1)
        averages = self._normalised(attention.transpose(1, 2) @ tokens).transpose(0, 1)
        return averages @ self.weight.transpose(1, 2) + self.bias[:, None]

    def learn(self, tokens: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
        losses = loss_by_head(self.logits(tokens), labels, loss)
        losses.mean(dim=1).sum().backward()
        return losses.detach()

    def folded(self, head: int, weight: torch.Tensor, bias: torch.Tensor,
               query: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One head's weight (K, W), bias (K,) and query (W,) -> those that read tokens as they are. A
        constant in a query's products changes nothing of their softmax."""
        scaled_query = query / self.deviation / math.sqrt(len(query))
        return *super().folded(head, weight, bias), scaled_query


def train_attentive(tokens: Sequence[np.ndarray], labels: torch.Tensor, val: np.ndarray,
                    val_labels: torch.Tensor, settings: Sequence[HeadSetting], run: Pass) -> Trained:
    """As util/model/probe_heads.py's `train_heads`, of (N, P, W) tokens in float16, which may lie on the
    disk."""
    moments = (values.to(labels.device) for values in _moments(tokens))
    return train_stack(AttentiveHeads(settings, run.num_classes, *moments), tokens, labels, val, val_labels,
                       run)


@torch.no_grad()
def attentive_logits(tokens: np.ndarray, weight: torch.Tensor, bias: torch.Tensor,
                     query: torch.Tensor) -> torch.Tensor:
    """(N, P, W) tokens -> (N, K) logits of one head whose standardisation is folded in."""
    means = torch.cat([averaged(_load(tokens[start:start + ROWS], weight.device), query)
                       for start in range(0, len(tokens), ROWS)])
    return torch.nn.functional.linear(means, weight, bias)


def _load(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(rows.astype(np.float32)).to(device)


def _moments(tokens: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """(W,) mean and standard deviation of all tokens, in fp32."""
    total, squares, number = 0.0, 0.0, 0
    for view in tokens:
        for start in range(0, len(view), ROWS):
            part = np.asarray(view[start:start + ROWS], np.float64).reshape(-1, view.shape[2])
            total = total + part.sum(axis=0)
            squares = squares + (part**2).sum(axis=0)
            number += len(part)
    mean = total / number
    deviation = np.sqrt(np.maximum(squares / number - mean**2, 0))
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
