"""Symmetric softmax loss over the global batch (Radford et al. 2021, figure 3).

Letters: b global batch, j the texts as columns of the logits.
`softmax_loss` makes one block of logits for both directions: the log-sum-exp over columns is a
reduction over devices. Half the multiply-adds of two local blocks; memory grows with b x j.
`SOFTMAX` is the same loss for losses/streamed.py, which never holds the logits whole.
"""

import jax
import jax.numpy as jnp

from clip_jax.losses.logits import NOBODY, accuracies, logits
from clip_jax.losses.streamed import State, Streamed, best, merged_best, top


def softmax_loss(
    z: dict[str, jax.Array],
    logit: dict[str, jax.Array],
    group: jax.Array,
    wire_dtype: str = "float32",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of picking the right caption and the right image, averaged.

    Args:
        z: image and text embeddings, float32 (b, e), unit length; optionally negative (b, k, e):
            texts of no image, that every image has to tell from its own (NegCLIP, Yuksekgonul et
            al. 2023). They have no direction of their own.
        logit: scale () (a log) and optionally bias ().
        group: int32 (b,), >= 0; pairs with equal numbers are positives of each other, and the
            target is spread evenly over them.
        wire_dtype: of the embeddings that are gathered; sums are float32.

    Returns:
        The loss () and metrics: the accuracy of both directions (strictly above all negatives),
        and the lowest loss that the groups allow.
    """
    s, positive, caption = logits(z, logit, group, wire_dtype)  # (b, j), (b, j), (j,)
    count = jnp.sum(positive, axis=1)  # (b,)
    share = positive / count[:, None]  # rows and columns sum to 1: the mask is symmetric
    hit = jnp.sum(share * s)
    rows = jax.nn.logsumexp(s, axis=1)  # (b,)
    columns = jnp.where(caption, jax.nn.logsumexp(s, axis=0), 0.0)  # (j,), reduced over devices
    loss = (0.5 * (jnp.sum(rows) + jnp.sum(columns)) - hit) / s.shape[0]
    floor = jnp.mean(jnp.log(count.astype(jnp.float32)))
    metrics = {**accuracies(s, positive, caption), "loss_floor": floor}
    return loss, jax.lax.stop_gradient(metrics)


def _rows(b: int) -> State:
    zero = jnp.zeros((b,), jnp.float32)
    return {**best(b), "sum": zero, "hit": zero, "count": zero}


def _columns(j: int) -> State:
    return {**best(j), "sum": jnp.zeros((j,), jnp.float32)}


def _add(rows: State, columns: State, s: jax.Array, positive: jax.Array) -> tuple[State, State]:
    def grown(old: State, axis: int) -> State:
        """The sum of exp(s - top), at the new top."""
        new = merged_best(old, s, positive, axis)
        there = jnp.exp(s - jnp.expand_dims(top(new), axis)).sum(axis)
        return {**old, **new, "sum": old["sum"] * jnp.exp(top(old) - top(new)) + there}

    new = grown(rows, 1)
    new["hit"] = rows["hit"] + jnp.sum(jnp.where(positive, s, 0.0), axis=1)
    new["count"] = rows["count"] + jnp.sum(positive, axis=1)
    return new, grown(columns, 0)


def _combine(columns: State, axes: tuple[str, ...]) -> State:
    """Sums at the tops of single devices, brought to the top of all."""
    peaks = {k: jax.lax.pmax(columns[k], axes) for k in ("positive", "negative")}
    return {
        **peaks,
        "sum": jax.lax.psum(columns["sum"] * jnp.exp(top(columns) - top(peaks)), axes),
    }


def _finish(rows: State, columns: State, y_group: jax.Array) -> tuple[jax.Array, State, State]:
    caption = y_group != NOBODY
    row_lse = top(rows) + jnp.log(rows["sum"])
    column_lse = top(columns) + jnp.log(columns["sum"])
    total = jnp.sum(0.5 * row_lse - rows["hit"] / rows["count"])
    total += 0.5 * jnp.sum(jnp.where(caption, column_lse, 0.0))
    lse = jnp.where(caption, column_lse, jnp.inf)  # no direction: exp(s - inf) = 0
    return total, {"lse": row_lse, "count": rows["count"]}, {"lse": lse}


def _slope(s: jax.Array, positive: jax.Array, rows: State, columns: State) -> jax.Array:
    pull = jnp.where(positive, 1.0 / rows["count"][:, None], 0.0)
    push = jnp.exp(s - rows["lse"][:, None]) + jnp.exp(s - columns["lse"][None, :])
    return 0.5 * push - pull


def _floor(rows: State) -> jax.Array:
    return jnp.log(rows["count"])


SOFTMAX = Streamed(_rows, _columns, _add, _combine, _finish, _slope, _floor)
