"""Two ways of doing the same, timed in turn, because machines are noisy: a ratio of medians of one run says
something, a time alone does not."""

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

Make = Callable[..., Callable[[], object]]  # of what is to be timed
Way = tuple[Make, *tuple[object, ...]]  # with its arguments


@dataclass
class Row:
    """A line of the table. plain and ours are in `unit`; ratio is how many times better ours is, spread the
    least and most of the pairs' ratios; goal is what the ratio (or, without a plain way, ours) should reach;
    limit is what this machine allows at most, in words."""

    what: str
    plain: float | None
    ours: float
    unit: str
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    goal: str = ""
    limit: str = ""


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@dataclass(frozen=True)
class Measure:
    """How two ways are timed, and the unit (ms or s) in which that is shown.

    of_plain, of_ours: what a call's time is multiplied by to be the whole (a part of the work stands for all
    of it). clock: from a call to its seconds. threads: PyTorch's in a process of its own; None leaves them.
    """

    unit: str = "ms"
    of_plain: float = 1.0
    of_ours: float = 1.0
    clock: Callable[[Callable[[], Any]], float] = seconds
    threads: int | None = None


MILLISECONDS = Measure()


def compare(what: str, plain: Callable[[], object], ours: Callable[[], object], pairs: int, goal: str = "",
            limit: str = "", measure: Measure = MILLISECONDS) -> Row:
    """Run both once unmeasured, then in turn `pairs` times."""
    plain()
    ours()
    times, clock = [], measure.clock
    for _ in range(pairs):
        gc.collect()
        times.append((clock(plain) * measure.of_plain, clock(ours) * measure.of_ours))
    ratios = [one / other for one, other in times]
    scale = {"ms": 1e3, "s": 1}[measure.unit]
    medians = [statistics.median(side) * scale for side in zip(*times, strict=True)]
    spread = min(ratios), max(ratios)
    return Row(what, *medians, measure.unit, statistics.median(ratios), spread, goal, limit)


@contextmanager
def apart(make: Make, *arguments: object, threads: int | None = None) -> Iterator[Callable[[], float]]:
    """`make(*arguments)` in a process of its own -> a call that runs it there and gives the seconds.

    Whoever does one thing alone has a memory allocator that serves that thing; what another one left in a
    shared one would be measured, too. threads: PyTorch's; None leaves them.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    start_method = multiprocessing.get_start_method()  # loaders' workers start as they would from a shell
    process = context.Process(target=_serve, args=(there, threads, start_method, make, arguments))
    process.start()
    there.close()

    def run() -> float:
        here.send("run")
        return here.recv()
    try:
        yield run
    finally:
        here.close()
        process.join()


def _serve(connection: Connection, threads: int | None, start_method: str, make: Make,
           arguments: tuple[object, ...]) -> None:
    multiprocessing.set_start_method(start_method, force=True)
    if threads:
        import torch

        torch.set_num_threads(threads)
    work = make(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(seconds(work))


def compare_apart(what: str, plain: Way, ours: Way, pairs: int, goal: str = "", limit: str = "",
                  measure: Measure = MILLISECONDS) -> Row:
    """As `compare`, of (make, *arguments) for each way, each in a process of its own (for one pair, which
    shows no more than that it runs, in this one)."""
    if pairs == 1:
        return compare(what, plain[0](*plain[1:]), ours[0](*ours[1:]), pairs, goal, limit, measure)
    threads = measure.threads
    with apart(*plain, threads=threads) as run_plain, apart(*ours, threads=threads) as run_ours:
        timed_there = replace(measure, clock=lambda run: run())
        return compare(what, run_plain, run_ours, pairs, goal, limit, timed_there)


def as_text(rows: list[Row]) -> str:
    """The table for a terminal, in Markdown."""
    head = ("what", "plain", "ours", "ratio", "spread", "goal", "limit of this machine")
    cells = [head] + [(row.what, _number(row.plain, row.unit), _number(row.ours, row.unit),
                       f"{row.ratio:.2f}x" if row.ratio is not None else "",
                       f"{row.spread[0]:.2f}-{row.spread[1]:.2f}" if row.spread else "", row.goal, row.limit)
                      for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
             for line in cells]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
