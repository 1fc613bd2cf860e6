"""docs/what_can_go_wrong.md is the table of tests/bad_input, and what it promises is proven by a test."""

import ast
from pathlib import Path

import pytest

from tests.bad_input.faults import FAULTS
from tests.bad_input.page import PAGE, page, rows_of
from tests.bad_input.table import REFUSED, all_cases

TESTS = Path(__file__).parents[1]


def test_the_page_is_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.bad_input --write"


def test_a_reader_can_use_it():
    """Some ninety rows, each with something to do; a refusal says more than that it refuses."""
    rows = rows_of(all_cases())
    assert 40 <= len(rows) <= 110
    assert all(row.what and row.remedy for row in rows)
    assert all(row.does or row.says for row in rows if row.outcome != REFUSED)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.test)
def test_what_is_said_of_a_fault_is_proven(fault):
    file, _, name = fault.test.partition("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, fault.test


def test_the_table_is_large_and_partly_started_for_real():
    cases = all_cases()
    assert len(cases) >= 300 and sum(case.real for case in cases) >= 10
