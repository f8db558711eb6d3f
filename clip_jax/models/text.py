"""Transformer text tower: OpenAI's (causal, pooled at end-of-text), SigLIP's, or bidirectional.

Letters: b batch, t tokens, d width, v vocabulary, e embedding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.config.schema import TextConfig
from clip_jax.models import layers
from clip_jax.models.norm import LayerNorm
from clip_jax.models.tokens import TokenTable
from clip_jax.models.transformer import blocks


def eos_position(ids: jax.Array, eos_id: int) -> jax.Array:
    """(b,) index of the first end-of-text token of ids (b, t); the last position if none is."""
    found = ids == eos_id
    return jnp.where(found.any(axis=1), jnp.argmax(found, axis=1), ids.shape[1] - 1)


class TextTransformer(nn.Module):
    """Token table, positions, blocks, final norm, pooling, projection.

    Attributes:
        sequence: '' for one embedding per text; 'raw' or 'normed' for the states of all tokens,
            before or after the final norm.
    """

    cfg: TextConfig
    embed_dim: int
    init_style: str
    dtype: Any
    attention: str
    remat: str
    unroll: int
    sequence: str = ""

    @nn.compact
    def __call__(self, ids: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """ids int32 (b, t); `keys` is not used. Gives (b, e), not normalised, or (b, t, d)."""
        cfg, d = self.cfg, self.cfg.width
        normal = nn.initializers.normal
        if self.init_style == "open_clip":
            start = layers.text_init(d, cfg.mlp_dim, cfg.layers)
            token_init, position_init, head_init = normal(0.02), normal(0.01), normal(d**-0.5)
        else:
            start = layers.big_vision_init(d, cfg.mlp_dim)
            token_init = position_init = normal(d**-0.5)
            head_init = nn.initializers.lecun_normal()
        table = TokenTable(cfg.vocab_size, d, token_init, self.dtype, name="token")
        x = table(ids)  # (b, t, d)
        posemb = self.param("posemb", position_init, (cfg.context, d))
        x = x + posemb[None, : ids.shape[1]].astype(self.dtype)
        real = ids != cfg.pad_id  # (b, t)
        mask = real[:, None, None, :] if cfg.mask_pads else None
        x = blocks(
            layers=cfg.layers,
            heads=cfg.heads,
            mlp_dim=cfg.mlp_dim,
            activation=cfg.activation,
            ln_eps=cfg.ln_eps,
            causal=cfg.causal,
            layer_scale=0.0,
            start=start,
            dtype=self.dtype,
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll,
        )(x, mask)
        if self.sequence == "raw":
            return x
        x = LayerNorm(cfg.ln_eps, self.dtype, name="ln_post")(x)
        if self.sequence:
            return x
        if cfg.pool == "map":
            x = layers.AttentionPool(
                cfg.heads, cfg.mlp_dim, cfg.activation, cfg.ln_eps, start, self.dtype, name="pool"
            )(x, mask)
        else:
            x = pooled(x, ids, cfg)
        return layers.project(cfg.projection, self.embed_dim, head_init, self.dtype, x)  # (b, e)


def pooled(x: jax.Array, ids: jax.Array, cfg: TextConfig) -> jax.Array:
    """(b, t, d) -> (b, d) by the position of a token, or the mean of those that are no pads."""
    if cfg.pool == "first":
        return x[:, 0]
    if cfg.pool == "last":
        return x[:, -1]
    if cfg.pool == "eos":
        at = eos_position(ids, cfg.eos_id)
        return jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
    weight = (ids != cfg.pad_id)[:, :, None].astype(x.dtype)
    return jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)
