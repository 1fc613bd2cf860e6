"""What a loader's process says where the main process was killed: nothing."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

# A worker that hands over a file, and a main process that asks for it and vanishes before it has read a
# word: closing with unread bytes resets the connection.
PROGRAM = """
import multiprocessing, os, socket, sys, time
from multiprocessing.resource_sharer import DupFd
from util.data.loader import _start_worker

def worker(pipe, known):
    if known:
        _start_worker(0)
    address, _ = DupFd(0)._id
    pipe.send(address)
    pipe.recv()
    time.sleep(0.5)  # for the thread that answers

context = multiprocessing.get_context("fork")
here, there = context.Pipe()
child = context.Process(target=worker, args=(there, sys.argv[1] == "a loader's"))
child.start()
address = here.recv()
with socket.socket(socket.AF_UNIX) as main:
    main.connect(address)
    while not main.recv(1, socket.MSG_PEEK):
        time.sleep(0.01)
here.send("over")
child.join()
"""


@pytest.mark.parametrize("whose, said", [("a loader's", ""), ("any", "ConnectionResetError")])
def test_a_main_process_that_vanishes_while_it_takes_a_batch(whose, said):
    run = subprocess.run([sys.executable, "-c", PROGRAM, whose], cwd=ROOT, capture_output=True, text=True,
                         timeout=60)
    assert run.returncode == 0 and (said in run.stderr if said else run.stderr == ""), run.stderr
