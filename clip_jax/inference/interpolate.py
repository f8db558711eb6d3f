"""Weights between those that a fine-tuning started from and those it ended with (WiSE-FT).

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models": a share around one half keeps most
of what was learnt and most of what was known before.
"""

import dataclasses

import jax
import jax.numpy as jnp

from clip_jax.errors import UserError
from clip_jax.inference.api import Model
from clip_jax.interop import build
from clip_jax.interop.table import leaves, tree


def interpolate(start: Model, end: Model, share: float) -> Model:
    """(1 - share) of `start` and share of `end`, parameter by parameter; the rest is `end`'s.

    Running statistics of batch norms are mixed in the same way, and only near those of the result.

    Args:
        start: the same model before; tables of positions are resized where it saw other sizes.
        end: after the fine-tuning.
        share: 0..1.

    Raises:
        UserError: other parameters, or a share outside of 0..1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"share: must lie in 0..1 (got {share})")

    def mixed(old: object, new: object) -> dict[str, object]:
        before, after = leaves(old), leaves(new)
        if before.keys() != after.keys():
            name = min(before.keys() ^ after.keys())
            raise UserError(f"start: is another model than the end: {name} is in one of them only")
        for path, x in after.items():
            y = before[path]
            if y.shape != x.shape and not (path.endswith("posemb") and y.shape[-1] == x.shape[-1]):
                raise UserError(
                    f"start: is another model than the end: {path} is {y.shape} there and "
                    f"{x.shape} here"
                )
            if y.shape != x.shape:
                y = build.resized(path, y, start.config.model, end.config.model)
            y = jax.device_put(y, x.sharding)
            if jnp.issubdtype(x.dtype, jnp.floating):  # counts are the end's
                after[path] = y + share * (x - y)
        return tree(after)

    params, stats = mixed(start.params, end.params), mixed(start.stats, end.stats)
    return dataclasses.replace(end, params=params, stats=stats)
