"""main_finetune.py, which also writes how long it waited for its loader and for its checkpoints: watched.json
in the working folder. benchmarks/gpu_whole.py starts it.

    python benchmarks/gpu_watched.py [main_finetune.py's arguments]
"""

import json
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

sys.path[:] = [str(Path(__file__).resolve().parent.parent), *sys.path[1:]]

import main_finetune  # noqa: E402
from util.core.ending import exit_code_of, exit_with  # noqa: E402

FILE = "watched.json"


def watched_batches(loaded: Callable[..., Generator], rows: list[dict]) -> Callable[..., Generator]:
    """util.data.loader.loaded, with a row a pass: when it began, how long each batch was waited for."""
    def batches(loader: Any, title: str, world: Any, then: Callable[[], None] | None = None) -> Generator:
        row = {"what": title, "began": time.time(), "waits": []}
        rows.append(row)
        of_loader = loaded(loader, title, world, then)
        try:
            while True:
                asked = time.perf_counter()
                batch = next(of_loader, None)
                if batch is None:
                    return
                row["waits"].append(time.perf_counter() - asked)
                yield batch
        finally:
            of_loader.close()

    return batches


def watched_keep(keep: Callable[..., None], rows: list[dict]) -> Callable[..., None]:
    """jobs.checkpointing.keep, with a row a call: how long the training waited for it."""
    def timed(*words: Any) -> None:
        began = time.perf_counter()
        keep(*words)
        rows.append({"what": "checkpoint", "began": time.time(), "waits": [time.perf_counter() - began]})

    return timed


def main(argv: list[str] | None = None) -> int:
    import engine_finetune
    from jobs import train

    rows: list[dict] = []
    engine_finetune.loaded = watched_batches(engine_finetune.loaded, rows)
    train.keep = watched_keep(train.keep, rows)
    try:
        return main_finetune.main(argv)
    finally:
        Path(FILE).write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    exit_with(exit_code_of(main))
