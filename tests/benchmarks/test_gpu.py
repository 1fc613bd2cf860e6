"""The GPU check runs, small and on a CPU; its runner ends and records what fails or lasts."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_setting, gpu_table, gpu_whole
from benchmarks.gpu import Stage
from benchmarks.gpu_setting import Setting, read
from tests import forks

ROOT = Path(__file__).parents[2]
STAGES = "tests.benchmarks.gpu_stages"


@pytest.fixture
def setting(tmp_path):
    (tmp_path / "work").mkdir()
    return Setting(tmp_path, tmp_path / "work", "cpu", True, "here")


def rows_of(folder, what=None):
    return [row for row in read(folder) if what is None or row["what"] == what]


# ---- the runner --------------------------------------------------------------------------------------------

def stage(name, limit=60.0, needs=0.0):
    return Stage(name, STAGES, 0, needs, limit)


def launch(monkeypatch, tmp_path, *stages, budget="100"):
    monkeypatch.setattr(gpu, "STAGES", stages)
    words = ["--output", str(tmp_path / "out"), "--work", str(tmp_path / "scratch"), "--tiny", "--budget", budget]
    code = gpu.exit_code_of(gpu.main, words)
    return code, read(tmp_path / "out")


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_failed_and_late_stages_are_recorded_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    code, rows = launch(monkeypatch, tmp_path, stage("fine"), stage("fails"), stage("has_a_bug"),
                        stage("lasts", limit=0.6), stage("wrong"), stage("fine"))
    assert code == 1
    assert [row["stage"] for row in rows] == ["fine", "fine", "fails", "fails", "has_a_bug", "lasts", "wrong",
                                              "wrong", "fine", "fine"]
    ends = {row["stage"]: row for row in rows if row["what"] == "stage"}
    assert ends["fine"]["ok"] and ends["wrong"]["ok"] and rows[0] == {
        "stage": "fine", "what": "a check", "ok": True, "number": 1.235}
    assert not ends["fails"]["ok"] and ends["fails"]["code"] == 1
    assert ends["fails"]["last_lines"] == ["error: the loss is not finite"]
    assert ends["has_a_bug"]["last_lines"][-1] == "ZeroDivisionError: seven by nothing"
    late = ends["lasts"]
    assert not late["ok"] and late["code"] is None and late["last_lines"][0] == "ended after its limit of 3.0 s"
    child = int((tmp_path / "out/child").read_text())
    until = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(child)
    said = capsys.readouterr().out
    assert "9 checks, 4 failed" in said and "wrong: a check that fails" in said
    assert "ZeroDivisionError" in (tmp_path / "out/failures.txt").read_text()
    assert list((tmp_path / "scratch").iterdir()) == []  # what was made on the way is gone


def test_what_does_not_fit_into_the_budget_is_skipped_and_said(tmp_path, monkeypatch):
    code, rows = launch(monkeypatch, tmp_path, stage("fine"), stage("wrong", needs=90.0), budget="80")
    assert code == 0
    assert rows[-1]["stage"] == "wrong" and rows[-1]["what"] == "skipped" and "it needs 90" in rows[-1]["why"]
    code, again = launch(monkeypatch, tmp_path, stage("fine"))
    assert code == 0 and again[:len(rows)] == rows and len(again) == len(rows) + 2  # added to, not replaced


def test_a_machine_without_a_gpu_is_one_line(tmp_path, monkeypatch, capsys):
    code, rows = launch(monkeypatch, tmp_path, stage("unusable"), stage("fine"))
    assert code == 2 and rows == [] and capsys.readouterr().err == "error: no cuda device here\n"


def test_stages_of_two_runs():
    both, first, second = gpu.chosen(None, None), gpu.chosen(1, None), gpu.chosen(2, None)
    assert both[0] == first[0] == second[0] and both[0].name == "machine"
    assert sorted(stage.name for stage in first[1:] + second[1:]) == sorted(stage.name for stage in both[1:])
    assert sum(stage.needs for stage in first) < 480 and sum(stage.needs for stage in second) < 180
    assert [stage.name for stage in gpu.chosen(None, ["steps"])] == ["machine", "steps"]
    for stage in both:
        module = __import__(stage.module, fromlist=[stage.name])
        assert callable(getattr(module, stage.name))


@pytest.mark.parametrize("words", [["--budget", "0"], ["--budget", "soon"], ["--part", "3"], ["--only", "no"]])
def test_wrong_words_are_two(words, capsys):
    with pytest.raises(SystemExit) as end:
        gpu.main(words)
    assert end.value.code == 2 and words[0] in capsys.readouterr().err


def test_variables_are_the_flags_defaults(monkeypatch, tmp_path):
    for name, value in (("OUT", tmp_path / "o"), ("WORK", tmp_path / "w"), ("BUDGET", "77.5")):
        monkeypatch.setenv(name, str(value))
    options = gpu.make_parser().parse_args([])
    assert (options.output, options.work, options.budget) == (str(tmp_path / "o"), str(tmp_path / "w"), 77.5)


# ---- the stages, small -------------------------------------------------------------------------------------

def test_checks_hold_on_a_cpu(setting):
    from benchmarks import gpu_checks

    for check in (gpu_checks.outputs, gpu_checks.not_finite, gpu_checks.groups, gpu_checks.heat_maps):
        check(setting)
    rows = rows_of(setting.output)
    assert len(rows) >= 23 and all(row["ok"] for row in rows)
    assert {row["what"] for row in rows} >= {
        "RETFound mae ViT-L/16, bf16", "RETFound dinov2 ViT-L/14, fp32", "DINOv3 ViT-L/16, bf16",
        "DINOv2 ViT-S/14, bf16", "EfficientNet-B4, bf16", "fp16", "DistributedDataParallel, fp32", "FSDP2, bf16"}
    inexact = [row["outputs"] for row in rows if row["what"].endswith(", bf16") and "outputs" in row]
    assert len(inexact) == 6 and min(inexact) > 1e-3  # it does compare bf16 with fp32


def test_a_mistake_is_found(setting):
    """A gradient that lacks, is twice as large, or is another tensor's; logits that are another's."""
    from benchmarks import gpu_checks

    gradients = {"a": torch.randn(100), "b": torch.randn(50), "small": torch.randn(9) * 1e-5}
    right = torch.randn(4, 5), gradients
    for logits, found in ((right[0], gradients | {"b": 2 * gradients["b"]}),
                          (right[0], {"a": gradients["a"], "b": gradients["b"]}),
                          (right[0], gradients | {"a": gradients["a"].flip(0)}), (right[0] * 1.1, gradients),
                          (right[0], gradients | {"a": gradients["a"] * torch.nan})):
        gpu_checks.compare(setting, "it", "bf16", (logits, found), right)
    gpu_checks.compare(setting, "it", "fp32", (right[0], gradients | {"small": torch.zeros(9)}), right)
    assert [row["ok"] for row in rows_of(setting.output, "it")] == [False] * 5 + [True]


def test_weights_that_a_bad_step_has_changed_are_found(setting, monkeypatch):
    """Where the optimizer does not heed the mark on the device."""
    from benchmarks import gpu_checks, stepping

    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, fused: stepping.Unfused(groups, lr=lr))
    gpu_checks.not_finite(setting)
    assert [row["weights_stay"] for row in rows_of(setting.output)] == [False, False, True]  # fp16: read before


def test_speed_is_measured(setting, monkeypatch):
    from benchmarks import gpu_speed

    monkeypatch.setattr(gpu_speed, "product_rate", lambda dtype, device: 1e12)
    for measure in (gpu_speed.machine, gpu_speed.steps, gpu_speed.beside_timm, gpu_speed.big):
        measure(setting)
    rows = rows_of(setting.output)
    assert all(row.get("ok", True) for row in rows)
    machine, step = rows[0], next(row for row in rows if "ViT-L/14, batch 2" in row["what"])
    assert machine["what"] == "machine" and {"torch", "timm", "cores"} <= machine.keys() and machine["tiny"]
    # an image's products at 28 pixels: 5 tokens through one block of 12.6 million weights, and the patches
    assert step["tflops"] * 1e12 / step["images_s"] == pytest.approx(6 * 5 * 12.6e6, rel=0.1)
    assert step["of_peak"] == pytest.approx(step["tflops"], rel=1e-3)
    beside = next(row for row in rows if "timm in a plain loop" in row["what"])
    assert beside["ratio"] == pytest.approx(beside["plain_ms"] / beside["ours_ms"], rel=0.01)
    adapters = next(row for row in rows if row["what"].endswith("LoRA") and "images_s" in row)
    assert "of_peak" not in adapters and any(row["what"].endswith(": LoRA") for row in rows)
    text = gpu_table.as_text(rows)
    assert "small models" in text.splitlines()[0] and text.count("\n| ") == len(rows) + 2


def test_operations_are_those_of_plain_attention():
    """36.63 GFLOP a training image of ViT-S/14 at 224, attention's products included."""
    from benchmarks.gpu_speed import operations_an_image

    assert operations_an_image(gpu_setting.SMALL, False) == pytest.approx(36.63e9, rel=2e-3)


def test_memory_that_does_not_do_is_said(setting, monkeypatch):
    from benchmarks import gpu_speed

    def full(*words, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_speed, "ours", full)
    monkeypatch.setattr(gpu_speed, "product_rate", lambda dtype, device: 1e12)
    gpu_speed.steps(setting)
    gpu_speed.beside_timm(setting)
    assert [row["skipped"] for row in rows_of(setting.output)] == [gpu_speed.NO_MEMORY] * 2


def test_the_whole_program_is_watched(setting, monkeypatch):
    """By a fork, and with a GPU's utilisation as nvidia-smi prints it."""
    monkeypatch.setattr(gpu_setting, "start", forks.run)
    monkeypatch.setattr(gpu_whole, "EVERY_S", 0.005)
    tool = setting.work / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 75\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    gpu_whole.whole(setting)
    rows = {row["what"]: row for row in rows_of(setting.output)}
    assert rows["main_finetune.py, as documented"]["ok"]
    for number in (0, 1):
        epoch = rows[f"as documented, epoch {number}"]
        assert epoch["images_s"] == pytest.approx(30 / epoch["seconds"], rel=1e-2)
        assert 0 < epoch["first_batch_s"] < epoch["seconds"] and 0 < epoch["waited_for_loader"] < 1
        assert epoch["gpu_busy"] == 0.75
    assert rows["as documented, checkpoints"]["number"] == 2
    assert not (setting.work / "output_dir").exists()


def test_a_program_that_fails_is_recorded(setting, monkeypatch):
    monkeypatch.setattr(gpu_setting, "start", forks.run)
    words = ["main_finetune.py", "--model", "nobody", "--data_path", "nowhere"]
    setting.program("wrong", words)
    setting.program("as expected", words, 2, "--model nobody is unknown")
    wrong, expected = rows_of(setting.output)
    assert not wrong["ok"] and wrong["code"] == 2 and wrong["last_lines"][-1].startswith("error: ")
    assert expected["ok"] and "nobody" in (setting.output / "failures.txt").read_text()


def test_programs_find_the_packages_that_this_python_was_given(setting, monkeypatch):
    """PYTHONPATH names a folder of packages where they were installed beside the interpreter's own."""
    for name, text in (("folder/only_here.py", ""), ("program.py", "import only_here, models_vit")):
        path = setting.work / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(setting.work / "folder"))
    setting.program("package", [setting.work / "program.py"])
    assert rows_of(setting.output)[0]["ok"]


def test_a_line_that_was_cut_is_left_out(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"stage": "a", "what": "b"}\n{"stage": "a", "wha')
    assert read(tmp_path) == [{"stage": "a", "what": "b"}]


@pytest.mark.slow
def test_all_of_it_small(tmp_path):
    """As it is started, with torchrun, compiling and a run that SIGTERM ends."""
    words = [sys.executable, "benchmarks/gpu.py", "--output", tmp_path]
    run = subprocess.run([*words, "--tiny"], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = rows_of(tmp_path)
    assert [row["stage"] for row in rows if row["what"] == "stage"] == [stage.name for stage in gpu.STAGES]
    assert rows[0]["what"] == "machine" and not [row for row in rows if row.get("ok") is False]
    text = json.dumps(rows)
    for what in ("ended by SIGTERM", "weights are the same", "torchrun, 2 processes, fsdp", "LoRA",
                 "predictions in fp32 are the CPU's", "outputs, compiled", "a CPU's memory is not tried"):
        assert what in text, what
    table = subprocess.run([*words, "--table"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert table.returncode == 0 and len(re.findall(r"^\| ", table.stdout, re.M)) > 40
