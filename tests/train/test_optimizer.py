"""Optimizers: each against its formula in NumPy, on stacked parameters layer by layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.config.schema import OptimConfig
from clip_jax.interop.table import leaves
from clip_jax.train.groups import decay_mask
from clip_jax.train.optimizer import make_optimizer

pytestmark = pytest.mark.core
DECAY = (".*/kernel",)
L, D, F = 40, 32, 48  # more layers than rows: what takes them for a matrix goes wrong


def params(seed):
    rng = np.random.default_rng(seed)
    array = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)  # noqa: E731
    blocks = {"mlp": {"up": {"kernel": array(L, D, F), "bias": array(L, F)}}}
    tower = {"blocks": blocks, "head": {"kernel": array(D, F)}}
    tower["pool"] = {"mlp": {"up": {"kernel": array(D, F)}}}
    return {"image": tower, "logit": array()}


def config(**changes):
    return dataclasses.replace(OptimConfig(decay=DECAY, weight_decay=0.0), **changes)


def run(cfg, steps=4, tree=params):
    """Directions after some gradients, and the last state."""
    p = tree(0)
    tx = make_optimizer(cfg, p, decay_mask(cfg.decay, p))
    state, out = tx.init(p), None
    for i in range(steps):
        out, state = jax.jit(tx.update)(tree(i + 1), state, p)
    return leaves(out), state


def layers_of(cfg, steps=4):
    """The same, the first and the last layer in models of their own."""
    found = []
    for i in (0, L - 1):

        def one(seed, i=i):
            p = params(seed)
            up = {k: v[i : i + 1] for k, v in p["image"]["blocks"]["mlp"]["up"].items()}
            return {"image": {"blocks": {"mlp": {"up": up}}}}

        found.append(run(cfg, steps, one)[0])
    return {k: np.concatenate([np.asarray(x[k]) for x in found]) for k in found[0]}


@pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor", "muon"])
def test_each_layer_moves_as_if_it_were_alone(kind):
    cfg = config(kind=kind)
    got, want = run(cfg)[0], layers_of(cfg)
    for path in ("image/blocks/mlp/up/kernel", "image/blocks/mlp/up/bias"):
        ends = np.asarray(got[path])[[0, -1]]
        np.testing.assert_allclose(ends, want[path], rtol=2e-5, atol=1e-5, err_msg=path)


def gradients(path, steps=4):
    return [np.asarray(leaves(params(i + 1))[path], np.float64) for i in range(steps)]


def test_lion_is_the_sign_of_an_interpolation():
    got = run(config(kind="lion", b1=0.9, b2=0.98))[0]["image/head/kernel"]
    m = np.zeros((D, F))
    for g in gradients("image/head/kernel"):
        want, m = np.sign(0.9 * m + 0.1 * g), 0.98 * m + 0.02 * g
    np.testing.assert_array_equal(got, want)


def test_adafactor_is_big_visions():
    got, state = run(config(kind="adafactor", b1=0.9, b2=0.6))
    matrix, bias = gradients("image/blocks/mlp/up/kernel"), gradients("image/blocks/mlp/up/bias")
    row, column, momentum = np.zeros((L, D)), np.zeros((L, F)), np.zeros((L, D, F))
    v, slow = np.zeros((L, F)), np.zeros((L, F))
    for t, (g, h) in enumerate(zip(matrix, bias, strict=True), 1):
        beta2 = min(0.6, 1 - t**-0.8)
        row = beta2 * row + (1 - beta2) * (g**2).mean(2)
        column = beta2 * column + (1 - beta2) * (g**2).mean(1)
        second = row[:, :, None] * column[:, None, :] / row.mean(1)[:, None, None]
        momentum = 0.9 * momentum + 0.1 * g / np.sqrt(second)
        v = beta2 * v + (1 - beta2) * h**2
        slow = 0.9 * slow + 0.1 * h / np.sqrt(v)
    np.testing.assert_allclose(got["image/blocks/mlp/up/kernel"], momentum, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["image/blocks/mlp/up/bias"], slow, rtol=1e-4, atol=1e-5)
    sizes = {x.shape for x in jax.tree.leaves(state)}
    assert (L, D) in sizes and (L, F) in sizes


def test_muon_makes_the_blocks_matrices_orthogonal_and_leaves_the_rest_to_adamw():
    got = run(config(kind="muon"), steps=1)[0]
    adamw = run(config(kind="adamw"), steps=1)[0]
    for path in ("image/blocks/mlp/up/bias", "image/head/kernel", "logit"):
        np.testing.assert_allclose(got[path], adamw[path], rtol=1e-6)
    for matrix in (*got["image/blocks/mlp/up/kernel"], got["image/pool/mlp/up/kernel"]):
        values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * F**0.5)
        assert 0.6 < values.min() and values.max() < 1.3  # Newton-Schulz in five steps is coarse
    u, _, v = np.linalg.svd(gradients("image/blocks/mlp/up/kernel", 1)[0][0], full_matrices=False)
    first = np.asarray(got["image/blocks/mlp/up/kernel"][0])
    assert np.sum(u @ v * first) / np.linalg.norm(u @ v) / np.linalg.norm(first) > 0.97


@pytest.mark.parametrize("convention", ["torch", "big_vision"])
def test_two_conventions_of_decay(convention):
    """Five steps by the formulas of the two programs, with a schedule and a factor of 0.5."""
    lr, wd, rate = 0.1, 0.3, 0.5
    schedule = [0.2, 1.0, 0.8, 0.5, 0.1]
    rates = ("image/head/.*=0.5",)
    cfg = config(learning_rate=lr, weight_decay=wd, decay_convention=convention, rates=rates)
    p = params(0)
    tx = make_optimizer(cfg, p, decay_mask(cfg.decay, p))
    state = tx.init(p)
    want = np.asarray(leaves(p)["image/head/kernel"], np.float64)
    m = v = np.zeros((D, F))
    for t, s in enumerate(schedule, 1):
        updates, state = tx.update(params(t), state, p)
        p = optax.apply_updates(p, jax.tree.map(lambda u, s=s: -lr * s * u, updates))
        g = np.asarray(leaves(params(t))["image/head/kernel"], np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        adam = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + cfg.eps)
        if convention == "torch":
            want = want - lr * rate * s * (adam + wd * want)
        else:
            want = want - s * (lr * rate * adam + wd * want)
    np.testing.assert_allclose(leaves(p)["image/head/kernel"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor", "muon"])
def test_clipping_may_come_and_go_between_starts(kind):
    """The same names in a checkpoint, so that a run that spikes goes on with it."""
    cfg = config(kind=kind)
    states = [
        make_optimizer(c, params(0), decay_mask(c.decay, params(0))).init(params(0))
        for c in (cfg, dataclasses.replace(cfg, grad_clip=1.0))
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_gradient_clipping_bounds_the_norm():
    cfg = config(grad_clip=1.0, b1=0.0, b2=0.0)
    _, clipped = run(cfg, steps=1)
    _, plain = run(dataclasses.replace(cfg, grad_clip=0.0), steps=1)
    norm = float(optax.tree.norm(params(1)))
    for a, b in zip(jax.tree.leaves(clipped), jax.tree.leaves(plain), strict=True):
        if a.ndim:  # second moments without memory are the squares of the last gradient
            assert np.allclose(a, b / norm, rtol=1e-4) or np.allclose(a, b / norm**2, rtol=1e-4)
