"""Which pictures make which step: a plan that depends on (seed, epoch) and the sizes alone.

The pictures of an optimizer step are the same whatever the number of processes: they are dealt out, not drawn by each
process for itself. A loader is fed (epoch, position) pairs, so that a sample's augmentation can be a function of
(seed, epoch, sample).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StepPlan:
    """Sizes of an epoch, the same in all processes.

    batch_size    pictures a process and micro-step
    accum_iter    micro-steps an optimizer step
    """

    num_samples: int
    batch_size: int
    accum_iter: int
    world_size: int

    @property
    def step_size(self) -> int:
        """Pictures an optimizer step (the effective batch)."""
        return self.batch_size * self.accum_iter * self.world_size

    @property
    def micro_steps(self) -> int:
        return math.ceil(self.num_samples / (self.batch_size * self.world_size))

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch; the last may be smaller and is stepped all the same."""
        return math.ceil(self.num_samples / self.step_size)

    def samples_of_step(self, step: int) -> int:
        """Real pictures of optimizer step `step`: what its gradient is divided by."""
        return min(self.step_size, self.num_samples - step * self.step_size)

    def samples_of(self, micro_step: int, rank: int) -> int:
        """Real pictures of one process in a micro-step; 0 = it computes one along with the others, with weight 0."""
        size = self.batch_size * self.world_size
        together = min(size, self.num_samples - micro_step * size)
        return len(range(rank, together, self.world_size))

    def ends_step(self, micro_step: int) -> bool:
        return (micro_step + 1) % self.accum_iter == 0 or micro_step + 1 == self.micro_steps


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the training pictures in an epoch, (num_samples,)."""
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


class TrainBatches:
    """Batch sampler: lists of (epoch, position) for this process.

    A process without a picture in the last, short batch gets one that belongs to another, so that all take part in
    every step; StepPlan.samples_of says that it does not count. Set the epoch with `set_epoch`; `start` skips the
    first micro-steps (a run cut inside an epoch).
    """

    def __init__(self, plan: StepPlan, rank: int, seed: int):
        self.plan, self.rank, self.seed = plan, rank, seed
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.plan.micro_steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan, order = self.plan, epoch_order(self.plan.num_samples, self.seed, self.epoch)
        size = plan.batch_size * plan.world_size
        for micro_step in range(self.start, plan.micro_steps):
            together = order[micro_step * size:(micro_step + 1) * size]
            mine = together[self.rank::plan.world_size]
            yield [(self.epoch, int(position)) for position in (mine if len(mine) else together[:1])]


class EvalBatches:
    """Batch sampler for evaluation: whole batches are dealt to the processes in turn.

    A picture is computed in the same batch of the same pictures whatever the number of processes, so the figures
    don't move by a rounding of the matrix products.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int, epoch: int = 0):
        self.num_samples, self.batch_size, self.rank, self.world_size = num_samples, batch_size, rank, world_size
        self.epoch = epoch  # whose random draws a sample gets, where it gets any

    def _starts(self) -> range:
        return range(self.rank * self.batch_size, self.num_samples, self.batch_size * self.world_size)

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in self._starts():
            yield [(self.epoch, position) for position in range(start, min(start + self.batch_size, self.num_samples))]
