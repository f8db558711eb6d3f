"""What a restart may change. Refusals of a whole run: test_loop.py."""

import dataclasses

import pytest

import tiny
from clip_jax.config.schema import StageConfig
from clip_jax.errors import UserError
from clip_jax.train.start import check_length, check_same_run, read_before

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
    with pytest.raises(UserError, match="another model, data or optimizer.*config.loss.kind: was"):
        check_same_run(with_loss(before), with_loss(now), True)


def with_optim(**changes):
    cfg = tiny.config("nowhere")
    return dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, **changes))


@pytest.mark.parametrize(
    ("field", "before", "now"),
    [
        ("kind", "adamw", "lion"), ("mu_dtype", "float32", "bfloat16"),
        ("rates", ("image/.*=0",), ()), ("ema", 0.0, 0.9),
    ],
)  # fmt: skip
def test_what_checkpoints_have_other_arrays_for_is_refused(field, before, now):
    with pytest.raises(UserError, match=rf"or optimizer; .*config.init.*config.optim.{field}: was"):
        check_same_run(with_optim(**{field: before}), with_optim(**{field: now}), True)


def test_other_settings_of_the_optimizer_are_asked_for():
    before, now = with_optim(ema=0.9, b2=0.98), with_optim(ema=0.99, b2=0.95)
    with pytest.raises(UserError, match="give --accept_changes"):
        check_same_run(before, now, False)
    assert len(check_same_run(before, now, True)) == 2


def test_files_of_a_stage_may_move():
    def staged(*changes):
        return tiny.config("nowhere", stages=(StageConfig("a", ("num_steps=3", *changes)),))

    old = staged("data.train.paths=here/0.tar", "model.image.size=24")
    lines = check_same_run(old, staged("data.train.paths=there.tar", "model.image.size=24"), False)
    assert len(lines) == 1 and lines[0].startswith("config.stages[0].changes: was")
    with pytest.raises(UserError, match="config.stages.0..changes"):
        check_same_run(old, staged("data.train.paths=here/0.tar", "model.image.size=32"), False)


def test_a_run_is_not_shortened_below_its_checkpoint():
    check_length(600, 600)
    with pytest.raises(UserError, match="config.num_steps: the checkpoint .* is of step 1,000,"):
        check_length(600, 1000)


def test_what_older_checkpoints_say_of_their_data():
    manifest = {"order": {"data set": "pairs"}, "position": 48}
    assert read_before(manifest) == {"pairs": 48}
    assert read_before({**manifest, "read": {"others": 16, "pairs": 48}})["others"] == 16
