"""Runs the clip_jax command as a user would, in a process of its own or in this one."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import clip_jax.__main__ as entry

TESTS = Path(__file__).parent
RECIPE = TESTS / "tiny_recipe.py"


def environment(**more: str) -> dict[str, str]:
    given = filter(None, [os.environ.get("PYTHONPATH")])
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), *given])
    return {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", **more}


def start(*args: str, cwd: Path | None = None, **more: str) -> subprocess.Popen:
    """The command in a process group of its own, in the folder `cwd`; output to pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "clip_jax", *args],
        env=environment(**more),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*args: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = entry.main(args)
    return status, out.getvalue(), err.getvalue()


def train_args(folder: Path, workdir: Path, *more: str) -> list[str]:
    return ["train", f"--config={RECIPE}:{folder}", f"--workdir={workdir}", *more]


def losses(workdir: Path) -> dict[int, float]:
    """Step -> loss of a run, from its metrics.jsonl."""
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def start_local(*args: str, processes: int = 2, devices: int = 4, **more: str) -> subprocess.Popen:
    """launch/local.sh without its virtual environment: `clip_jax ARGS` in several processes."""
    assert args[0] == "train"
    own = [f"--processes={processes}", f"--devices_per_process={devices}"]
    return subprocess.Popen(
        [sys.executable, str(TESTS.parent / "launch" / "local.py"), *own, "--", *args[1:]],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(process: subprocess.Popen) -> list[int]:
    """Process ids of the children, in the order of their start."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return sorted(map(int, text.split()))
