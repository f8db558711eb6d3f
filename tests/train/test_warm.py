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


def start(*items, **changes):
    """(before, after, lines) of a run's first state."""
    cfg = tiny.config("unused", init=tuple(items), **changes)
    mesh = make_mesh(cfg.mesh)
    prog = program.build(cfg, mesh)
    with jax.set_mesh(mesh):
        state = init_state(prog.init, prog.abstract, cfg.seed)
        new, lines = warm.warmed(cfg, mesh, state)
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
    _, after, _, _ = start(InitConfig(folder), model=cfg)
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
        start(InitConfig(folder), InitConfig(folder, parts="img/.*"))
    with pytest.raises(UserError, match="kept no moving average"):
        start(InitConfig(folder, ema=True))
