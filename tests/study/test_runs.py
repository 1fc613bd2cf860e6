"""util/study/runs.py with a small program in place of a training: what is run, skipped, gone on with, said,
stopped."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compare import canonical
from util.core.errors import InputError
from util.options.table import own_values
from util.study import runs
from util.study.grid_file import read_grid

GRID = """\
name: study
flags: {data_path: images, nb_classes: 3}
backbones:
  - a: {model: timm, model_arch: test_vit}
  - b: {model: timm, model_arch: test_vit2}
seeds: [0, 1]
"""
# Leaves what a training leaves, after what the test wants of the cell: to fail, or to wait for its end.
PROGRAM = """\
import json, pathlib, sys, time
folder, options, wish = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
(folder / "run.json").write_text(json.dumps({"options": options, "processes": 1}))
with open(folder / "starts", "a") as file:
    file.write("x")
try:
    if wish == "wait":
        time.sleep(60)
except KeyboardInterrupt:
    (folder / "interrupted").touch()
    sys.exit(130)
if wish.isdigit():
    sys.exit(int(wish))
(folder / "predictions_test.csv").touch()
(folder / "metrics_test.json").touch()
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """study(text=GRID, **wishes by cell) -> (outcome, the grid); without a wish a cell succeeds."""
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)

    def run(text=GRID, processes=1, **wishes):
        Path("grid.yaml").write_text(text)
        grid = read_grid("grid.yaml")
        monkeypatch.setattr(runs, "command", lambda grid, cell, processes: [
            sys.executable, "program.py", str(cell.folder), json.dumps(own_values(cell.options)),
            wishes.get(cell.name, "")])
        return runs.run(grid, processes, canonical), grid

    return run


def starts(grid) -> list[int]:
    return [len(path.read_text()) if (path := cell.folder / "starts").exists() else 0 for cell in grid.cells]


def test_finished_runs_are_skipped_and_failed_ones_tried_again(study, capsys):
    outcome, grid = study(a_finetune_ratio1_seed1="1", b_finetune_ratio1_seed0="2")
    assert outcome.failed == {"a_finetune_ratio1_seed1": 1,
                              "b_finetune_ratio1_seed0": 2} and outcome.exit_code == 1
    out, err = capsys.readouterr()
    assert "4 runs, 0 finished, 0 begun, 4 new" in out and starts(grid) == [1, 1, 1, 1], "the rest goes on"
    assert (
        "a_finetune_ratio1_seed1 failed (exit code 1)" in err
        and "b_finetune_ratio1_seed0 failed (exit code 2)" in err
    )
    outcome, grid = study()
    assert (outcome.exit_code, starts(grid)) == (0, [1, 2, 2, 1])
    out, _ = capsys.readouterr()
    assert "2 finished, 2 begun, 0 new" in out and "run 2 of 4: a_finetune_ratio1_seed1 goes on" in out
    outcome, grid = study(text=GRID.replace("[0, 1]", "[0, 1, 2]"), processes=2)  # the study grows
    assert (outcome.exit_code, starts(grid)) == (0, [1, 2, 1, 2, 1, 1])
    assert "4 finished runs had another number of processes than 2" in capsys.readouterr().out


def test_a_run_of_other_options_stops_all_before_the_start(study):
    _, grid = study(GRID.replace("[0, 1]", "[0]"))
    with pytest.raises(InputError,
                       match=r"a_finetune_ratio1_seed0 holds a run of other options \(--epochs 50 -> 20\)"):
        study(GRID.replace("nb_classes: 3", "nb_classes: 3, epochs: 20"))
    assert starts(grid) == [1, 1] and not Path("output_dir/study/b_finetune_ratio1_seed1").exists()
    (grid.cells[0].folder / "run.json").write_text("{")
    with pytest.raises(InputError, match="run.json can't be read"):
        study()


def test_what_the_program_resolves_is_no_other_option(study):
    """What stands in run.json is filled in: sizes, names in the program's own spelling. None of it was asked
    for otherwise."""
    text = GRID.replace("model: timm, model_arch: test_vit}", "model: retfound_MAE}")
    _, grid = study(text)
    path = grid.cells[0].folder / "run.json"
    stored = json.loads(path.read_text())
    stored["options"] |= {"model": "RETFound_mae", "model_arch": "retfound_mae", "input_size": 224,
                          "decode": "scaled"}
    path.write_text(json.dumps(stored))
    outcome, grid = study(text)
    assert (outcome.exit_code, starts(grid)) == (0, [1, 1, 1, 1])
    for words in ({"norm": "IMAGENET"}, {"norm": "backbone", "layer_decay": 1.0, "crop_scale": [0.3, 1.0]}):
        # of before --norm had a meaning; of the table of defaults (util/options/starts.py)
        stored["options"] |= words
        path.write_text(json.dumps(stored))
        assert study(text)[0].exit_code == 0
    stored["options"]["model_arch"] = "retfound_dinov2"
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match="--model_arch retfound_dinov2 -> "):
        study(text.replace("model: retfound_MAE", "model: retfound_MAE, model_arch: retfound_mae"))


def test_a_run_that_ends_without_results_has_failed(study, capsys):
    outcome, _ = study(GRID.replace("[0, 1]", "[0]"), b_finetune_ratio1_seed0="0")
    assert outcome.failed == {"b_finetune_ratio1_seed0": 1}
    assert "ended without scoring test" in capsys.readouterr().out


def test_a_run_of_another_start_is_left_to_it(study, capsys):
    folder = Path("output_dir/study/a_finetune_ratio1_seed0")
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        outcome, grid = study()
    assert list(outcome.failed) == ["a_finetune_ratio1_seed0"] and starts(grid) == [0, 1, 1, 1]
    assert "is trained by another process" in capsys.readouterr().err
    assert study()[0].exit_code == 0 and starts(grid) == [1, 1, 1, 1]


CHILD = """\
import json, sys
sys.path.insert(0, {root!r})
from compare import canonical
from util.options.table import own_values
from util.study import runs
from util.study.grid_file import read_grid
grid = read_grid("grid.yaml")
runs.command = lambda grid, cell, processes: [sys.executable, "program.py", str(cell.folder),
                                               json.dumps(own_values(cell.options)), "wait"]
sys.exit(runs.run(grid, 1, canonical).exit_code)
"""


@pytest.mark.long
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 99), (signal.SIGUSR1, 99)])
def test_a_signal_stops_the_run_and_the_study(tmp_path, number, code):
    """Sent to the study's process alone, as a scheduler or kill does: the run gets it too, and no further one
    is begun."""
    process, folder = begin(tmp_path)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "the same command goes on" in err and "Traceback" not in err
    assert (folder / "interrupted").exists() == (number == signal.SIGINT)
    assert not (tmp_path / "output_dir/study/a_finetune_ratio1_seed1").exists()
    with open(folder / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody trains any more


@pytest.mark.long
def test_a_closed_terminal_stops_nothing_under_nohup(tmp_path):
    process, folder = begin(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None and (folder / "starts").read_text() == "x"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130


def test_a_study_killed_without_a_word_leaves_its_run_locked(tmp_path):
    process, folder = begin(tmp_path)
    process.kill()
    process.wait(timeout=60)
    with open(folder / ".lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child = next(int(entry.name) for entry in Path("/proc").glob("[0-9]*")
                 if str(folder.name) in cmdline(entry)
                 and os.path.realpath(entry / "cwd") == str(tmp_path))
    os.kill(child, signal.SIGKILL)


def cmdline(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_text()
    except OSError:
        return ""  # ended while it was looked at


def begin(tmp_path, **more):
    """A study whose first run waits for its end -> (the process, that run's folder)."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "grid.yaml").write_text(GRID)
    (tmp_path / "study.py").write_text(CHILD.format(root=str(Path(__file__).parents[2])))
    process = subprocess.Popen([sys.executable, "study.py"], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, **more)
    folder = tmp_path / "output_dir/study/a_finetune_ratio1_seed0"
    deadline = time.monotonic() + 60
    while not (folder / "starts").exists() or not (folder / "starts").read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process, folder


def test_several_processes_are_one_launcher(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID)
    grid = read_grid(str(tmp_path / "grid.yaml"))
    one, four = (runs.command(grid, grid.cells[0], number) for number in (1, 4))
    program = str(runs.ROOT / "main_finetune.py")
    assert one[:2] == [sys.executable, program] and one[-2:] == ["--resume", "auto"]
    assert (
        Path(four[1]).is_file() and four[1].endswith("torchrun.py") and four[four.index(program) :] == one[1:]
    )
    assert four[four.index("--nproc_per_node") + 1] == "4"
