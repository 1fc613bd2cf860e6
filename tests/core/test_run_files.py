"""Rows of figures and logs: written whole, cut where a run resumes, never mixed with another program's."""

import json
import math

import pandas as pd
import pytest

from tests.metrics.test_classification import random_table
from util.core import disk, run_files
from util.core.errors import InputError
from util.metrics import classification
from util.metrics.classification import METRIC_COLUMNS as COLUMNS


def test_metrics_csv_has_one_header_and_exact_values(tmp_path):
    path = tmp_path / "metrics_val.csv"
    figures, _ = classification.classification_metrics(random_table(3))
    run_files.append_metrics_row(path, figures, COLUMNS, epoch=0)
    run_files.append_metrics_row(path, figures | {"kappa": math.nan}, COLUMNS, epoch=1)
    run_files.append_metrics_row(path, figures, COLUMNS)
    rows = pd.read_csv(path)
    assert tuple(rows.columns) == COLUMNS and len(rows) == 3
    assert rows["epoch"].tolist()[:2] == [0,
                                          1] and math.isnan(rows["epoch"][2]) and math.isnan(rows["kappa"][1])
    assert rows["n"][2] == figures["n"]
    cells = path.read_text().splitlines()[1].split(",")
    assert cells[0] == "0" and float(cells[1]) == figures["loss"] and float(cells[11]) == figures["score"]
    with pytest.raises(KeyError, match="accuracy"):
        run_files.append_metrics_row(path, {"loss": 0.1}, COLUMNS)


def test_metrics_csv_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "metrics_val.csv"
    figures = classification.classification_metrics(random_table(3))[0]
    for text in ("val_loss,accuracy\n0.5,0.9\n", "something else"):
        path.write_text(text)
        for action in (lambda: run_files.append_metrics_row(path, figures, COLUMNS, epoch=0),
                       lambda: run_files.cut_rows_after(path, 0, COLUMNS)):
            with pytest.raises(InputError, match="metrics_val.csv"):
                action()
        assert path.read_text() == text


def test_predictions_that_are_written_in_pieces_are_the_same(tmp_path):
    number = 2 * run_files.PIECE + 1
    paths = pd.Series([f'"{n}",\r\n \udce4' for n in range(number)], dtype=object)
    table = pd.DataFrame({"index": range(number), "path": paths, "patient": "", "x": [math.nan, 1e-300, 0.1 + 0.2] * (number // 3) + [1.0] * (number % 3)})
    rests = []
    for rows in (table, table[:run_files.PIECE], table[:0]):
        run_files.write_predictions(rows, tmp_path / "once.csv")
        run_files.write_predictions(rows, tmp_path / "pieces.csv", rests.append)
        assert (tmp_path / "once.csv").read_bytes() == (tmp_path / "pieces.csv").read_bytes()
    assert len(rests) == 3 + 1 + 1 and min(rests) > 0


def write_rows(path, epochs):
    figures, _ = classification.classification_metrics(random_table(3))
    for epoch in epochs:
        run_files.append_metrics_row(path, figures, COLUMNS, epoch)


def test_rows_after_the_epoch_are_cut_and_a_torn_line_goes(tmp_path):
    path = tmp_path / "metrics_val.csv"
    run_files.cut_rows_after(path, 3, COLUMNS)
    assert not path.exists()
    write_rows(path, [0, 1, 2, None, 10])
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole) + whole[1].rstrip("\n")[:-3])
    run_files.cut_rows_after(path, 2, COLUMNS)
    # the row without an epoch stays; 10 > 2 as numbers, not as text
    assert path.read_text() == "".join(whole[:5])
    run_files.cut_rows_after(path, -1, COLUMNS)
    assert path.read_text() == whole[0] + whole[4]
    path.write_text(whole[0] + "0,1,2\n")
    with pytest.raises(InputError, match="line 2: 3 cells"):
        run_files.cut_rows_after(path, 2, COLUMNS)


def test_appending_mends_a_torn_file(tmp_path):
    path, whole = tmp_path / "metrics_val.csv", tmp_path / "whole.csv"
    write_rows(whole, [0, 1])
    header, first, second = whole.read_text().splitlines(keepends=True)
    for torn in ("", header[:9], header.rstrip("\n"), header, header + first[:20]):
        path.write_text(torn)
        write_rows(path, [0, 1])
        assert path.read_text() == header + first + second


def test_log_lines_after_the_epoch_are_cut(tmp_path):
    path = tmp_path / "log.txt"
    run_files.cut_log_after(path, 3)
    assert not path.exists()
    lines = [json.dumps({"epoch": epoch, "note": "a\u2028b"}, ensure_ascii=False) + "\n"
             for epoch in (0, 1, 2, 10)]
    path.write_text("".join(lines) + '{"epoch": 3, "train_lo', encoding="utf-8")
    run_files.cut_log_after(path, 2)
    assert path.read_text(encoding="utf-8") == "".join(lines[:3])
    for bad in ("no json\n", "[1]\n", '{"epoch": "two"}\n'):
        path.write_text(lines[0] + bad + lines[1], encoding="utf-8")
        with pytest.raises(InputError, match="log.txt, line 2"):
            run_files.cut_log_after(path, 2)


def test_metrics_json_is_strict_json_with_null_for_undefined(tmp_path):
    path = tmp_path / "metrics_val.json"
    run_files.write_metrics_json(path, {"f1": 0.1 + 0.2, "kappa": math.nan, "n": 12})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "f1": {"value": 0.1 + 0.2, "lower": None, "upper": None},
        "kappa": {"value": None, "lower": None, "upper": None},
        "n": {"value": 12, "lower": None, "upper": None}}


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    run_files.write_metrics_json(path, {"f1": 0.5})
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        run_files.write_metrics_json(path, {"f1": 0.6})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
