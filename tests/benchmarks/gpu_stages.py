"""Stages for tests of benchmarks/gpu.py's runner: what it does with one that fails, lasts, or finds nothing
wrong."""

import subprocess
import sys
import time

from benchmarks.gpu_setting import Setting
from util.core.errors import InputError, RunError


def fine(setting: Setting) -> None:
    setting.put("a check", True, number=1.23456789)


def wrong(setting: Setting) -> None:
    setting.put("a check that fails", False)


def fails(setting: Setting) -> None:
    setting.put("found before", number=1)
    raise RunError("the loss is not finite")


def has_a_bug(setting: Setting) -> None:
    raise ZeroDivisionError("seven by nothing")


def lasts(setting: Setting) -> None:
    """With a process of its own, which has to end with it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (setting.output / "child").write_text(str(child.pid))
    time.sleep(600)


def unusable(setting: Setting) -> None:
    raise InputError("no cuda device here")
