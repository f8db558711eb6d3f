"""The notebook about published weights, on tiny ones, and stored without outputs."""

import json
from pathlib import Path

import command
import pytest
import tiny_weights

NOTEBOOK = Path(__file__).parents[2] / "colabs" / "zero_shot.ipynb"


def test_outputs_are_stripped():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not c.get("outputs") and not c.get("execution_count") for c in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbformat  # here: the environment of the parity tests lacks them
    from nbclient import NotebookClient

    tiny_weights.write("ViT-B-32-quickgelu", "hf", str(tmp_path / "weights"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = command.environment(SOURCE=str(tmp_path / "weights"), PICTURES="")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    printed = "".join(
        o.get("text", "") for c in notebook.cells for o in c.get("outputs", []) if "text" in o
    )
    assert "4 pictures" in printed and "open_clip_model.safetensors" in printed
    assert float(printed.split()[-1]) < 1e-6
