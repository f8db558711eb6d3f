"""The transformer block: attention, MLP, attention pooling; how weights start.

Letters: b batch, t tokens, s key/value tokens, d width, h heads, k head dim, f mlp hidden.
Cost of a block: 8 b t d² + 4 b t² d + 4 b t d f multiply-adds, halved.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.models.matmul import matmul
from clip_jax.models.norm import LayerNorm
from clip_jax.sharding.mesh import constrain

Initializer = Callable[..., jax.Array]
# A TPU's registers are 8 x 128. Where heads divide the 128, it is cheaper to cut the product of two
# matrices into them than to make a product by heads: for a step of ViT-L-14 (heads of 64) on
# v5e:16x16 XLA estimates 10 % fewer cycles, for bigG-14 (image heads of 104) 6 % more.
LANES = 128


def in_float32(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """f with a float32 inside: 1 + erf(x) of a negative bfloat16 keeps no digit."""
    return lambda x: f(x.astype(jnp.float32)).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # By erf, as torch has it; with jax.nn.gelu's erfc XLA estimates 18 % more cycles for the MLPs
    # of ViT-L-14's image tower on v5e.
    "gelu": in_float32(lambda x: 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))),
    "gelu_tanh": in_float32(lambda x: jax.nn.gelu(x, approximate=True)),
    "quick_gelu": in_float32(lambda x: x * jax.nn.sigmoid(1.702 * x)),  # OpenAI's weights
}


def uniform(bound: float) -> Initializer:
    """Uniform in ±bound."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """Initializers of a block's kernels and of the biases in its MLP (the others start at 0)."""

    qkv: Initializer
    out: Initializer
    up: Initializer
    down: Initializer
    up_bias: Initializer
    down_bias: Initializer


def image_init(width: int, mlp_dim: int) -> BlockInit:
    """What OpenCLIP's image tower gets: the defaults of torch's attention and linear layers."""
    wide, hidden = uniform(width**-0.5), uniform(mlp_dim**-0.5)
    # torch draws the fused (3d, d) matrix by Xavier: bound sqrt(6 / 4d)
    return BlockInit(uniform((1.5 / width) ** 0.5), wide, wide, hidden, wide, hidden)


def text_init(width: int, mlp_dim: int, layers: int) -> BlockInit:
    """CLIP's text tower (Radford et al. 2021; `initialize_parameters` of openai/CLIP)."""
    std = width**-0.5
    deep = nn.initializers.normal(std * (2 * layers) ** -0.5)
    up = nn.initializers.normal((2 * width) ** -0.5)
    return BlockInit(
        nn.initializers.normal(std), deep, up, deep, uniform(width**-0.5), uniform(mlp_dim**-0.5)
    )


def big_vision_init(width: int, mlp_dim: int) -> BlockInit:
    """big_vision's blocks: Xavier on the matrices (attention's as d x d), biases of 1e-6."""
    square = uniform((3 / width) ** 0.5)
    wide, tiny = uniform((6 / (width + mlp_dim)) ** 0.5), nn.initializers.normal(1e-6)
    return BlockInit(square, square, wide, wide, tiny, tiny)


def linear(
    module: Any,
    shape: tuple[int, int],
    start: Initializer,
    bias_start: Initializer = nn.initializers.zeros,
) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of `module`, in its dtype."""
    kernel = module.param("kernel", start, shape)
    bias = module.param("bias", bias_start, shape[1:])
    return kernel.astype(module.dtype), bias.astype(module.dtype)


class Linear(nn.Module):
    """A linear map (b, t, d) -> (b, t, f), as flax's Dense."""

    width: int
    start: Initializer
    bias_start: Initializer
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, t, d) -> (b, t, f)."""
        kernel, bias = linear(self, (x.shape[-1], self.width), self.start, self.bias_start)
        return matmul(x, kernel) + bias[None, None]


class ToHeads(nn.Module):
    """A linear map (b, t, d) -> (b, t, h, k).

    The kernel is a matrix, since a TPU fills the last dim of an array up to LANES: kernels
    (d, h, k) with heads of 64, split along d, would take twice the room.
    """

    heads: int
    start: Initializer
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, t, d) -> (b, t, h, k)."""
        b, t, d = x.shape
        head = (self.heads, d // self.heads)
        kernel, bias = linear(self, (d, d), self.start)
        if LANES % head[1] == 0:
            return (matmul(x, kernel) + bias[None, None]).reshape(b, t, *head)
        bias = bias.reshape(1, 1, *head)
        return jnp.einsum("btd,dhk->bthk", x, kernel.reshape(d, *head)) + bias


class FromHeads(nn.Module):
    """A linear map (b, t, h, k) -> (b, t, d) whose kernel is a matrix."""

    start: Initializer
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, t, h, k) -> (b, t, d)."""
        b, t, h, k = x.shape
        kernel, bias = linear(self, (h * k, h * k), self.start)
        if LANES % k == 0:
            return matmul(x.reshape(b, t, h * k), kernel) + bias[None, None]
        return jnp.einsum("bthk,hkd->btd", x, kernel.reshape(h, k, h * k)) + bias[None, None]


class Attention(nn.Module):
    """Multi-head attention with biases: of x to itself, or to `other`.

    implementation: "xla" computes the scores again in the backward pass, as "cudnn" does; "kept"
        does not: where all of a block is computed again, and for counts of FLOPs.
    in_loop: forward and backward pass are loops, between which XLA does not look for the same.
    """

    heads: int
    start: BlockInit
    dtype: Any
    implementation: str = "kept"
    in_loop: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        causal: bool = False,
        other: jax.Array | None = None,
        lengths: jax.Array | None = None,
    ) -> jax.Array:
        """x (b, t, d), other (b, s, d) -> (b, t, d).

        mask bool (b, 1, 1, s), True = look; lengths int32 (b,): keys to look at, the first ones.
        """
        source = x if other is None else other
        if mask is not None and self.implementation == "cudnn":  # no mask for all queries
            mask = jnp.broadcast_to(mask, (*mask.shape[:2], x.shape[1], mask.shape[3]))

        def heads(name: str, y: jax.Array) -> jax.Array:
            return ToHeads(self.heads, self.start.qkv, self.dtype, name=name)(y)

        kind = self.implementation
        attend = functools.partial(
            jax.nn.dot_product_attention,
            is_causal=causal,
            implementation="cudnn" if kind == "cudnn" else "xla",
        )
        if kind == "xla":  # else it keeps (b, h, t, s) twice, once in float32
            attend = jax.checkpoint(attend, prevent_cse=not self.in_loop)
        x = attend(
            heads("q", x), heads("k", source), heads("v", source),
            mask=mask, key_value_seq_lengths=lengths,
        )  # (b, t, h, k)  # fmt: skip
        return FromHeads(self.start.out, self.dtype, name="out")(x)  # (b, t, d)


class Mlp(nn.Module):
    """Two linear layers with an activation between."""

    hidden: int
    activation: str
    start: BlockInit
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, t, d) -> (b, t, d)."""
        i = self.start
        width = x.shape[-1]
        x = Linear(self.hidden, i.up, i.up_bias, self.dtype, name="up")(x)  # (b, t, f)
        # The backward pass needs x alone; else each elementwise step keeps a copy (six for a tanh)
        x = jax.checkpoint(ACTIVATIONS[self.activation], prevent_cse=False)(x)
        return Linear(width, i.down, i.down_bias, self.dtype, name="down")(x)  # (b, t, d)


class Block(nn.Module):
    """Pre-norm residual block."""

    heads: int
    mlp_dim: int
    activation: str
    ln_eps: float
    causal: bool
    layer_scale: float
    start: BlockInit
    dtype: Any
    attention: str
    in_loop: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None, lengths: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """(b, t, d) -> (b, t, d); the None is the scan's per-layer output."""

        def scaled(y: jax.Array, name: str) -> jax.Array:  # Touvron et al. 2021, CaiT
            if not self.layer_scale:
                return y
            scale = self.param(name, nn.initializers.constant(self.layer_scale), (y.shape[-1],))
            return y * scale[None, None].astype(self.dtype)

        if self.attention == "cudnn" and not self.in_loop:
            x = in_rows(x)
        x = constrain(x)  # else XLA follows the weights' sharding and gathers activations
        y = LayerNorm(self.ln_eps, self.dtype, name="ln1")(x)
        attn = Attention(
            self.heads, self.start, self.dtype, self.attention, self.in_loop, name="attn"
        )
        y = attn(y, mask, self.causal, lengths=lengths)
        x = x + scaled(y, "ls1")
        y = LayerNorm(self.ln_eps, self.dtype, name="ln2")(x)
        y = Mlp(self.mlp_dim, self.activation, self.start, self.dtype, name="mlp")(y)
        return x + scaled(y, "ls2"), None


def in_rows(x: jax.Array) -> jax.Array:
    """x (b, t, d), laid out in memory as it reads.

    Where layers are written out, XLA for GPUs would keep the residual stream with the batch
    innermost, and transpose it in every layer; a loop fixes the layout by itself. (JAX's
    `with_layout_constraint` would gather x from all devices.)
    """
    b, t, d = x.shape
    return jax.lax.optimization_barrier(x.reshape(b * t, d)).reshape(b, t, d)


class AttentionPool(nn.Module):
    """MAP head (Zhai et al. 2021): a learned probe attends to all tokens; then a residual MLP."""

    heads: int
    mlp_dim: int
    activation: str
    ln_eps: float
    start: BlockInit
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x (b, s, d), mask bool (b, 1, 1, s) or None -> (b, d)."""
        b, _, d = x.shape
        probe = self.param("probe", uniform((6 / (1 + d)) ** 0.5), (d,))
        probe = jnp.broadcast_to(probe.astype(self.dtype), (b, 1, d))
        y = Attention(self.heads, self.start, self.dtype, name="attn")(probe, mask, other=x)
        z = LayerNorm(self.ln_eps, self.dtype, name="ln")(y)
        y = y + Mlp(self.mlp_dim, self.activation, self.start, self.dtype, name="mlp")(z)
        return y[:, 0]


def project(kind: str, embed_dim: int, kernel_init: Initializer, dtype: Any, x: jax.Array) -> Any:
    """The submodule `head` on x (b, d): 'linear', 'bias' (linear with one) or 'none'."""
    if kind == "none":
        return x
    head = nn.Dense(
        embed_dim, use_bias=kind == "bias", kernel_init=kernel_init, dtype=dtype, name="head"
    )
    return head(x)  # (b, e)
