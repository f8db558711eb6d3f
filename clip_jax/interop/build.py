"""From a found model to its parameters, each leaf made where it will live."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.config.schema import ImageConfig, ModelConfig
from clip_jax.errors import UserError
from clip_jax.interop import table
from clip_jax.interop.read import Foreign
from clip_jax.models import dual, posemb
from clip_jax.models.vit import grid
from clip_jax.sharding.rules import shardings


def build(foreign: Foreign, mesh: Mesh) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and stats of `foreign.config`, streamed onto `mesh` leaf by leaf.

    Raises:
        UserError: tensors are missing, too many, of another shape, or cannot be read.
    """
    with contextlib.closing(foreign.tensors):
        shapes = model_shapes(foreign.stored)
        stored = {p: x.shape for p, x in shapes.items()}
        table.check(foreign.tensors, table.expected(foreign.rules, stored), foreign.optional)
        final = model_shapes(foreign.config)
        where = shardings(final, mesh)
        out = {}
        for path, leaf in table.read_leaves(foreign.rules, foreign.tensors, stored):
            if leaf.shape != final[path].shape:
                leaf = resized(path, leaf, foreign.stored, foreign.config)
            out[path] = jax.device_put(leaf, where[path])
    return split(out)


def model_shapes(cfg: ModelConfig) -> dict[str, Any]:
    """{path: shape and dtype} of parameters ("image/...") and stats ("image/bn1/mean")."""
    plain = dataclasses.replace(cfg, attention="xla")  # the same shapes, without a GPU too
    params, stats = jax.eval_shape(dual.build(plain).init, jax.random.key(0))
    return {**table.leaves(params), **table.leaves(stats)}


STATS = ("/mean", "/var", "/count")


def split(flat: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trees of parameters and of stats."""
    stats = {p: x for p, x in flat.items() if p.endswith(STATS)}
    return table.tree({p: x for p, x in flat.items() if p not in stats}), table.tree(stats)


def resized(path: str, leaf: Any, old: ModelConfig, new: ModelConfig) -> Any:
    """A position table for another resolution or context.

    Raises:
        UserError: the leaf is no position table.
    """
    if path == "text/posemb":
        return posemb.resize_line(jnp.asarray(leaf), new.text.context)
    if path in ("image/posemb", "image/pool/posemb"):
        return posemb.resize_grid(jnp.asarray(leaf), _grid(old.image), _grid(new.image))
    raise UserError(f"{path}: cannot be resized; only tables of positions can")


def _grid(cfg: ImageConfig) -> tuple[int, int]:
    if cfg.kind == "resnet":
        cfg = dataclasses.replace(cfg, patch=32)
    return grid(cfg)
