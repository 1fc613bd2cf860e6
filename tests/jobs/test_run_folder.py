"""The folder of a run: each epoch once, nothing of an earlier run lost."""

import json

import pytest

from jobs.run_folder import RunFolder, commit, versions
from util.core.errors import InputError, RunError


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(str(tmp_path / "out"), str(tmp_path / "logs"), "task")
    run.make()
    return run


def test_log_is_cut_to_the_checkpoint(folder):
    for epoch in range(4):
        folder.add_log({"epoch": epoch, "train_loss": float("nan") if epoch == 1 else 0.5})
    folder.cut_after(1)
    assert [row["epoch"] for row in folder.log_rows()] == [0, 1]
    assert json.loads(folder.file("log.txt").read_text().splitlines()[1])["train_loss"] is None


def test_earlier_runs_are_numbered_and_kept(folder):
    assert folder.put_aside() == []
    for number in (1, 2):
        folder.file("log.txt").write_text(f"run {number}\n")
        folder.file("notes of mine.txt").write_text("stays")
        assert f"earlier-{number}" in folder.put_aside()[0]
    assert (folder.path / "earlier-2" / "log.txt").read_text() == "run 2\n"
    assert (folder.path / "earlier-1" / "log.txt").read_text() == "run 1\n"
    assert folder.file("notes of mine.txt").exists()


def test_a_run_that_goes_on_elsewhere_takes_its_past_along(folder, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "log.txt").write_text('{"epoch": 0}\n')
    (other / "checkpoint-best.pth").write_bytes(b"best")
    folder.file("log.txt").write_text('{"epoch": 7}\n')
    folder.adopt(other)
    assert folder.log_rows() == [{"epoch": 0}] and folder.file("checkpoint-best.pth").read_bytes() == b"best"
    assert (folder.path / "earlier-1" / "log.txt").exists() and (other / "log.txt").exists()
    folder.adopt(folder.path)
    assert folder.log_rows() == [{"epoch": 0}]


def test_a_disk_that_can_not_be_written_is_one_line(folder, monkeypatch):
    import jobs.run_folder as results

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        folder.add_log({"epoch": 0})


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="name another folder"):
        RunFolder(str(tmp_path / "file"), str(tmp_path), "x").make()


def test_versions_and_commit():
    assert {"python", "torch", "timm", "numpy"} <= set(versions())
    assert isinstance(commit(), str)
