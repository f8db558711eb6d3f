"""From uint8 pixels to the normalised input of the image tower, on the device.

Letters: b batch, y x pixels, c channels. Randomness belongs to the sample: one key each, so that
the same pair at the same position of the run always looks the same, on any number of devices.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from clip_jax.config.schema import AugmentConfig, ImageConfig


def normalise(image: jax.Array, cfg: ImageConfig) -> jax.Array:
    """uint8 or float pixels in 0..255 (b, y, x, c) -> float32, (x / 255 - mean) / std."""
    mean = jnp.asarray(cfg.mean, jnp.float32)[None, None, None]
    std = jnp.asarray(cfg.std, jnp.float32)[None, None, None]
    return (image.astype(jnp.float32) / 255.0 - mean) / std


def sample_keys(rng: jax.Array, index: jax.Array) -> jax.Array:
    """One key per sample from index (b, 2) uint32: high and low word of its global position."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(rng, i[0]), i[1]))(index)


def is_off(cfg: AugmentConfig) -> bool:
    """True if nothing would change."""
    return not (cfg.rotate or cfg.zoom or cfg.shift or cfg.dim)


def augment(image: jax.Array, keys: jax.Array, cfg: AugmentConfig) -> jax.Array:
    """Random rotation, zoom, shift and dimming of each image.

    Args:
        image: uint8 (b, y, x, c).
        keys: one random key per sample, (b,).
        cfg: the ranges; what the shift uncovers repeats the border.

    Returns:
        float32 (b, y, x, c) in 0..255.
    """
    return jax.vmap(lambda i, k: _one(i, k, cfg))(image.astype(jnp.float32), keys)


def _one(image: jax.Array, key: jax.Array, cfg: AugmentConfig) -> jax.Array:
    u = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
    angle, zoom = u[0] * math.radians(cfg.rotate), jnp.exp(u[1] * cfg.zoom)
    height, width, _ = image.shape
    yy, xx = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    y = cos * yy - sin * xx + (height - 1) / 2 + u[2] * cfg.shift  # (y, x)
    x = sin * yy + cos * xx + (width - 1) / 2 + u[3] * cfg.shift
    sample = lambda plane: map_coordinates(plane, [y, x], order=1, mode="nearest")  # noqa: E731
    return jax.vmap(sample, -1, -1)(image) * (1 - cfg.dim * (u[4] + 1) / 2)
