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
