"""What comes from orbax's own files is dropped, and nothing else."""

import logging
import subprocess
import sys

import pytest

NOISE = '''
import asyncio, gc, logging, sys, warnings
from clip_jax.checkpoint.quiet import mute_orbax
mute_orbax()
mute_orbax()
code = """
def log(): logging.getLogger("absl").error("from absl")
def fail(): raise ValueError("from asyncio")
class Bad:
    def __del__(self): raise ValueError("unraisable")
def forget(): asyncio.sleep(0)
"""
space = {"logging": logging, "asyncio": asyncio}
exec(compile(code, sys.argv[1], "exec"), space)
logging.basicConfig()
space["log"]()
try:
    space["fail"]()
except ValueError:
    logging.getLogger("asyncio").exception("task")
if "orbax" in sys.argv[1]:
    future = asyncio.new_event_loop().create_future()
    future.set_exception(ValueError("OUT_OF_RANGE: full [tensorstore_spec='{}']"))
    del future
    gc.collect()
space["Bad"]()
space["forget"]()
'''


@pytest.mark.parametrize(
    ("file", "loud", "printed"),
    [
        ("/lib/orbax/checkpoint/x.py", "", False),
        ("/lib/orbax/checkpoint/x.py", "1", True),
        ("/home/me/x.py", "", True),
    ],
)
def test_only_orbax_is_muted(file, loud, printed, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_TRACEBACK", loud)
    command = [sys.executable, "-c", NOISE, file]
    err = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    for words in ("from absl", "from asyncio", "unraisable"):
        assert (words in err) == printed, words
    assert "never awaited" not in err
    assert ("tensorstore_spec" in err) == bool(loud)


def test_other_loggers_are_left_alone(caplog):
    from clip_jax.checkpoint.quiet import mute_orbax

    mute_orbax()
    logging.getLogger("absl").warning("ours")
    assert caplog.messages == ["ours"]
