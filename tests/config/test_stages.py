"""Stages as configs: lengths, steps of the run, and what a list of stages may not hold."""

import dataclasses
import json

import pytest

from clip_jax.config import stages
from clip_jax.config.codec import from_dict, to_dict
from clip_jax.config.load import checked, load
from clip_jax.config.schema import Config, EvalConfig, OptimConfig, StageConfig
from clip_jax.errors import UserError

pytestmark = pytest.mark.core

SMALL = StageConfig("small", ("num_steps=2ep", "model.image.size=112", "optim.warmup_steps=320ex"))
LARGE = StageConfig("large", ("num_steps=5", "batch_size=32", "optim.learning_rate=1e-5"))


def config(*items, **changes):
    return Config(batch_size=64, stages=items, optim=OptimConfig(warmup_steps="128ex"), **changes)  # type: ignore[arg-type]


def settled(*items, **changes):
    return checked(config(*items, **changes), needs_data=False, pairs=lambda cfg: 640)


def test_each_stage_counts_its_own_examples_and_epochs():
    cfg = settled(SMALL, LARGE)
    small, large = stages.expand(cfg)
    assert (small.first, small.last, large.first, large.last) == (0, 20, 20, 25)
    assert cfg.num_steps == 25 and (small.examples, large.examples) == (1280, 160)
    assert (small.cfg.batch_size, large.cfg.batch_size) == (64, 32)
    assert (small.cfg.model.image.size, large.cfg.model.image.size) == (112, 224)
    assert small.cfg.optim.warmup_steps == 5  # its own 320 pairs
    assert large.cfg.optim.warmup_steps == 4  # the run's 128 pairs, at 32 a step
    assert large.cfg.optim.learning_rate == 1e-5 and small.cfg.optim.learning_rate == 5e-4
    assert small.cfg.stages == () == large.cfg.stages


def test_lengths_of_evaluation_are_those_of_the_run():
    cfg = settled(SMALL, LARGE, eval=EvalConfig(every="640ex"))  # type: ignore[arg-type]
    assert cfg.eval.every == 10
    assert [s.cfg.eval.every for s in stages.expand(cfg)] == [10, 10]


def test_a_settled_config_stays_itself_also_through_json():
    cfg = settled(SMALL, LARGE)
    assert checked(cfg, needs_data=False) == cfg
    again = from_dict(json.loads(json.dumps(to_dict(cfg))))
    assert again == cfg and stages.expand(again) == stages.expand(cfg)


def test_a_tuple_may_be_given_piece_by_piece():
    paths = ("data.train.paths=x.tar", "data.train.paths=y.tar")
    cfg = settled(StageConfig("a", ("num_steps=640ex", *paths)))
    (stage,) = stages.expand(cfg)
    assert stage.cfg.data.train.paths == ("x.tar", "y.tar") and stage.last == 10


def test_what_would_count_nowhere_is_refused():
    for flag in ("num_steps=5", "batch_size=8", "optim.learning_rate=1.0"):
        path = flag.partition("=")[0]
        with pytest.raises(UserError, match=f"--config.{path}: each stage has its own; change"):
            load("clipa:b16", (f"--config.{flag}",), needs_data=False)
    cfg = load("clipa:b16", ("--config.optim.weight_decay=0.1",), needs_data=False)
    assert [s.cfg.optim.weight_decay for s in stages.expand(cfg)] == [0.1, 0.1]


def test_the_stage_of_a_step():
    parts = stages.expand(settled(SMALL, LARGE))
    names = {step: stages.at(parts, step).name for step in (0, 1, 20, 21, 25, 99)}
    assert names == {0: "small", 1: "small", 20: "small", 21: "large", 25: "large", 99: "large"}


def test_without_stages_there_is_one():
    (only,) = stages.expand(Config(num_steps=7))
    assert (only.name, only.first, only.last, only.cfg) == ("", 0, 7, Config(num_steps=7))


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([StageConfig("a", ("batch_size=8",))], r"stages\[0\].changes: has no num_steps"),
        ([dataclasses.replace(SMALL, name="")], r"stages\[0\].name: each stage needs a name"),
        ([SMALL, SMALL], r"stages\[1\].name: .*'small'"),
        ([StageConfig("a", ("num_steps=5", "seed=1"))], "seed is one for the whole run"),
        ([StageConfig("a", ("num_steps=5", "data.test.paths=x"))], "data.test.paths is one for"),
        ([StageConfig("a", ("num_steps=5", "batch_size"))], "FIELD=VALUE .got 'batch_size'"),
        (
            [StageConfig("a", ("num_steps=5", "model.imag.size=1"))],
            "stage 'a': .*imag: no such field",
        ),
        ([SMALL, StageConfig("a", ("num_steps=5", "optim.b1=x"))], "stage 'a': .*optim.b1=x"),
        (
            [SMALL, StageConfig("a", ("num_steps=5", "batch_size=-1"))],
            "stage 'a': config.batch_size",
        ),
    ],
)
def test_refusals(items, words):
    with pytest.raises(UserError, match=words):
        settled(*items)
