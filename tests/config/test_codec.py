"""Config <-> plain data <-> ConfigDict."""

import dataclasses
import json

import pytest

from clip_jax.config import codec
from clip_jax.config.schema import Config, EvalConfig, TaskConfig
from clip_jax.errors import UserError

pytestmark = pytest.mark.core
CFG = Config(
    batch_size=64,
    eval=EvalConfig(tasks=(TaskConfig(name="a", classes=("x", "y")), TaskConfig(name="b"))),
)


def test_round_trips():
    assert codec.from_dict(json.loads(json.dumps(codec.to_dict(CFG)))) == CFG
    assert codec.from_dict(codec.to_config_dict(CFG)) == CFG
    assert codec.from_dict({}) == Config()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"btach_size": 1}, "config.btach_size: no such field; did you mean 'batch_size'?"),
        (
            {"model": {"image": {"widht": 1}}},
            "config.model.image.widht: no such field; did you mean 'width'?",
        ),
        ({"batch_size": 1.5}, "config.batch_size: must be int (got 1.5)"),
        ({"batch_size": True}, "config.batch_size: must be int (got True)"),
        ({"name": 3}, "config.name: must be str (got 3)"),
        ({"model": 3}, "config.model: must be a group of fields (got 3)"),
        (
            {"data": {"train": {"paths": "x"}}},
            "config.data.train.paths: must be a tuple (got 'x'); write ('x',)",
        ),
        (
            {"data": {"train": {"paths": [1]}}},
            "config.data.train.paths[0]: must be str (got 1)",
        ),
    ],
)
def test_wrong_data_is_named(data, message):
    with pytest.raises(UserError) as e:
        codec.from_dict(data)
    assert str(e.value) == message


def test_integers_are_good_floats():
    cfg = codec.from_dict({"optim": {"learning_rate": 1}})
    assert type(cfg.optim.learning_rate) is float


def test_flatten_and_differences():
    flat = codec.flatten(CFG)
    assert flat["eval.tasks[0].classes"] == ("x", "y") and flat["batch_size"] == 64
    other = dataclasses.replace(CFG, seed=3, eval=EvalConfig(tasks=(TaskConfig(name="a"),)))
    changed = codec.differences(CFG, other)
    assert changed["seed"] == (0, 3)
    assert changed["eval.tasks[0].classes"] == (("x", "y"), ())
    assert changed["eval.tasks[1].name"] == ("b", None)
    assert codec.differences(CFG, CFG) == {}


def test_every_field_has_a_meaning_and_a_place():
    described = {path: meaning for path, _, _, meaning in codec.describe()}
    assert all(described.values())
    for path in codec.flatten(Config()):
        assert f"config.{path}" in described
    assert "config.eval.tasks[i].templates" in described
