"""Parameters of a new run that are taken from other weights: `config.init`."""

import re
from typing import Any

import jax
from jax.sharding import Mesh

from clip_jax.config.schema import Config, ModelConfig
from clip_jax.errors import UserError
from clip_jax.inference.load import load
from clip_jax.interop import build
from clip_jax.interop.table import leaves, tree
from clip_jax.train.state import TrainState


def warmed(cfg: Config, mesh: Mesh, state: TrainState) -> tuple[TrainState, list[str]]:
    """A first state with the parameters that `cfg.init` names; and a line about each source.

    Position tables of another resolution or context are resized.

    Raises:
        UserError: nothing usable lies there, or a parameter is missing or of another shape.
    """
    if not cfg.init:
        return state, []
    params, stats, lines = leaves(state.params), leaves(state.stats), []
    for i, item in enumerate(cfg.init):
        model = load(item.weights, config=item.config or None, ema=item.ema, mesh=cfg.mesh)
        there = {**leaves(model.params), **leaves(model.stats)}
        where = f"config.init[{i}]"
        names = [p for p in (*params, *stats) if re.fullmatch(item.parts, p)]
        if not names:
            raise UserError(
                f"{where}.parts: '{item.parts}' matches no parameter; they are named like "
                f"'{next(iter(params))}'"
            )
        for path in names:
            mine = params if path in params else stats
            leaf = _fitting(path, there, mine[path].shape, model.config.model, cfg.model, where)
            mine[path] = jax.device_put(leaf, mine[path].sharding)
        lines.append(f"{len(names)} parameters start as in {item.weights}")
    params, stats = tree(params), tree(stats)
    average = jax.tree.map(jax.numpy.copy, params) if state.ema else {}
    changed = {"params": params, "stats": stats, "ema": average}
    return TrainState(**{**vars(state), **changed}), lines


def _fitting(
    path: str,
    there: dict[str, Any],
    shape: tuple[int, ...],
    old: ModelConfig,
    new: ModelConfig,
    where: str,
) -> Any:
    """The leaf of that name in the shape that is wanted."""
    if path not in there:
        raise UserError(f"{where}: has no {path}; leave it out of parts")
    leaf = there[path]
    if leaf.shape == shape:
        return leaf
    if path.endswith("posemb") and leaf.shape[-1] == shape[-1]:
        return build.resized(path, leaf, old, new)
    raise UserError(
        f"{where}: {path} is {leaf.shape} there and {shape} here; leave it out of parts, or change "
        "config.model"
    )
