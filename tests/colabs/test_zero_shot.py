"""The notebook about published weights, on tiny ones, and stored without outputs."""

import dataclasses
import json
from pathlib import Path

import command
import jax
import pytest

from clip_jax.config.presets import MODELS
from clip_jax.config.schema import Config, MeshConfig, TokenizerConfig
from clip_jax.inference.api import Model
from clip_jax.inference.export import export
from clip_jax.models import dual
from clip_jax.sharding.mesh import make_mesh
from clip_jax.tokenizers import build

NOTEBOOK = Path(__file__).parents[2] / "colabs" / "zero_shot.ipynb"


def test_outputs_are_stripped():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not c.get("outputs") and not c.get("execution_count") for c in cells)


def tiny_weights(folder):
    """A Hugging Face folder of the smallest CLIP with CLIP's own vocabulary."""
    cfg = MODELS["ViT-B-32-quickgelu"]
    image = dataclasses.replace(cfg.image, size=16, patch=8, width=8, layers=1, heads=1, mlp_dim=8)
    text = dataclasses.replace(cfg.text, width=8, layers=2, heads=1, mlp_dim=8)
    cfg = dataclasses.replace(cfg, image=image, text=text, embed_dim=8)
    params, stats = jax.jit(dual.build(cfg).init)(jax.random.key(0))
    tokenizer = build(TokenizerConfig("clip_bpe"), vocab_size=49408)
    config = dataclasses.replace(Config(), model=cfg)
    export(Model(config, params, stats, tokenizer, make_mesh(MeshConfig(data=1))), "hf", folder)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbformat  # here: the environment of the parity tests lacks them
    from nbclient import NotebookClient

    tiny_weights(str(tmp_path / "weights"))
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
