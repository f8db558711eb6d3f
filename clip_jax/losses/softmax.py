"""Symmetric softmax loss over the global batch (Radford et al. 2021, figure 3).

Letters: b global batch, j the other side's batch, e embedding.
One side is gathered inside the step, each device computes its own rows of one block of logits,
(b / devices) x j in float32, and uses it for both directions: the log-sum-exp over columns is a
reduction over devices. Half the multiply-adds of two local blocks.
"""

import jax
import jax.numpy as jnp

from clip_jax.sharding.mesh import constrain, replicate


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
    image = constrain(z["image"].astype(jnp.float32))  # (b, e)
    text = replicate(z["text"].astype(jnp.float32))  # (j, e)
    scale = jnp.exp(logit["scale"])
    s = scale * jnp.einsum("be,je->bj", image, text, precision="highest")
    s = constrain(s + logit.get("bias", 0.0))  # (b, j)
    positive = constrain(group[:, None] == replicate(group)[None, :])  # (b, j), symmetric
    count = jnp.sum(positive, axis=1)  # (b,)
    share = positive / count[:, None]  # rows and columns sum to 1: the mask is symmetric
    hit = jnp.sum(share * s)
    rows = jax.nn.logsumexp(s, axis=1)  # (b,)
    columns = jax.nn.logsumexp(s, axis=0)  # (j,), reduced over devices
    loss = (0.5 * (jnp.sum(rows) + jnp.sum(columns)) - hit) / s.shape[0]
    best_positive = jnp.where(positive, s, -jnp.inf)
    best_negative = jnp.where(positive, -jnp.inf, s)

    def accuracy(axis: int) -> jax.Array:
        return jnp.mean(best_positive.max(axis) > best_negative.max(axis))

    metrics = {
        "accuracy/image_to_text": accuracy(1),
        "accuracy/text_to_image": accuracy(0),
        "loss_floor": jnp.mean(jnp.log(count.astype(jnp.float32))),
    }
    return loss, jax.lax.stop_gradient(metrics)
