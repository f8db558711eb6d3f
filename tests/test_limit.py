"""The limit on the time of tests (conftest.py), by a run of pytest on one test."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "outcome"), [("0", " skipped in "), ("600", " passed in ")])
def test_no_test_begins_after_the_limit(seconds, outcome):
    name = "tests/train/test_health.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", name],
        cwd=ROOT,
        env={**os.environ, "CLIP_JAX_TEST_SECONDS": seconds},
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout, done.stdout
    assert ("no test begins after 0 s (CLIP_JAX_TEST_SECONDS)" in done.stdout) == (seconds == "0")
