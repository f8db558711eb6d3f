"""What all losses start from: the texts as columns, blocks of logits, and who belongs to whom.

Letters: b global batch, j the texts as columns of the logits, k hard negatives per image,
e embedding.
"""

import jax
import jax.numpy as jnp

from clip_jax.sharding.mesh import constrain, replicate

NOBODY = -1  # the group of a hard negative; groups of pairs are >= 0


def columns(z: dict[str, jax.Array], group: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The texts that every image is compared with: the captions, then the hard negatives.

    Args:
        z: text (b, e) and optionally negative (b, k, e): texts that belong to no image.
        group: int32 (b,), >= 0.

    Returns:
        Embeddings (j, e) and groups (j,), j = b (1 + k); the columns of one image stay together.
    """
    if "negative" not in z:
        return z["text"], group
    b, k, e = z["negative"].shape
    y = jnp.concatenate([z["text"][:, None], z["negative"]], axis=1)  # (b, 1 + k, e)
    nobody = jnp.full((b, k), NOBODY, group.dtype)
    groups = jnp.concatenate([group[:, None], nobody], axis=1)
    return y.reshape(b * (1 + k), e), groups.reshape(-1)


def block(x: jax.Array, y: jax.Array, scale: jax.Array) -> jax.Array:
    """scale times x (b, e) @ y (j, e)^T, float32 (b, j); exact products of what x and y hold."""
    return scale * jnp.einsum(
        "be,je->bj", x, y, precision="highest", preferred_element_type=jnp.float32
    )


def logits(
    z: dict[str, jax.Array], logit: dict[str, jax.Array], group: jax.Array, wire_dtype: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scaled similarities of all pairs in one block, and which of them belong together.

    The texts are gathered; each device computes its own rows, (b / devices) x j.

    Args:
        z: image and text embeddings (b, e), unit length; optionally negative (b, k, e).
        logit: scale () (a log) and optionally bias ().
        group: int32 (b,), >= 0; pairs with equal numbers are positives of each other.
        wire_dtype: of the embeddings that travel and enter the products.

    Returns:
        float32 (b, j), bool (b, j), rows spread over the batch axes; and whether a column is a
        caption, bool (j,).
    """
    y, y_group = columns(z, group)
    image = constrain(z["image"].astype(wire_dtype))  # (b, e)
    text = replicate(y.astype(wire_dtype))  # (j, e)
    s = block(image, text, jnp.exp(logit["scale"]))
    s = constrain(s + logit.get("bias", 0.0))  # (b, j)
    y_group = replicate(y_group)
    return s, constrain(group[:, None] == y_group[None, :]), y_group != NOBODY


def accuracies(s: jax.Array, positive: jax.Array, caption: jax.Array) -> dict[str, jax.Array]:
    """Share of rows and of captions whose best positive is strictly above all negatives."""
    best_positive = jnp.where(positive, s, -jnp.inf)
    best_negative = jnp.where(positive, -jnp.inf, s)
    rows = best_positive.max(1) > best_negative.max(1)
    texts = (best_positive.max(0) > best_negative.max(0)) & caption
    return {
        "accuracy/image_to_text": jnp.mean(rows),
        "accuracy/text_to_image": jnp.sum(texts) / s.shape[0],
    }
