"""kill -9, SIGTERM and Ctrl-C of the real command, then the same command again.

CLIP_JAX_KILLS=50 python -m pytest tests/train/test_kill.py -k kill_9 is the long form.
"""

import os
import random
import re
import signal
import subprocess
import time

import command
import pytest
import stages_recipe

import tiny

KILLS = int(os.environ.get("CLIP_JAX_KILLS", "3"))
STEPS = ("--config.num_steps=400", "--config.checkpoint.every=20")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    """(losses, seconds it took)."""
    workdir = tmp_path_factory.mktemp("whole")
    begin = time.monotonic()
    out, err = (child := command.start(*command.train_args(folder, workdir, *STEPS))).communicate()
    assert child.returncode == 0, out + err
    return command.losses(workdir), time.monotonic() - begin


def test_kill_9_at_random_moments(folder, uninterrupted, tmp_path):
    losses, seconds = uninterrupted
    args = command.train_args(folder, tmp_path, *STEPS)
    rng = random.Random(1)
    killed = 0
    for _ in range(KILLS):
        child = command.start(*args)
        try:
            child.communicate(timeout=rng.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            killed += 1
            continue
        assert child.returncode == 0
        assert command.losses(tmp_path) == losses
        if KILLS > 10:  # begin again, so that every kill hits a living run
            subprocess.run(["rm", "-rf", str(tmp_path)], check=True)
    child = command.start(*args)
    out, err = child.communicate(timeout=10 * seconds + 60)
    assert child.returncode == 0, out + err
    assert killed and command.losses(tmp_path) == losses
    left = [p.name for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name]
    assert left == []


def test_kill_9_where_stages_meet_and_in_the_last(folder, tmp_path):
    """Each start goes on in the stage of the newest checkpoint; saved every 15 and at meetings."""
    recipe = command.TESTS / "stages_recipe.py"

    def start(workdir):
        return command.start("train", f"--config={recipe}:{folder}", f"--workdir={workdir}")

    out, err = (child := start(tmp_path / "whole")).communicate()
    assert child.returncode == 0, out + err
    losses = command.losses(tmp_path / "whole")
    assert list(losses) == list(range(1, stages_recipe.MEETINGS[-1] + 1))
    run = tmp_path / "run"
    for step in (40, 41, 100):  # while 40 is evaluated and saved, after that, in the last
        child = start(run)
        wait_for_loss(run, step)
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        kept = [int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit()]
        assert max(command.losses(run)) < stages_recipe.MEETINGS[-1]
    out, err = (child := start(run)).communicate()
    assert child.returncode == 0, out + err
    resumed = int(re.search(r"resumed from step (\d+)", out)[1])
    assert resumed == max(kept) and "stage 3 of 3, short: steps 80 to 110" in out
    assert "small" not in out and "large" not in out
    assert command.losses(run) == losses


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGTERM, 42, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")],
)
def test_signals_save_before_they_exit(folder, uninterrupted, tmp_path, number, status, name):
    losses, seconds = uninterrupted
    child = command.start(*command.train_args(folder, tmp_path, *STEPS))
    wait_for_steps(tmp_path, 25)
    child.send_signal(number)
    out, err = child.communicate(timeout=seconds + 30)
    assert child.returncode == status
    assert f"{name}: saved step " in err
    step = int(err.split("saved step ")[1].split(";")[0])
    assert str(step) in os.listdir(tmp_path / "checkpoints")
    assert max(command.losses(tmp_path)) == step
    assert {s: v for s, v in losses.items() if s <= step} == command.losses(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_when_nobody_reads_any_more(folder, tmp_path, number):
    """As `2>&1 | tee log` ends with Ctrl-C too, and a terminal before it sends SIGHUP."""
    args = command.train_args(folder, tmp_path, "--config.num_steps=100000")
    child = command.start(*args)
    wait_for_steps(tmp_path, 25)
    child.stdout.close()
    child.stderr.close()
    child.send_signal(number)
    assert child.wait(60) == {signal.SIGINT: 130, signal.SIGHUP: 42}[number]
    newest = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert max(command.losses(tmp_path)) == newest


def test_a_second_ctrl_c_exits_at_once_and_a_second_run_is_refused(folder, tmp_path):
    child = command.start(*command.train_args(folder, tmp_path, "--config.num_steps=100000"))
    wait_for_steps(tmp_path, 25)
    other = command.start(*command.train_args(folder, tmp_path, "--config.num_steps=100000"))
    _, err = other.communicate(timeout=60)
    assert other.returncode == 2 and str(child.pid) in err and len(err.splitlines()) == 1
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert child.returncode == 130


def wait_for_loss(workdir, step):
    for _ in range(2400):
        if (workdir / "metrics.jsonl").exists() and step in command.losses(workdir):
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} after two minutes")


def wait_for_steps(workdir, steps):
    for _ in range(600):
        path = workdir / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= steps:
            return
        time.sleep(0.1)
    raise AssertionError("no metrics after a minute")
