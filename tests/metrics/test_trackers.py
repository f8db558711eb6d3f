"""Metrics in TensorBoard and Weights & Biases, read back; and trackers that fail."""

import json
import shutil
import sys
import threading
import time
import types
import uuid

import fsspec
import numpy as np
import pytest

import clip_jax
import tiny
from clip_jax.config.schema import LogConfig
from clip_jax.errors import UserError
from clip_jax.metrics import trackers
from clip_jax.metrics.trackers import with_trackers
from clip_jax.metrics.writers import read_metrics


class Kept:
    """A writer that remembers, and fails when it is told to."""

    def __init__(self, broken=()):
        self.lines, self.closed, self.broken = [], False, broken

    def write(self, step, values):
        if step in self.broken:
            raise ConnectionError("no route\nto host")
        self.lines.append((step, dict(values)))

    def close(self):
        self.closed = True


def test_an_outage_is_said_once_and_costs_its_lines_only(monkeypatch):
    main, tracker, said = Kept(), Kept(broken=(2, 3)), []
    monkeypatch.setitem(trackers.TRACKERS, "flaky", lambda cfg, workdir, first: tracker)
    writer = with_trackers(main, ["flaky"], None, "/w", 0, said.append)
    for step in range(1, 5):
        writer.write(step, {"loss": step})
    writer.close()
    assert [s for s, _ in main.lines] == [1, 2, 3, 4] and [s for s, _ in tracker.lines] == [1, 4]
    assert said == [
        "flaky: misses metrics from step 2 on (no route to host); metrics.jsonl has them all"
    ]
    assert main.closed and tracker.closed


def test_a_tracker_that_hangs_holds_nothing_up(monkeypatch):
    """It hangs in its first line, then too many wait; its end is not waited for for ever."""

    class Hung(Kept):
        def write(self, step, values):
            told.set()
            threading.Event().wait()

    main, said, told = Kept(), [], threading.Event()
    monkeypatch.setitem(trackers.TRACKERS, "hung", lambda *args: Hung())
    monkeypatch.setattr(trackers, "WAITING", 2)
    monkeypatch.setattr(trackers, "CLOSE_S", 0.05)
    writer = with_trackers(main, ["hung"], None, "/w", 0, said.append)
    writer.write(1, {})
    assert told.wait(10)
    for step in (2, 3, 4, 5):
        writer.write(step, {})
    writer.close()
    assert [s for s, _ in main.lines] == [1, 2, 3, 4, 5] and main.closed
    assert said == [
        "hung: misses metrics from step 4 on (2 lines wait); metrics.jsonl has them all"
    ]


@pytest.mark.parametrize(("where", "when"), [("close", "at its end"), ("write", "from step 7 on")])
def test_what_hangs_until_the_end_is_said(where, when, monkeypatch):
    said, tracker = [], Kept()
    monkeypatch.setattr(tracker, where, lambda *_: threading.Event().wait())
    monkeypatch.setitem(trackers.TRACKERS, "hung", lambda *args: tracker)
    monkeypatch.setattr(trackers, "CLOSE_S", 0.5)
    writer = with_trackers(Kept(), ["hung"], None, "/w", 0, said.append)
    writer.write(7, {})
    writer.close()
    assert said == [
        f"hung: misses metrics {when} (does not end within 0 s); metrics.jsonl has them all"
    ]


def test_a_tracker_that_cannot_start(monkeypatch):
    def make(cfg, workdir, first):
        raise TimeoutError("asleep")

    main, said = Kept(), []
    monkeypatch.setitem(trackers.TRACKERS, "late", make)
    assert with_trackers(main, ["late"], None, "/w", 0, said.append) is main
    assert said == ["late: cannot start (asleep); metrics.jsonl has all metrics"]


def test_what_fails_in_the_main_writer_is_raised(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "kept", lambda *args: Kept())
    writer = with_trackers(Kept(broken=(1,)), ["kept"], None, "/w", 0, print)
    with pytest.raises(ConnectionError):
        writer.write(1, {})


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_package_that_is_missing(name, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    words = rf"config.log.writers: '{name}' needs the package {module}; pip install .*\[{name}\]"
    with pytest.raises(UserError, match=words):
        with_trackers(Kept(), [name], tiny.config("x"), str(tmp_path), 0, print)
    with pytest.raises(UserError, match=words):  # before a run does any work
        trackers.check([name])


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="config.log.writers: unknown .got 'tensorbord'"):
        with_trackers(Kept(), ["tensorbord"], tiny.config("x"), str(tmp_path), 0, print)


def scalars(folder):
    """{name: {step: value}} of TensorBoard's files, by its own format's reader."""
    from tensorboardX import record_writer  # noqa: F401  the package is there
    from tensorboardX.proto import event_pb2

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_event_files_reach_a_remote_workdir(tmp_path, monkeypatch):
    """Once a minute and at the end; those of an attempt before stay."""
    workdir = f"memory://{uuid.uuid4().hex}"

    def there():
        store = fsspec.filesystem("memory")
        if not store.exists(f"{workdir}/tensorboard"):
            return {}
        store.get(f"{workdir}/tensorboard/", f"{tmp_path}/", recursive=True)
        return scalars(tmp_path).get("loss", {})

    for first in (0, 2):
        writer = trackers.TensorBoard(tiny.config("x"), workdir, first)
        monkeypatch.setattr(trackers, "SEND_S", 1e6)
        writer.write(first + 1, {"loss": 0.5})
        assert there().get(first + 1) != 0.5
        monkeypatch.setattr(trackers, "SEND_S", 0.0)
        for _ in range(600):  # a thread of the library's writes the file
            writer.write(first + 2, {"loss": 0.25})
            if first + 2 in there():
                break
            time.sleep(0.1)
        assert there()[first + 2] == 0.25
        writer.write(first + 3, {"loss": 0.125})
        writer.close()
    assert there() == {1: 0.5, 2: 0.25, 3: 0.5, 4: 0.25, 5: 0.125}


@pytest.mark.slow
def test_a_run_with_both(tmp_path, monkeypatch, capsys):
    """Offline; every number of metrics.jsonl is in TensorBoard's file under its step."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder, run = tiny.write_folder(tmp_path / "pairs"), tmp_path / "run"
    log = LogConfig(every=1, writers=("tensorboard", "wandb"))
    clip_jax.pretrain(tiny.config(folder, log=log), str(run))
    found, wanted = scalars(run / "tensorboard"), {}
    for line in read_metrics(str(run)):  # of two lines of a step the later one counts
        step = line["step"]
        names = line.keys() - {"step", "attempt", "time"}
        wanted |= {(name, step): line[name] for name in names}
    assert len(wanted) > 100
    for (name, step), value in wanted.items():
        got = found[name][step]
        assert np.isnan(got) == np.isnan(value), name
        assert np.isnan(got) or got == pytest.approx(value, rel=1e-6), name
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert any(p.suffix == ".wandb" and p.stat().st_size > 1000 for p in offline.iterdir())
    assert "misses metrics" not in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["log"]["writers"]


def fake_wandb(monkeypatch, log):
    """A module `wandb` whose log(values) is given, and whose finish() fails."""
    made = types.ModuleType("wandb")

    def finish():
        raise ConnectionError("still no route")

    run = types.SimpleNamespace(log=log, finish=finish, define_metric=lambda *a, **k: None)
    made.__dict__["init"] = lambda **_: run
    monkeypatch.setitem(sys.modules, "wandb", made)


def outage(tmp_path, capsys):
    """What a run with both trackers says of them, and its lines; eight steps."""
    folder, run = tiny.write_folder(tmp_path / "pairs"), tmp_path / "run"
    log = LogConfig(every=1, writers=("tensorboard", "wandb"))
    clip_jax.pretrain(tiny.config(folder, log=log), str(run))
    lines = read_metrics(str(run))
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, 9))
    assert "eval/colours/top1" in lines[-1] and (run / "report.html").exists()
    return [x for x in capsys.readouterr().out.splitlines() if "misses metrics" in x]


@pytest.mark.slow
def test_a_run_whose_trackers_fail_in_the_middle(tmp_path, monkeypatch, capsys):
    def log(values):
        if values["step"] >= 3:
            raise ConnectionError("no route")

    def add_scalar(self, name, value, step):
        if step >= 3:
            raise OSError(28, "No space left on device")

    fake_wandb(monkeypatch, log)
    monkeypatch.setattr("tensorboardX.SummaryWriter.add_scalar", add_scalar)
    assert sorted(outage(tmp_path, capsys)) == [
        "tensorboard: misses metrics from step 3 on ([Errno 28] No space left on device); "
        "metrics.jsonl has them all",
        "wandb: misses metrics from step 3 on (no route); metrics.jsonl has them all",
    ]


@pytest.mark.slow
def test_a_run_whose_trackers_hang_or_lose_their_files(tmp_path, monkeypatch, capsys):
    """No step waits; the one that hangs is told at the end."""
    plain = trackers.TensorBoard.write

    def log(values):
        if values["step"] >= 3:
            threading.Event().wait()

    events = tmp_path / "run" / "tensorboard"

    def write(self, step, values):
        if step == 3:
            shutil.rmtree(events)
        plain(self, step, values)

    fake_wandb(monkeypatch, log)
    monkeypatch.setattr(trackers.TensorBoard, "write", write)
    monkeypatch.setattr(trackers, "CLOSE_S", 1.0)
    assert sorted(outage(tmp_path, capsys)) == [
        f"tensorboard: misses metrics from step 3 on ({events} was removed); "
        "metrics.jsonl has them all",
        "wandb: misses metrics from step 3 on (does not end within 1 s); "
        "metrics.jsonl has them all",
    ]
