"""Lines of metrics: what a device tells, of which a CPU tells nothing."""

import itertools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from clip_jax.data.pipeline import HostBatch
from clip_jax.metrics.clock import Clock
from clip_jax.metrics.goodput import Ledger
from clip_jax.train import log

pytestmark = pytest.mark.core
FLOPS, PEAK = 6e9, 1e9  # of a step; of a device in a second


def lines(monkeypatch, peak, memory):
    """What is written of two steps, each of them two seconds long, on four devices."""
    device = SimpleNamespace(device_kind="TPU v0", memory_stats=lambda: memory)
    clock = lambda *args, **more: Clock(*args, **more, now=itertools.count(0, 2.0).__next__)  # noqa: E731
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(log, "peak_flops", {"TPU v0": peak}.get)
    monkeypatch.setattr(log, "model_flops", lambda cfg: FLOPS)
    monkeypatch.setattr(log, "Clock", clock)
    cfg, found = tiny.config("x"), []
    write = lambda step, values: found.append((step, values))  # noqa: E731
    four = SimpleNamespace(mesh=SimpleNamespace(size=4))
    job: Any = SimpleNamespace(
        cfg=cfg, stage=SimpleNamespace(first=0), prog=four, ledger=Ledger(),
        line=SimpleNamespace(update=lambda *_: None, say=print), pipeline=SimpleNamespace(size=64),
    )  # fmt: skip
    out = log.Log(job, SimpleNamespace(write=write), 0)  # type: ignore[arg-type]
    text = np.arange(16)[:, None] // 2  # each caption twice
    host = HostBatch({"text": text, "group": np.arange(16)}, log.collections.Counter())
    for step in (1, 2):
        out.count(host)
        out.keep(step, {"loss": jnp.ones(()), "skipped_in_row": jnp.zeros((), int)}, host)
        out.flush()
    return found


def test_share_of_the_peak_and_memory(monkeypatch):
    """6 GFLOP in 2 s on four devices of 1 GFLOP/s."""
    (first, values), (second, _) = lines(monkeypatch, PEAK, {"peak_bytes_in_use": 7})
    assert (first, second) == (1, 2) and values["speed/step_s"] == 2.0
    assert values["speed/mfu"] == pytest.approx(6 / (2 * 4))
    assert values["device/peak_bytes"] == 7
    assert values["data/repeated"] == 0.5


def test_what_is_not_known_is_left_out(monkeypatch):
    for memory in (None, {}):
        _, values = lines(monkeypatch, 0.0, memory)[0]
        assert not {"speed/mfu", "device/peak_bytes"} & values.keys() and values["loss"] == 1.0
