"""Sigmoid loss over all pairs of the global batch (Zhai et al. 2023, algorithm 1).

Letters: b global batch, j the other side's batch.
"""

import jax
import jax.numpy as jnp

from clip_jax.losses.logits import accuracies, logits


def sigmoid_loss(
    z: dict[str, jax.Array], logit: dict[str, jax.Array], group: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Each pair of the batch on its own: does this caption belong to this image?

    Args:
        z: image and text embeddings, float32 (b, e), unit length.
        logit: scale () (a log) and bias ().
        group: int32 (b,); pairs with equal numbers are positives of each other.

    Returns:
        The sum over all pairs divided by b (), and metrics: the accuracy of both directions, and
        the lowest loss, 0.
    """
    s, positive = logits(z, logit, group)  # (b, j)
    loss = -jnp.sum(jax.nn.log_sigmoid(jnp.where(positive, s, -s))) / s.shape[0]
    floor = jnp.zeros((), jnp.float32)
    return loss, jax.lax.stop_gradient({**accuracies(s, positive), "loss_floor": floor})
