"""The notebook runs from top to bottom with small settings, and is stored without outputs."""

import json
from pathlib import Path

import command
import pytest

NOTEBOOK = Path(__file__).parents[2] / "colabs" / "quickstart.ipynb"


def test_outputs_are_stripped():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not c.get("outputs") and not c.get("execution_count") for c in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbformat  # here: the environment of the parity tests lacks them
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for name, value in command.environment(STEPS="30", FOLDER="", WORKDIR="run").items():
        monkeypatch.setenv(name, value)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    printed = "".join(
        o.get("text", "") for c in notebook.cells for o in c.get("outputs", []) if "text" in o
    )
    assert "red circle" in printed and "(1, 192) (2, 192)" in printed
    assert (tmp_path / "run" / "report.html").exists()
