"""ModifiedResNet image tower of Radford et al. 2021 (section 2.4, openai/CLIP `model.py`).

Letters: b batch, y x rows and columns, c channels, t tokens, d width of the pool (32 x the stem's),
h heads, k head dim, e embedding.
A stem of three convolutions, average pools before each stride, attention instead of a mean at the
end. Batch norms train on the whole global batch: under jit with a sharded batch a mean is global
by itself, one small all-reduce each.

`remat`, of the stem and of each bottleneck: none keeps activations; dots keeps results of
convolutions, full inputs alone, offload what dots keeps, in the host's memory. The batch's
moments are kept always, they are small and travel between devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from clip_jax.config.schema import ImageConfig
from clip_jax.models.layers import uniform
from clip_jax.sharding.mesh import constrain

MOMENTUM = 0.1  # share of the newest batch in the running statistics, as torch counts it
EPSILON = 1e-5
PRODUCT, MOMENTS = "product", "moments"  # names of values that a policy may keep
REMAT: dict[str, Any] = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, MOMENTS),
    "full": jax.checkpoint_policies.save_only_these_names(MOMENTS),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[MOMENTS],
        names_which_can_be_offloaded=[PRODUCT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


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
            m = checkpoint_name(jnp.mean(y, axis=(0, 1, 2)), MOMENTS)
            v = jnp.mean(jnp.square(y - m[None, None, None]), axis=(0, 1, 2))
            v = checkpoint_name(v, MOMENTS)
            n = x.size // c
            mean.value = (1 - MOMENTUM) * mean.value + MOMENTUM * m
            var.value = (1 - MOMENTUM) * var.value + MOMENTUM * v * (n / max(n - 1, 1))
            count.value = count.value + 1
        factor = scale * jax.lax.rsqrt(v + EPSILON)
        y = y * factor[None, None, None] + (bias - m * factor)[None, None, None]
        return y.astype(x.dtype)


def convolve(
    x: jax.Array, features: int, side: int, name: str, dtype: Any, stride: int = 1
) -> jax.Array:
    """A convolution without bias, started as torch does: (b, y, x, c) -> (b, y', x', features)."""

    def init(key: jax.Array, shape: tuple[int, ...], kind: Any = jnp.float32) -> jax.Array:
        fan_in = shape[0] * shape[1] * shape[2]
        return uniform(fan_in**-0.5)(key, shape, kind)

    pad = side // 2
    conv = nn.Conv(
        features,
        (side, side),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=init,
        dtype=dtype,
        name=name,
    )
    return checkpoint_name(conv(x), PRODUCT)


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
        y = convolve(x, self.planes, 1, "conv1", self.dtype)
        y = nn.relu(BatchNorm(name="bn1")(y, train))
        y = convolve(y, self.planes, 3, "conv2", self.dtype)
        y = average(nn.relu(BatchNorm(name="bn2")(y, train)), self.stride)
        y = convolve(y, 4 * self.planes, 1, "conv3", self.dtype)
        y = BatchNorm(nn.initializers.zeros, name="bn3")(y, train)
        if self.stride > 1 or x.shape[-1] != 4 * self.planes:
            shortcut = average(x, self.stride)
            shortcut = convolve(shortcut, 4 * self.planes, 1, "down_conv", self.dtype)
            shortcut = BatchNorm(name="down_bn")(shortcut, train)
        return nn.relu(shortcut + y)


class Stage(nn.Module):
    """Bottlenecks of one width; the first has the stride."""

    blocks: int
    planes: int
    stride: int
    dtype: Any
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(b, y, x, c) -> (b, y / stride, x / stride, 4 planes)."""
        bottleneck = again(Bottleneck, self.remat)
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            x = bottleneck(self.planes, stride, self.dtype, name=f"block{i}")(x, train)
        return x


def stem(tower: "ModifiedResNet", x: jax.Array, train: bool) -> jax.Array:
    """Three convolutions, the first of stride 2, and a pool: (b, y, x, c) -> (b, y/4, x/4, w)."""
    w, dtype = tower.cfg.width, tower.dtype
    for i, (features, stride) in enumerate(((w // 2, 2), (w // 2, 1), (w, 1)), 1):
        x = convolve(x, features, 3, f"conv{i}", dtype, stride)
        x = nn.relu(BatchNorm(name=f"bn{i}")(x, train))
    return average(x, 2)


def again(part: Any, remat: str) -> Any:
    """A part called with (x, train), whose activations are computed again as `remat` says."""
    if remat == "none":
        return part
    return nn.remat(part, policy=REMAT[remat], static_argnums=(2,))  # train; self counts too


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
    remat: str

    @nn.compact
    def __call__(self, image: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Normalised pixels to embeddings.

        Args:
            image: (b, y, x, c), sides multiples of 32.
            keys: not None in training: batch statistics, and new running ones.

        Returns:
            (b, e), not normalised.
        """
        cfg, train = self.cfg, keys is not None
        x = again(stem, self.remat)(self, image.astype(self.dtype), train)
        for i, count in enumerate(cfg.stages):
            stride = 1 if i == 0 else 2
            stage = Stage(
                count, cfg.width * 2**i, stride, self.dtype, self.remat, name=f"stage{i + 1}"
            )
            x = stage(x, train)
        return AttentionPool2d(cfg.heads, self.embed_dim, self.dtype, name="pool")(x)
