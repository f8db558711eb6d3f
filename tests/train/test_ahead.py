"""Compiling beside the rest of a start: order, failures, and what waits for what."""

import dataclasses
import threading
from types import SimpleNamespace

import pytest

import clip_jax
import tiny
from clip_jax.metrics.writers import read_metrics
from clip_jax.train import loop, start
from clip_jax.train.ahead import Ahead
from clip_jax.train.program import Program

LONG = 120.0  # seconds; only a failing test waits so long


def stage(compile, index=0):
    return SimpleNamespace(index=index, prog=SimpleNamespace(compile=compile))


def test_it_runs_beside_its_caller_once_and_is_not_kept():
    begun, go, calls = threading.Event(), threading.Event(), []

    def compile():
        calls.append(threading.current_thread() is threading.main_thread())
        begun.set()
        go.wait(LONG)
        return "executable"

    ahead, one = Ahead(), stage(compile)
    ahead.begin(one)
    ahead.begin(one)
    assert begun.wait(LONG)
    go.set()
    assert ahead.wait(one) == "executable"
    assert calls == [False]
    assert ahead.wait(one) == "executable" and len(calls) == 2
    ahead.close()


def test_a_failure_is_raised_where_it_is_waited_for():
    def compile():
        raise ValueError("no such option")

    ahead = Ahead()
    ahead.begin(stage(compile))
    with pytest.raises(ValueError, match="no such option"):
        ahead.wait(stage(compile))
    ahead.close()


def test_the_end_of_a_start_that_failed_does_not_wait_for_the_compiler():
    go, calls = threading.Event(), []
    ahead = Ahead()
    ahead.begin(stage(lambda: go.wait(LONG)))
    ahead.begin(stage(lambda: calls.append("second"), 1))
    ahead.close()  # would stand still here
    go.set()
    ahead._pool.shutdown(wait=True)
    assert calls == []


@pytest.fixture
def compiling(monkeypatch):
    """Set when the compilation of a step begins; its calls are counted."""
    event, real = SimpleNamespace(begun=threading.Event(), count=0), Program.compile

    def compile(self):
        event.count += 1
        event.begun.set()
        return real(self)

    monkeypatch.setattr(Program, "compile", compile)
    return event


def test_a_start_and_a_restart_compile_meanwhile(compiling, tmp_path, monkeypatch):
    """Drawing parameters and reading a checkpoint wait here until the compiler has begun."""
    cfg = tiny.config(tiny.write_folder(tmp_path / "pairs"))
    cfg = dataclasses.replace(cfg, checkpoint=dataclasses.replace(cfg.checkpoint, every=4, keep=9))
    real_init, real_restore = loop.init_state, start.restore

    def init_state(*args):
        assert compiling.begun.wait(LONG)
        return real_init(*args)

    monkeypatch.setattr(loop, "init_state", init_state)
    clip_jax.pretrain(cfg, str(tmp_path / "run"))
    assert compiling.count == 1
    losses = [x["loss"] for x in read_metrics(str(tmp_path / "run")) if "loss" in x]

    def restore(*args):
        assert compiling.begun.wait(LONG)
        return real_restore(*args)

    monkeypatch.setattr(start, "restore", restore)
    clip_jax.pretrain(cfg, str(tmp_path / "run"))  # finished: nothing is compiled
    assert compiling.count == 1
    (tmp_path / "run" / "checkpoints" / "8").rename(tmp_path / "gone")
    compiling.begun.clear()
    clip_jax.pretrain(cfg, str(tmp_path / "run"))
    assert compiling.count == 2
    assert [x["loss"] for x in read_metrics(str(tmp_path / "run")) if "loss" in x] == losses
