"""ModifiedResNet image tower of Radford et al. 2021 (section 2.4, openai/CLIP `model.py`).

Letters: b batch, y x rows and columns, c channels, t tokens, d width of the pool (32 x the stem's),
h heads, k head dim, e embedding.
A stem of three convolutions, average pools before each stride, attention instead of a mean at the
end. Batch norms train on the whole global batch: under jit with a sharded batch a mean is global
by itself, one small all-reduce each.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.config.schema import ImageConfig
from clip_jax.models.layers import uniform
from clip_jax.sharding.mesh import constrain

MOMENTUM = 0.1  # share of the newest batch in the running statistics, as torch counts it
EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Batch norm whose running statistics are the collection `stats`: mean, var, count.

    Agrees with torch: normalises by the biased variance, keeps the unbiased one (flax keeps the
    biased). `count` is torch's num_batches_tracked.
    """

    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(b, y, x, c) -> the same; statistics in float32."""
        c = x.shape[-1]
        scale = self.param("scale", self.scale_init, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        mean = self.variable("stats", "mean", jnp.zeros, (c,))
        var = self.variable("stats", "var", jnp.ones, (c,))
        count = self.variable("stats", "count", jnp.zeros, (), jnp.int32)
        y = x.astype(jnp.float32)
        m, v = mean.value, var.value
        if train:
            m = jnp.mean(y, axis=(0, 1, 2))
            v = jnp.mean(jnp.square(y - m[None, None, None]), axis=(0, 1, 2))
            n = x.size // c
            mean.value = (1 - MOMENTUM) * mean.value + MOMENTUM * m
            var.value = (1 - MOMENTUM) * var.value + MOMENTUM * v * (n / max(n - 1, 1))
            count.value = count.value + 1
        factor = scale * jax.lax.rsqrt(v + EPSILON)
        y = y * factor[None, None, None] + (bias - m * factor)[None, None, None]
        return y.astype(x.dtype)


def convolution(features: int, side: int, name: str, dtype: Any, stride: int = 1) -> nn.Conv:
    """A convolution without bias, started as torch does."""

    def init(key: jax.Array, shape: tuple[int, ...], kind: Any = jnp.float32) -> jax.Array:
        fan_in = shape[0] * shape[1] * shape[2]
        return uniform(fan_in**-0.5)(key, shape, kind)

    pad = side // 2
    return nn.Conv(
        features,
        (side, side),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=init,
        dtype=dtype,
        name=name,
    )


def average(x: jax.Array, side: int) -> jax.Array:
    """Mean over squares of `side`."""
    return nn.avg_pool(x, (side, side), (side, side)) if side > 1 else x


class Bottleneck(nn.Module):
    """1x1, 3x3, average pool, 1x1 to four times the planes; the shortcut pools before its 1x1."""

    planes: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(b, y, x, c) -> (b, y / stride, x / stride, 4 planes)."""
        x = constrain(x)
        shortcut = x
        y = convolution(self.planes, 1, "conv1", self.dtype)(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train))
        y = convolution(self.planes, 3, "conv2", self.dtype)(y)
        y = average(nn.relu(BatchNorm(name="bn2")(y, train)), self.stride)
        y = convolution(4 * self.planes, 1, "conv3", self.dtype)(y)
        y = BatchNorm(nn.initializers.zeros, name="bn3")(y, train)
        if self.stride > 1 or x.shape[-1] != 4 * self.planes:
            shortcut = convolution(4 * self.planes, 1, "down_conv", self.dtype)(
                average(x, self.stride)
            )
            shortcut = BatchNorm(name="down_bn")(shortcut, train)
        return nn.relu(shortcut + y)


class Stage(nn.Module):
    """Bottlenecks of one width; the first has the stride."""

    blocks: int
    planes: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(b, y, x, c) -> (b, y / stride, x / stride, 4 planes)."""
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            x = Bottleneck(self.planes, stride, self.dtype, name=f"block{i}")(x, train)
        return x


class AttentionPool2d(nn.Module):
    """The mean token attends to itself and all positions; its output is the embedding."""

    heads: int
    embed_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, y, x, d) -> (b, e)."""
        d = x.shape[-1]
        x = x.reshape(x.shape[0], -1, d)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)  # (b, t, d)
        normal, bias = nn.initializers.normal(d**-0.5), uniform(d**-0.5)
        x = x + self.param("posemb", normal, x.shape[1:])[None].astype(self.dtype)

        def linear(features: int, name: str, y: jax.Array) -> jax.Array:
            return nn.Dense(
                features, kernel_init=normal, bias_init=bias, dtype=self.dtype, name=name
            )(y)

        def project(name: str, y: jax.Array) -> jax.Array:
            return linear(d, name, y).reshape(*y.shape[:2], self.heads, -1)  # (b, t, h, k)

        y = jax.nn.dot_product_attention(
            project("q", x[:, :1]), project("k", x), project("v", x)
        )  # (b, 1, h, k)
        return linear(self.embed_dim, "out", y.reshape(-1, d))  # (b, e)


class ModifiedResNet(nn.Module):
    """Stem, four stages, attention pool."""

    cfg: ImageConfig
    embed_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Normalised pixels to embeddings.

        Args:
            image: (b, y, x, c), sides multiples of 32.
            keys: not None in training: batch statistics, and new running ones.

        Returns:
            (b, e), not normalised.
        """
        cfg, train, w = self.cfg, keys is not None, self.cfg.width
        x = image.astype(self.dtype)
        for i, (features, stride) in enumerate(((w // 2, 2), (w // 2, 1), (w, 1)), 1):
            x = convolution(features, 3, f"conv{i}", self.dtype, stride)(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x, train))
        x = average(x, 2)
        for i, count in enumerate(cfg.stages):
            stride = 1 if i == 0 else 2
            x = Stage(count, w * 2**i, stride, self.dtype, name=f"stage{i + 1}")(x, train)
        return AttentionPool2d(cfg.heads, self.embed_dim, self.dtype, name="pool")(x)
