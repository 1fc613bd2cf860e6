"""The learning rate of an iteration; `set_learning_rate` is the one place that writes it into the groups."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MOST_WARMUP = 0.2  # share of the epochs: a run that warms up for longer never reaches its learning rate


def usable_warmup(warmup_epochs: float, epochs: int) -> float:
    """Warm-up in epochs, at most a fifth of the run."""
    return min(warmup_epochs, MOST_WARMUP * epochs)


def learning_rate_at(position: float, peak: float, minimum: float, warmup_epochs: float,
                     epochs: float) -> float:
    """The learning rate at `position` (epochs done, a fraction within an epoch): linear from 0 to `peak`,
    then half a cosine to `minimum` at `epochs` (Loshchilov and Hutter, SGDR, 2017). The warm-up is shorter
    than the run (`usable_warmup`)."""
    if position < warmup_epochs:
        return peak * position / warmup_epochs
    share = min(1.0, (position - warmup_epochs) / (epochs - warmup_epochs))
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * share))


def set_learning_rate(optimizer: "torch.optim.Optimizer", learning_rate: float) -> None:
    """Write the learning rate into all groups, each times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
