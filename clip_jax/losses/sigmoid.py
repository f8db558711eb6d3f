"""Sigmoid loss over all pairs of the global batch (Zhai et al. 2023, algorithm 1).

Letters: b global batch, j the texts as columns of the logits.
`sigmoid_loss` makes one block of logits; `SIGMOID` is the same loss for losses/streamed.py.
"""

import jax
import jax.numpy as jnp

from clip_jax.losses.logits import accuracies, logits
from clip_jax.losses.streamed import State, Streamed, best, merged_best


def sigmoid_loss(
    z: dict[str, jax.Array],
    logit: dict[str, jax.Array],
    group: jax.Array,
    wire_dtype: str = "float32",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Each pair of the batch on its own: does this caption belong to this image?

    Args:
        z: image and text embeddings, float32 (b, e), unit length; optionally negative (b, k, e):
            texts of no image, each a negative of every image.
        logit: scale () (a log) and bias ().
        group: int32 (b,), >= 0; pairs with equal numbers are positives of each other.
        wire_dtype: of the embeddings that are gathered; sums are float32.

    Returns:
        The sum over all pairs divided by b (), and metrics: the accuracy of both directions, and
        the lowest loss, 0.
    """
    s, positive, caption = logits(z, logit, group, wire_dtype)  # (b, j), (b, j), (j,)
    loss = -jnp.sum(jax.nn.log_sigmoid(jnp.where(positive, s, -s))) / s.shape[0]
    floor = jnp.zeros((), jnp.float32)
    metrics = {**accuracies(s, positive, caption), "loss_floor": floor}
    return loss, jax.lax.stop_gradient(metrics)


def _rows(b: int) -> State:
    return {**best(b), "loss": jnp.zeros((b,), jnp.float32)}


def _add(rows: State, columns: State, s: jax.Array, positive: jax.Array) -> tuple[State, State]:
    loss = -jax.nn.log_sigmoid(jnp.where(positive, s, -s)).sum(1)
    return (
        {**merged_best(rows, s, positive, 1), "loss": rows["loss"] + loss},
        merged_best(columns, s, positive, 0),
    )


def _combine(columns: State, axes: tuple[str, ...]) -> State:
    return jax.tree.map(lambda v: jax.lax.pmax(v, axes), columns)


def _finish(rows: State, columns: State, y_group: jax.Array) -> tuple[jax.Array, State, State]:
    return jnp.sum(rows["loss"]), {}, {}


def _slope(s: jax.Array, positive: jax.Array, rows: State, columns: State) -> jax.Array:
    return jax.nn.sigmoid(s) - positive


def _floor(rows: State) -> jax.Array:
    return jnp.zeros_like(rows["loss"])


SIGMOID = Streamed(_rows, best, _add, _combine, _finish, _slope, _floor)
