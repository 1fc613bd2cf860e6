"""What import-linter can't see: modules at the top level are no packages to it, and it counts no files."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

BELOW_JOBS = ("models_vit.py", "engine_finetune.py")
ABOVE = {"jobs", "main_finetune", "main_regression", "predict", "latent_feature", "compare"}
MOST_FILES = 14


def imported(file: Path) -> set[str]:
    """The first words of what a file imports, in functions, too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("name", BELOW_JOBS)
def test_backbones_and_loops_know_no_job(name):
    assert not imported(ROOT / name) & ABOVE


def packages() -> list[Path]:
    return sorted(path.parent for path in (ROOT / "util").glob("*/**/__init__.py"))


@pytest.mark.parametrize("package", packages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_is_small_and_says_its_job(package):
    said = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    assert said and len(said.split(". ")) >= 1
    assert len([path for path in package.glob("*.py") if not path.name.startswith("__")]) <= MOST_FILES
