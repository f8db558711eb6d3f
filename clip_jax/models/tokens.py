"""The table of token embeddings, with a backward pass of its own.

Letters: b batch, t tokens, d width, v vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class TokenTable(nn.Module):
    """flax's nn.Embed, whose gradient is summed in float32 whatever `dtype` is."""

    vocab_size: int
    width: int
    start: Any
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """int32 (b, t) -> dtype (b, t, d)."""
        table = self.param("embedding", self.start, (self.vocab_size, self.width))
        return lookup(table, ids, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table: jax.Array, ids: jax.Array, dtype: Any) -> jax.Array:
    """Rows of table, float32 (v, d): int32 (b, t) -> dtype (b, t, d); NaN where there is none.

    What JAX derives adds a row's gradients up in `dtype`. A token that every text has, such as
    end-of-text, has as many as there are texts, and in bfloat16 each rounds the sum. The table is
    cast before it is read, since it may have to travel. No forward-mode derivative (`jax.jvp`)
    of it exists.
    """
    return jnp.take(table.astype(dtype), ids, axis=0)


def _forward(table: jax.Array, ids: jax.Array, dtype: Any) -> Any:
    return lookup(table, ids, dtype), (table, ids)


def _backward(dtype: Any, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> Any:
    table, ids = kept
    read = jax.linear_transpose(lambda rows: jnp.take(rows, ids, axis=0), table)
    return *read(g.astype(table.dtype)), None


lookup.defvjp(_forward, _backward)
