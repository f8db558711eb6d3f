"""Training time over attempts, and the verdict of :overfit."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train.summary import overfit_verdict, plan_line, training_seconds

pytestmark = pytest.mark.core


def test_a_start_without_scores_is_told():
    """`finetune` asks for scores before the first step; without a task there are none."""
    cfg = tiny.config("x")
    cfg = dataclasses.replace(cfg, loss=LossConfig("softmax"))
    prog: Any = SimpleNamespace(mesh=make_mesh(MeshConfig()), abstract=SimpleNamespace(params={}))

    def line(start, tasks):
        changed = dataclasses.replace(cfg.eval, start=start, tasks=tasks)
        now = dataclasses.replace(cfg, eval=changed)
        stage: Any = SimpleNamespace(cfg=now, prog=prog, examples=128, title="", last=8)
        return plan_line(stage, 64, 0)

    said = ", no scores at the start (config.eval.tasks is empty)"
    assert line(True, ()).endswith(f"loss softmax{said}")
    assert said not in line(True, cfg.eval.tasks) and said not in line(False, ())


def test_seconds_count_each_step_once():
    line = lambda step, attempt, s: {"step": step, "attempt": attempt, "speed/step_s": s}  # noqa: E731
    lines = [line(1, 1, 9.0), line(10, 1, 2.0), {"step": 10, "attempt": 1, "eval/a/top1": 0.5}]
    assert training_seconds(lines) == 9 + 9 * 2
    lines += [line(15, 2, 4.0), line(20, 2, 1.0)]  # stopped after 14: 11..14 were not logged
    assert training_seconds(lines) == 27 + 4 + 5


def verdict(first, last, floor=0.0, accuracy=1.0, batch_size=128):
    keys = {"loss_floor": floor, "accuracy/image_to_text": accuracy}
    return overfit_verdict([{"loss": first, **keys}, {"loss": first, **keys},
                            {"loss": last, **keys}], batch_size)  # fmt: skip


def test_verdicts():
    assert verdict(4.0, 0.05)[0] and verdict(4.0, 1.05, floor=1.0)[0]
    for args, words in (
        ({"first": 4.0, "last": 1.0}, "it still falls"),
        ({"first": 4.0, "last": 3.99, "accuracy": 0.01}, "almost nothing is learnt"),
        ({"first": 1.0, "last": 0.99}, "cannot be told apart"),
        ({"first": 4.9, "last": math.log(128), "floor": math.log(128)}, "says nothing"),
    ):
        passed, text = verdict(**args)
        assert not passed and words in text


def test_a_loss_without_a_floor():
    assert overfit_verdict([{"loss": 0.01}], 128)[0]


@pytest.mark.parametrize(
    ("memory_mib", "loss"),
    [
        (512, "softmax (auto: 48.0 MiB of logits fit into loss.memory_mib=512)"),
        (8, "softmax_ring (auto: 48.0 MiB of logits do not fit into loss.memory_mib=8)"),
    ],
)
def test_the_line_at_the_start_says_which_loss_and_why(memory_mib, loss):
    """One negative: 3 blocks of 512 x 8,192 floats."""
    cfg = tiny.config("unused", batch_size=4096)
    data = dataclasses.replace(cfg.data, negatives=("a",))
    cfg = dataclasses.replace(cfg, data=data, loss=LossConfig(memory_mib=memory_mib))
    prog: Any = SimpleNamespace(mesh=make_mesh(MeshConfig()), abstract=SimpleNamespace(params={}))
    stage: Any = SimpleNamespace(cfg=cfg, prog=prog, examples=10, title="", last=8)
    assert plan_line(stage, 64, 0).endswith(f", float32, loss {loss}")
