"""SIGTERM and SIGUSR1: at once where nothing is held, written down where something is, exit code 99."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import ROOT
from util.core import signals
from util.core.ending import ENDED_BY_ITSELF, exit_code_of


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_at_once_where_nothing_is_held(number, capsys):
    def main(argv):
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("not reached")

    before = signal.getsignal(number)
    assert exit_code_of(main) == 99
    assert capsys.readouterr().err == (f"stopped by {signal.Signals(number).name}: what was saved stays; "
                                       "start again to go on (training with --resume auto)\n")
    assert signal.getsignal(number) == before


def test_held_it_is_written_down_and_no_second_signal_changes_that():
    with signals.answered():
        with pytest.raises(signals.StopRequested), signals.held():
            assert not signals.asked()
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked() and signals.signal_name() == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGTERM)
    assert not signals.asked()


def test_not_taken_for_an_error():
    def main(argv):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Exception:
            return 1

    assert exit_code_of(main) == 99


def test_other_threads_and_ignored_signals_are_left_alone(monkeypatch):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(exit_code_of(lambda argv: 0)))
    thread.start()
    thread.join()
    assert codes == [0]
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        def main(argv):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.05)
            return 0

        assert exit_code_of(main) == 0
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_process_for_real():
    code = ("import sys, time; from util.core.ending import exit_code_of\n"
            "def main(argv):\n    print('ready', flush=True); time.sleep(30)\n"
            "sys.exit(exit_code_of(main))")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 99 and process.stderr.read().startswith("stopped by SIGTERM: ")


@pytest.mark.parametrize("together", [False, True])
def test_under_our_launcher_only_an_end_that_all_know_of_is_marked_as_meant(
    together, tmp_path, monkeypatch, capsys
):
    """A launcher ends the others by SIGTERM when one has died, and then starts all of them again."""
    def main(argv):
        raise signals.StopRequested("epoch 1 stands at step 2", together)

    marker = tmp_path / "exit_code"
    monkeypatch.setenv(ENDED_BY_ITSELF, str(marker))
    assert exit_code_of(main, []) == 99
    assert marker.exists() == together and ("stopped by" in capsys.readouterr().err) == together


def test_a_ctrl_c_that_gets_lost_is_asked_for_again(capsys):
    """A library may take the KeyboardInterrupt of a callback for an error of its own, and go on."""
    def main(argv):
        with signals.held():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            except KeyboardInterrupt:
                pass
            signals.asked()
        raise AssertionError("not reached")

    before = signal.getsignal(signal.SIGINT)
    assert exit_code_of(main) == 130 and "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) == before and not signals.asked()
