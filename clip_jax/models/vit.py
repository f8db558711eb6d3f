"""Vision Transformer image tower: OpenAI's and OpenCLIP's, SigLIP's, CLIPA's.

Letters: b batch, y x pixels, c channels, p patch side, t tokens, d width, e embedding.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clip_jax.config.schema import ImageConfig
from clip_jax.models import layers, posemb
from clip_jax.models.matmul import matmul
from clip_jax.models.norm import LayerNorm
from clip_jax.models.transformer import blocks


def grid(cfg: ImageConfig) -> tuple[int, int]:
    """(rows, columns) of patches; pixels that fill no patch are not seen."""
    y, x, _ = cfg.shape()
    return (y // cfg.patch, x // cfg.patch)


def fixed_positions(cfg: ImageConfig) -> np.ndarray:
    """The sin-cos table of `cfg`, float32 (t, d); zeros for the class token."""
    table = posemb.sincos2d(grid(cfg), cfg.width, mae=cfg.posemb == "sincos2d_mae")
    return np.pad(table, ((int(cfg.class_token), 0), (0, 0)))


class Patches(nn.Module):
    """A convolution whose stride is its window: one matrix product (7 x faster on a CPU)."""

    width: int
    side: int
    use_bias: bool
    kernel_init: layers.Initializer
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """(b, y, x, c) -> (b, t, d), rows of the grid in order."""
        p, (b, height, width, c) = self.side, image.shape
        kernel = self.param("kernel", self.kernel_init, (p, p, c, self.width))
        rows, columns = height // p, width // p
        x = image[:, : rows * p, : columns * p].astype(self.dtype)
        x = x.reshape(b, rows, p, columns, p * c).swapaxes(2, 3)
        x = x.reshape(b, rows * columns, p * p * c)  # (b, t, p p c)
        x = matmul(x, kernel.astype(self.dtype).reshape(p * p * c, self.width))  # (b, t, d)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,))
            x = x + bias.astype(self.dtype)[None, None]
        return x


class ViT(nn.Module):
    """Patches, class token, positions, registers, blocks, pooling, projection."""

    cfg: ImageConfig
    embed_dim: int
    init_style: str
    dtype: Any
    attention: str
    remat: str
    unroll: int

    @nn.compact
    def __call__(self, image: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Normalised pixels to embeddings.

        Args:
            image: (b, y, x, c).
            keys: (b,), one random key per sample, for the patch dropout; None in evaluation.

        Returns:
            (b, e), not normalised.
        """
        cfg, d = self.cfg, self.cfg.width
        clip = self.init_style == "open_clip"
        lecun, table = nn.initializers.lecun_normal(), nn.initializers.normal(d**-0.5)
        patch_init = layers.uniform((cfg.channels * cfg.patch**2) ** -0.5) if clip else lecun
        start = (layers.image_init if clip else layers.big_vision_init)(d, cfg.mlp_dim)
        x = Patches(d, cfg.patch, cfg.patch_bias, patch_init, self.dtype, name="patch")(image)
        first = int(cfg.class_token)  # tokens before the patches
        if cfg.class_token:
            cls = self.param("cls", table if clip else nn.initializers.zeros, (d,))
            x = _prepend(cls[None], x)
        x = x + self._positions(table, x.shape[1])[None].astype(self.dtype)  # (b, t, d)
        if keys is not None and cfg.patch_dropout:
            x = jnp.concatenate([x[:, :first], drop(x[:, first:], keys, cfg.patch_dropout)], axis=1)
        if cfg.registers:
            registers = self.param("registers", table, (cfg.registers, d))
            x = jnp.concatenate([x[:, :first], _prepend(registers, x[:, first:])], axis=1)
        if cfg.ln_pre:
            x = LayerNorm(cfg.ln_eps, self.dtype, name="ln_pre")(x)
        x = blocks(
            layers=cfg.layers,
            heads=cfg.heads,
            mlp_dim=cfg.mlp_dim,
            activation=cfg.activation,
            ln_eps=cfg.ln_eps,
            causal=False,
            layer_scale=cfg.layer_scale,
            start=start,
            dtype=self.dtype,
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll,
        )(x, None)
        norm = LayerNorm(cfg.ln_eps, self.dtype, name="ln_post")
        if cfg.pool == "cls":  # the norm acts on each token, so one is enough
            x = norm(x[:, 0])
        elif cfg.ln_post == "before":
            x = self._pool(norm(x), start, first + cfg.registers)
        else:
            x = norm(self._pool(x, start, first + cfg.registers))
        return layers.project(
            cfg.projection, self.embed_dim, table if clip else lecun, self.dtype, x
        )

    def _positions(self, table: Any, tokens: int) -> jax.Array:
        """(t, d)."""
        cfg = self.cfg
        if cfg.posemb == "learned":
            return self.param("posemb", table, (tokens, cfg.width))
        return jnp.asarray(fixed_positions(cfg))

    def _pool(self, x: jax.Array, start: layers.BlockInit, first: int) -> jax.Array:
        """(b, t, d) -> (b, d); the tokens before the patches take no part in the mean."""
        cfg = self.cfg
        if cfg.pool == "mean":
            return jnp.mean(x[:, first:], axis=1)
        return layers.AttentionPool(
            cfg.heads, cfg.mlp_dim, cfg.activation, cfg.ln_eps, start, self.dtype, name="pool"
        )(x, None)


def _prepend(tokens: jax.Array, x: jax.Array) -> jax.Array:
    """The same learned tokens (n, d) before those of each sample of x (b, t, d)."""
    learned = jnp.broadcast_to(tokens.astype(x.dtype), (x.shape[0], *tokens.shape))
    return jnp.concatenate([learned, x], axis=1)


def drop(x: jax.Array, keys: jax.Array, share: float) -> jax.Array:
    """Patch dropout (Li et al. 2022, FLIP): each sample keeps its own max(1, t (1 - share)).

    Args:
        x: patches (b, t, d).
        keys: (b,), one random key per sample.
        share: of the patches left out, 0..1.

    Returns:
        The kept patches (b, ., d), not rescaled, in random order.
    """
    tokens = x.shape[1]
    kept = max(1, int(tokens * (1 - share)))
    chance = jax.vmap(lambda key: jax.random.uniform(key, (tokens,)))(keys)  # (b, t)
    _, at = jax.lax.top_k(chance, kept)
    return jnp.take_along_axis(x, at[:, :, None], axis=1)
