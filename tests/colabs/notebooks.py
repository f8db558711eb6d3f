"""What the tests of the notebooks share: outputs are stripped, and the cells run from the top."""

import json
from pathlib import Path

import command

FOLDER = Path(__file__).parents[2] / "colabs"


def stripped(name):
    """Whether a notebook is stored without outputs."""
    cells = json.loads((FOLDER / name).read_text())["cells"]
    return all(not c.get("outputs") and not c.get("execution_count") for c in cells)


def run(name, folder, monkeypatch, **settings):
    """What its cells print, run in `folder` with these variables."""
    import nbformat  # here: the environment of the parity tests lacks them
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / name, as_version=4)
    for key, value in command.environment(**settings).items():
        monkeypatch.setenv(key, value)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    pictures = sum("image/png" in o.get("data", {}) for o in outputs)
    return "".join(o["text"] for o in outputs if "text" in o), pictures
