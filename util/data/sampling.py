"""Which images make which step: a plan that depends on (seed, epoch) and the sizes alone.

The images of an optimizer step are the same whatever the number of processes: they are dealt out, not drawn
by each process for itself. A loader is fed (epoch, position) pairs, so that a sample's augmentation can be a
function of (seed, epoch, sample).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd


def part(number: int, parts: int, index: int) -> tuple[int, int]:
    """First and end of part `index` of `number` things that are dealt to `parts` parts, whose sizes differ by
    one at most."""
    return -(-index * number // parts), -(-(index + 1) * number // parts)


@dataclass(frozen=True)
class StepPlan:
    """Sizes of an epoch, the same in all processes.

    batch_size    images a process and micro-step, at most
    accum_iter    micro-steps an optimizer step, at most
    even          an epoch's images are dealt evenly to its steps. Without it (runs that were begun before
                  there was this) all steps are full but the last, which may be of a few images: their noise
                  is taken at the full learning rate.
    """

    num_samples: int
    batch_size: int
    accum_iter: int
    world_size: int
    even: bool = True

    @property
    def step_size(self) -> int:
        """Images an optimizer step, at most (the effective batch)."""
        return self.batch_size * self.accum_iter * self.world_size

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return math.ceil(self.num_samples / self.step_size)

    @property
    def of_a_step(self) -> int:
        """Micro-steps an optimizer step."""
        if not self.even:
            return self.accum_iter
        return math.ceil(math.ceil(self.num_samples / self.steps) / (self.batch_size * self.world_size))

    @property
    def micro_steps(self) -> int:
        return (self.steps * self.of_a_step if self.even
                else math.ceil(self.num_samples / (self.batch_size * self.world_size)))

    def of_step(self, step: int) -> tuple[int, int]:
        """First and end, in the epoch's order, of the images of optimizer step `step`."""
        if self.even:
            return part(self.num_samples, self.steps, step)
        return step * self.step_size, min((step + 1) * self.step_size, self.num_samples)

    def of_micro_step(self, micro_step: int) -> tuple[int, int]:
        """First and end of the images of a micro-step, of all processes together."""
        if self.even:
            first, end = self.of_step(micro_step // self.of_a_step)
            return tuple(first + place
                         for place in part(end - first, self.of_a_step, micro_step % self.of_a_step))
        size = self.batch_size * self.world_size
        return micro_step * size, min((micro_step + 1) * size, self.num_samples)

    def samples_of_step(self, step: int) -> int:
        """Real images of optimizer step `step`: what its gradient is divided by."""
        first, end = self.of_step(step)
        return end - first

    def samples_of(self, micro_step: int, rank: int) -> int:
        """Real images of one process in a micro-step; 0 = it computes one along with the others, with weight
        0."""
        first, end = self.of_micro_step(micro_step)
        return len(range(first + rank, end, self.world_size))

    def ends_step(self, micro_step: int) -> bool:
        return (micro_step + 1) % self.of_a_step == 0 or micro_step + 1 == self.micro_steps

    def steps_within(self, samples: int) -> int:
        """Optimizer steps whose images are all among the first `samples` of the epoch."""
        return max(step for step in range(self.steps + 1)
                   if step == 0 or self.of_step(step - 1)[1] <= samples)


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the training images in an epoch, (num_samples,)."""
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def balanced_order(targets: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """As many images as there are, each class as often as the others, in the order of an epoch,
    (num_samples,).

    A class goes through all its images before one comes again, also from an epoch to the next: so a frequent
    class shows another part of its images in each epoch, and a rare one each of its own several times.
    targets: (num_samples,) whole numbers from 0.
    """
    classes = np.unique(targets)
    drawn = []
    for place, target in enumerate(classes):
        members = np.flatnonzero(targets == target)
        first, end = part(len(targets), len(classes), place)
        # places in all permutations of this class, one after the other
        at = np.arange(end - first) + epoch * (end - first)
        for turn in np.unique(at // len(members)):
            order = np.random.default_rng([seed, int(target), int(turn)]).permutation(members)
            drawn.append(order[at[at // len(members) == turn] % len(members)])
    return np.random.default_rng([seed, epoch]).permutation(np.concatenate(drawn))


class TrainBatches:
    """Batch sampler: lists of (epoch, position) for this process; of balanced classes (epoch, position, how
    many times the image was there before in this epoch), so that it is not augmented alike each time.

    A process without an image in a short batch gets one that belongs to another, so that all take part in
    every step; StepPlan.samples_of says that it does not count. Set the epoch with `set_epoch`; `start` skips
    the first micro-steps (a run cut inside an epoch).
    """

    def __init__(self, plan: StepPlan, rank: int, seed: int, balanced: np.ndarray | None = None) -> None:
        """balanced: (num_samples,) targets, where each class is to come as often as the others
        (`balanced_order`)."""
        self.plan, self.rank, self.seed, self.balanced = plan, rank, seed, balanced
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start

    @property
    def state(self) -> tuple[int, int]:
        """What the batches depend on."""
        return self.epoch, self.start

    def __len__(self) -> int:
        return self.plan.micro_steps - self.start

    def _keys(self) -> list[tuple[int, ...]]:
        if self.balanced is None:
            return [(self.epoch, position)
                    for position in epoch_order(self.plan.num_samples, self.seed, self.epoch).tolist()]
        order = balanced_order(self.balanced, self.seed, self.epoch)
        times = pd.Series(order).groupby(order).cumcount()
        return [(self.epoch, position, before)
                for position, before in zip(order.tolist(), times.tolist(), strict=True)]

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        plan, keys = self.plan, self._keys()
        for micro_step in range(self.start, plan.micro_steps):
            together = keys[slice(*plan.of_micro_step(micro_step))]
            yield together[self.rank::plan.world_size] or together[:1]


class EvalBatches:
    """Batch sampler for evaluation: whole batches are dealt to the processes in turn.

    An image is computed in the same batch of the same images whatever the number of processes, so the metrics
    don't move by a rounding of the matrix products.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int, epoch: int = 0) -> None:
        self.num_samples, self.batch_size = num_samples, batch_size
        self._starts = range(rank * batch_size, num_samples, batch_size * world_size)
        self.epoch = self.state = epoch  # whose random draws a sample gets, where it gets any

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in self._starts:
            yield [(self.epoch, position)
                   for position in range(start, min(start + self.batch_size, self.num_samples))]
