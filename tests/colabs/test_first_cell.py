"""The cell that installs: it leaves a JAX that is there as it is, and is the same everywhere."""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import clip_jax

FOLDER = Path(__file__).parents[2] / "colabs"
NAMES = sorted(p.name for p in FOLDER.glob("*.ipynb"))


def first(name):
    cells = json.loads((FOLDER / name).read_text())["cells"]
    return "".join(next(c for c in cells if c["cell_type"] == "code")["source"])


def run(monkeypatch, after=None, returncode=0):
    """Runs it where clip_jax is not, with a stand-in for pip; gives (command, pins)."""
    seen = []

    def pip(command, **_):
        seen.extend([command, Path(command[command.index("-c") + 1]).read_text()])
        if after:
            found = [SimpleNamespace(name=n, version=v) for n, v in after.items()]
            monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)
        return SimpleNamespace(returncode=returncode, stderr="no way")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(subprocess, "run", pip)
    exec(first(NAMES[0]), {})
    return seen


def test_it_is_the_same_everywhere_but_for_extras():
    texts = [first(name).splitlines() for name in NAMES]
    assert len({tuple(x for x in t if not x.startswith("PACKAGE")) for t in texts}) == 1
    packages = [x for t in texts for x in t if x.startswith("PACKAGE")]
    extras = dict(zip(NAMES, packages, strict=True))
    assert "[plan]" in extras["planning_a_pod.ipynb"] and "[hf]" in extras["zero_shot.ipynb"]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_public_package_and_no_tensorflow(name):
    cells = json.loads((FOLDER / name).read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert "tensorflow" not in text.lower()
    assert set(re.findall(r"(?:from|import) clip_jax.*", text)) <= {"import clip_jax"}
    assert set(re.findall(r"clip_jax\.(\w+)", text)) <= set(clip_jax.__all__)


def test_where_clip_jax_is_nothing_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", None)
    exec(first(NAMES[0]), {})
    assert f"'jax': '{importlib.metadata.version('jax')}'" in capsys.readouterr().out


def test_what_belongs_to_jax_is_pinned(monkeypatch):
    command, pins = run(monkeypatch)
    assert command[1:4] == ["-m", "pip", "install"] and command[-1].startswith("clip-jax-pretrain")
    for name in ("jax", "jaxlib"):
        assert f"{name}=={importlib.metadata.version(name)}" in pins.splitlines()


def test_a_jax_that_moved_is_told(monkeypatch):
    now = {"jax": "99.0", "jaxlib": importlib.metadata.version("jaxlib")}
    with pytest.raises(RuntimeError, match=r"changed \{'jax': .*'99.0'.*restart the runtime"):
        run(monkeypatch, after=now)


def test_an_old_jax_is_told(monkeypatch):
    with pytest.raises(RuntimeError, match="does not go with .*'jax': .*no way"):
        run(monkeypatch, returncode=1)
