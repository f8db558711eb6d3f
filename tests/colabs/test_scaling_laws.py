"""The notebook about scaling laws, with few steps."""

import importlib.util
import re
from pathlib import Path

import pytest

from clip_jax.config.load import load
from clip_jax.train.program import model_flops

spec = importlib.util.spec_from_file_location("notebooks", Path(__file__).with_name("notebooks.py"))
notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebooks)
NAME = "scaling_laws.ipynb"


def test_outputs_are_stripped():
    assert notebooks.stripped(NAME)


def counted(width, steps):
    """FLOPs of a run, counted in its program; attention and loss are among them."""
    own = ["eval.every=0", f"num_steps={steps}", "optim.warmup_steps=1"]
    for tower in ("image", "text"):
        own += [f"model.{tower}.width={width}", f"model.{tower}.mlp_dim={4 * width}"]
        own += [f"model.{tower}.heads={width // 16}"]
    return steps * model_flops(load("glyphs:quick", tuple(f"--config.{x}" for x in own)))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    other = tmp_path / "runs" / "of_another_sweep"  # must not be among those fitted
    other.mkdir(parents=True)
    (other / "report.html").write_text("")
    text, pictures = notebooks.run(
        NAME, tmp_path, monkeypatch, WIDTHS="16,32", STEPS="4,12", LARGE="32,16", WORKDIR="runs"
    )
    rows = re.findall(r"width +(\d+)  steps +(\d+)  (\d\.\d\de\+\d+) FLOP  loss \d", text)
    assert {row[:2] for row in rows} == {("16", "4"), ("16", "12"), ("32", "4"), ("32", "12")}
    for width, steps, flops in rows:
        assert 0.7 < float(flops) / counted(int(width), int(steps)) < 1.02
    assert re.search(r"loss = \S+ x compute\^-0\.\d+, from [2-4] of 4 runs", text), text
    assert re.search(r"predicted \d\.\d+, measured \d\.\d+", text) and pictures == 1
    assert (tmp_path / "runs_large_32x16" / "report.html").exists()
