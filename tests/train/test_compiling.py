"""Compiling beside the rest of a start: order, failures, and what waits for what."""

import dataclasses
import subprocess
import sys
import threading
from types import SimpleNamespace

import command
import jax
import numpy as np
import pytest

import clip_jax
import tiny
from clip_jax.config.schema import CompileConfig
from clip_jax.metrics.writers import read_metrics
from clip_jax.train import compiling, loop, start
from clip_jax.train.compiling import Compiling

LONG = 120.0  # seconds; only a failing test waits so long


def stage(compile, index=0, platform="cpu"):
    """What Compiling looks at of a stage; `compile` stands for the compiler."""
    lowered = SimpleNamespace(compile=lambda compiler_options: compile())
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    prog = SimpleNamespace(lower=lambda: lowered, options=CompileConfig(), mesh=mesh)
    return SimpleNamespace(index=index, prog=prog)


def test_it_runs_beside_its_caller_once_and_is_not_kept():
    begun, go, calls = threading.Event(), threading.Event(), []

    def compile():
        calls.append(threading.current_thread() is threading.main_thread())
        begun.set()
        go.wait(LONG)
        return "executable"

    step, one = Compiling(), stage(compile)
    step.begin(one)
    step.begin(one)
    assert begun.wait(LONG) and compiling.running()
    go.set()
    assert step.wait(one) == "executable"
    assert calls == [False]
    assert step.wait(one) == "executable" and len(calls) == 2
    step.close()


def test_on_gpus_nothing_is_compiled_beside_other_work():
    calls = []
    step, one = Compiling(), stage(lambda: calls.append("compiled"), platform="gpu")
    step.begin(one)
    assert not step._found
    step.wait(one)
    assert calls == ["compiled"]
    step.close()


def test_a_failure_is_raised_where_it_is_waited_for():
    def compile():
        raise ValueError("no such option")

    step = Compiling()
    step.begin(stage(compile))
    with pytest.raises(ValueError, match="no such option"):
        step.wait(stage(compile))
    step.close()


def test_closing_waits_for_nothing_and_begins_nothing():
    go, calls = threading.Event(), []
    step = Compiling()
    step.begin(stage(lambda: go.wait(LONG)))
    step.begin(stage(lambda: calls.append("second"), 1))
    step.close()  # would stand still here
    go.set()
    step._pool.shutdown(wait=True)
    assert calls == [] and not compiling.running()


def test_the_settings_of_the_caller_hold():
    """A context of jax's configuration belongs to the thread that entered it."""
    seen, begun = [], stage(lambda: "executable")
    precision = lambda: seen.append(jax.config.jax_default_matmul_precision)  # noqa: E731
    lowered = begun.prog.lower()
    begun.prog.lower = lambda: precision() or lowered
    step = Compiling()
    with jax.default_matmul_precision("highest"):
        step.begin(begun)
    step.wait(begun)
    step.close()
    assert seen == ["highest"]


FAILS = """
import sys, time
from clip_jax.__main__ import main
from clip_jax.errors import UserError
from clip_jax.train import compiling, loop

def failing(*_):
    raise ERROR

loop.init_state = failing
compiling.compiled = lambda *_: time.sleep(3600)
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [("UserError('weights: gone')", 2, "error: weights: gone"), ("OSError('bug')", 1, "OSError")],
)
def test_a_start_that_fails_does_not_wait_for_the_compiler(tmp_path, error, status, told):
    args = command.train_args(tiny.write_folder(tmp_path / "pairs"), tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", FAILS.replace("ERROR", error), *args],
        env=command.environment(),
        capture_output=True,
        text=True,
        timeout=600,  # an hour if it waits
    )
    assert done.returncode == status, done.stderr
    assert told in done.stderr


@pytest.fixture
def compiler(monkeypatch):
    """Set when the compilation of a step begins; its calls are counted."""
    event, real = SimpleNamespace(begun=threading.Event(), count=0), compiling.compiled

    def compiled(*args):
        event.count += 1
        event.begun.set()
        return real(*args)

    monkeypatch.setattr(compiling, "compiled", compiled)
    return event


def test_a_start_and_a_restart_compile_meanwhile(compiler, tmp_path, monkeypatch):
    """Drawing parameters and reading a checkpoint wait here until the compiler has begun."""
    cfg = tiny.config(tiny.write_folder(tmp_path / "pairs"))
    cfg = dataclasses.replace(cfg, checkpoint=dataclasses.replace(cfg.checkpoint, every=4, keep=9))
    real_init, real_restore = loop.init_state, start.restore

    def init_state(*args):
        assert compiler.begun.wait(LONG)
        return real_init(*args)

    monkeypatch.setattr(loop, "init_state", init_state)
    clip_jax.pretrain(cfg, str(tmp_path / "run"))
    assert compiler.count == 1
    losses = [x["loss"] for x in read_metrics(str(tmp_path / "run")) if "loss" in x]

    def restore(*args):
        assert compiler.begun.wait(LONG)
        return real_restore(*args)

    monkeypatch.setattr(start, "restore", restore)
    clip_jax.pretrain(cfg, str(tmp_path / "run"))  # finished: nothing is compiled
    assert compiler.count == 1
    (tmp_path / "run" / "checkpoints" / "8").rename(tmp_path / "gone")
    compiler.begun.clear()
    clip_jax.pretrain(cfg, str(tmp_path / "run"))
    assert compiler.count == 2
    assert [x["loss"] for x in read_metrics(str(tmp_path / "run")) if "loss" in x] == losses
