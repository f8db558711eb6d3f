"""Transformer text tower, as OpenAI's CLIP defines it, or bidirectional with a pad mask.

Letters: b batch, t tokens, d width, v vocabulary, e embedding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.config.schema import TextConfig
from clip_jax.models import layers
from clip_jax.models.transformer import blocks


def eos_position(ids: jax.Array, eos_id: int) -> jax.Array:
    """(b,) index of the first end-of-text token of ids (b, t); the last position if none is."""
    found = ids == eos_id
    return jnp.where(found.any(axis=1), jnp.argmax(found, axis=1), ids.shape[1] - 1)


class TextTransformer(nn.Module):
    """Token table, positions, blocks, final norm, pooling, projection without bias."""

    cfg: TextConfig
    embed_dim: int
    dtype: Any
    remat: str
    unroll: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids: int32 (b, t). Returns (b, e), not normalised."""
        cfg, d = self.cfg, self.cfg.width
        x = nn.Embed(
            cfg.vocab_size,
            d,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="token",
        )(ids)  # (b, t, d)
        posemb = self.param("posemb", nn.initializers.normal(0.01), (cfg.context, d))
        x = x + posemb[None, : ids.shape[1]].astype(self.dtype)
        real = ids != cfg.pad_id  # (b, t)
        x, _ = blocks(
            layers=cfg.layers,
            heads=cfg.heads,
            mlp_dim=cfg.mlp_dim,
            activation=cfg.activation,
            ln_eps=cfg.ln_eps,
            causal=cfg.causal,
            start=layers.text_init(d, cfg.mlp_dim, cfg.layers),
            dtype=self.dtype,
            remat=self.remat,
            unroll=self.unroll,
        )(x, None if cfg.causal else real[:, None, None, :])
        x = layers.layer_norm(cfg.ln_eps, self.dtype, "ln_post")(x)
        if cfg.pool == "eos":
            at = eos_position(ids, cfg.eos_id)
            x = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]  # (b, d)
        else:
            weight = real[:, :, None].astype(x.dtype)
            x = jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)  # (b, d)
        return nn.Dense(
            self.embed_dim,
            use_bias=False,
            kernel_init=nn.initializers.normal(d**-0.5),
            dtype=self.dtype,
            name="head",
        )(x)  # (b, e)
