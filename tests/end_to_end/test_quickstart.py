"""examples/quickstart.ipynb runs from start to end, as a reader would run it."""

import shutil

import nbformat
from nbclient import NotebookClient

from tests.clone import CLONE

NOTEBOOK = CLONE / "examples" / "quickstart.ipynb"


def test_quickstart_runs_from_start_to_end(tmp_path):
    place = tmp_path / "project"
    for name in ("util", "jobs", "examples"):
        shutil.copytree(CLONE / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for program in CLONE.glob("*.py"):
        shutil.copy(program, place)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs")
               for cell in notebook.cells), "outputs are made by running it, not stored"
    NotebookClient(notebook, timeout=600, kernel_name="python3",
                   resources={"metadata": {"path": place / "examples"}}).execute()
    shown = "\n".join(output.get("text", "") + "".join(output.get("data", {}).get("text/html", ""))
                      for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "error" not in shown and "Traceback" not in shown, shown  # a failed command of a cell ends no cell
    assert "best epoch" in shown and "DeLong" in shown and "predicted_class" in shown and "pooled" in shown
    assert (place / "quickstart" / "results" / "demo" / "report.html").exists()
