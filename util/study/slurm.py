"""A study's runs as jobs of Slurm, one job per run, submitted and requeued by submitit.

The folder `slurm/` of a run holds JOB_submitted.pkl, the batch script and JOB_0_log.out of each of its jobs.
These numbers and squeue tell a later call what is queued. A job that reaches its time limit or is preempted
ends its run with a checkpoint and is queued again; the run's own `--resume auto` resumes it.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from util.core import signals
from util.core.errors import InputError, RunError, one_line, reject_if
from util.options.groups import Options
from util.study.grid_file import Cell, Grid
from util.study.runs import FINISHED, ROOT, Outcome, command, locked, overview, states

if TYPE_CHECKING:
    import submitit

# What this module says itself, and what a run on one node, in one task, has no use for.
NOT_FREE = {"job_name", "nodes", "ntasks_per_node", "num_gpus", "setup", "teardown", "srun_args", "use_srun",
            "stderr_to_stdout", "additional_parameters", "array_parallelism", "map_count"}
EXAMPLE = "--slurm time=1440 partition=gpu gpus_per_node=4"
WARNING_S = 120  # between the signal and the time limit, as in examples/slurm/
MAX_TIMEOUTS = 100  # after so many time limits a job is no longer queued again
LOOK_EVERY_S = 15.0


class Training:
    """A run inside its job: what submitit calls, and asks for a checkpoint before it queues the job again."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.words, self.folder, self.pid = words, folder.absolute(), 0

    def __call__(self) -> None:
        with locked(self.folder) as lock:
            if lock is None:
                raise RuntimeError(f"{self.folder}: another process trains this run")
            with subprocess.Popen(self.words, process_group=0, pass_fds=(lock,)) as child:
                self.pid = child.pid
                code = child.wait()
        if code:
            raise RuntimeError(f"the run ended with exit code {code}")

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Called by submitit's signal handler: ask the run to end, and wait until it has."""
        from submitit.helpers import DelayedSubmission

        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has just ended by itself
            if self.pid:
                os.kill(self.pid, signal.SIGUSR1)
                # Popen.wait, which the signal has interrupted, holds its lock: no second one is possible
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Training(self.words, self.folder))


# ---- what was typed ----------------------------------------------------------------------------------------

def read_parameters(words: list[str]) -> dict[str, str | int]:
    """KEY=VALUE of --slurm. InputError for other words, a key twice, a key of ours, and without `time`."""
    found: dict[str, str | int] = {}
    for word in words:
        key, _, value = word.partition("=")
        reject_if(
            (not (key and value), f"--slurm {word}: not KEY=VALUE, such as {EXAMPLE}"),
            (key in found, f"--slurm gives {key} twice"),
            (key in NOT_FREE,
             f"--slurm {word}: {key} can't be set, for a run is one task on one node, with --nproc "
             "processes"))
        found[key] = value
    found.setdefault("signal_delay_s", str(WARNING_S))
    for key, unit in (("time", "minutes that a job may take"), ("signal_delay_s", "seconds before that")):
        if not str(found.get(key, "")).isdecimal():
            raise InputError(f"--slurm needs {key}=NUMBER, the {unit}: {EXAMPLE}")
        found[key] = int(found[key])
    return found


def executor_of(folder: Path, parameters: dict[str, str | int]) -> "submitit.SlurmExecutor":
    """submitit's executor, which keeps its jobs in a folder. InputError without Slurm, without submitit, and
    for a key that submitit does not know."""
    lacking = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if lacking:
        raise InputError(f"--slurm: {', '.join(lacking)} not on the PATH: start it on a login node")
    try:
        import submitit
    except ImportError as error:
        raise InputError("--slurm needs submitit, which is not installed: pip install -r "
                         "requirements-slurm.txt") from error
    given = {key: True if value == "true" else value for key, value in parameters.items()}
    if "cpus_per_task" in given:
        given["srun_args"] = [f"--cpus-per-task={given['cpus_per_task']}"]  # which srun does not inherit
    path = f"{shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
    try:
        executor.update_parameters(
            **given, stderr_to_stdout=True, setup=[f"export SUBMITIT_PREEMPT_SIGNAL=USR1 PYTHONPATH={path}"],
            additional_parameters={"signal": f"USR1@{parameters['signal_delay_s']}", "requeue": True})
    except ValueError as error:
        known = [name for name in re.findall(r"^  - (\w+)", str(error), re.M) if name not in NOT_FREE]
        unknown = ", ".join(name for name in parameters if name not in known)
        raise InputError(
            f"--slurm {unknown}: no parameter of submitit; known are {', '.join(known)}") from error
    return executor


# ---- the queue ---------------------------------------------------------------------------------------------

def queue() -> dict[str, str]:
    """{number: state} of this user's jobs that wait or run. RunError where Slurm does not answer."""
    done = subprocess.run(["squeue", "--me", "--noheader", "--format=%A %T"], capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"squeue: {one_line(done.stderr.strip())}")
    return dict(line.split() for line in done.stdout.splitlines())


def job_of(cell: Cell) -> str | None:
    """The number of a run's latest job."""
    numbers = [path.name.partition("_")[0] for path in (cell.folder / "slurm").glob("*_submitted.pkl")]
    return max(numbers, key=int, default=None)


def plan(grid: Grid, found: dict[str, str]) -> tuple[list[Cell], list[Cell]]:
    """(runs to submit, runs that are in the queue already)."""
    there = queue()
    open_runs = [cell for cell in grid.cells if found[cell.name] != FINISHED]
    return ([cell for cell in open_runs if job_of(cell) not in there],
            [cell for cell in open_runs if job_of(cell) in there])


def submit(grid: Grid, found: dict[str, str], processes: int, parameters: dict[str, str | int]) -> list[Cell]:
    """Queue what is neither finished nor queued nor trained elsewhere -> the runs that are in the queue now.
    InputError where Slurm rejects a job."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    with locked(grid.folder) as lock:
        if lock is None:
            raise InputError(f"{grid.folder}: another compare.py submits this study: start again in a moment")
        new, queued = plan(grid, found)
        submitted = []
        for cell in new:
            with locked(cell.folder) as free:
                if free is None:
                    continue
            executor = executor_of(cell.folder / "slurm", parameters)
            executor.update_parameters(job_name=cell.task)
            try:
                with contextlib.redirect_stderr(io.StringIO()) as warnings:  # sbatch's errors, too
                    executor.submit(Training(command(grid, cell, processes), cell.folder))
            except (FailedJobError, FailedSubmissionError) as error:
                said = next((line for line in str(error).splitlines() if "error:" in line), str(error))
                raise InputError(f"Slurm did not take {cell.name}: {one_line(said)} ({len(submitted)} runs "
                                 "before it are queued; the same command goes on)") from error
            print(warnings.getvalue(), end="", file=sys.stderr, flush=True)
            submitted.append(cell)
    numbers = " ".join(filter(None, map(job_of, queued + submitted))) or "none"
    print(f"{len(submitted)} runs submitted, {len(queued)} are in the queue already; jobs: {numbers}; logs: "
          f"{grid.folder}/RUN/slurm", flush=True)
    return queued + submitted


def wait(cells: list[Cell]) -> None:
    """Return when no job of these runs is in the queue any more; a line whenever the counts have changed."""
    line = ""
    while True:
        last, there = line, None
        try:
            there = queue()
            jobs = [there[number] for cell in cells if (number := job_of(cell)) in there]
            line = (f"jobs: {len(jobs) - jobs.count('PENDING')} running, {jobs.count('PENDING')} pending, "
                    f"{len(cells) - len(jobs)} ended")
        except RunError as error:  # a controller that restarts
            line = f"{error}: asking again"
        if line != last:
            print(line, flush=True)
        if there is not None and not jobs:
            return
        time.sleep(LOOK_EVERY_S)


# ---- the study ---------------------------------------------------------------------------------------------

def would_submit(grid: Grid, found: dict[str, str], parameters: dict[str, str | int]) -> list[str]:
    """What `--dry_run` says of jobs. InputError and RunError: see `run`."""
    executor_of(grid.folder, parameters)
    new, queued = plan(grid, found)
    given = " ".join(f"{key}={value}" for key, value in parameters.items())
    return [f"{len(new)} runs would be submitted, one job each: {given}",
            *(f"{cell.name} is in the queue already: job {job_of(cell)}" for cell in queued)]


def run(grid: Grid, processes: int, canonical: Callable[[Options], Options],
        parameters: dict[str, str | int]) -> Outcome:
    """Submit what is missing and wait for it. InputError: see `executor_of`, `submit` and `states`; RunError
    where Slurm does not answer."""
    executor_of(grid.folder, parameters)
    found, outcome = states(grid, canonical), Outcome()
    print(overview(grid, found), flush=True)
    try:
        cells = submit(grid, found, processes, parameters)
        wait(cells)
    except (KeyboardInterrupt, signals.StopRequested) as stop:
        outcome.stopped_by = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        print("the jobs stay in the queue: the same command waits for them again and compares; to end them:",
              "scancel", *map(job_of, plan(grid, found)[1]), file=sys.stderr, flush=True)
        return outcome
    found = states(grid, canonical)
    if any(found[cell.name] != FINISHED for cell in cells):
        time.sleep(LOOK_EVERY_S)  # a shared file system may show the last files late
        found = states(grid, canonical)
    for cell in grid.cells:
        if found[cell.name] != FINISHED:
            outcome.failed[cell.name] = 1
            log = cell.folder / "slurm" / f"{job_of(cell)}_0_log.out"
            problem = (f"failed, see {log}: the same command tries it again" if cell in cells else
                       "is trained by another process: start again once that is done")
            print(cell.name, problem, file=sys.stderr, flush=True)
    return outcome
