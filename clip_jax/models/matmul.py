"""The product of tokens and a matrix, with a backward pass of its own.

Letters: b batch, t tokens, d and f widths in and out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (b, t, d), kernel (d, f) of one dtype -> (b, t, f).

    JAX derives the kernel's gradient as a product (f, d), which it transposes. XLA for CPUs then
    copies both factors and leaves its fast products. The one here is (d, f) at once, or, where that
    copies less there, (f, d) in memory; no forward-mode derivative (`jax.jvp`) of it exists.
    """
    return x @ kernel


def _forward(x: Any, kernel: Any) -> Any:
    """Keeps what the gradients need that are asked for: not those of pixels and frozen kernels."""
    kept = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    return x.value @ kernel.value, kept


def _backward(kept: tuple[jax.Array | None, jax.Array | None], g: Any) -> Any:
    if isinstance(g, SymbolicZero):  # what follows has a gradient of its own, and it is none
        return None, None
    x, kernel = kept
    dx = None if kernel is None else jnp.tensordot(g, kernel, (2, 1))
    dkernel = None if x is None else _kernel_gradient(x, g)
    return dx, dkernel


def _kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """x (b, t, d), g (b, t, f) -> (d, f). XLA for CPUs copies the left factor: let it be narrow."""
    tokens = ((0, 1), (0, 1))

    def direct(x: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.tensordot(x, g, tokens)

    def turned(x: jax.Array, g: jax.Array) -> jax.Array:
        """The barrier keeps XLA from making one product of both, that of `direct`."""
        return jax.lax.optimization_barrier(jnp.tensordot(g, x, tokens)).T

    if x.shape[-1] <= g.shape[-1]:
        return direct(x, g)
    return jax.lax.platform_dependent(x, g, cpu=turned, default=direct)


matmul.defvjp(_forward, _backward, symbolic_zeros=True)
