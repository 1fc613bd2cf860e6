"""TensorBoard's file of scalars, an epoch at a time and all or nothing.

TensorBoard's own writer works in a thread: where the disk is full, its error comes an epoch later, as a
traceback.
"""

import io
import itertools
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from util.core.disk import append_whole

_NUMBERS = itertools.count()  # of the files of this process: two may begin in one second


class ScalarFile:
    """One event file (TFRecord of Event messages), made with the first scalar.

    purge_step: where a run is resumed; what earlier files of the folder say of this step and later ones is
    void.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.path = folder / (f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}."
                              f"{next(_NUMBERS):04d}")  # TensorBoard reads them in the order of names
        self._purge_step = purge_step

    def add(self, values: Mapping[str, float | None], step: int) -> None:
        """Scalars of a step by name; NaN and None are left out. OSError where they can't be written."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now, head = time.time(), []
        if not (self.path.exists() and self.path.stat().st_size):
            head = [Event(wall_time=now, step=self._purge_step, file_version="brain.Event:2")]
            if self._purge_step is not None:
                head.append(Event(wall_time=now, step=self._purge_step,
                                  session_log=SessionLog(status=SessionLog.START)))
        scalars = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()
                   if value is not None and not math.isnan(value)]
        stream = io.BytesIO()
        writer = RecordWriter(stream)
        for event in [*head, *(Event(step=step, wall_time=now, summary=Summary(value=[scalar]))
                               for scalar in scalars)]:
            writer.write(event.SerializeToString())
        append_whole(self.path, stream.getvalue())
