"""TensorBoard's file of scalars, an epoch at a time and all or nothing.

TensorBoard's own writer works in a thread: where the disk is full, its error comes an epoch later, as a traceback.
"""

import io
import itertools
import math
import os
import platform
import time
from pathlib import Path

from util.core.disk import append_whole

_NUMBERS = itertools.count()  # of the files of this process: two may begin in one second


class ScalarFile:
    """One event file (TFRecord of Event messages), made with the first scalar.

    purge_step: a run goes on from this step, and what earlier files of the folder say of it and later ones is void.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        self.path = folder / (f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}."
                              f"{next(_NUMBERS)}")
        self._purge_step = purge_step

    def add(self, values: dict[str, float | None], step: int) -> None:
        """Scalars of a step by name; NaN and None are left out. OSError where they can't be written."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        known = {name: value for name, value in values.items() if value is not None and not math.isnan(value)}
        events = [] if self.path.exists() and self.path.stat().st_size else self._head()
        events += [Event(step=step, wall_time=time.time(), summary=Summary(value=[Summary.Value(
            tag=name, simple_value=float(value))])) for name, value in known.items()]
        append_whole(self.path, _records(events))

    def _head(self) -> list:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        if self._purge_step is None:
            return [Event(wall_time=time.time(), file_version="brain.Event:2")]
        return [Event(wall_time=time.time(), step=self._purge_step, file_version="brain.Event:2"),
                Event(wall_time=time.time(), step=self._purge_step, session_log=SessionLog(status=SessionLog.START))]


def _records(events: list) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for event in events:
        writer.write(event.SerializeToString())
    return stream.getvalue()
