"""Running trials: skipped when finished, past failures, stopped by signals, devices divided."""

import dataclasses
import os
import signal
import sys
import threading
import time

import pytest

import tiny
from clip_jax.errors import UserError
from clip_jax.report.finished import MARK
from clip_jax.sweep import run
from clip_jax.sweep.trials import Trial

# What a trial does instead of training; {where} is its folder.
FINISHES = (
    "import os; os.makedirs({where!r}); from clip_jax.report.finished import MARK; "
    "open({where!r} + '/report.html', 'wb').write(MARK); print('hi')"
)
FAILS = "import sys; print('why', file=sys.stderr); sys.exit(2)"
KILLED = "import os; os.kill(os.getpid(), 9)"
# Waits for another that runs at the same time.
MEETS = (
    "import os, sys, time; print('gpu', os.environ['GPU']); os.makedirs({where!r})\n"
    "for _ in range(600):\n"
    "    if all(os.path.isdir({where!r}[:-1] + x) for x in {pair!r}): sys.exit()\n"
    "    time.sleep(0.1)\n"
    "sys.exit(1)"
)
WAITS = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(42)); "
    "print('ready', flush=True); time.sleep(60)"
)


def trial(name, script=FINISHES):
    return Trial(name, {"optim.learning_rate": 0.1, "seed": 1}, (script,), tiny.config("x"))


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    def command(t, workdir):
        return ["-c", t.flags[0].format(where=f"{workdir}/{t.name}")]

    monkeypatch.setattr(run, "command", command)


def test_failures_do_not_stop_the_others_and_are_tried_again(tmp_path):
    said = []
    trials = [trial("a", FAILS), trial("b"), trial("c", KILLED), trial("d")]
    statuses = run.run(trials, str(tmp_path), [{}], said.append)
    assert statuses == {"a": 2, "b": 0, "c": 128 + 9, "d": 0}
    assert said[0] == f"[1/4] a: learning_rate=0.1, seed=1; output in {tmp_path}/a.log"
    assert "a: ended with status 2, see" in said[1]
    log = (tmp_path / "a.log").read_text()
    assert log.startswith(f"$ {sys.executable} -c") and "why" in log
    said.clear()
    statuses = run.run([trial("a"), *trials[1:]], str(tmp_path), [{}], said.append)
    assert said[0] == "2 of 4 trials are finished"
    assert statuses == {"a": 0, "c": 128 + 9}


def test_groups_run_at_the_same_time_each_with_its_devices(tmp_path):
    trials = [
        trial(x, MEETS.replace("{pair!r}", repr("ab" if x in "ab" else "cd"))) for x in "abcd"
    ]
    groups = [{"GPU": "0,1"}, {"GPU": "2,3"}]
    statuses = run.run(trials, str(tmp_path), groups, lambda _: None)
    assert statuses == dict.fromkeys("abcd", 0)
    seen = {x: (tmp_path / f"{x}.log").read_text().split("gpu ")[-1].strip() for x in "abcd"}
    assert {seen["a"], seen["b"]} == {"0,1", "2,3"} == {seen["c"], seen["d"]}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_reaches_the_trial_and_starts_no_other(tmp_path):
    trials = [trial("a", WAITS), trial("b")]

    def stop():
        log = tmp_path / "a.log"
        while not (log.exists() and "\nready" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    said = []
    statuses = run.run(trials, str(tmp_path), [{}], said.append)
    thread.join()
    assert statuses == {"a": 42, "": signal.SIGTERM}
    assert not any("b:" in text for text in said) and not (tmp_path / "b.log").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_one_that_must_overfit_is_asked_again(tmp_path):
    """Its report is written before the verdict."""
    must = dataclasses.replace(trial("a"), cfg=dataclasses.replace(tiny.config("x"), overfit=True))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.html").write_bytes(MARK)
    again = dataclasses.replace(must, flags=("import sys; sys.exit(3)",))
    assert run.run([again], str(tmp_path), [{}], lambda _: None) == {"a": 3}


def test_one_without_room_for_its_output_does_not_stop_the_others(tmp_path):
    said = []
    (tmp_path / "a.log").mkdir()
    statuses = run.run([trial("a"), trial("b")], str(tmp_path), [{}], said.append)
    assert statuses == {"a": 2, "b": 0}
    assert any("a: not started: " in text and "a.log: Is a directory" in text for text in said)


def test_devices_are_divided(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert run.device_groups(2) == [{"CUDA_VISIBLE_DEVICES": x} for x in ("4,5", "6,7")]
    with pytest.raises(UserError, match="--parallel: 4 devices do not divide into 3"):
        run.device_groups(3)
    for hidden in ("-1", "-1,4,5", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert run._gpus() == []
    monkeypatch.setattr(run, "_tpu_chips", lambda: list("01234567"))
    groups = run.device_groups(4)
    assert [g["TPU_VISIBLE_CHIPS"] for g in groups] == ["0,1", "2,3", "4,5", "6,7"]
    assert {g["TPU_CHIPS_PER_PROCESS_BOUNDS"] for g in groups} == {"1,2,1"}
    assert run.device_groups(1) == [{}]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert run.device_groups(3) == [{}, {}, {}]
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(run, "_tpu_chips", list)
    assert run.device_groups(3) == [{}, {}, {}]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/sweep: a part of the path is a file"):
        run.run([], str(tmp_path / "file" / "sweep"), [{}], print)
