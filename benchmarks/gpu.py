"""Does everything work on this machine's GPU, and how fast is it.

    python benchmarks/gpu.py                         # all stages, what is worth most first
    python benchmarks/gpu.py --part 1 --budget 480   # in two runs: correctness, steps, the whole program,
    python benchmarks/gpu.py --part 2 --budget 180   # then full memory, the 7B, timm beside it, --compile
    python benchmarks/gpu.py --only outputs steps    # these stages alone
    python benchmarks/gpu.py --tiny                  # the same, small, on a CPU: that it runs
    python benchmarks/gpu.py --table                 # what the runs so far have found, as Markdown

Each finding is a line of JSON in OUTPUT/results.jsonl as soon as it is known, after a line with the card, its
driver and the versions. Each stage is a process with a time limit. One that fails is recorded with its last
lines, and the next one runs; one that does not fit into what is left of the budget is skipped and recorded.
The output of failed programs is in OUTPUT/failures.txt. Exit codes: 0 all checks hold, 1 one does not.
"""

import argparse
import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *sys.path[1:]]

from benchmarks import gpu_table  # noqa: E402
from benchmarks.gpu_setting import FAILURES, Setting, last_lines, read  # noqa: E402
from util.core.ending import exit_code_of, exit_with  # noqa: E402
from util.core.errors import InputError  # noqa: E402

GO = "go\n"
TINY_LONGER = 5  # limits of the small run, on a slow CPU


@dataclass(frozen=True)
class Stage:
    """A function of a module of benchmarks. part: of which run (0: of each); needs: seconds without which it
    isn't begun; limit: after which it is ended. Both are estimates for one H100 with 16 cores."""

    name: str
    module: str
    part: int
    needs: float
    limit: float

    @property
    def place(self) -> str:
        return f"{self.module}:{self.name}"


CHECKS, PROGRAMS = "benchmarks.gpu_checks", "benchmarks.gpu_programs"
SPEED, WHOLE = "benchmarks.gpu_speed", "benchmarks.gpu_whole"
STAGES = (Stage("machine", SPEED, 0, 5, 60),
          Stage("outputs", CHECKS, 1, 30, 120), Stage("not_finite", CHECKS, 1, 8, 45),
          Stage("groups", CHECKS, 1, 10, 60), Stage("programs", PROGRAMS, 1, 60, 180),
          Stage("resume", PROGRAMS, 1, 30, 100), Stage("heat_maps", CHECKS, 1, 10, 60),
          Stage("steps", SPEED, 1, 30, 110), Stage("whole", WHOLE, 1, 40, 150),
          Stage("full_memory", PROGRAMS, 2, 25, 80), Stage("big", SPEED, 2, 25, 80),
          Stage("beside_timm", SPEED, 2, 15, 50), Stage("compiled", SPEED, 2, 40, 170))


class Run:
    """A stage's process. It imports what it needs at once and begins when it is told to, so that one starts
    while the one before it works."""

    def __init__(self, stage: Stage, setting: Setting) -> None:
        self.stage, self.errors = stage, setting.work / f"{stage.name}.stderr"
        words = ["--stage", stage.place, "--output", setting.output, "--work", setting.work,
                 "--device", setting.device, *(["--tiny"] if setting.tiny else [])]
        with open(self.errors, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, __file__, *map(str, words)], cwd=ROOT, stdin=subprocess.PIPE, stderr=file,
                text=True, start_new_session=True)

    def begin(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended while it was imported
            self.process.stdin.write(GO)
            self.process.stdin.flush()

    def end(self, limit: float) -> tuple[int | None, str]:
        """(exit code or None for one that was ended at its limit, its standard error)."""
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        return code, self.errors.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """End what is left of it, and of what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def run_stages(stages: Sequence[Stage], setting: Setting, budget: float) -> None:
    """One after the other, as long as the seconds last. InputError where the first one says that nothing can
    be checked here."""
    began, waiting = time.monotonic(), None
    try:
        for stage, after in zip(stages, [*stages[1:], None], strict=True):
            here, left = replace(setting, stage=stage.name), budget - (time.monotonic() - began)
            if left < stage.needs:
                here.put("skipped", why=f"{left:.0f} s of the budget are left, it needs {stage.needs:g}")
                continue
            if waiting is not None and waiting.stage is not stage:
                waiting.kill()
                waiting = None
            run, waiting = waiting or Run(stage, setting), None
            started = time.monotonic()
            try:
                run.begin()
                waiting = Run(after, setting) if after is not None else None
                limit = min(left, stage.limit * setting.choose(TINY_LONGER, 1))
                code, said = run.end(limit)
            finally:
                run.kill()
            if code == 2 and stage is STAGES[0]:
                raise InputError(said.strip().splitlines()[-1].removeprefix("error: "))
            lines = [f"ended after its limit of {limit:.1f} s"] * (code is None) + last_lines(said)
            here.put("stage", code == 0, code=code, seconds=time.monotonic() - started,
                     **({} if code == 0 else {"last_lines": lines}))
            if code:
                here.keep_text("stage", said)
    finally:
        if waiting is not None:
            waiting.kill()


def chosen(part: int | None, only: Sequence[str] | None) -> list[Stage]:
    """The stages of a run; that which says what the machine is comes first in each."""
    return [stage for stage in STAGES if stage.part == 0
            or (stage.name in only if only else part is None or stage.part == part)]


def inside(place: str, setting: Setting) -> int:
    """A stage's own process."""
    module, name = place.split(":")
    function = getattr(importlib.import_module(module), name)
    if sys.stdin.readline() == GO:
        function(replace(setting, stage=name))
    return 0


def main(argv: list[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    output, device = Path(options.output).resolve(), options.device or ("cpu" if options.tiny else "cuda")
    if options.table:
        print(gpu_table.as_text(read(output)))
        return 0
    work = Path(options.work).resolve() if options.work else output / "work"
    setting = Setting(output, work, device, options.tiny)
    if options.stage:
        return inside(options.stage, setting)
    setting = replace(setting, work=work / "gpu-check")
    try:
        output.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(setting.work, ignore_errors=True)
        setting.work.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{error.filename} can't be written ({error.strerror}): name other folders with "
                         "--output and --work") from error
    before = len(read(output))
    try:
        run_stages(chosen(options.part, options.only), setting, options.budget)
    finally:
        shutil.rmtree(setting.work, ignore_errors=True)
    found = read(output)[before:]
    failed = [f"{row['stage']}: {row['what']}" for row in found if row.get("ok") is False]
    print(f"{sum('ok' in row for row in found)} checks, {len(failed)} failed"
          + "".join(f"\n  {name}" for name in failed))
    if failed:
        print(f"see {output / FAILURES} and the lines of results.jsonl")
    return 1 if failed else 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", type=int, choices=(1, 2), help="stages of one of two runs; not set: all")
    parser.add_argument("--only", nargs="+", choices=[stage.name for stage in STAGES], metavar="STAGE",
                        help=f"these alone: {', '.join(stage.name for stage in STAGES)}")
    parser.add_argument("--budget", type=seconds, default=os.environ.get("BUDGET", "inf"),
                        help="seconds that all stages may take together (default: $BUDGET)")
    parser.add_argument("--output", default=os.environ.get("OUT") or str(ROOT / "output_dir/gpu"),
                        help="where results.jsonl is added to (default: $OUT, else output_dir/gpu)")
    parser.add_argument("--work", default=os.environ.get("WORK"),
                        help="where images and checkpoints lie meanwhile (default: $WORK, else OUTPUT/work)")
    parser.add_argument("--tiny", action="store_true", help="small models, to see that the check itself runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda, with --tiny cpu")
    parser.add_argument("--table", action="store_true", help="print what was found as Markdown; run nothing")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser


def seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


if __name__ == "__main__":
    exit_with(exit_code_of(main))
