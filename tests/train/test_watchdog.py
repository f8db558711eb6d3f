"""A run that stands still ends with 42 and says where; one that moves, or may stand, does not."""

import subprocess
import sys

import command
import pytest

import tiny

STALL = """
import time
from clip_jax.train.watchdog import Watchdog
with Watchdog({seconds}) as dog:
    for step in (1, 2, 3, 4):
        time.sleep(0.25)
        dog.beat(step)
    time.sleep({stall})  # the stall
print("the end")
"""


def run(seconds, stall):
    program = STALL.format(seconds=seconds, stall=stall)
    return subprocess.run(
        [sys.executable, "-c", program],
        env=command.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_stall_ends_with_42_and_its_stacks():
    done = run(0.6, 60)
    assert (done.returncode, done.stdout) == (42, "")
    assert "nothing was done for 0.6 s (config.log.watchdog_seconds) after step 4" in done.stderr
    assert 'File "<string>", line 8 in <module>' in done.stderr


def test_zero_waits_for_ever():
    done = run(0, 0.5)
    assert (done.returncode, done.stdout) == (0, "the end\n")


HUNG = """
import sys, time
from clip_jax import __main__
from clip_jax.train import loop
plain = loop.run_tasks
def run_tasks(*args, **options):
    if bool(options) == {at_the_end}:
        time.sleep(120)
    return plain(*args, **options)
loop.run_tasks = run_tasks
sys.exit(__main__.main({args}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("at_the_end", "after"), [(False, "the start"), (True, "the last step")])
def test_an_evaluation_that_hangs(at_the_end, after, tmp_path):
    """Before the first step, and after the last; the checkpoint of the last is there."""
    flags = ("--config.num_steps=3", "--config.eval.start=True", "--config.log.watchdog_seconds=20")
    args = command.train_args(tiny.write_folder(tmp_path / "pairs"), tmp_path / "run", *flags)
    done = subprocess.run(
        [sys.executable, "-c", HUNG.format(at_the_end=at_the_end, args=args)],
        env=command.environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 42, done.stdout + done.stderr
    assert f"after {after}; its threads stand here" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "3").exists() == at_the_end
