"""Layer norm, with a backward pass of its own.

Letters: d width; `...` the other dims, of one token each.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class LayerNorm(nn.Module):
    """Layer norm with scale and bias, in float32 whatever `dtype` is; the output has `dtype`."""

    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., d) -> (..., d)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        # Where layers are written out, these are slices of stacked parameters. Were they taken
        # within a GPU's kernels, each layer would need kernels of its own, and time to compile.
        scale, bias = jax.lax.optimization_barrier((scale, bias))
        return layer_norm(x, scale, bias, self.eps, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float, dtype: Any
) -> jax.Array:
    """Ba et al. 2016, as flax has it (without its fast variance).

    x (..., d), scale and bias (d,) of one dtype.


    What JAX derives keeps three float32 copies of x. This keeps x in its own dtype and two float32
    numbers of a token; no forward-mode derivative (`jax.jvp`) of it exists.
    """
    return _forward(x, scale, bias, eps, dtype)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float, dtype: Any) -> Any:
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1)
    centred = wide - mean[..., None]
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1) + eps)  # 1 / deviation
    y = centred * (inverse[..., None] * _to_rank(scale, x.ndim)) + _to_rank(bias, x.ndim)
    return y.astype(dtype), (x, mean, inverse, scale)


def _backward(eps: float, dtype: Any, kept: Any, dy: jax.Array) -> Any:
    x, *numbers, scale = kept
    # Else XLA may compute them again from x, once for each of the sums below
    mean, inverse = (n[..., None] for n in jax.lax.optimization_barrier(numbers))
    unit = (x.astype(jnp.float32) - mean) * inverse  # mean 0, variance 1
    dy = dy.astype(jnp.float32)
    dunit = dy * _to_rank(scale, x.ndim)
    # What moves a token's mean or length does not move `unit`
    dmean = jnp.mean(dunit, axis=-1, keepdims=True)
    along = jnp.mean(dunit * unit, axis=-1, keepdims=True)
    dx = (dunit - dmean - unit * along) * inverse
    tokens = range(x.ndim - 1)
    dscale, dbias = jnp.sum(dy * unit, axis=tuple(tokens)), jnp.sum(dy, axis=tuple(tokens))
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


def _to_rank(vector: jax.Array, rank: int) -> jax.Array:
    """(d,) -> (1, ..., d)."""
    return jnp.expand_dims(vector, range(rank - 1))


layer_norm.defvjp(_forward, _backward)
