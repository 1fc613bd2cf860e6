"""What a thread does beside the model: it writes files while the next steps run, checkpoints from a copy, and
computes intervals while test images are read."""

import copy
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch


class Background:
    """Work for a thread, one list of it at a time; what is to be written is copied first. An error of the
    thread is raised by the next call of `copied`, `begin` or `wait`. Left by an error, the work is waited for
    all the same: what was begun becomes whole."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._kept: dict[tuple, torch.Tensor] = {}
        self._is_waited_for = threading.Event()

    def copied(self, content: dict) -> dict:
        """`content` with its tensors as they are now, on the CPU, in memory that is used again by the next
        call."""
        self.wait()
        return self._copied(content, ())

    def _copied(self, value: Any, place: tuple) -> Any:
        if isinstance(value, dict):
            made = copy.copy(value)  # a state dict carries more than its entries
            made.update({key: self._copied(item, (*place, key)) for key, item in value.items()})
            return made
        if isinstance(value, list):
            return [self._copied(item, (*place, number)) for number, item in enumerate(value)]
        if not isinstance(value, torch.Tensor):
            return value
        value, kept = value.detach(), self._kept.get(place)
        if kept is None or any(getattr(kept, name) != getattr(value, name) for name in ("shape", "dtype")):
            # page-locked: a GPU copies into it several times as fast
            kept = self._kept[place] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return kept.copy_(value)

    def begin(self, work: Sequence[Callable[[], object]]) -> None:
        """Let the thread do these things, one after the other; nothing more after one that fails."""
        self.wait()
        self._is_waited_for.clear()

        def run() -> None:
            try:
                for one in work:
                    one()
            except BaseException as error:  # noqa: BLE001 - raised by whoever waits
                self._error = error

        self._thread = threading.Thread(target=run, name="beside")
        self._thread.start()

    def rest(self, seconds: float) -> None:
        """In the thread: leave the interpreter to the training for so long, or until somebody waits. Python
        code, such as the text of a table, would otherwise hold it, and the steps could not be launched."""
        self._is_waited_for.wait(seconds)

    def wait(self) -> None:
        """Until all is done."""
        self._is_waited_for.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self.wait()
        finally:
            self._kept.clear()
