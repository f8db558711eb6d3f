"""Losses: (z, logit, group) -> (scalar, metrics). They see embeddings and logit parameters only.

softmax and sigmoid make one block of logits from gathered texts; _chunked holds a slice of its
rows at a time; _ring also sends the texts around instead of gathering them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from clip_jax.config.extend import resolve
from clip_jax.config.schema import LossConfig
from clip_jax.losses.sigmoid import SIGMOID, sigmoid_loss
from clip_jax.losses.softmax import SOFTMAX, softmax_loss
from clip_jax.losses.streamed import Streamed, streamed_loss
from clip_jax.sharding.mesh import num_batch_shards


class Loss(Protocol):
    """What a loss of your own must look like; arguments as in losses/softmax.py."""

    def __call__(
        self, z: dict[str, jax.Array], logit: dict[str, jax.Array], group: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]: ...


def _plain(loss: Callable[..., Any]) -> Callable[..., Loss]:
    return lambda cfg, mesh, keep, num_slices: (
        lambda z, logit, group: loss(z, logit, group, cfg.wire_dtype)
    )


def _streamed(kind: Streamed, around: bool) -> Callable[..., Loss]:
    return lambda cfg, mesh, keep, num_slices: streamed_loss(
        kind,
        mesh,
        around=around,
        chunk=cfg.chunk,
        keep=keep,
        wire_dtype=cfg.wire_dtype,
        num_slices=num_slices,
    )


# Each is called as (loss config with kind and chunk chosen, mesh, keep and num_slices of
# streamed_loss).
LOSSES: dict[str, Callable[[LossConfig, Mesh, bool, int], Loss]] = {
    "softmax": _plain(softmax_loss),
    "softmax_chunked": _streamed(SOFTMAX, around=False),
    "softmax_ring": _streamed(SOFTMAX, around=True),
    "sigmoid": _plain(sigmoid_loss),
    "sigmoid_chunked": _streamed(SIGMOID, around=False),
    "sigmoid_ring": _streamed(SIGMOID, around=True),
}
BLOCK_COPIES = 3  # logits, their softmax and gradient: 2.5 to 3 blocks in compiled programs
KEEP_SHARE = 16  # similarities stay for the backward pass within this part of the budget
CHUNK_SHARE = 32  # a slice of logits takes this part of the budget; the rest is embeddings


def chosen(cfg: LossConfig, mesh: Mesh, batch_size: int, num_negatives: int = 0) -> LossConfig:
    """`cfg` with `kind="auto"` and `chunk=0` decided from shapes alone.

    Args:
        cfg: kind auto is softmax where its block of logits fits into `memory_mib`, else
            softmax_ring.
        mesh: the batch is split over its axes data and fsdp.
        batch_size: pairs in the global batch.
        num_negatives: hard negatives per image.
    """
    shards = num_batch_shards(mesh)
    images, texts = batch_size // shards, batch_size * (1 + num_negatives)
    budget = cfg.memory_mib * 2**20
    kind = cfg.kind
    if kind == "auto":
        fits = block_bytes(mesh, batch_size, num_negatives) <= budget
        kind = "softmax" if fits else "softmax_ring"
    chunk = cfg.chunk
    if not chunk:
        block = texts // shards if kind.endswith("ring") else texts
        chunk = max(1, budget // CHUNK_SHARE // (4 * block))
        chunk = chunk // 128 * 128 or chunk  # whole tiles of the matrix unit where possible
    return dataclasses.replace(cfg, kind=kind, chunk=min(chunk, max(1, images)))


def named(cfg: LossConfig, mesh: Mesh, batch_size: int, num_negatives: int = 0) -> str:
    """The loss that runs; of `auto` also why. Arguments as of `chosen`."""
    if cfg.kind != "auto":
        return cfg.kind
    kind = chosen(cfg, mesh, batch_size, num_negatives).kind
    size = block_bytes(mesh, batch_size, num_negatives) / 2**20
    fit = "fit" if kind == "softmax" else "do not fit"
    return f"{kind} (auto: {size:,.1f} MiB of logits {fit} into loss.memory_mib={cfg.memory_mib})"


def block_bytes(mesh: Mesh, batch_size: int, num_negatives: int = 0) -> int:
    """What a device needs for one block of logits and its gradient; arguments as of `chosen`."""
    images, texts = batch_size // num_batch_shards(mesh), batch_size * (1 + num_negatives)
    return BLOCK_COPIES * 4 * images * texts


def keeps(cfg: LossConfig, mesh: Mesh, batch_size: int, num_negatives: int = 0) -> bool:
    """Whether a streamed loss keeps a device's similarities; arguments as of `chosen`."""
    images, texts = batch_size // num_batch_shards(mesh), batch_size * (1 + num_negatives)
    return 4 * images * texts <= cfg.memory_mib * 2**20 // KEEP_SHARE


def build(
    cfg: LossConfig, mesh: Mesh, batch_size: int, num_negatives: int = 0, num_slices: int = 1
) -> Loss:
    """The loss of `cfg.kind`; one of the user's own is a function of `cfg` that returns it."""
    if ":" in cfg.kind:
        return resolve(cfg.kind, {}, "config.loss.kind")(cfg)
    cfg = chosen(cfg, mesh, batch_size, num_negatives)
    loss = resolve(cfg.kind, LOSSES, "config.loss.kind")
    return loss(cfg, mesh, keeps(cfg, mesh, batch_size, num_negatives), num_slices)
