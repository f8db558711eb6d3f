"""Lengths in steps, examples and epochs."""

import dataclasses

import pytest

import tiny
from clip_jax.config.codec import default, from_dict, to_config_dict
from clip_jax.config.load import load
from clip_jax.config.schema import Config
from clip_jax.config.units import parse, settled
from clip_jax.errors import UserError

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("5_000", (5000, "")),
        ("1e3", (1000, "")),
        ("2k", (2000, "")),
        ("12.8Bex", (12.8e9, "ex")),
        ("1.5 Mex", (1.5e6, "ex")),
        ("32ep", (32, "ep")),
        ("0.25ep", (0.25, "ep")),
    ],
)
def test_forms(text, want):
    assert parse(text, "config.x") == want


@pytest.mark.parametrize(
    "text", ["", "ep", "-3ep", "1.5", "3 epochs", "2Gex", "ep32", "1e999", "1e999ep"]
)
def test_what_is_no_length(text):
    with pytest.raises(UserError, match=r"config.num_steps: must be steps \(5_000\), examples"):
        parse(text, "config.num_steps")


def recipe(**changes):
    c = default()
    c.batch_size, c.data.epoch_size = 32_768, 1_281_167
    for path, value in changes.items():
        c.update_from_flattened_dict({path.replace("__", "."): value})
    return from_dict(c)


def test_published_lengths():
    cfg = settled(
        recipe(
            num_steps="12.8Bex", optim__warmup_steps="40ep", checkpoint__every="0.0001ep",
            eval__every="0ep",
        )
    )  # fmt: skip
    assert cfg.num_steps == 390_625  # OpenAI's 32 epochs of 400M
    assert cfg.optim.warmup_steps == 1564  # FLIP's 40 virtual epochs, at half its batch
    assert cfg.checkpoint.every == 1 and cfg.eval.every == 0
    assert all(type(x) is int for x in (cfg.num_steps, cfg.optim.warmup_steps, cfg.eval.every))


def test_pairs_are_counted_once_and_only_for_epochs():
    asked = []

    def pairs(cfg):
        asked.append(cfg)
        return 3200

    cfg = dataclasses.replace(recipe(num_steps="2ep", log__every="1ep", data__epoch_size=0))
    cfg = dataclasses.replace(cfg, batch_size=32)
    assert settled(cfg, pairs).num_steps == 200 and settled(cfg, pairs).log.every == 100
    assert len(asked) == 2
    assert settled(recipe(num_steps="3Mex", data__epoch_size=0), pairs).num_steps == 92
    assert len(asked) == 2
    with pytest.raises(UserError, match="config.num_steps: is in epochs, and no data are read"):
        settled(cfg)


def test_numbers_and_texts_pass_through_recipes_and_the_command_line(tmp_path):
    path = tmp_path / "r.py"
    path.write_text(
        "import tiny\nfrom clip_jax.config.codec import to_config_dict\n"
        "def get_config(arg=''):\n"
        "    c = to_config_dict(tiny.config('x'))\n"
        "    c.num_steps, c.data.epoch_size = '4ep', 64\n"
        "    return c\n"
    )
    assert load(str(path)).num_steps == 16  # of 16 pairs
    flags = ("--config.num_steps=160ex", "--config.optim.warmup_steps=3", "--config.log.every=1ep")
    cfg = load(str(path), flags)
    assert (cfg.num_steps, cfg.optim.warmup_steps, cfg.log.every) == (10, 3, 4)
    with pytest.raises(UserError, match=r"config.num_steps: must be steps .* \(got 'many'\)"):
        load(str(path), ("--config.num_steps=many",))
    with pytest.raises(UserError, match=r"config.num_steps: must be int, or a text"):
        from_dict({"num_steps": 1.5})
    assert from_dict(to_config_dict(tiny.config("x"))) == tiny.config("x")
    assert isinstance(Config().num_steps, int)
