"""Recipes and command-line overrides, and every message a wrong one gives."""

import pytest

from clip_jax.config.load import load, recipe_names
from clip_jax.errors import UserError

pytestmark = pytest.mark.core


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name):
    paths = ("--config.data.train.paths=a.tar", "--config.data.test.paths=b.tar")
    weights = ("--config.init[0].weights=w",) if name in ("finetune", "lit") else ()
    assert load(name, (*paths, *weights), pairs=lambda cfg: 10**6).batch_size > 0
    overfit = load(f"{name}:overfit", (*paths, *weights))
    assert overfit.overfit and overfit.data.limit == 128 and overfit.eval.tasks == ()
    tiny = load(f"{name}:tiny", paths)
    assert tiny.num_steps == 4 and tiny.batch_size == 16 and tiny.init == ()


def test_overrides_are_typed():
    cfg = load(
        "digits",
        (
            "--config.optim.learning_rate=1e-3",
            "--config.batch_size=32",
            "--config.data.flip=true",
            "--config.data.crop_scale=(0.5,1.0)",
            "--config.model.image.mean=0.5,",
            "--config.eval.tasks[0].name=other",
            "--config.name=a b = c",
        ),
    )
    assert cfg.optim.learning_rate == 1e-3 and cfg.batch_size == 32 and cfg.data.flip is True
    assert cfg.data.crop_scale == (0.5, 1.0) and cfg.model.image.mean == (0.5,)
    assert cfg.eval.tasks[0].name == "other" and cfg.name == "a b = c"


def test_paths():
    one = load("digits", ("--config.data.train.paths=/a b/x-{00..03}.tar",))
    assert one.data.train.paths == ("/a b/x-{00..03}.tar",)
    two = load("digits", ("--config.data.train.paths=a", "--config.data.train.paths=b"))
    assert two.data.train.paths == ("a", "b")
    pair = load("digits", ("--config.data.train.paths=('a', 'b')",))
    assert pair.data.train.paths == ("a", "b")


def test_variants(tmp_path):
    assert load("glyphs:quick").num_steps < load("glyphs").num_steps
    path = tmp_path / "mine.py"
    path.write_text(
        "from clip_jax.config.codec import default\n"
        "def get_config(arg=''):\n"
        "    c = default()\n"
        "    c.name = arg\n"
        "    c.data.train.paths = ('x',)\n"
        "    return c\n"
    )
    assert load(f"{path}:res=336,small").name == "res=336,small"
    assert load(f"{path}:small,overfit").name == "small, overfit"
    assert load(f"{path}:small,tiny,overfit").name == "small, tiny, overfit"


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("glyhps", (), "--config: no such recipe (got 'glyhps').*did you mean 'glyphs'"),
        ("nowhere/x.py", (), "--config: no such file (got 'nowhere/x.py')"),
        ("glyphs:quik", (), "--config: no variant 'quik'.*did you mean 'quick'"),
        ("digits", ("--config.optim.learnin_rate=1",), "did you mean 'learning_rate'"),
        ("digits", ("--config.optmizer.x=1",), "config.optmizer: no such field.*'optim'"),
        ("digits", ("--config.batch_size.x=1",), "config.batch_size: has no fields"),
        ("digits", ("--config.batch_size=1.5",), "config.batch_size"),
        ("digits", ("--config.batch_size=many",), "config.batch_size.*'many'"),
        ("digits", ("--config.seed=1", "--config.seed=2"), "--config.seed: given twice"),
        ("digits", ("--config.data.kind",), "config.data.kind: no such field"),
        (
            "digits",
            ("--config.seed=1", "--config.eval.tasks[5].name=x", "--config.name=y"),
            "--config.eval.tasks[5].name: there is no entry of that number; leave it out",
        ),
        ("digits", ("--config.data.train[0].paths=a",), "config.data.train[0]: is not a tuple"),
        ("digits", ("--config.batch_size=0",), "config.batch_size: must be above 0 (got 0)"),
    ],
)
def test_messages(recipe, overrides, message):
    with pytest.raises(UserError) as e:
        load(recipe, overrides)
    assert all(part in str(e.value) for part in message.split(".*")), str(e.value)
    assert len(str(e.value).splitlines()) == 1


def test_findings_come_together():
    with pytest.raises(UserError) as e:
        load("digits", ("--config.batch_size=0", "--config.model.image.pool=cls"))
    assert len(str(e.value).splitlines()) == 2


def test_a_broken_recipe(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text("def get_config(:\n")
    with pytest.raises(UserError, match=r"mine.py:1: "):
        load(str(path))
    path.write_text("def get_config(arg):\n    return nothing\n")
    with pytest.raises(UserError, match=r"mine.py:2: NameError: .*'nothing'.*; mend the recipe"):
        load(str(path))
    monkeypatch.chdir(tmp_path)  # as a user would name it
    with pytest.raises(UserError, match="^mine.py:2: NameError: "):
        load("mine.py")
    path.write_text("def get_config():\n    return 1\n")
    with pytest.raises(UserError, match=r"^mine.py: TypeError: get_config\(\) takes 0 "):
        load("mine.py")
    path.write_text("x = 1\n")
    with pytest.raises(UserError, match="no function get_config"):
        load(str(path))
