"""A bug ends a process of a group at once, whatever threads it has left."""

import subprocess
import sys

from tests.conftest import ROOT

PROGRAM = """
import os, threading, time
from util.core import ending

os.environ[ending.THREADS_LEFT] = str(os.getpid())
threading.Thread(target=time.sleep, args=(600,)).start()  # Python would wait for it
ending.end_after_traceback()
raise ZeroDivisionError("ours")
"""


def test_a_bug_has_its_traceback_and_the_process_is_gone():
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.startswith("Traceback") and run.stderr.endswith("ZeroDivisionError: ours\n")
