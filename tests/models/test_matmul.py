"""The product against `@`, whose gradient JAX derives, and what its own gradient is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.metrics import flops
from clip_jax.models.matmul import matmul


def case(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (3, 5, 24), (24, 16), (3, 5, 16)
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("dtype, limit", [(jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)])
@pytest.mark.parametrize("widens", [False, True])
def test_value_and_gradient_are_those_of_jax(dtype, limit, widens):
    x, kernel, g = case(dtype)
    args, g = ((g, kernel.T), x) if widens else ((x, kernel), g)
    (ours, pull), (theirs, derived) = (jax.vjp(f, *args) for f in (matmul, jnp.matmul))
    for a, b in zip((ours, *pull(g)), (theirs, *derived(g)), strict=True):
        assert a.dtype == b.dtype == dtype and a.shape == b.shape
        a, b = (np.asarray(v, np.float64) for v in (a, b))
        assert np.linalg.norm(a - b) <= limit * np.linalg.norm(b)


def backward(product, platform, x, kernel, g):
    """The text of both gradients' program."""
    pull = jax.jit(lambda x, kernel, g: jax.vjp(product, x, kernel)[1](g))
    return pull.trace(x, kernel, g).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
@pytest.mark.parametrize("widens", [False, True])
def test_what_the_gradients_are_made_of(platform, widens):
    x, kernel, g = case(jnp.float32)
    if widens:
        x, kernel, g = g, kernel.T, x
    ours, derived = (backward(f, platform, x, kernel, g) for f in (matmul, jnp.matmul))
    assert ours.count("dot_general") == 2
    turned = platform == "cpu" and not widens
    assert ("transpose" in ours) == ("optimization_barrier" in ours) == turned
    assert "transpose" in derived  # else JAX has changed, and no gradient of our own is needed


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("argument, products", [(0, 1), (1, 1), ((0, 1), 2)])
def test_only_gradients_that_are_asked_for_are_computed(argument, products, remat):
    x, kernel, _ = case(jnp.float32)
    product = jax.checkpoint(matmul) if remat else matmul

    def loss(x, kernel):
        return jnp.sum(product(x, kernel))

    forward = flops.count(loss, x, kernel)
    assert forward == 2 * x.size * kernel.shape[1]
    assert flops.count(jax.grad(loss, argument), x, kernel) == (1 + products) * forward


def test_frozen_kernels_of_a_stack_have_no_gradient():
    x, kernel, _ = case(jnp.float32)
    kernels = jnp.stack([kernel @ kernel.T] * 3)  # (l, d, d)

    def loss(x, kernels):
        return jnp.sum(jax.lax.scan(lambda x, k: (matmul(x, k), None), x, kernels)[0])

    assert flops.count(jax.grad(loss), x, kernels) == 2 * flops.count(loss, x, kernels)


def test_before_a_gradient_of_nothing():
    """What follows may have a gradient of its own, and for the product none."""

    @jax.custom_vjp
    def last(y, x):
        return jnp.sum(y) + jnp.sum(x**2)

    last.defvjp(lambda y, x: (last(y, x), x), lambda x, g: (None, 2 * g * x))
    x, kernel = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    grads = jax.grad(lambda x, k: last(matmul(x, k), x), (0, 1))(x, kernel)
    np.testing.assert_array_equal(grads[0], 2 * x)
    np.testing.assert_array_equal(grads[1], 0 * kernel)
