"""The verb: three real trials, one of which cannot run; then the rest of what it prints."""

import shlex

import command
import pytest

import tiny

RECIPE = """
import tiny
from clip_jax.config.codec import to_config_dict

def get_config(arg=""):
    return to_config_dict(tiny.config({folder!r}))

def sweep(add):
    add({{"seed": 1}})
    add({{"batch_size": 64, "data.limit": 32}})  # more than there are
    add({{"seed": 2}})
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    tiny.write_folder(folder / "pairs")
    path = folder / "recipe.py"
    path.write_text(RECIPE.format(folder=str(folder / "pairs")))
    return path


@pytest.mark.slow
def test_trials_run_past_a_failure_and_are_skipped_when_finished(recipe, tmp_path, monkeypatch):
    for name, value in command.environment().items():
        monkeypatch.setenv(name, value)
    args = ["sweep", f"--config={recipe}", f"--workdir={tmp_path}", "--config.num_steps=3"]
    status, out, err = command.run(*args, "--parallel=2")
    assert status == 3, out + err
    assert "1 of 3 trials failed; the same command tries them again" in out
    assert out.count("finished;") == 2 and "status 2, see" in out
    failed = next(p for p in tmp_path.glob("*.log") if "error: config.batch_size" in p.read_text())
    assert "64 is more than the 32 training pairs" in failed.read_text()
    rows = [x.split() for x in out.splitlines() if x.endswith(" finished")]
    assert len(rows) == 2 and out.count("failed (2)\n") == 1
    assert {p.name for p in tmp_path.glob("results.*")} == {"results.csv", "results.html"}
    status, again, _ = command.run(*args)
    assert status == 3 and "2 of 3 trials are finished" in again
    status, table, _ = command.run(*args, "--table", "--sort=loss")
    assert status == 0 and table.splitlines()[0].startswith("trial")
    status, table, err = command.run(*args, "--table", "--sort=los")
    assert status == 2 and "did you mean 'loss'?" in err and table.startswith("trial")


@pytest.mark.parametrize("kind", ["shell", "slurm", "tpu_vm", "xpk"])
def test_what_is_not_finished_is_printed(recipe, kind, tmp_path):
    """What the scripts do: tests/sweep/test_emit.py."""
    words = ["sweep", f"--config={recipe}", f"--workdir={tmp_path}/my runs", f"--print={kind}"]
    status, out, _ = command.run(*words, "--config.name=it's $HOME")
    assert status == 0 and out.startswith("#!/usr/bin/env bash\n")
    trials = [shlex.split(x) for x in out.splitlines() if x.startswith("trial ")]
    assert len(trials) == 3 and "--config.batch_size=64" in trials[1]
    for _, name, *flags in trials:
        assert flags[0] == f"--config={recipe}" and "--config.name=it's $HOME" in flags
        assert flags[-1] == f"--workdir={tmp_path}/my runs/{name}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--print=pbs"], "--print: must be one of shell, slurm, tpu_vm, xpk (got 'pbs')"),
        (["--parallel=0"], "must be a whole number from 1 on"),
        (["--config.seed", "3"], "--config.seed: write it as --config.seed=VALUE"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_mistakes(recipe, args, message):
    status, _, err = command.run("sweep", f"--config={recipe}", "--workdir=w", *args)
    assert status == 2 and message in err and len(err.splitlines()) == 1
