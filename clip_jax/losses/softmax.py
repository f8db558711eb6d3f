"""Symmetric softmax loss over the global batch (Radford et al. 2021, figure 3).

Letters: b global batch, j the other side's batch.
One block of logits serves both directions: the log-sum-exp over columns is a reduction over
devices. Half the multiply-adds of two local blocks.
"""

import jax
import jax.numpy as jnp

from clip_jax.losses.logits import accuracies, logits


def softmax_loss(
    z: dict[str, jax.Array], logit: dict[str, jax.Array], group: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of picking the right caption and the right image, averaged.

    Args:
        z: image and text embeddings, float32 (b, e), unit length.
        logit: scale () (a log) and optionally bias ().
        group: int32 (b,); pairs with equal numbers are positives of each other, and the target
            is spread evenly over them.

    Returns:
        The loss () and metrics: the accuracy of both directions (strictly above all negatives),
        and the lowest loss that the groups allow.
    """
    s, positive = logits(z, logit, group)  # (b, j)
    count = jnp.sum(positive, axis=1)  # (b,)
    share = positive / count[:, None]  # rows and columns sum to 1: the mask is symmetric
    hit = jnp.sum(share * s)
    rows = jax.nn.logsumexp(s, axis=1)  # (b,)
    columns = jax.nn.logsumexp(s, axis=0)  # (j,), reduced over devices
    loss = (0.5 * (jnp.sum(rows) + jnp.sum(columns)) - hit) / s.shape[0]
    floor = jnp.mean(jnp.log(count.astype(jnp.float32)))
    return loss, jax.lax.stop_gradient({**accuracies(s, positive), "loss_floor": floor})
