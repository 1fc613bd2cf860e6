"""What import-linter can't see: modules at the top level are no packages to it, and it counts no files."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

OWN = {"util", "jobs", "models_vit", "engine_finetune", "main_finetune", "main_regression", "predict",
       "latent_feature",
       "compare"}
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


# ---- private names of other packages -----------------------------------------------------------------------

def is_private(name: str) -> bool:
    """Named tuples have public methods with an underscore."""
    return (
        name.startswith("_") and not name.startswith("__") and name not in ("_replace", "_asdict", "_fields")
    )


def private_names(file: Path) -> set[str]:
    """Names with a leading underscore that a file takes from a module or an object that is not the project's
    own: imported ones, attributes of anything but self and cls, and those that getattr, hasattr and setattr
    name."""
    tree, found, own = ast.parse(file.read_text(encoding="utf-8")), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)  # set here: an attribute of an object of ours
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if any(map(is_private, alias.name.split(".")))}
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] not in OWN:
            found |= {name for name in (*node.module.split("."), *(alias.name for alias in node.names))
                      if is_private(name)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name)
                    and node.value.id in ("self", "cls")) and node.attr not in own:
                found.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            found |= {name.value for name in node.args[1:2] if isinstance(name, ast.Constant)
                      and is_private(name.value)}
    return found


def production_files() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *ROOT.glob("jobs/**/*.py"), *ROOT.glob("util/**/*.py")])


def test_private_names_of_other_packages_are_those_that_the_document_lists():
    """The table of docs/design.md has a row a name: `name`, file, why there is no public way."""
    found = {f"`{name}` {file.relative_to(ROOT)}" for file in production_files()
             for name in private_names(file)}
    page = (ROOT
            / "docs/design.md").read_text(encoding="utf-8").split("## Private names")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()
            if line.startswith("| `")]
    listed = {f"{name} {file.strip('`')}" for name, files, why in rows for file in files.split(", ") if why}
    assert found == listed
    assert private_names(Path(__file__)) == set()


def test_the_scan_for_private_names_sees_them(tmp_path):
    file = tmp_path / "some.py"
    file.write_text("import a._b\nfrom c import _d\nfrom util.x import _own\nself._e, f._g, h.__class__\n"
                    "getattr(i, '_j', None)\ndef _k(): self._l = 1\nm._k, m._l, m._n\n")
    assert private_names(file) == {"a._b", "_d", "_g", "_j", "_n"}
