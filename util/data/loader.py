"""Loaders: batches that processes of their own read, ahead of where they are needed."""

import atexit
import sys
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from util.core import machine, machine_faults, signals
from util.core.errors import RunError
from util.data.sampling import EvalBatches, TrainBatches

if TYPE_CHECKING:
    from util.data.dataset import ImageDataset
    from util.model.frozen_features import FeatureDataset
    from util.parallel.processes import World


class Loader(torch.utils.data.DataLoader):
    """A loader fed by one of our batch samplers; workers stay for the run. What they read while the last
    steps before are computed is not waited for: `begin`."""

    _begun: Iterator | None = None

    def begin(self) -> None:
        """Let the workers read the first batches of the next pass."""
        if self.num_workers and self._begun is None:
            self._begun, self._of = super().__iter__(), self.batch_sampler.state

    def __iter__(self) -> Iterator:
        begun, self._begun = self._begun, None
        # one of another epoch, or of an earlier step, is dropped
        return begun if begun is not None and self._of == self.batch_sampler.state else super().__iter__()

    def last(self) -> int:
        """The number of the batch from which on the workers have less to read than they could."""
        return max(0, len(self) - 1 - (self.prefetch_factor or 0) * self.num_workers)


def make_loader(dataset: "ImageDataset | FeatureDataset", batches: TrainBatches | EvalBatches,
                num_workers: int, pin_memory: bool) -> Loader:
    """The loader of a data set; `num_workers` processes."""
    if num_workers:
        atexit.unregister(signals.end_helpers)
        atexit.register(signals.end_helpers)
    return Loader(
        dataset, batch_sampler=batches, num_workers=num_workers, pin_memory=pin_memory,
        persistent_workers=num_workers > 0, prefetch_factor=4 if num_workers else None,
        worker_init_fn=_start_worker, collate_fn=getattr(dataset, "collate", None))


def _start_worker(number: int) -> None:
    """A decoded image is larger than what malloc keeps by itself: a worker's memory is not given back after
    each. Signals to end are the main process's to answer, which needs its workers until then."""
    machine.keep_freed_memory()
    signals.leave_to_parent()
    sys.excepthook = machine_faults.unanswered


def loaded(loader: Loader, title: str, world: "World",
           then: Callable[[], None] | None = None) -> Generator[tuple[list[torch.Tensor], tqdm], None, None]:
    """The loader's batches behind a progress bar (on a terminal); an image's error in a worker keeps its one
    line. then: called when the workers have read all."""
    bar = tqdm(total=len(loader), desc=title, leave=False, unit="batch",
               disable=not (world.is_main and sys.stderr.isatty()))
    try:
        for number, batch in enumerate(loader):
            if then is not None and number == loader.last():
                then()
            yield batch, bar
            bar.update()
    except RunError as error:
        lines = str(error).strip().splitlines()
        raise RunError(lines[-1].removeprefix("util.core.errors.RunError: ")) from error
    finally:
        bar.close()
