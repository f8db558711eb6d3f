"""The command answers at once: asking for help loads no array library."""

import os
import subprocess
import sys

import pytest

HEAVY = (
    "jax",
    "flax",
    "optax",
    "numpy",
    "orbax",
    "tensorflow_datasets",
    "matplotlib",
    "pyarrow",
    "PIL",
)
PROGRAM = """
import sys
from clip_jax.__main__ import main
try:
    status = main()
except SystemExit as e:
    status = e.code
print("STATUS", status or 0, "LOADED", *sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["embed", "--help"],
        ["search", "--help"],
        ["classify", "--help"],
        ["plan", "--help"],
    ],
)
def test_help_does_not_import_jax(arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert last[:3] == ["STATUS", "0", "LOADED"]
    assert set(HEAVY) & set(last[3:]) == set()
