"""A disk that is full, over quota, read-only or gone: one line, exit code 1, and the run goes on to the same
bits.

The disk is a tmpfs of its own, which is filled (or covered) at a chosen moment of a run; what then fails is
the real write.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time

import optuna
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs import checkpointing, results, train
from jobs.run_folder import RunFolder
from tests.conftest import ROOT, SMALL
from tests.end_to_end.test_regression import demo, predict  # noqa: F401 (fixtures)
from tests.small_disk import MIB, small_disk  # noqa: F401 (fixture)
from util.core import disk
from util.study import optuna_study
from util.weights import checkpoint

EPOCHS = 3
ROOM = 34  # MiB: 4.4 for the last checkpoint, 1.5 for the best one, 8 for the rest; the last one twice


@pytest.fixture(scope="module")
def uncut(pictures, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    import main_finetune

    folder = tmp_path_factory.mktemp("uncut")
    words = [*SMALL, "--epochs", EPOCHS, "--data_path", pictures, "--task", "t", "--output_dir",
             folder / "out", "--log_dir",
             folder / "logs"]
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "require_room", lambda job: sizes.extend(checkpointing.checkpoint_bytes(job)))
        assert main_finetune.main(list(map(str, words))) == 0
    for name, expected in zip((checkpoint.LAST, checkpoint.BEST), sizes, strict=True):
        assert expected <= (folder / "out/t" / name).stat().st_size < expected + MIB / 4
    return folder


def when(monkeypatch, owner, name, number, act, chosen=lambda words: True):
    """Call `act` just before the number-th call of owner.name (of those with `chosen` words)."""
    original, calls = getattr(owner, name), []

    def wrapped(*words, **more):
        calls.extend([1] if chosen(words) else [])
        if len(calls) == number and chosen(words):
            act()
        return original(*words, **more)

    monkeypatch.setattr(owner, name, wrapped)


def named(name):
    return lambda words: words[0].name == name


def assert_like(folder, uncut):
    """The same weights and rows as the run that nothing happened to, each epoch once."""
    for name in (checkpoint.LAST, checkpoint.BEST):
        ours, theirs = (torch.load(place / "out/t" / name, weights_only=True) for place in (folder, uncut))
        assert ours["epoch"] == theirs["epoch"]
        assert all(torch.equal(tensor, ours["model"][key]) for key, tensor in theirs["model"].items())
    for name in ("metrics_val.csv", "metrics_test.csv", "predictions_val.csv", "predictions_test.csv",
                 "metrics_test.json"):
        assert (folder / "out/t" / name).read_text() == (uncut / "out/t" / name).read_text(), name
    log = [[{**json.loads(line), "seconds": 0} for line in (place / "out/t/log.txt").read_text().splitlines()]
           for place in (folder, uncut)]
    assert log[0] == log[1] and len(log[0]) == EPOCHS
    names, whole = ({path.name for path in (place / "out/t").iterdir()} for place in (folder, uncut))
    assert whole <= names
    events = [EventAccumulator(str(place / "logs/t")).Reload() for place in (folder, uncut)]
    for tag in events[1].Tags()["scalars"]:
        a, b = ([(event.step, event.value) for event in one.Scalars(tag)] for one in events)
        assert a == b and len(a) == EPOCHS, tag


CASES = {
    # what fails: (owner, name, which call, chosen by, how many bytes are left then, epochs that the last
    # checkpoint has)
    "a table": (RunFolder, "add_evaluation", 2, None, 0, 1),
    "the last checkpoint": (checkpoint, "write", 2, named(checkpoint.LAST), MIB, 1),
    "the best checkpoint": (checkpoint, "write", 1, named(checkpoint.BEST), MIB // 2, 1),
    "the learning curves": (RunFolder, "draw_curves", 1, None, 0, EPOCHS),
    "the report": (results, "write_report", 1, None, 0, EPOCHS),
}


@pytest.mark.parametrize("case", CASES)
def test_a_full_disk(start, small_disk, uncut, monkeypatch, case):  # noqa: F811
    owner, name, number, chosen, left, epochs = CASES[case]
    there = small_disk(ROOM)
    words = ["--task", "t", "--epochs", EPOCHS, "--output_dir", there.path / "out", "--log_dir",
             there.path / "logs"]
    with monkeypatch.context() as patch:
        when(patch, owner, name, number, lambda: there.fill(left), chosen or (lambda words: True))
        code, _, err = start(*words)
    assert code == 1 and err.count("\n") == 1 and err.startswith(f"error: {there.path}/out/t"), err
    assert "(No space left on device)" in err and "make room and start again with --resume auto" in err
    assert not list((there.path / "out").rglob("*.tmp"))
    assert checkpoint.read(there.path / "out/t" / checkpoint.LAST).rest["epoch"] == epochs - 1
    there.mend(there.path)
    code, _, err = start(*words, "--resume", "auto")
    assert code == 0, err
    assert_like(there.path, uncut)


def test_a_quota(start, tmp_path, uncut, monkeypatch):
    """log.txt is over it in the second epoch: the row that is there in part is taken back."""
    words = ["--task", "t", "--epochs", EPOCHS, "--output_dir", tmp_path / "out", "--log_dir",
             tmp_path / "logs"]
    calls = []

    def over(file):
        calls.append(os.readlink(f"/proc/self/fd/{file}"))
        if sum(name.endswith("/log.txt") for name in calls) == 2:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "fsync", over)
        code, _, err = start(*words)
    assert (
        code == 1
        and err.count("\n") == 1
        and "log.txt can't be written (Disk quota exceeded)" in err
        and "make room" in err
    )
    log = (tmp_path / "out/t/log.txt").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [0]
    code, _, err = start(*words, "--resume", "auto")
    assert code == 0, err
    assert_like(tmp_path, uncut)


@pytest.mark.parametrize("fault, says", [
    ("make_read_only", "Read-only file system.*make the folder writable"),
    ("cover", "is gone .another folder stands in its place.: bring it back"),
])
def test_a_folder_that_can_no_more_be_written(start, small_disk, uncut,  # noqa: F811
                                              monkeypatch, fault, says):
    there = small_disk(ROOM)
    folder = there.path / "out/t"
    words = ["--task", "t", "--epochs", EPOCHS, "--output_dir", there.path / "out", "--log_dir",
             there.path / "logs"]
    with monkeypatch.context() as patch:
        when(patch, train, "keep", 2, lambda: getattr(there, fault)(folder))
        code, _, err = start(*words)
    assert code == 1 and err.count("\n") == 1, err
    assert re.search(says, err), err
    if fault == "cover":
        assert list(folder.iterdir()) == []
    there.mend(folder)
    code, _, err = start(*words, "--resume", "auto")
    assert code == 0, err
    assert_like(there.path, uncut)


def test_a_deleted_folder_is_not_made_again(start, tmp_path, monkeypatch):
    when(monkeypatch, RunFolder, "add_evaluation", 2, lambda: shutil.rmtree(tmp_path / "output_dir"))
    code, _, err = start("--task", "t", "--num_workers", 1)
    assert code == 1 and err.count("\n") == 1 and "output_dir/t is gone (No such file or directory)" in err
    assert not (tmp_path / "output_dir").exists()


def test_a_bug_is_no_full_disk(tmp_path, monkeypatch):
    def bug(*_):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(checkpoint.torch, "save", bug)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        checkpoint.write(tmp_path / "x.pth", {})
    assert not list(tmp_path.iterdir())


def test_room_is_asked_for_at_the_start(start, small_disk, tmp_path):  # noqa: F811
    there = small_disk(18)
    words = ["--epochs", 1, "--output_dir", there.path, "--log_dir", tmp_path / "logs", "--task"]
    there.fill(12 * MIB)
    code, out, err = start(*words, "t")
    assert code == 2 and err.count("\n") == 1 and "epoch 0" not in out
    free, needs = re.search(r"disk/t is on a disk with ([\d.]+) MiB free, and this run needs ([\d.]+) MiB \(",
                            err).groups()
    assert (
        11 < float(free) <= 12 and 15 < float(needs) < 18 and "name another folder with --output_dir" in err
    )
    code, out, _ = start(*words, "t", "--dry_run")
    assert code == 0 and f"disk       about {needs} MiB (" in out and "too little here" in out
    assert start(*words, "t", "--no_savemodel")[0] == 0
    there.mend(there.path)
    assert start(*words, "t")[0] == 0
    assert start(*words, "another")[0] == 2  # the first one's checkpoints take room now
    code, _, err = start(*words, "t", "--resume", "auto", "--epochs", 2)  # which this one writes anew
    assert code == 0, err


def test_an_evaluation_on_a_full_disk(start, small_disk, uncut, monkeypatch):  # noqa: F811
    there = small_disk(4)
    words = ["--task", "e", "--eval", "--resume", uncut / "out/t" / checkpoint.BEST, "--output_dir",
             there.path]
    with monkeypatch.context() as patch:
        when(patch, RunFolder, "add_evaluation", 1, there.fill)
        code, _, err = start(*words)
    assert code == 1 and err.count("\n") == 1, err
    assert err.endswith("(No space left on device): what was saved before stays; make room and start again\n")
    there.mend(there.path)
    assert start(*words)[0] == 0 and (there.path / "e/report.html").exists()


def test_a_probe(start, small_disk, tmp_path, monkeypatch):  # noqa: F811
    there = small_disk(ROOM)
    words = ["--task", "p", "--adaptation", "lp", "--epochs", 3, "--output_dir", there.path, "--log_dir",
             tmp_path / "logs"]
    with monkeypatch.context() as patch:
        when(patch, checkpoint, "write", 1, lambda: there.fill(MIB), named(checkpoint.LAST))
        code, _, err = start(*words)
    assert code == 1 and err.count("\n") == 1 and "No space left on device" in err, err
    there.mend(there.path)
    code, out, err = start(*words, "--resume", "auto")
    assert code == 0 and re.search(r" 0 images computed, \d+ found stored", out), err
    assert (there.path / "p" / checkpoint.LAST).exists()


def test_a_search(predict, small_disk, monkeypatch):  # noqa: F811
    there = small_disk(24)
    words = ["--task", "s", "--optuna_epochs", 1, "--optuna_trials", 1, "--output_dir", there.path,
             "--log_dir",
             there.path / "logs"]
    with monkeypatch.context() as patch:
        when(patch, optuna_study, "write_results", 1, there.fill)
        code, _, err = predict(*words)
    assert (
        code == 1 and err.count("\n") == 1 and "No space left on device" in err and "--optuna_resume" in err
    ), err
    there.mend(there.path)
    code, _, err = predict(*words, "--optuna_resume")
    assert code == 0, err
    assert list(pd.read_csv(there.path / "s/optuna_trials.csv")["state"]) == ["complete"]


@pytest.mark.slow
def test_two_processes_end_together(small_disk, pictures):  # noqa: F811
    there = small_disk(ROOM)
    command = [sys.executable, ROOT / "util/parallel/torchrun.py", "--standalone", "--nproc_per_node", 2,
               "--max-restarts", 1,
               ROOT / "main_finetune.py", *SMALL, "--epochs", 500, "--batch_size", 4, "--data_path", pictures,
               "--task", "t",
               "--output_dir", there.path, "--log_dir", there.path / "logs"]
    process = subprocess.Popen(list(map(str, command)), cwd=there.path, text=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        log, deadline = there.path / "t/log.txt", time.monotonic() + 200
        while not (log.exists() and log.read_text().count("\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        while process.poll() is None:  # a checkpoint that is replaced makes room, too
            assert time.monotonic() < deadline
            there.fill()
            time.sleep(0.02)
        err = process.stderr.read()
    finally:
        process.kill()
    assert process.returncode == 1 and "Traceback" not in err, err
    errors = [line for line in err.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "No space left on device" in errors[0], err
    assert checkpoint.read(there.path / "t" / checkpoint.LAST).rest["epoch"] >= 0


def test_output_into_a_file_on_a_full_disk(small_disk):  # noqa: F811
    program = ("import sys\nfrom util.parallel.processes import World\nfrom util.core.ending import "
               "exit_code_of\nsys.exit(exit_code_of(lambda _: World().say('a line of a run')))")
    there = small_disk(1)
    there.fill()
    with open(there.path / "out.txt", "w") as output:
        run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=output, stderr=subprocess.PIPE,
                             text=True)
    assert run.returncode == 1 and run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("error: standard output can't be written (No space left on device): what "
                                 "was saved before")


def test_a_journal_is_cut_to_whole_lines(small_disk):  # noqa: F811
    there = small_disk(1)
    study = optuna.create_study(storage=optuna_study.open_storage(str(there.path / "journal")),
                                study_name="s")
    there.fill(4096)
    with pytest.raises(OSError, match="No space left"):
        study.set_user_attr("long", "x" * 12_000)
    assert (there.path / "journal").read_bytes().endswith(b"}\n")
    there.mend(there.path)
    study.set_user_attr("short", "y")
    study.set_user_attr("last", "z")
    again = optuna.load_study(storage=optuna_study.open_storage(str(there.path / "journal")), study_name="s")
    assert again.user_attrs == {"short": "y", "last": "z"}
