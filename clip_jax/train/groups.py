"""Which parameters decay, how fast each moves, and which stand still: all by name.

Letters: l layers. A pattern is a regular expression for a whole path, 'image/blocks/attn/q/kernel'.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.config.schema import OptimConfig
from clip_jax.errors import UserError
from clip_jax.sharding.rules import path_of

# Of a tower, what comes before the blocks; ln_post, pool and head come after them.
_BEFORE = re.compile(r"(patch|cls|registers|posemb|ln_pre|token)(/|$)")


def paths(params: Any) -> list[str]:
    """Of all leaves, in their order."""
    return [path_of(p) for p, _ in jax.tree_util.tree_flatten_with_path(params)[0]]


def decay_mask(patterns: tuple[str, ...], params: Any) -> Any:
    """True where weight decay acts: by name, since stacked biases have two dims.

    Raises:
        UserError: a pattern that matches no parameter.
    """
    _check_matches("decay", patterns, params)
    return jax.tree_util.tree_map_with_path(
        lambda p, _: any(re.fullmatch(x, path_of(p)) for x in patterns), params
    )


def moving(cfg: OptimConfig, params: Any) -> Any:
    """False where a parameter stands still: it gets no gradient and no optimizer state.

    Raises:
        UserError: a pattern of `rates` that matches no parameter, or all stand still.
    """
    table = [item.rpartition("=") for item in cfg.rates]
    _check_matches("rates", tuple(pattern for pattern, _, _ in table), params)
    found = jax.tree_util.tree_map_with_path(lambda p, _: _rate(table, path_of(p)) != 0, params)
    if not any(jax.tree.leaves(found)):
        raise UserError("config.optim.rates: nothing is left to train; leave something above 0")
    return found


def rates(cfg: OptimConfig, params: Any) -> Any:
    """The factor of each parameter's learning rate: a float, or an array (l, 1, ...).

    With layer decay, block i of l moves at decay^(l - 1 - i) times that of the last one, which
    moves at `decay` times that of the head; the embeddings are one layer below block 0 (Clark et
    al. 2020, ELECTRA; Bao et al. 2021, BEiT).

    Raises:
        UserError: layer decay of a tower without blocks.
    """
    table = [item.rpartition("=") for item in cfg.rates]
    decays = {"image": cfg.image_layer_decay, "text": cfg.text_layer_decay}
    layers = {}
    for p, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        side, _, rest = path_of(p).partition("/")
        if rest.startswith("blocks/"):
            layers[side] = x.shape[0]
    for side, decay in decays.items():
        if decay != 1 and side not in layers:
            raise UserError(
                f"config.optim.{side}_layer_decay: this tower has no blocks that move; set it to 1"
            )

    def rate(path: str, ndim: int) -> Any:
        side, _, rest = path.partition("/")
        own, decay = _rate(table, path), decays.get(side, 1.0)
        if decay == 1:
            return own
        depth = layers[side]
        if rest.startswith("blocks/"):
            steps = jnp.arange(depth, 0, -1, dtype=jnp.float32)
            return own * (decay**steps).reshape(depth, *(1,) * (ndim - 1))
        return own * decay ** (depth + 1) if _BEFORE.match(rest) else own

    return jax.tree_util.tree_map_with_path(lambda p, x: rate(path_of(p), len(x.shape)), params)


def split(tree: Any, keep: Any) -> tuple[Any, Any]:
    """The leaves where `keep` is True, and the others: two nested dicts without gaps."""
    return _only(tree, keep, True), _only(tree, keep, False)


def _only(tree: Any, keep: Any, which: bool) -> Any:
    out = {}
    for name, x in tree.items():
        if not isinstance(x, dict):
            if keep[name] == which:
                out[name] = x
        elif part := _only(x, keep[name], which):
            out[name] = part
    return out


def merge(a: Any, b: Any) -> Any:
    """The inverse of `split`."""
    out = {**b, **a}
    for name in a.keys() & b.keys():
        out[name] = merge(a[name], b[name])
    return out


def _rate(table: list[tuple[str, str, str]], path: str) -> float:
    """Of the first pattern that matches; 1 without."""
    return next((float(x) for pattern, _, x in table if re.fullmatch(pattern, path)), 1.0)


def _check_matches(field: str, patterns: tuple[str, ...], params: Any) -> None:
    names = paths(params)
    for pattern in patterns:
        if not any(re.fullmatch(pattern, p) for p in names):
            raise UserError(
                f"config.optim.{field}: '{pattern}' matches no parameter; they are named like "
                f"'{names[0]}'"
            )
