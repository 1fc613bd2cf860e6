"""Optuna's journal file (a JSON object a line), whose lines are added whole or not at all.

Optuna's own writer leaves half a line where the disk gets full, the next line is added to it, and the study
can't be read any more.
"""

import json
from pathlib import Path

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from util.core.disk import append_whole


class WholeJournal(JournalFileBackend):
    """The journal at `place`. OSError where it can't be written; it is then as long as before."""

    def __init__(self, place: str):
        self._place, self._lines = Path(place), JournalFileSymlinkLock(place)
        super().__init__(place, self._lines)

    def append_logs(self, logs: list[dict]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._lines.acquire()
        try:
            append_whole(self._place, lines.encode())
        finally:
            self._lines.release()
