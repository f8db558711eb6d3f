"""From the command line to the run: what is made of lengths in epochs and of paths."""

from pathlib import Path

import command
import pytest

import tiny
from clip_jax.train import compiler, loop


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """(config, workdir) of each run that would begin."""
    tiny.write_folder(tmp_path / "pairs")
    seen = []
    monkeypatch.setattr(loop, "run", lambda cfg, workdir, **_: seen.append((cfg, workdir)))
    return seen


def train(folder: Path, *flags: str) -> tuple[int, str, str]:
    return command.run("train", f"--config={command.RECIPE}:{folder / 'pairs'}", *flags)


def test_a_warm_up_in_epochs_beside_a_length_in_steps(runs, tmp_path):
    """Of 64 pairs."""
    status, _, err = train(tmp_path, "--workdir=w", "--config.optim.warmup_steps=1ep")
    assert status == 0, err
    assert runs[0][0].optim.warmup_steps == 64 // runs[0][0].batch_size
    status, _, err = train(tmp_path, "--workdir=w", "--config.optim.warmup_steps=90ep")
    assert status == 2 and "optim.warmup_steps: must be below num_steps=8" in err


@pytest.mark.parametrize("given", ["~/runs/a", "file://HOME/runs/a"])
def test_home_and_file_urls_are_one_folder(runs, tmp_path, monkeypatch, given):
    monkeypatch.setenv("HOME", str(tmp_path))
    status, _, err = train(tmp_path, f"--workdir={given.replace('HOME', str(tmp_path))}")
    assert status == 0, err
    assert runs[0][1] == str(tmp_path / "runs" / "a")


def test_jax_is_told_before_the_run_that_steps_do_not_overlap(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "one_step_at_a_time", lambda: runs.append("told"))
    assert train(tmp_path, "--workdir=w")[0] == 0
    assert runs[0] == "told" and len(runs) == 2
