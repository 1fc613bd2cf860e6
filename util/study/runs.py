"""Running a study: its cells one after the other, each a job of its own; what is done is not done again.

A cell is its folder. It is finished where test is scored and its options are those of the grid, begun where
its options are written, else new. A finished one is skipped, a begun one is resumed with --resume auto, one
that fails is said and the rest are run all the same. Several launches of one study may run beside each other:
a lock, which lives as long as the process that trains, keeps each cell to one of them.
"""

import contextlib
import fcntl
import functools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from util.core import run_lock, signals
from util.core.child import Children
from util.core.errors import InputError
from util.core.plain_numbers import duration
from util.core.run_files import read_object
from util.options import starts
from util.options.checks import take_params
from util.options.groups import Options
from util.options.stored import as_now, differences
from util.options.table import flags_of
from util.study.grid_file import Cell, Grid

ROOT = Path(__file__).resolve().parents[2]
FINISHED, BEGUN, NEW = "finished", "begun", "new"
RESTARTS = 3  # of a cell by the launcher, as in train.sh
ELSEWHERE = -1000  # in place of an exit code: another process trains the cell


@dataclass
class Outcome:
    """What a launch of a study came to."""

    failed: dict[str, int] = field(default_factory=dict)  # cells and their exit codes
    stopped_by: int = 0  # a signal's number

    @property
    def exit_code(self) -> int:
        if self.stopped_by:
            return signals.code_of(self.stopped_by)
        return 1 if self.failed else 0


# ---- states ------------------------------------------------------------------------------------------------

def states(grid: Grid, canonical: Callable[[Options], Options]) -> dict[str, str]:
    """{cell: finished, begun or new}. InputError where a folder holds a run of other options: nothing was
    begun by then.

    canonical: writes another spelling of a model's name as the program itself would store it; called where
    one is met.
    """
    return {cell.name: state_of(cell, canonical) for cell in grid.cells}


def state_of(cell: Cell, canonical: Callable[[Options], Options]) -> str:
    """Of one cell. InputError: see `states`."""
    stored = _facts(cell)
    if stored is None:
        return NEW
    changed = _differences(stored["options"], cell, canonical)
    if changed:
        raise InputError(f"{cell.folder} holds a run of other options ({'; '.join(changed)}): give the study "
                         "another name, or remove that folder")
    return FINISHED if _is_scored(cell) else BEGUN


def _facts(cell: Cell) -> dict | None:
    path = cell.folder / "run.json"
    if not path.exists():
        return None
    try:
        facts = read_object(path, "options")
    except InputError as error:
        raise InputError(f"{path} can't be read ({error.__cause__ or error}): remove {cell.folder}, and its "
                         "run begins anew") from error
    return facts | {"options": as_now(facts["options"])}


def _is_scored(cell: Cell) -> bool:
    return all((cell.folder / name).exists() for name in ("metrics_test.json", "predictions_test.csv"))


def _differences(stored: dict, cell: Cell, canonical: Callable[[Options], Options]) -> list[str]:
    """`--name stored -> now` of the options in which a stored run is not what the cell asks for."""
    asked = cell.options
    # what is stored says nothing against these
    filled_in = {flag.name: stored.get(flag.name) for flag in flags_of(asked.program)
                 if flag.filled_in and flag.name not in asked.typed}
    now, _ = take_params(starts.as_stored(asked.having(**filled_in), stored))
    if (now.model.model, now.model.model_arch) != (stored.get("model"), stored.get("model_arch")):
        now = canonical(now)
    return differences(stored, now)


# ---- commands ----------------------------------------------------------------------------------------------

def command(grid: Grid, cell: Cell, processes: int) -> list[str]:
    """The words that start a cell: plain Python for one process, the launcher for several, as the shell
    scripts do."""
    program = [str(ROOT / grid.program), *cell.arguments, "--resume", "auto"]
    if processes == 1:
        return [sys.executable, *program]
    return [sys.executable, str(ROOT / "util/parallel/torchrun.py"), "--standalone", "--nnodes", "1",
            "--nproc_per_node", str(processes), "--max-restarts", str(RESTARTS), "--signals-to-handle",
            "SIGTERM,SIGINT,SIGUSR1", *program]


def listing(grid: Grid, found: dict[str, str], processes: int) -> list[str]:
    """What would be run: a cell and its state, then its command."""
    lines = [overview(grid, found)]
    for cell in grid.cells:
        lines += [f"{cell.name}  {found[cell.name]}", f"    {shlex.join(command(grid, cell, processes))}"]
    return lines


def overview(grid: Grid, found: dict[str, str]) -> str:
    """How many of the runs are finished, begun and new."""
    counted = Counter(found.values())
    states_text = ", ".join(f"{counted[state]} {state}" for state in (FINISHED, BEGUN, NEW))
    return f"study in {grid.folder}: {len(found)} runs, {states_text}"


# ---- running -----------------------------------------------------------------------------------------------

def run(grid: Grid, processes: int, canonical: Callable[[Options], Options]) -> Outcome:
    """Run what is not finished. InputError: see `states`; RunError where no process can be started."""
    found, outcome = states(grid, canonical), Outcome()
    _say(overview(grid, found))
    others = [cell for cell in grid.cells if found[cell.name] == FINISHED
              and _processes(cell) not in (None, processes)]
    if others:
        _say(f"note: {len(others)} finished runs had another number of processes than {processes} "
             f"({others[0].name}: {_processes(others[0])}), so another effective batch")
    with Children() as children:
        for number, cell in enumerate(grid.cells, 1):
            if found[cell.name] == FINISHED:
                continue
            title = f"run {number} of {len(grid.cells)}: {cell.name}"
            code = _run_cell(grid, cell, processes, canonical, title, children)
            if code == signals.EXIT_CODE or children.asked:  # or a scheduler has told the run alone
                outcome.stopped_by = children.asked or signal.SIGTERM
                print(f"stopped in {cell.name} by {signal.Signals(outcome.stopped_by).name}: what was saved "
                      "stays; the same command goes on with the study", file=sys.stderr, flush=True)
                return outcome
            if code:
                outcome.failed[cell.name] = code
    for name, code in outcome.failed.items():
        problem = f"failed (exit code {code}): its error stands above; the same command tries it again"
        if code == ELSEWHERE:
            problem = "is trained by another process: start again once that is done"
        print(name, problem, file=sys.stderr, flush=True)
    return outcome


def _run_cell(grid: Grid, cell: Cell, processes: int, canonical: Callable[[Options], Options], title: str,
              children: Children) -> int:
    """Exit code of a cell; 0 where it is finished by now."""
    with locked(cell.folder) as lock:
        if lock is None:
            _say(f"{title}: another process trains it, it is left to that one")
            return ELSEWHERE
        state = state_of(cell, canonical)  # another launch may have been at it in the meantime
        if state == FINISHED:
            return 0
        _say(f"{title}{' goes on' if state == BEGUN else ''}")
        began = time.monotonic()
        code = children.run(command(grid, cell, processes), stdin=subprocess.DEVNULL, pass_fds=(lock,))
        code = code if code >= 0 else 128 - code  # as shells say that a signal ended it
        if code == 0 and not _is_scored(cell):
            _say(f"{cell.name} ended without scoring test: nothing stands in {cell.folder}")
            code = 1
        _say(f"{cell.name} {'done' if code == 0 else f'ended with {code}'} after "
             f"{duration(time.monotonic() - began)}")
        return code


def _processes(cell: Cell) -> int | None:
    return (_facts(cell) or {}).get("processes")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """A folder's lock, a file that whoever trains its run holds open; None where another process does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error.strerror}): name another output_dir") from error
    try:
        # the process that trains inherits it, so that it outlives this one
        is_ours = run_lock.try_lock(file, fcntl.flock)
    except OSError as error:  # a file system without locks
        _say(f"note: {folder} can't be locked ({error.strerror}): don't start the study twice at a time")
        is_ours = True
    try:
        yield file if is_ours else None
    finally:
        os.close(file)


_say = functools.partial(print, flush=True)
