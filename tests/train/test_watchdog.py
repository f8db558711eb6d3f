"""A run that stands still ends with 42 and says where; one that moves, or may stand, does not."""

import subprocess
import sys

import command

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
