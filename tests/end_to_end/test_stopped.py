"""Asked to end inside an epoch, in an evaluation, or after a number of steps: where the run stands, and how
it goes on."""

import json
import os
import signal
import threading

import pandas as pd
import pytest
import torch

import engine_finetune
from benchmarks.chaos import differences
from jobs import train
from jobs.tasks import classification

EPOCH = 6  # steps: 44 images, 8 a step at most
OPTIONS = ("--epochs", 3, "--mixup", 0.4, "--drop_path", 0.2)


@pytest.fixture
def stop(monkeypatch):
    """stop(n, what): a signal comes in the n-th call of a function of the engine, or of the job's loop."""
    def at(number, name):
        module = engine_finetune if hasattr(engine_finetune, name) else train
        calls, real = [], getattr(module, name)

        def counting(*arguments):
            calls.append(name)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*arguments)

        monkeypatch.setattr(module, name, counting)

    return at


def last(folder):
    return torch.load(folder / "checkpoint-last.pth", weights_only=True)


@pytest.mark.parametrize(
    "place, calls, says, progress",
    [
        ("_optimizer_step", 2, "epoch 0 stands at step 2 of 6 in the last checkpoint", (0, 2)),
        ("_optimizer_step", EPOCH + 6, "epoch 1 stands at step 6 of 6", (1, 6)),
        # an evaluation's first batch is a piece of its own
        ("_rows", 3, "epoch 1 is trained and in the last checkpoint, not yet evaluated", (1, 6)),
        ("_write_rows", 3, "all epochs are trained, the test split is not scored yet", (3, 0)),
    ],
)
def test_it_ends_at_once_and_goes_on_with_the_same_bits(
    start, tmp_path, stop, monkeypatch, place, calls, says, progress
):
    assert start("--task", "whole", *OPTIONS)[0] == 0
    stop(calls, place)
    code, out, err = start("--task", "cut", *OPTIONS)
    assert code == 99 and err.startswith(f"stopped by SIGTERM: {says}") and err.count("\n") == 1, err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    kept = last(tmp_path / "output_dir/cut")
    assert (kept["progress"]["epoch"],
            kept["progress"]["steps"]) == progress and kept["epoch"] == progress[0] - 1
    code, out, err = start("--task", "cut", *OPTIONS, "--resume", "same")
    assert code == 0, err
    inside = f", step {progress[1]} of 6," if progress[1] else ""
    assert f"resumed at epoch {progress[0]}{inside} from" in out
    assert differences(tmp_path / "output_dir/whole", tmp_path / "output_dir/cut") == []


def test_checkpoints_inside_an_epoch(start, tmp_path, monkeypatch):
    """--save_every_steps: killed without a word after any step, it goes on at the last one that was kept."""
    assert start("--task", "whole", *OPTIONS)[0] == 0
    steps, real = [], engine_finetune._optimizer_step

    class Killed(BaseException):
        pass

    def dies(trainer):
        steps.append(trainer)
        if len(steps) == EPOCH + 6:
            raise Killed
        real(trainer)

    monkeypatch.setattr(engine_finetune, "_optimizer_step", dies)
    with pytest.raises(Killed):
        start("--task", "cut", *OPTIONS, "--save_every_steps", 2)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert last(tmp_path / "output_dir/cut")["progress"]["steps"] == 4
    code, out, err = start("--task", "cut", *OPTIONS, "--resume", "same")
    assert code == 0 and "resumed at epoch 1, step 4 of 6," in out, err
    assert "differs from" not in out  # how often it is kept belongs to the start
    assert differences(tmp_path / "output_dir/whole", tmp_path / "output_dir/cut") == []


def test_another_effective_batch_goes_on_at_the_same_place(start, tmp_path, stop, monkeypatch):
    stop(3, "_optimizer_step")
    assert start("--task", "cut", *OPTIONS)[0] == 99
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, out, err = start("--task", "cut", *OPTIONS, "--resume", "auto", "--batch_size", 5)
    assert code == 0, err  # 22 of 44 images are seen, 20 of them by 4 of 9 steps
    assert "epoch 0 goes on at step 4: 2 of its images are seen once more" in out
    assert "resumed at epoch 0, step 4 of 9," in out and "effective batch: 8 before, 5 from here on" in out
    rows = [json.loads(line) for line in (tmp_path / "output_dir/cut/log.txt").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2] and 0.3 < rows[0]["train_loss"] < 3


def test_without_checkpoints_it_ends_at_once(start, tmp_path, stop):
    stop(2, "_optimizer_step")
    code, out, err = start("--task", "none", *OPTIONS, "--no_savemodel", "--save_every_steps", 2)
    assert code == 99 and err.startswith("stopped by SIGTERM: what was saved stays")
    assert not list((tmp_path
                     / "output_dir/none").glob("checkpoint-*")) and "--save_every_steps does nothing" in out


def test_killed_between_the_test_scores_and_the_report(start, tmp_path, monkeypatch):
    from jobs import results

    def dies(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "write_report", dies)
    assert start("--task", "cut", *OPTIONS)[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, out, err = start("--task", "cut", *OPTIONS, "--resume", "same")
    assert code == 0 and "resumed at epoch 3" in out, err
    assert (tmp_path / "output_dir/cut/report.html").exists()
    assert len(pd.read_csv(tmp_path / "output_dir/cut/metrics_test.csv")) == 1
    code, out, err = start("--task", "cut", *OPTIONS, "--resume", "same")
    assert code == 0 and "this run is complete" in out


def test_vals_intervals_are_computed_while_the_test_images_are_read(start, tmp_path, monkeypatch):
    """On a GPU the one would keep the other waiting. Asked to end meanwhile, it ends at once, and goes on."""
    evaluated, intervals, ends = threading.Event(), classification.classification_intervals, []
    evaluate = train.evaluate

    def evaluating(job, split, *rest):
        if split == "test":
            evaluated.set()
        return evaluate(job, split, *rest)

    def while_evaluated(table, *rest, **options):
        if table["split"].eq("val").all():
            assert evaluated.wait(60) and threading.current_thread() is not threading.main_thread()
            if ends:
                os.kill(os.getpid(), ends.pop())
        return intervals(table, *rest, **options)

    monkeypatch.setattr(train, "evaluate", evaluating)
    monkeypatch.setattr(classification, "classification_intervals", while_evaluated)
    for task, number, code, says in (("plain", None, 0, ""), ("term", signal.SIGTERM, 99, "stopped by SIGTERM"),
                                     ("ctrl_c", signal.SIGINT, 130, "interrupted")):
        evaluated.clear()
        ends[:] = [] if number is None else [number]
        ended, _, err = start("--task", task)
        assert (ended, err.count("\n")) == (code, int(bool(says))) and err.startswith(says), err
        folder = tmp_path / "output_dir" / task
        assert (folder / "metrics_test.json").exists() is (code == 0)
        assert start("--task", task, "--resume", "same")[0] == 0
        for split in ("val", "test"):
            name = f"metrics_{split}.json"
            assert (folder / name).read_bytes() == (tmp_path / "output_dir/plain" / name).read_bytes()
