"""The verb: three real trials, one of which cannot run; then the rest of what it prints."""

import subprocess
import textwrap

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
    assert len(rows) == 2
    assert {p.name for p in tmp_path.glob("results.*")} == {"results.csv", "results.html"}
    status, again, _ = command.run(*args)
    assert status == 3 and "2 of 3 trials are finished" in again
    status, table, _ = command.run(*args, "--table", "--sort=loss")
    assert status == 0 and table.splitlines()[0].startswith("trial")
    status, table, err = command.run(*args, "--table", "--sort=los")
    assert status == 2 and "did you mean 'loss'?" in err and table.startswith("trial")


@pytest.mark.parametrize("kind", ["shell", "slurm"])
def test_printed_commands_are_those_of_train(recipe, kind, tmp_path):
    words = ["sweep", f"--config={recipe}", "--workdir=/data/my runs", f"--print={kind}"]
    status, out, _ = command.run(*words, "--config.name=it's $HOME")
    assert status == 0 and out.startswith("#!/usr/bin/env bash\n")
    script = tmp_path / "script.sh"
    script.write_text(out)
    subprocess.run(["bash", "-n", script], check=True)
    shown = textwrap.dedent("""
        python() { printf '[%s]' "$@"; echo; }
        srun() { "$@"; return 42; }
        scontrol() { echo "scontrol $*"; }
        SLURM_ARRAY_TASK_ID=1 SLURM_ARRAY_JOB_ID=7
    """)
    done = subprocess.run(["bash", "-c", shown + out], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == (3 if kind == "shell" else 2), done.stderr
    for word in (f"--config={recipe}", "--config.name=it's $HOME", "--config.batch_size=64"):
        assert f"[{word}]" in lines[1 if kind == "shell" else 0]
    assert "[--workdir=/data/my runs/" in lines[0]
    if kind == "slurm":
        assert "#SBATCH --array=0-2" in out and "#SBATCH --output=%x-%A_%a.log" in out
        assert lines[1] == "scontrol requeue 7_1" and done.returncode == 42


@pytest.mark.parametrize(("ends_with", "ran", "status"), [(2, 3, 3), (130, 1, 130), (42, 1, 42)])
def test_a_printed_shell_script_goes_on_past_failures_but_not_past_ctrl_c(
    recipe, ends_with, ran, status
):
    _, out, _ = command.run("sweep", f"--config={recipe}", "--workdir=w", "--print=shell")
    python = f"python() {{ echo ran; return {ends_with}; }}\n"
    done = subprocess.run(["bash", "-c", python + out], capture_output=True, text=True)
    assert (done.stdout.count("ran"), done.returncode) == (ran, status), done.stderr


def test_printed_scripts_call_the_launchers_with_their_flags(recipe, tmp_path):
    words = ["sweep", f"--config={recipe}", "--workdir=gs://b/my runs", "--config.name=it's $HOME"]
    seen = {}
    for kind, values in {"tpu_vm": "ZONE=z TYPE=t", "xpk": "CLUSTER=c TYPE=t IMAGE=i"}.items():
        status, out, _ = command.run(*words, f"--print={kind}")
        assert status == 0
        shown = f"{values}\nbash() {{ printf '%s\\0' \"$@\"; echo; }}\n"
        done = subprocess.run(["bash", "-c", shown + out], capture_output=True, text=True)
        seen[kind] = [line.split("\0")[:-1] for line in done.stdout.splitlines()]
    assert [x[1] for x in seen["tpu_vm"]] == ["create", "setup", "train"] * 3
    for call in (seen["tpu_vm"][2], seen["xpk"][0]):
        assert call[0] in ("launch/tpu_vm.sh", "launch/gke.sh") and call[1] == "train"
        flags = call[call.index("--") + 1 :]
        name = call[2].removeprefix("sweep-")
        assert flags[0] == f"--config={recipe}" and "--config.name=it's $HOME" in flags
        assert flags[-1] == f"--workdir=gs://b/my runs/{name}"


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
