"""The stack of blocks, under one name (`blocks`, leading layer dim) whatever the speed knobs are.

Letters: b batch, t tokens, s key/value tokens, d width, l layers.
`remat` trades memory for compute: none keeps activations, but computes scores of attention again;
dots keeps matmul results; full keeps only each block's input (about one more
forward pass); offload moves what dots keeps to the host's memory and back.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.models.layers import Block, BlockInit

REMAT: dict[str, Any] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def blocks(
    *,
    layers: int,
    heads: int,
    mlp_dim: int,
    activation: str,
    ln_eps: float,
    causal: bool,
    layer_scale: float,
    start: BlockInit,
    dtype: Any,
    attention: str,
    remat: str,
    unroll: int,
) -> Callable[[jax.Array, jax.Array | None], jax.Array]:
    """The stack as a function of x (b, t, d) and mask (b, 1, 1, s) or None, to (b, t, d)."""
    block: Any = Block
    in_loop = unroll < layers
    if remat != "none":
        block = nn.remat(Block, policy=REMAT[remat], prevent_cse=not in_loop)
    within = "kept" if remat != "none" and attention == "xla" else attention  # not twice again
    stacked: Any = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=layers,
        unroll=unroll,
    )
    stack = stacked(
        heads,
        mlp_dim,
        activation,
        ln_eps,
        causal,
        layer_scale,
        start,
        dtype,
        within,
        in_loop,
        name="blocks",
    )

    def run(x: jax.Array, mask: jax.Array | None) -> jax.Array:
        b, t, _ = x.shape
        if attention != "cudnn" or t % 2 == 0:
            return stack(x, mask, None)[0]
        # JAX takes an even number of tokens only to train with NVIDIA's kernel: one more, that no
        # other looks at
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, 1)))
        hidden = mask is None and not causal
        return stack(x, mask, jnp.full((b,), t, jnp.int32) if hidden else None)[0][:, :t]

    return run
