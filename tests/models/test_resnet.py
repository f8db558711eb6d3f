"""Batch norm: training on eight devices equals one; running statistics are a part of the state."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from clip_jax.config.schema import ImageConfig, MeshConfig
from clip_jax.data.feed import put
from clip_jax.interop.table import leaves
from clip_jax.models import dual
from clip_jax.models.resnet import BatchNorm
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import program
from clip_jax.train.state import init_state

IMAGE = ImageConfig(kind="resnet", size=32, width=4, stages=(1, 1, 1, 1), heads=4)
CFG = tiny.config("unused", model=dataclasses.replace(tiny.model(), image=IMAGE))


def arrays(step, b=16):
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (b, 32, 32, 3), np.uint8),
        "text": rng.integers(1, 300, (b, 8)).astype(np.int32),
        "index": np.stack([np.zeros(b), step * b + np.arange(b)], 1).astype(np.uint32),
        "group": np.arange(b, dtype=np.int32),
    }


def train(shape, steps=3):
    mesh = make_mesh(MeshConfig(*shape))
    prog = program.build(CFG, mesh)
    with jax.set_mesh(mesh):
        state = init_state(prog.init, prog.abstract, 0)
    execute = prog.compile()
    losses = []
    for i in range(steps):
        state, metrics = execute(state, put(arrays(i), mesh))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


def test_eight_devices_equal_one():
    losses, state = train((1, 1, 1))
    for shape in ((8, 1, 1), (2, 4, 1)):
        got, other = train(shape)
        np.testing.assert_allclose(got, losses, rtol=2e-5)
        for path, want in leaves(state.stats).items():
            np.testing.assert_allclose(leaves(other.stats)[path], want, atol=2e-5, err_msg=path)
        assert int(state.stats["image"]["bn1"]["count"]) == 3


def tower(remat):
    """Of parameters, statistics and images (b, y, x, 3): embeddings (b, e), new statistics."""
    module = dual.build(dataclasses.replace(CFG.model, remat=remat))._tower("image")

    def embed(params, stats, image):
        variables = {"params": params, "stats": stats}
        return module.apply(variables, image, jax.random.key(0), mutable=["stats"])

    return embed


@pytest.mark.parametrize("remat", ["dots", "full", "offload"])
def test_gradients_are_the_same_whatever_is_computed_again(remat):
    params, stats = (x["image"] for x in dual.build(CFG.model).init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params)
    image = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)

    def result(kind):
        def loss(*args):
            embedded, new = tower(kind)(*args)
            return jnp.sum(jnp.sin(embedded)), new

        grad = jax.grad(loss, (0, 2), has_aux=True)
        return jax.jit(grad)(params, stats, image)

    want, got = leaves(result("none")), leaves(result(remat))
    for path, x in want.items():
        size = max(np.abs(x).max(), 1e-2)
        np.testing.assert_allclose(got[path], x, atol=1e-4 * size, err_msg=path)


def kept(remat):
    """Shapes (y, x, c), and of keys (s, h, k), that wait for the backward pass of five images."""
    params, stats = (
        x["image"] for x in jax.eval_shape(dual.build(CFG.model).init, jax.random.key(0))
    )
    image = jax.ShapeDtypeStruct((5, 32, 32, 3), np.float32)
    embed = tower(remat)
    saved = jax.eval_shape(lambda *args: jax.vjp(embed, *args)[1], params, stats, image)
    return sorted(
        x.shape[1:] for x in jax.tree.leaves(saved) if x.shape[0:1] == (5,) and x.ndim == 4
    )


INPUTS = [(32, 32, 3), (8, 8, 4), (8, 8, 16), (4, 4, 32), (2, 2, 64)]  # of stem and bottlenecks
POOL = [(2, 4, 32), (2, 4, 32)]  # keys and values
CONVOLVED = [
    *[(16, 16, 2), (16, 16, 2), (16, 16, 4)],
    *[(8, 8, 4), (8, 8, 4), (8, 8, 16), (8, 8, 16)],  # the last is the shortcut's
    *[(8, 8, 8), (8, 8, 8), (4, 4, 32), (4, 4, 32)],
    *[(4, 4, 16), (4, 4, 16), (2, 2, 64), (2, 2, 64)],
    *[(2, 2, 32), (2, 2, 32), (1, 1, 128), (1, 1, 128)],
]


def test_what_is_kept_for_the_backward_pass():
    assert kept("full") == sorted(INPUTS + POOL)
    assert kept("dots") == sorted(INPUTS + CONVOLVED + POOL)
    assert len(kept("none")) > 2 * len(kept("dots"))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_moments_travel_once(remat):
    """Those of eight devices' batch are kept, not summed over them again."""

    def sums(kind):
        model = dataclasses.replace(CFG.model, remat=kind)
        prog = program.build(dataclasses.replace(CFG, model=model), make_mesh(MeshConfig(8)))
        return len(re.findall(r" all-reduce(?:-start)?\(", prog.compile().as_text()))

    assert sums(remat) == sums("none") > 0


def test_running_statistics_are_those_of_torch():
    x = np.random.default_rng(0).normal(3, 2, (4, 2, 2, 5)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, False)
    y, new = norm.apply(variables, x, True, mutable=["stats"])
    flat = x.reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(new["stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    unbiased = flat.var(0, ddof=1)
    np.testing.assert_allclose(new["stats"]["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)
    want = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(y).reshape(-1, 5), want, atol=1e-5)


def test_evaluation_uses_the_running_statistics_and_keeps_them():
    model = dual.build(CFG.model)
    params, stats = model.init(jax.random.key(0))
    batch = {k: v for k, v in arrays(0).items() if k != "group"}
    z, new = jax.jit(lambda b: model.embed(params, stats, b, None))(batch)
    one, _ = jax.jit(lambda b: model.embed(params, stats, b, None))(
        {k: v[:1] for k, v in batch.items()}
    )
    np.testing.assert_allclose(one["image"], z["image"][:1], atol=1e-5)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(stats), strict=True):
        np.testing.assert_array_equal(a, b)
    shifted = jax.tree.map(lambda x: x + jnp.ones_like(x), stats)
    other, _ = jax.jit(lambda b: model.embed(params, shifted, b, None))(batch)
    assert np.abs(np.asarray(other["image"] - z["image"])).max() > 1e-4


def test_a_skipped_step_leaves_the_statistics_alone():
    mesh = make_mesh(MeshConfig(1, 1, 1))
    prog = program.build(CFG, mesh)
    with jax.set_mesh(mesh):
        state = init_state(prog.init, prog.abstract, 0)
    params = {**state.params, "logit": {"scale": jnp.float32(np.nan)}}
    state = dataclasses.replace(state, params=params)
    before = jax.device_get(state.stats)
    state, metrics = prog.compile()(state, put(arrays(0), mesh))
    assert int(metrics["skipped"]) == 1
    for a, b in zip(jax.tree.leaves(state.stats), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)
