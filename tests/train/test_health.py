"""What is said about a run, when, how often, and what is not said."""

import dataclasses
import math

import pytest

import tiny
from clip_jax.config.schema import LossConfig
from clip_jax.train.health import IN_A_ROW, Health

pytestmark = pytest.mark.core

WELL = {
    "loss": 1.0, "logit_scale": 20.0, "cosine/image": 0.3, "cosine/text": 0.5,
    "data/repeated": 0.0, "data/wait_share": 0.01, "data/read_s": 0.1, "data/decode_s": 0.9,
    "data/transform_s": 0.2, "data/tokenize_s": 0.0, "speed/step_s": 30.0,
}  # fmt: skip
GUESS = math.log(16)
ILL = {
    "is that of guessing": {"loss": GUESS - 0.01},
    "logit scale fell from 20.0 to 13.0": {"logit_scale": 13.0},
    "different images are nearly one": {"cosine/image": 0.97},
    "different texts are nearly one": {"cosine/text": 0.97},
    "config.data.group_by=caption": {"data/repeated": 0.2},
    "most of it to decode; store smaller images": {"data/wait_share": 0.4},
}
REMEDIES = (
    "lower config.optim.learning_rate, and see with :overfit",
    "lower config.optim.learning_rate, or set config.optim.b2=0.95",
    *["lower config.optim.learning_rate, and look whether all"] * 2,
    "set config.data.group_by=caption",
    "store smaller images, or raise config.data.threads",
)


def config(**data):
    cfg = tiny.config("x")  # 16 pairs, warm-up of 2 steps; 20 at least are waited for
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, group_by="none", **data))


def said(health, values, steps):
    return [text for step in steps for text in health.look(step, WELL | values)]


@pytest.mark.parametrize(("words", "remedy"), list(zip(ILL, REMEDIES, strict=True)))
def test_each_is_said_once_after_some_lines_in_a_row(words, remedy):
    health = Health(config(), 0)
    assert said(health, {}, range(21, 30)) == []
    assert said(health, ILL[words], range(30, 29 + IN_A_ROW)) == []
    assert said(health, {}, [50]) == []  # the row is broken
    (text,) = said(health, ILL[words], range(51, 90))
    assert words in text and text.startswith(f"step {50 + IN_A_ROW}: ") and "\n" not in text
    assert f"; {remedy}" in text


@pytest.mark.parametrize("values", [{"loss": GUESS}, {"cosine/image": 0.99}, {"logit_scale": 2.0}])
def test_nothing_is_said_of_a_warm_up(values):
    health = Health(config(), 100)
    assert said(health, {}, [101]) == []
    assert said(health, values, range(102, 121)) == []
    assert said(health, values, range(121, 130)) != []


@pytest.mark.parametrize("words", ILL)
def test_just_below_the_limits_nothing_is_said(words):
    fine = {"loss": GUESS - 0.03, "logit_scale": 14.1, "cosine/image": 0.94, "cosine/text": 0.94}
    fine |= {"data/repeated": 0.04, "data/wait_share": 0.29}
    name = next(iter(ILL[words]))
    health = Health(config(), 0)
    assert said(health, {}, [21]) == [] and said(health, {name: fine[name]}, range(22, 40)) == []


def test_the_slowest_part_of_the_input_is_named():
    for slowest in ("read", "decode", "transform", "tokenize"):
        values = {"data/wait_share": 0.5, f"data/{slowest}_s": 5.0}
        (text,) = said(Health(config(), 0), values, range(9))
        assert f"50 % of the time is spent waiting for input, most of it to {slowest};" in text


def test_input_is_waited_for_a_minute():
    slow = {"data/wait_share": 0.5, "speed/step_s": 1.0}
    health = Health(config(), 100)
    assert said(health, slow, range(110, 160, 10)) == []
    assert said(health, {}, [160]) == []  # the minute begins anew
    (text,) = said(health, slow, range(170, 300, 10))
    assert text.startswith("step 220: ")


def test_what_does_not_apply_is_not_said():
    cfg = dataclasses.replace(config(), loss=LossConfig("sigmoid"))
    assert said(Health(cfg, 0), {"loss": GUESS}, range(21, 40)) == []
    grouped = dataclasses.replace(
        config(), data=dataclasses.replace(config().data, group_by="caption")
    )
    assert said(Health(grouped, 0), {"data/repeated": 0.9}, range(21, 40)) == []
