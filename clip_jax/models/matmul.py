"""The product of tokens and a matrix, with a backward pass of its own.

Letters: b batch, t tokens, d and f widths in and out.
"""

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (b, t, d), kernel (d, f) of one dtype -> (b, t, f).

    JAX derives the kernel's gradient as a product (f, d), which it transposes. XLA for CPUs then
    copies both factors and leaves its fast products. The one here is (d, f) at once; no
    forward-mode derivative (`jax.jvp`) of it exists.
    """
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> Any:
    return x @ kernel, (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    return jnp.tensordot(g, kernel, (2, 1)), jnp.tensordot(x, g, ((0, 1), (0, 1)))


matmul.defvjp(_forward, _backward)
