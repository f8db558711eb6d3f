"""The notebook about plans, for GPUs: a plan by shapes needs no TPU compiler."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("notebooks", Path(__file__).with_name("notebooks.py"))
notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebooks)
NAME = "planning_a_pod.ipynb"


def test_outputs_are_stripped():
    assert notebooks.stripped(NAME)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    text, _ = notebooks.run(
        NAME, tmp_path, monkeypatch, MODEL="ViT-S-32", TOPOLOGY="H100:8", BATCH="1024", SEARCH=""
    )
    assert text.count("from shapes alone: nothing was compiled") == 2
    assert "parameters" in text and "remat full" in text


@pytest.mark.slow
def test_a_plan_that_fails_does_not_show_the_one_before(tmp_path, monkeypatch):
    from nbclient.exceptions import CellExecutionError

    (tmp_path / "plan.json").write_text('{"bytes_per_device": {"old": 1}}')
    with pytest.raises(CellExecutionError, match="no variant 'ViT-Z'"):
        notebooks.run(NAME, tmp_path, monkeypatch, MODEL="ViT-Z", TOPOLOGY="H100:8", SEARCH="")
