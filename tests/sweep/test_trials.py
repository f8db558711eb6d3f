"""A recipe's sweep becomes trials."""

import numpy as np
import pytest

import tiny
from clip_jax.config.load import load
from clip_jax.errors import UserError
from clip_jax.sweep.trials import expand, option, plain

pytestmark = pytest.mark.core
RECIPE = """
import tiny
from clip_jax.config.codec import to_config_dict

def get_config(arg=""):
    return to_config_dict(tiny.config("folder"))

def sweep(add):
    for rate in (1e-3, 3e-4):
        for seed in (0, 1):
            add({"optim.learning_rate": rate}, seed=seed)
    add({"optim.learning_rate": 1e-3, "seed": 0})  # again
    add({"optim.decay": (".*/kernel", ".*/(a|b)"), "name": "it's $HOME", "data.cache": True})
"""


def write(path, text=RECIPE):
    path.write_text(text)
    return str(path)


def test_each_trial_has_the_config_that_its_flags_give(tmp_path):
    recipe = write(tmp_path / "r.py")
    found = expand(recipe, ("--config.num_steps=9",))
    assert len(found) == 5 and len({t.name for t in found}) == 5
    assert found[1].changes == {"optim.learning_rate": 1e-3, "seed": 1}
    assert found[1].label == "learning_rate=0.001, seed=1"
    for trial in found:
        assert trial.cfg.num_steps == 9
        assert load(recipe, trial.flags[1:]) == trial.cfg
    assert found[4].cfg.optim.decay == (".*/kernel", ".*/(a|b)")
    assert found[4].cfg.name == "it's $HOME" and found[4].cfg.data.cache


def test_names_stay_when_trials_are_added(tmp_path):
    names = [t.name for t in expand(write(tmp_path / "r.py"))]
    more = RECIPE.replace("(0, 1)", "(2, 0, 1)")
    assert set(names) < {t.name for t in expand(write(tmp_path / "other.py", more))}
    assert not set(names) & {
        t.name for t in expand(str(tmp_path / "r.py"), ("--config.num_steps=9",))
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("add({", "add({'optim.rate': 1, "), r"^trial --config.optim.rate=1 .*: .*no such field"),
        (("def sweep", "def swoop"), r"r.py: no function sweep\(add\)"),
        (("seed=seed)", "seed=0 / 0)"), r"r.py:11: ZeroDivisionError: division by zero"),
    ],
)
def test_mistakes_are_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        expand(write(tmp_path / "r.py", RECIPE.replace(*change)))


def test_a_sweep_without_trials(tmp_path):
    text = RECIPE.partition("def sweep")[0] + "def sweep(add):\n    pass\n"
    with pytest.raises(UserError, match="adds no trial"):
        expand(write(tmp_path / "r.py", text))


def test_a_field_that_the_sweep_sets_too(tmp_path):
    with pytest.raises(UserError, match=r"--config.optim.learning_rate: given twice"):
        expand(write(tmp_path / "r.py"), ("--config.optim.learning_rate=1",))


def test_options():
    assert option("seed", 3) == "--config.seed=3"
    assert option("name", "a b") == "--config.name=a b"
    assert option("x", ("a", 1.5)) == "--config.x=('a', 1.5)"
    assert option("x", plain(np.float64(1e-4))) == "--config.x=0.0001"
    assert option("x", plain((np.int64(3), "a"))) == "--config.x=(3, 'a')"
    assert tiny  # the recipe above imports it
