"""The notebook about scaling laws, with few steps."""

import importlib.util
import re
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("notebooks", Path(__file__).with_name("notebooks.py"))
notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebooks)
NAME = "scaling_laws.ipynb"


def test_outputs_are_stripped():
    assert notebooks.stripped(NAME)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    text, pictures = notebooks.run(
        NAME, tmp_path, monkeypatch, WIDTHS="16,32", STEPS="4,12", LARGE="32,16", WORKDIR="runs"
    )
    assert len(re.findall(r"width +\d+  steps +\d+  \d\.\d\de\+\d+ FLOP  loss \d", text)) == 4
    assert re.search(r"loss = \S+ x compute\^-0\.\d+, from [2-4] of 4 runs", text), text
    assert re.search(r"predicted \d\.\d+, measured \d\.\d+", text) and pictures == 1
