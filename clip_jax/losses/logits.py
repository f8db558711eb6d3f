"""What all losses start from: one block of logits for both directions, and the targets.

Letters: b global batch, j the other side's batch, e embedding.
One side is gathered inside the step; each device computes its own rows, (b / devices) x j.
"""

import jax
import jax.numpy as jnp

from clip_jax.sharding.mesh import constrain, replicate


def logits(
    z: dict[str, jax.Array], logit: dict[str, jax.Array], group: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Scaled similarities of all pairs, and which of them belong together.

    Args:
        z: image and text embeddings, (b, e), unit length.
        logit: scale () (a log) and optionally bias ().
        group: int32 (b,); pairs with equal numbers are positives of each other.

    Returns:
        float32 (b, j) and bool (b, j), symmetric; rows are spread over the batch axes.
    """
    image = constrain(z["image"].astype(jnp.float32))  # (b, e)
    text = replicate(z["text"].astype(jnp.float32))  # (j, e)
    s = jnp.exp(logit["scale"]) * jnp.einsum("be,je->bj", image, text, precision="highest")
    s = constrain(s + logit.get("bias", 0.0))  # (b, j)
    return s, constrain(group[:, None] == replicate(group)[None, :])


def accuracies(s: jax.Array, positive: jax.Array) -> dict[str, jax.Array]:
    """Share of rows and of columns whose best positive is strictly above all negatives."""
    best_positive = jnp.where(positive, s, -jnp.inf)
    best_negative = jnp.where(positive, -jnp.inf, s)

    def accuracy(axis: int) -> jax.Array:
        return jnp.mean(best_positive.max(axis) > best_negative.max(axis))

    return {"accuracy/image_to_text": accuracy(1), "accuracy/text_to_image": accuracy(0)}
