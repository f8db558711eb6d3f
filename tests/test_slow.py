"""The limit on slow tests (conftest.py), by a run of pytest on one file."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "outcome"), [("0", "1 skipped"), ("600", "1 passed")])
def test_no_slow_test_begins_after_the_limit(seconds, outcome):
    name = (
        "tests/metrics/test_flops.py::test_scanned_vit_b_32_equals_xlas_count_of_the_unrolled_one"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", name],
        cwd=ROOT,
        env={**os.environ, "CLIP_JAX_SLOW_SECONDS": seconds},
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout, done.stdout
    assert ("no slow test begins after 0 s (CLIP_JAX_SLOW_SECONDS)" in done.stdout) == (
        seconds == "0"
    )
