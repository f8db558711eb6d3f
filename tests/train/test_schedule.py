"""Learning rates against the formula."""

import math

import pytest

from clip_jax.config.schema import OptimConfig
from clip_jax.train.schedule import make_schedule

pytestmark = pytest.mark.core


def test_warmup_and_cosine():
    cfg = OptimConfig(learning_rate=0.5, warmup_steps=10, final_lr=0.1)
    lr = make_schedule(cfg, 110)
    for step in (0, 4, 9):
        assert float(lr(step)) == pytest.approx(0.5 * (step + 1) / 10, rel=1e-5)
    for step in (10, 35, 60, 110):
        cosine = (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert float(lr(step)) == pytest.approx(0.5 * (0.9 * cosine + 0.1), rel=1e-5)


def test_constant_without_warmup():
    lr = make_schedule(OptimConfig(learning_rate=0.25, schedule="constant"), 10)
    assert [float(lr(s)) for s in (0, 5, 9)] == [0.25] * 3


def test_one_step_of_warmup():
    lr = make_schedule(OptimConfig(learning_rate=1.0, warmup_steps=1, schedule="constant"), 10)
    assert [float(lr(s)) for s in (0, 1)] == [1.0, 1.0]


def test_linear():
    lr = make_schedule(
        OptimConfig(learning_rate=0.5, warmup_steps=10, final_lr=0.2, schedule="linear"), 110
    )
    for step in (10, 35, 60, 110):
        share = (step - 10) / 100
        assert float(lr(step)) == pytest.approx(0.5 * (1 - 0.8 * share), rel=1e-5)


@pytest.mark.parametrize("timescale", [0, 40])
def test_rsqrt_is_big_visions(timescale):
    cfg = OptimConfig(
        learning_rate=0.5, warmup_steps=10, schedule="rsqrt", timescale_steps=timescale,
        cooldown_steps=20,
    )  # fmt: skip
    lr, scale = make_schedule(cfg, 210), timescale or 10
    assert float(lr(9)) == pytest.approx(0.5)
    for step in (10, 50, 189):
        want = 0.5 / math.sqrt((step + scale - 10) / scale)
        assert float(lr(step)) == pytest.approx(want, rel=1e-5)
    for step in (190, 200, 209, 210):
        want = 0.5 / math.sqrt((step + scale - 10) / scale) * (210 - step) / 20
        assert float(lr(step)) == pytest.approx(want, rel=1e-5, abs=1e-9)


def test_warmup_stable_decay():
    cfg = OptimConfig(
        learning_rate=0.5, warmup_steps=10, schedule="constant", cooldown_steps=50, final_lr=0.1
    )
    lr = make_schedule(cfg, 210)
    assert [float(lr(s)) for s in (10, 100, 160)] == pytest.approx([0.5] * 3)
    assert float(lr(185)) == pytest.approx(0.5 * 0.55, rel=1e-5)
    assert float(lr(210)) == pytest.approx(0.05, rel=1e-5)
