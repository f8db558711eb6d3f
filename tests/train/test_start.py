"""What a restart may change. Refusals of a whole run: test_loop.py."""

import dataclasses

import pytest

import tiny
from clip_jax.errors import UserError
from clip_jax.train.start import check_same_run

pytestmark = pytest.mark.core


def with_loss(kind):
    cfg = tiny.config("nowhere")
    return dataclasses.replace(cfg, loss=dataclasses.replace(cfg.loss, kind=kind))


@pytest.mark.parametrize(
    ("before", "now"),
    [("softmax", "softmax_ring"), ("auto", "softmax_chunked"), ("sigmoid_ring", "sigmoid")],
)
def test_the_same_loss_may_be_computed_in_another_way(before, now):
    lines = check_same_run(with_loss(before), with_loss(now), False)
    assert lines == [f"config.loss.kind: was {before!r}, now {now!r}"]


@pytest.mark.parametrize(
    ("before", "now"),
    [("softmax", "sigmoid"), ("auto", "sigmoid_ring"), ("softmax", "own:loss"), ("a:b", "a:c")],
)
def test_another_loss_is_another_run(before, now):
    with pytest.raises(UserError, match="another model or data.*config.loss.kind: was"):
        check_same_run(with_loss(before), with_loss(now), True)
