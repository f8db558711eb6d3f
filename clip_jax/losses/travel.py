"""How every device's images meet every device's texts: around a ring, or all texts at once.

Letters: b images of a device, j texts of a device, n devices. Inside shard_map only.
Around the ring a device holds one neighbour's texts at a time: memory does not grow with n. Between
slices, joined by a slower network, texts go on once a turn, not at every hop: a ring of rings.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]  # (hop, fixed, texts, acc) -> (fixed, acc)


def ring(
    step: Step, fixed: Any, texts: Any, acc: Any, axes: tuple[str, ...], slices: int = 1
) -> tuple[Any, Any]:
    """Applies `step` to the texts of all devices, each one hop after the other.

    Args:
        step: what one block does to what stays (`fixed`) and to what travels with the texts; hop
            counts from 0 (own texts).
        fixed: stays on its device.
        texts: arrays (j, ...) of this device; they go around.
        acc: belongs to the texts, starts empty, and is back home at the end.
        axes: mesh axes of the ring, in row-major order.
        slices: equal parts of the ring, in order; each turns in itself, then all texts go on to the
            next.

    Returns:
        fixed, and acc of this device's own texts after all devices have added to it.
    """
    n = math.prod(lax.axis_size(a) for a in axes)
    m = n // slices
    inside = [(i, i // m * m + (i + 1) % m) for i in range(n)] if m > 1 else []
    between = [(i, (i + m) % n) for i in range(n)] if slices > 1 else []

    def shift(tree: Any, pairs: list[tuple[int, int]]) -> Any:
        return jax.tree.map(lambda v: lax.ppermute(v, axes, pairs), tree) if pairs else tree

    def turn(first: Any, fixed: Any, texts: Any, acc: Any) -> tuple[Any, Any]:
        """Once round a slice; acc comes and goes one hop behind its texts."""

        def body(i: Any, carry: Any) -> Any:
            # So no transfer waits for this block's result.
            fixed, texts, acc = carry
            onward, acc = shift((texts, acc), inside)
            fixed, acc = step(first + i, fixed, texts, acc)
            return fixed, onward, acc

        if m == 1:
            return step(first, fixed, texts, acc)
        fixed, _, acc = lax.fori_loop(0, m, body, (fixed, texts, acc))
        return fixed, acc

    def next_slice(number: Any, carry: Any) -> Any:
        # acc has to wait for its turn; the texts travel meanwhile.
        fixed, texts, acc = carry
        onward = shift(texts, between)
        fixed, acc = turn(number * m, fixed, texts, acc)
        return fixed, onward, shift(acc, between)

    if slices > 1:
        fixed, texts, acc = lax.fori_loop(0, slices - 1, next_slice, (fixed, texts, acc))
    fixed, acc = turn((slices - 1) * m, fixed, texts, acc)
    return fixed, shift(shift(acc, inside), between)


def by_rows(
    body: Callable[[Any, Any, Any], tuple[Any, Any]], chunk: int, rows: Any, state: Any, acc: Any
) -> tuple[Any, Any]:
    """Applies `body` to slices of `chunk` images; the last one may be smaller.

    Args:
        body: (rows, state, acc) of a slice -> (state, acc).
        chunk: images at a time.
        rows: arrays (b, ...), read only.
        state: arrays (b, ...), updated in place.
        acc: handed from slice to slice.
    """
    b = jax.tree.leaves(rows)[0].shape[0]
    if chunk >= b:
        return body(rows, state, acc)

    def cut(start: Any, size: int, tree: Any) -> Any:
        return jax.tree.map(lambda v: lax.dynamic_slice_in_dim(v, start, size), tree)

    def one(start: Any, size: int, state: Any, acc: Any) -> Any:
        new, acc = body(cut(start, size, rows), cut(start, size, state), acc)
        put = lambda v, u: lax.dynamic_update_slice_in_dim(v, u, start, 0)  # noqa: E731
        return jax.tree.map(put, state, new), acc

    whole = b // chunk
    state, acc = lax.fori_loop(0, whole, lambda i, c: one(i * chunk, chunk, *c), (state, acc))
    if b % chunk:
        state, acc = one(whole * chunk, b % chunk, state, acc)
    return state, acc
