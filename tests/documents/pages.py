"""The pages for users, and how their headings, tables and code are read."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# what is only there in English: the layout, and what is made from tests/bad_input
CHINESE = {"README.md": "README_zh.md"} | {
    f"docs/{path.name}": f"docs/zh/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))
    if path.name not in ("design.md", "what_can_go_wrong.md")}
PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(title: str, text: str) -> str:
    """What stands under a heading of any level, up to the next of the same or a higher one."""
    start = re.search(rf"^(#+) {re.escape(title)}$", text, re.M)
    assert start, f"no heading {title!r}"
    end = re.search(rf"^#{{1,{len(start[1])}}} ", text[start.end():], re.M)
    return text[start.end():][:end.start() if end else None]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def headings(text: str) -> list[tuple[str, str]]:
    """(number signs, title) of each heading."""
    return re.findall(r"^(#+) (.+)$", without_blocks(text), re.M)


def table_rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, without their headers and rules."""
    lines = text.split("\n")
    rules = [number for number, line in enumerate(lines) if re.fullmatch(r"\|( ?-+ ?\|)+", line)]
    headers = {number - 1 for number in rules}
    return [[cell.strip() for cell in line.strip("|").split("|")] for number, line in enumerate(lines)
            if line.startswith("|") and number not in headers.union(rules)]


def bare(cell: str) -> str:
    return cell.strip("`")


def shell_lines(text: str) -> list[str]:
    """The lines of all fenced shell blocks, those that are continued joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").split("\n") if line.strip()]


def inline_commands(text: str) -> list[str]:
    """Commands in the text: `python …`, `sh …`, `pip …`, with variables before them or not."""
    return re.findall(r"`((?:[A-Z_]+=\S* )*(?:python|sh|pip|torchrun) [^`]+)`", without_blocks(text))
