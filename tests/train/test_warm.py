"""Runs that start from other weights."""

import dataclasses

import jax
import numpy as np
import pytest

import clip_jax
import tiny
from clip_jax.config.schema import InitConfig
from clip_jax.errors import UserError
from clip_jax.inference.export import export
from clip_jax.interop.table import leaves
from clip_jax.models.posemb import resize_grid
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import program, warm
from clip_jax.train.state import init_state

MODEL = tiny.model()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A model of other random numbers, and its folder."""
    model = clip_jax.load(init="random", config=MODEL)
    other = jax.tree.map(lambda x: x + 0.25, model.params)
    model = dataclasses.replace(model, params=other)
    folder = str(tmp_path_factory.mktemp("w") / "model")
    export(model, "clip_jax", folder)
    return leaves(jax.device_get(other)), folder


NOT_TOKENS = r"(?!text/token).*"


def start(*items, ours=None, tokenizer=None, **changes):
    """(before, after, average, lines) of a run's first state, whose tokenizer is `ours`."""
    cfg = tiny.config("unused", init=tuple(items), **changes)
    cfg = dataclasses.replace(cfg, tokenizer=tokenizer or cfg.tokenizer)
    mesh = make_mesh(cfg.mesh)
    prog = program.build(cfg, mesh)
    with jax.set_mesh(mesh):
        state = init_state(prog.init, prog.abstract, cfg.seed)
        warm.check(cfg)
        new, lines = warm.warmed(cfg, state, ours)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        assert a.sharding == b.sharding and a.shape == b.shape
    return leaves(state.params), leaves(new.params), leaves(new.ema), lines


def test_parts_are_taken_and_the_others_stay(weights):
    there, folder = weights
    optim = dataclasses.replace(tiny.config("unused").optim, ema=0.9)
    before, after, average, lines = start(
        InitConfig(folder, parts="image/.*"), InitConfig(folder, parts="text/ln_post/scale"),
        optim=optim,
    )  # fmt: skip
    for path, x in after.items():
        taken = path.startswith("image/") or path == "text/ln_post/scale"
        np.testing.assert_array_equal(x, (there if taken else before)[path], err_msg=path)
        np.testing.assert_array_equal(average[path], x)
    assert lines[1] == f"1 parameters start as in {folder}"


def test_positions_are_resized(weights):
    there, folder = weights
    image = dataclasses.replace(MODEL.image, size=2 * MODEL.image.size)
    cfg = dataclasses.replace(MODEL, image=image)
    _, after, _, _ = start(InitConfig(folder, parts=NOT_TOKENS), model=cfg)
    side = MODEL.image.size // MODEL.image.patch
    want = resize_grid(there["image/posemb"], (side, side), (2 * side, 2 * side))
    np.testing.assert_allclose(after["image/posemb"], want, atol=1e-6)
    np.testing.assert_array_equal(after["logit/scale"], there["logit/scale"])


def test_other_shapes_and_missing_parts_are_named(weights):
    _, folder = weights
    wide = dataclasses.replace(MODEL, embed_dim=MODEL.embed_dim + 4)
    with pytest.raises(UserError, match=r"init\[0\]: image/head/kernel is \(\d+, \d+\) there"):
        start(InitConfig(folder, parts="image/.*"), model=wide)
    biased = dataclasses.replace(MODEL, logit_bias=True)
    with pytest.raises(UserError, match=r"config.init\[0\]: has no logit/bias"):
        start(InitConfig(folder), model=biased)
    with pytest.raises(UserError, match=r"config.init\[1\].parts: 'img/.\*' matches no parameter"):
        start(InitConfig(folder, parts=NOT_TOKENS), InitConfig(folder, parts="img/.*"))
    with pytest.raises(UserError, match="kept no moving average"):
        start(InitConfig(folder, ema=True))


@pytest.mark.parametrize(
    ("side", "field", "value"),
    [
        ("image", "heads", 4), ("image", "activation", "quick_gelu"), ("image", "ln_eps", 1e-6),
        ("image", "mean", (0.5, 0.5, 0.5)), ("text", "heads", 4), ("text", "causal", True),
    ],
)  # fmt: skip
def test_towers_of_equal_shapes_but_another_meaning_are_refused(weights, side, field, value):
    _, folder = weights
    tower = dataclasses.replace(getattr(MODEL, side), **{field: value})
    cfg = dataclasses.replace(MODEL, **{side: tower})
    other = "text" if side == "image" else "image"
    with pytest.raises(
        UserError, match=rf"init\[0\]: .*model.{side}.{field} is .* and .* in the con"
    ):
        start(InitConfig(folder, parts=NOT_TOKENS), model=cfg)
    start(InitConfig(folder, parts=f"{other}/(?!token).*"), model=cfg)


class Words:
    """A tokenizer that is its bytes."""

    def __init__(self, text):
        self._text = text

    def to_bytes(self):
        return self._text


def test_tokens_of_another_tokenizer_are_refused(weights, monkeypatch):
    _, folder = weights
    with pytest.raises(UserError, match="cut by another tokenizer than this run's"):
        start(InitConfig(folder))  # it came without one, and this run trains its own
    given = dataclasses.replace(tiny.config("unused").tokenizer, path="words.model")
    start(InitConfig(folder), tokenizer=given)
    load = warm.load

    def loaded(*args, **named):
        return dataclasses.replace(load(*args, **named), tokenizer=Words(b"theirs"))

    monkeypatch.setattr(warm, "load", loaded)
    with pytest.raises(UserError, match="cut by another tokenizer than this run's"):
        start(InitConfig(folder), ours=Words(b"ours"))
    _, after, _, _ = start(InitConfig(folder), ours=Words(b"theirs"))
    assert after
