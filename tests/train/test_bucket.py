"""A workdir in a bucket, from the first start over a kill to the report; the store is a fake."""

import json
import os
import re
import signal
import time

import command
import fake_gcs
import pytest

import tiny
from clip_jax.report.finished import MARK

pytest.importorskip("gcsfs")
pytestmark = pytest.mark.slow
WORKDIR = "gs://bucket/runs/a b"
PATIENCE_S = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The store; children go there."""
    port, store, stop = fake_gcs.serve()
    monkeypatch.setenv("HOME", str(tmp_path))  # no credentials of whoever runs this
    for name, value in fake_gcs.environment(port).items():
        monkeypatch.setenv(name, value)
    yield store
    stop()


def names(store):
    return [name.removeprefix("runs/a b/") for _, name in sorted(store.objects)]


def content(store, name):
    return store.objects["bucket", f"runs/a b/{name}"][1]


def losses(store):
    """Step -> loss of the last attempt that wrote it."""
    parts = [content(store, n) for n in names(store) if n.startswith("metrics.jsonl.parts/")]
    lines = [json.loads(x) for part in parts for x in part.splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def start(folder, processes, *more, workdir=WORKDIR):
    args = command.train_args(folder, workdir, *more)
    if processes == 1:
        return command.start(*args)
    return command.start_local(*args, processes=processes, devices=1)


def ended(child):
    out, err = child.communicate(timeout=PATIENCE_S)
    return child.returncode, out, err


@pytest.mark.parametrize(
    ("processes", "when", "first"),
    [
        pytest.param(1, "commit_success.txt", "[36]", id="one"),
        pytest.param(2, "commit_success.txt", "[36]", id="two"),
        pytest.param(1, "manifest/metadata", "0", id="within the first save"),
    ],
)
def test_a_killed_run_goes_on(bucket, folder, tmp_path, processes, when, first):
    """Its losses are those of a run on a local disk that was not killed."""
    flags = ("--config.log.every=1", "--config.checkpoint.every=3", "--config.mesh.data=-1")
    more = "--config.log.writers=('tensorboard',)"
    child = start(folder, processes, *flags, more)
    end = time.monotonic() + PATIENCE_S
    while f"checkpoints/3/{when}" not in names(bucket):
        assert time.monotonic() < end and child.poll() is None, child.communicate()
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert "checkpoints/8/commit_success.txt" not in names(bucket)

    status, out, err = ended(start(folder, processes, *flags, more))
    assert status == 0, err
    assert re.search(f"steps {first} to 8", out), out
    local = tmp_path / "local"
    assert ended(start(folder, processes, *flags, workdir=str(local)))[0] == 0
    assert losses(bucket) == command.losses(local)
    assert MARK in content(bucket, "report.html")
    assert any(n.startswith("tensorboard/events") for n in names(bucket))


def test_an_account_that_may_not_look_at_the_bucket_is_told_at_once(bucket, folder):
    bucket.bucket_is_hidden = True
    status, _, err = ended(start(folder, 1))
    assert status == 2 and "storage.buckets.get" in err.splitlines()[-1]
    assert not bucket.objects
