"""Layer norm against flax's, whose gradient JAX derives, and what it keeps for its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clip_jax.models.norm import LayerNorm

EPS = 1e-5
HIGHEST = 1e-6  # norm of a difference over the norm, float32


def both(dtype, shape=(3, 5, 24)):
    """Ours and flax's as functions of (params, x), and a place to try them."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = (3 + 5 * jax.random.normal(keys[0], shape)).astype(dtype)
    params = {
        "scale": jax.random.normal(keys[1], shape[-1:]),
        "bias": jax.random.normal(keys[2], shape[-1:]),
    }
    ours = LayerNorm(EPS, dtype)
    theirs = nn.LayerNorm(epsilon=EPS, dtype=dtype, use_fast_variance=False)
    functions = [lambda p, x, m=m: m.apply({"params": p}, x) for m in (ours, theirs)]
    return functions, params, x, jax.random.normal(keys[3], shape).astype(dtype)


def apart(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("shape", [(3, 5, 24), (7, 24), (2, 3, 4, 8)])
def test_value_and_gradient_are_those_of_flax(shape):
    functions, params, x, target = both(jnp.float32, shape)
    (one, pull), (two, derived) = (jax.vjp(f, params, x) for f in functions)
    assert one.dtype == two.dtype and apart(one, two) < HIGHEST
    for ours, theirs in zip(
        jax.tree.leaves(pull(target)), jax.tree.leaves(derived(target)), strict=True
    ):
        assert ours.shape == theirs.shape and apart(ours, theirs) < HIGHEST


def test_bfloat16_only_enters_and_leaves():
    functions, params, x, target = both(jnp.bfloat16)
    (one, pull), (two, derived) = (jax.vjp(f, params, x) for f in functions)
    assert one.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(two, np.float32))
    (grads, dx), (_, theirs) = pull(target), derived(target)
    assert dx.dtype == jnp.bfloat16 and apart(dx, theirs) < 4e-3  # one rounding, of 2**-9
    # The parameters' gradients never were bfloat16: as in float32 from the same x
    wide = both(jnp.float32)[0][1]
    exact = jax.vjp(wide, params, x.astype(jnp.float32))[1](target.astype(jnp.float32))[0]
    for name in ("scale", "bias"):
        assert grads[name].dtype == jnp.float32 and apart(grads[name], exact[name]) < HIGHEST


def test_gradients_have_the_dtype_of_their_parameters():
    functions, params, x, target = both(jnp.float32)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    grads = jax.vjp(functions[0], half, x)[1](target)[0]
    assert {g.dtype.name for g in jax.tree.leaves(grads)} == {"bfloat16"}


def test_it_keeps_its_input_and_two_numbers_of_a_token():
    functions, params, x, _ = both(jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(functions[0], params, x)[1])
    assert sorted((a.shape, a.dtype.name) for a in kept) == [
        ((3, 5), "float32"), ((3, 5), "float32"), ((3, 5, 24), "bfloat16"), ((24,), "float32"),
    ]  # fmt: skip


def test_a_token_of_equal_numbers_has_a_finite_gradient():
    functions, params, x, target = both(jnp.float32)
    x = x.at[0].set(2.0)
    dx, theirs = (jax.vjp(f, params, x)[1](target)[1] for f in functions)
    assert np.isfinite(dx).all() and apart(dx, theirs) < 1e-5
