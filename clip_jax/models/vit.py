"""Vision Transformer image tower, as OpenAI's CLIP and OpenCLIP define it.

Letters: b batch, y x pixels, c channels, p patch side, t tokens, d width, e embedding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.config.schema import ImageConfig
from clip_jax.models import layers
from clip_jax.models.transformer import blocks


class ViT(nn.Module):
    """Patches, class token, positions, blocks, pooling, projection without bias."""

    cfg: ImageConfig
    embed_dim: int
    dtype: Any
    remat: str
    unroll: int

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """image: (b, y, x, c) normalised. Returns (b, e), not normalised."""
        cfg, d = self.cfg, self.cfg.width
        x = nn.Conv(
            d,
            (cfg.patch, cfg.patch),
            strides=(cfg.patch, cfg.patch),
            padding="VALID",
            use_bias=cfg.patch_bias,
            kernel_init=layers.uniform((cfg.channels * cfg.patch**2) ** -0.5),
            dtype=self.dtype,
            name="patch",
        )(image.astype(self.dtype))
        x = x.reshape(x.shape[0], -1, d)  # (b, t, d), rows of the grid in order
        table = nn.initializers.normal(d**-0.5)
        if cfg.pool == "cls":
            cls = self.param("cls", table, (d,)).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, d)), x], axis=1)
        posemb = self.param("posemb", table, x.shape[1:])
        x = x + posemb[None].astype(self.dtype)  # (b, t, d)
        if cfg.ln_pre:
            x = layers.layer_norm(cfg.ln_eps, self.dtype, "ln_pre")(x)
        x, _ = blocks(
            layers=cfg.layers,
            heads=cfg.heads,
            mlp_dim=cfg.mlp_dim,
            activation=cfg.activation,
            ln_eps=cfg.ln_eps,
            causal=False,
            start=layers.image_init(d, cfg.mlp_dim),
            dtype=self.dtype,
            remat=self.remat,
            unroll=self.unroll,
        )(x, None)
        if cfg.pool == "cls":
            x = x[:, 0]  # (b, d); the norm acts per token, so it may follow
        x = layers.layer_norm(cfg.ln_eps, self.dtype, "ln_post")(x)
        if cfg.pool == "mean":
            x = jnp.mean(x, axis=1)  # (b, d)
        return nn.Dense(
            self.embed_dim, use_bias=False, kernel_init=table, dtype=self.dtype, name="head"
        )(x)  # (b, e)
