"""Checksums of arrays, computed where the arrays are.

The sum of an array is `sum(mix(bits of element) * odd(index of element)) mod 2**32`. Addition mod
2**32 is exact in any order, so the number is the same on every mesh and no array is gathered: each
device sums its part, one integer an array crosses the network. Why it sees damage:

- `mix` is a bijection of 32 bits, so an element that changed in any bit gives another term; the
  difference times an odd number is never 0 mod 2**32. A change inside one element is always seen.
- Several changed elements cancel with a chance of about 2**-31. (Without `mix` two flipped sign
  bits would cancel always: `2**31 * (odd + odd) = 0`.)
- Two elements that changed places are seen because their odd numbers differ.

Cost: one pass over the arrays with about 25 integer operations an element, no memory; one small
compilation for each shape, dtype and sharding.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def paths(tree: Any) -> dict[str, Any]:
    """Names the leaves of a tree: {"image/blocks/attn/q/kernel": leaf, "0/mu/text/posemb": leaf}.

    Fields of dataclasses and NamedTuples go by their name, places in tuples by their number.
    Containers without leaves (`optax.EmptyState`, None) do not appear; a bare array is named "".
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the tree have the same path")
    return named


def checksums(tree: Any) -> dict[str, int]:
    """Computes one checksum for every array of the tree, on the devices.

    Args:
        tree: arrays of any shape and dtype (also typed PRNG keys, scalars, empty arrays), in any
            sharding. In a job of several processes all of them call this.

    Returns:
        {path: unsigned 32-bit number}; equal for equal shape, dtype and bits, on any mesh.
    """
    # One at a time: many small programs with collectives at once can starve each other on the
    # CPU's virtual devices, until XLA gives up and aborts.
    return {path: int(jax.device_get(_sum(x))) for path, x in paths(tree).items()}


@jax.jit  # for one array: those of an optimizer have the shapes of the parameters
def _sum(x: jax.Array) -> jax.Array:
    words = _words(jnp.asarray(x))
    return jnp.sum(_mix(words) * _odd(words.shape), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of x as uint32; elements of 8 bytes become two words along a new last dim."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    bits = jax.dtypes.itemsize_bits(x.dtype)
    if bits == 64:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, f"uint{bits}").astype(jnp.uint32)


def _odd(shape: tuple[int, ...]) -> jax.Array:
    """An odd pseudo-random uint32 for every index of the shape.

    The row-major index wraps at 2**32 elements; the first index, mixed on its own, tells elements
    apart whose index is equal after the wrap.
    """
    index = jnp.zeros(shape, jnp.uint32)
    for dim in range(len(shape)):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
        index = index + place * np.uint32(math.prod(shape[dim + 1 :]) % 2**32)
    if shape:
        index = index ^ _mix(jax.lax.broadcasted_iota(jnp.uint32, shape, 0))
    return _mix(index + np.uint32(0x9E3779B9)) | np.uint32(1)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 that spreads every bit over the word; 0 stays 0.

    Shift-xor and odd multiplications, constants by Chris Wellons ("lowbias32").
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
