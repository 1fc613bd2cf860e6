"""The table as a page for users: docs/what_can_go_wrong.md."""

from collections import Counter
from pathlib import Path

from tests.bad_input.faults import FAULTS
from tests.bad_input.faults import KIND as FAULTS_KIND
from tests.bad_input.table import ACCEPTED, CODES, FAILED, REFUSED, SKIPPED, Case, Row, all_cases

PAGE = Path(__file__).parent.parent.parent / "docs/what_can_go_wrong.md"
MEANINGS = {
    REFUSED: "one line that says what, where and how to mend it; nothing was trained",
    SKIPPED: "left out as asked, counted and listed",
    ACCEPTED: "it works",
    FAILED: "one line; it shows only while the program runs",
}
INTRODUCTION = """\
# What can go wrong

Every row is tried by the tests ({cases} cases: {counts}), and this page is made
from the same table by `python -m tests.bad_input --write`. `…` stands for what differs from case to case; the last column
says in how many ways a row is tried. Code in a hostile file is never run: the cases would leave a mark if it were.
"""


def rows_of(cases: list[Case]) -> dict[Row, int]:
    """The rows in order, with the number of their cases."""
    return dict(Counter(case.row for case in cases))


def counts_text(cases: list[Case]) -> str:
    """`N refused, N skipped, N accepted, N failed`."""
    counts = Counter(case.row.outcome for case in cases)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in CODES)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _said(row: Row) -> str:
    said = row.says.strip("… ")
    mark = "``" if "`" in row.says else "`"
    parts = ([f"{mark}{' ' * (mark != '`')}{row.says}{' ' * (mark != '`')}{mark}"]
             if len(said) > 1 else []) + (
        [row.does] if row.does else []
    )
    return "; ".join(parts) or "one line that names the flag, file or value"


def page() -> str:
    cases = all_cases()
    lines = [
        INTRODUCTION.format(cases=len(cases), counts=counts_text(cases)),
        "| Outcome | Exit code | What it means |",
        "| --- | --- | --- |",
        *(f"| {outcome} | {code} | {MEANINGS[outcome]} |" for outcome, code in CODES.items()),
        "",
    ]
    rows = rows_of(cases)
    for kind in dict.fromkeys(row.kind for row in rows):
        lines += [
            f"## {kind}",
            "",
            "| What happens | What the program says or does | What to do | Outcome | Cases |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {_cell(row.what)} | {_cell(_said(row))} | {_cell(row.remedy)} | {row.outcome} | {number} |"
            for row, number in rows.items()
            if row.kind == kind
        ]
        lines.append("")
    lines += [
        f"## {FAULTS_KIND}",
        "",
        "| What happens | What the program says or does | What to do |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {_cell(fault.what)} | {_cell(fault.says)} | {_cell(fault.remedy)} |" for fault in FAULTS]
    return "\n".join(lines) + "\n"
