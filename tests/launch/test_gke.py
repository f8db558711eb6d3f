"""launch/gke.sh with a stand-in for xpk; the Dockerfile copies all that an installation needs."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "gke.sh"
XPK = """#!/usr/bin/env bash
{ printf '%s\\0' "$@"; echo "<end>"; } >>"$RECORD"
exit "${STATUS:-0}"
"""
FLAGS = ["--config=my recipe.py", "--workdir=gs://b/a run", "--config.name=it's $HOME"]
TRAIN = ["train", "b16", "--cluster=c", "--type=v6e-256", "--image=r/i:1"]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "xpk").write_text(XPK)
    (tmp_path / "xpk").chmod(0o755)

    def run(*words, path=f"{tmp_path}:{os.environ['PATH']}", **more):
        (tmp_path / "record").write_text("")
        environment = {"PATH": path, "RECORD": str(tmp_path / "record"), **more}
        pipes = {"capture_output": True, "text": True}
        done = subprocess.run(["bash", str(SCRIPT), *words], env=environment, **pipes)
        text = (tmp_path / "record").read_text()
        return done, [x.split("\0")[:-1] for x in text.split("<end>\n") if x]

    return run


def test_train(run):
    done, ((*start, command),) = run(*TRAIN, "--slices=2", "--", *FLAGS)
    assert done.returncode == 0
    assert start == [
        "workload", "create", "--cluster=c", "--workload=clip-b16", "--tpu-type=v6e-256",
        "--num-slices=2", "--docker-image=r/i:1", "--max-restarts=50",
        "--restart-on-exit-codes=42,134,137,139,143", "--termination-grace-period-seconds=180",
    ]  # fmt: skip
    words = subprocess.run(
        ["bash", "-c", "python() { printf '%s\\n' \"$@\"; }\n" + command.partition("=")[2]],
        capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    own = ["-u", "-m", "clip_jax", "train", "--distributed=on"]
    assert words == [*own, *FLAGS, "--config.mesh.num_slices=2"]


def test_only_workloads_of_its_own_are_deleted(run):
    _, calls = run("delete", "b16", "--cluster=c")
    assert calls == [["workload", "delete", "--cluster=c", "--workload=clip-b16", "--force"]]
    _, calls = run("status", "b16", "--cluster=c")
    assert calls == [["workload", "list", "--cluster=c", "--filter-by-job=clip-b16"]]


def test_dry_run_prints_the_command(run):
    done, calls = run(*TRAIN, "--dry_run", "--", *FLAGS)
    assert calls == [] and done.returncode == 0
    _, (real,) = run(*TRAIN, "--", *FLAGS)
    assert shlex.split(done.stdout) == ["xpk", *real]


def test_a_failure_is_passed_on(run):
    assert run(*TRAIN, "--", *FLAGS, STATUS="5")[0].returncode == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["start", "b16"], "knows train, status and delete (got 'start')"),
        (["train", "B 16"], "names hold a-z, 0-9 and -"),
        (["train", "b16"], "train: give --cluster=CLUSTER"),
        ([*TRAIN[:3], "--", *FLAGS], "give --type=TYPE"),
        ([*TRAIN[:4], "--", *FLAGS], "give --image=IMAGE"),
        (TRAIN, "with --workdir=gs://BUCKET/RUN"),
    ],
)
def test_mistakes_are_one_line(run, words, message):
    done, calls = run(*words)
    assert done.returncode == 2 and message in done.stderr and calls == []
    assert len(done.stderr.splitlines()) == 1


def test_without_xpk(run, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "bash").symlink_to(shutil.which("bash"))
    done, _ = run(*TRAIN, "--", *FLAGS, path=str(tools))
    assert done.returncode == 2 and "xpk is not here" in done.stderr


def test_the_docker_context_holds_what_an_installation_reads():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*" and all((ROOT / name).exists() for name in kept)
    assert {"clip_jax", "configs", "pyproject.toml", "setup.py", "constraints.txt"} <= kept
    assert "README.md" in kept  # pyproject.toml's readme
