"""Cross-field checks: each finding names its field."""

import dataclasses

import pytest

import tiny
from clip_jax.config.check import findings

pytestmark = pytest.mark.core
GOOD = tiny.config("x")


def change(path, value, cfg=GOOD):
    name, _, rest = path.partition(".")
    new = change(rest, value, getattr(cfg, name)) if rest else value
    return dataclasses.replace(cfg, **{name: new})


def test_a_good_config_has_no_findings():
    assert findings(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("num_steps", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("data.threads", -2),
        ("data.limit", -1),
        ("tokenizer.train_captions", -1),
        ("loss.chunk", -1),
        ("data.crop_ratio", ()),
        ("optim.learning_rate", float("nan")),
        ("optim.grad_clip", -1.0),
        ("eval.tasks", GOOD.eval.tasks * 2),
        ("data.train.paths", ("",)),
        ("log.every", 0),
        ("optim.learning_rate", 0.0),
        ("optim.warmup_steps", 8),
        ("optim.decay", ("(",)),
        ("optim.schedule", "exponential"),
        ("optim.kind", "sgd"),
        ("optim.decay_convention", "flax"),
        ("optim.rates", ("image/.*",)),
        ("optim.rates", ("image/.*=-1",)),
        ("optim.rates", ("image/(=0.1",)),
        ("optim.image_layer_decay", 0.0),
        ("optim.text_layer_decay", 1.5),
        ("optim.cooldown_steps", -1),
        ("optim.cooldown_steps", 2),  # the schedule is a cosine
        ("optim.timescale_steps", 2),
        ("optim.ema", 1.0),
        ("optim.b1", 1.0),
        ("optim.b2", -0.1),
        ("optim.eps", 0.0),
        ("optim.final_lr", 1.5),
        ("augment.rotate", -5.0),
        ("augment.dim", 1.5),
        ("eval.ema", True),
        ("optim.logit_scale_max", 0.5),
        ("model.image.size", 3),
        ("model.image.channels", 2),
        ("model.image.mean", (0.5,)),
        ("model.image.pool", "max"),
        ("model.image.width", 15),
        ("model.image.activation", "relu"),
        ("model.text.width", 15),
        ("model.text.context", 1),
        ("model.text.eos_id", 300),
        ("model.text.pool", "argmax"),
        ("model.dtype", "float16"),
        ("model.remat", "some"),
        ("model.attention", "flash"),
        ("model.attention", "cudnn"),  # the dtype is float32
        ("tokenizer.clean", "upper"),
        ("data.train.paths", ()),
        ("data.test.paths", ()),
        ("data.crop_scale", (1.0, 0.5)),
        ("data.crop_scale", (0.5, 1.5)),
        ("data.max_bad_share", 2.0),
    ],
)
def test_each_finding_names_its_field(path, value):
    found = findings(change(path, value))
    assert found and any(f"config.{path}" in line for line in found), found


def test_warmup_and_cooldown_leave_a_middle():
    cfg = change("optim.schedule", "constant")
    cfg = change("optim.warmup_steps", 4, change("optim.cooldown_steps", 4, cfg))
    assert findings(cfg) == [
        "config.optim.warmup_steps + cooldown_steps: must be below num_steps=8 (got 8)"
    ]
    assert findings(change("optim.cooldown_steps", 3, cfg)) == []


def test_templates_need_one_slot():
    task = dataclasses.replace(GOOD.eval.tasks[0], templates=("a photo",))
    found = findings(change("eval.tasks", (task,)))
    assert found == [
        "config.eval.tasks[0].templates: each needs one {} (got 'a photo')",
    ]
