import os
import signal
import subprocess
import sys
import types

import pytest
import tensorflow_datasets as tfds

from clip_jax.data import embedded
from clip_jax.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake(body):
    """Stands for a TFDS builder class: writes one file, then calls `body`."""

    def builder(data_dir, file_format):
        folder = os.path.join(data_dir, "toy", "1.0.0")

        def prepare():
            os.makedirs(folder)
            with open(os.path.join(folder, "data"), "w") as f:
                f.write("mine")
            body()

        return types.SimpleNamespace(data_dir=folder, download_and_prepare=prepare)

    builder.name, builder.VERSION = "toy", "1.0.0"
    return builder


def run(code, cache, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "CLIP_JAX_DATA": str(cache)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **kwargs,
    )


def test_cache_root_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_DATA", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert embedded.cache_root() == str(tmp_path / "a")
    monkeypatch.delenv("CLIP_JAX_DATA")
    assert embedded.cache_root() == str(tmp_path / "b" / "clip_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded.cache_root() == str(tmp_path / "c" / ".cache" / "clip_jax")


def test_cache_root_without_a_home(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("CLIP_JAX_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert embedded.cache_root() == str(tmp_path / f"clip_jax-{os.getuid()}")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match=r"no cache folder can be written; set CLIP_JAX_DATA"):
        embedded.cache_root()  # the folder there is not 12345's own


def test_chosen_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIP_JAX_DATA", str(tmp_path / "file" / "sub"))
    with pytest.raises(UserError, match=r"^CLIP_JAX_DATA: .*file/sub\); name another one$"):
        embedded.cache_root()


def test_second_call_builds_nothing(cache):
    calls = []
    builder = fake(lambda: calls.append(1))
    assert embedded._built(builder) == embedded._built(builder) == str(cache / "toy" / "1.0.0")
    assert calls == [1]
    assert os.listdir(cache / "toy") == ["1.0.0"]


def test_loser_takes_the_winners(cache):
    def meanwhile():
        (cache / "toy" / "1.0.0").mkdir()
        (cache / "toy" / "1.0.0" / "data").write_text("winner")

    folder = embedded._built(fake(meanwhile))
    assert (cache / "toy" / "1.0.0" / "data").read_text() == "winner"
    assert folder == str(cache / "toy" / "1.0.0")
    assert os.listdir(cache / "toy") == ["1.0.0"]


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
        (OSError(28, "No space left on device"), UserError),
        (RuntimeError('Failed to finalize "train": write() failed: No space left'), UserError),
    ],
)
def test_failed_build_leaves_nothing(cache, error, seen):
    def fail():
        raise error

    with pytest.raises(seen) as caught:
        embedded._built(fake(fail))
    assert os.listdir(cache / "toy") == []
    if seen is UserError:
        message = str(caught.value)
        assert message.startswith(f"{cache}/toy: the set cannot be written (got ")
        assert "No space left" in message and message.endswith("set CLIP_JAX_DATA")


@pytest.mark.slow
def test_killed_build_is_not_taken_for_complete(cache):
    code = """
import os, signal
from clip_jax.data.embedded import EMBEDDED
from clip_jax.data.embedded.digits import Digits
whole = Digits._generate_examples
def killed(self, split, *args):
    for example in whole(self, split, *args):
        if split == "test":  # the others are written by now
            os.kill(os.getpid(), signal.SIGKILL)
        yield example
Digits._generate_examples = killed
EMBEDDED["digits"]()
"""
    child = run(code, cache)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    (left,) = os.listdir(cache / "digits")
    assert left.startswith(".building-")
    os.utime(cache / "digits" / left, (0, 0))  # long ago
    folder = embedded.EMBEDDED["digits"]()
    assert len(tfds.builder_from_directory(folder).as_data_source("test")) == 360
    assert os.listdir(cache / "digits") == ["1.0.0"]


@pytest.mark.slow
def test_two_processes_at_once(cache):
    code = """
from clip_jax.data.embedded import EMBEDDED
import clip_jax.data.embedded.digits, sklearn.datasets
print("ready", flush=True)
input()
print(EMBEDDED["digits"]())
"""
    children = [run(code, cache, stderr=subprocess.PIPE) for _ in range(2)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    said = [child.communicate() for child in children]
    assert said == [(f"{cache}/digits/1.0.0\n", "")] * 2  # and nothing else on the terminal
    assert os.listdir(cache / "digits") == ["1.0.0"]
    builder = tfds.builder_from_directory(str(cache / "digits" / "1.0.0"))
    assert len(builder.as_data_source("train+validation")) == 1437


def test_switches_of_tfds_are_put_back(cache):
    import logging

    from tensorflow_datasets.core.utils import tqdm_utils

    inside = []

    def look():
        inside.append((tqdm_utils._active, logging.getLogger("absl").level, sys.stdout))

    look()
    embedded._built(fake(look))
    look()
    assert inside[0] == inside[2]
    assert inside[1][:2] == (False, logging.ERROR)
    assert inside[1][2] is not sys.stdout
