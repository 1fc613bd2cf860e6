"""The benchmarks run and say what they measured; how fast is asserted nowhere. The table of docs/speed.md is
a run's own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.timing import Measure, Row, as_text, compare

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_measure_runs(tmp_path):
    run = subprocess.run([sys.executable, "benchmarks/speed.py", "--quick", "--json", tmp_path / "rows.json"],
                         cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(set(row) == {"what", "plain", "ours", "ratio", "goal"} for row in rows)
    for topic in (
        "JPEG 2048x2048, train",
        "image cache at 512, eval",
        "probe of 50 epochs",
        "score on val, digits",
        "training step, ViT-S/14",
        "evaluation, ViT-S/14",
        "start-up",
        "--help",
        "a CSV of",
        "a folder of",
        "channels last",
        "share of the cores",
        "the whole program",
        "until the first batch of evaluation",
        "until the first batch of training",
        "500 predictions",
        "after a checkpoint",
    ):
        assert any(topic in row["what"] for row in rows), topic
        assert f"| {topic}" in run.stdout or topic in run.stdout
    for row in rows:
        assert row["ours"] > 0 and (row["plain"] is None) == (row["ratio"] is None)
    differences = [row["ours"] for row in rows if "crops against" in row["what"]]
    assert len(differences) == 2 and max(differences) <= 2  # grey levels: no time, so it holds on any machine
    scores = {row["what"]: row["ratio"] for row in rows if "score on val" in row["what"]}
    assert len(scores) == 2 and min(scores.values()) >= 1


def test_pairs_take_turns_and_parts_stand_for_the_whole():
    calls = []
    row = compare("what", lambda: calls.append("plain"), lambda: calls.append("ours"), 3,
                  measure=Measure(of_plain=10))
    assert calls == ["plain", "ours"] * 4
    assert row.spread[0] <= row.ratio <= row.spread[1] and row.plain > 0


def test_the_table_shows_what_was_measured():
    text = as_text([Row("a", 3000.0, 2.0, "ms", 1500.0, (1.0, 2000.0), ">= 3x", "all"),
                    Row("b", None, 0.5, "grey levels")])
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]] == [
        ["a", "3,000 ms", "2 ms", "1500.00x", "1.00-2000.00", ">= 3x", "all"],
        ["b", "", "0.5 grey levels", "", "", "", ""]]


def speed_table(page):
    """Cells of the table under the heading on speed: the one that has a column of ratios."""
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \|$", text, re.M)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return [row for row in cells if len(row) == 5 and re.match(r"[\d.]+×", row[3])]


def number_of(cell):
    found = re.search(r"[\d.,]+", cell)
    return float(found[0].replace(",", "")) if found else None


def test_the_pages_table_is_that_of_the_stored_run():
    stored = {row["what"]: row for row in json.loads((ROOT / "docs/speed.json").read_text())}
    rows = speed_table("docs/speed.md")
    assert len(rows) >= 15
    for what, plain, ours, ratio, _ in rows:
        for cell, name in ((plain, "plain"), (ours, "ours"), (ratio, "ratio")):
            assert number_of(cell) == pytest.approx(stored[what][name], rel=0.06), (what, name)
    chinese = speed_table("docs/zh/speed.md")
    assert [row[1:4] for row in chinese] == [row[1:4] for row in rows]


@pytest.mark.parametrize("words", [["coverage.py", "--quick", "--json", "rows.json"],
                                   ["intervals.py", "--quick"]])
def test_intervals_are_measured(tmp_path, words):
    run = subprocess.run([sys.executable, ROOT / "benchmarks" / words[0], *words[1:]], cwd=tmp_path,
                         capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    if words[0] == "coverage.py":
        rows = json.loads((tmp_path / "rows.json").read_text())
        assert {"roc_auc", "f1", "brier", "calibration_slope"} <= {row["figure"] for row in rows}
        assert all(0 <= row["coverage"] <= 1 for row in rows)
