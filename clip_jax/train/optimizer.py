"""Optimizers from optax, without their learning rate: the step multiplies by the schedule itself.

Letters: l layers. Blocks are stacked: what looks at a whole array (factored moments, products of
matrices) sees each layer by itself.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from clip_jax.config.schema import OptimConfig
from clip_jax.sharding.rules import path_of
from clip_jax.train.groups import rates

MATRIX = re.compile(r".*/(blocks|pool)/(attn|mlp)/\w+/kernel")  # (l, d, f), in a pool (d, f)


def make_optimizer(cfg: OptimConfig, params: Any, decays: Any) -> optax.GradientTransformation:
    """Gradient -> direction; parameters move by minus the learning rate times it.

    Weight decay is torch's (p -= lr (u + decay p), lr with the parameter's own factor), or
    big_vision's (p -= lr u + schedule decay p, where the schedule's peak is 1).

    Args:
        cfg: of the run.
        params: those that move, or their shapes.
        decays: a tree of bool, True where weight decay acts.
    """
    clip = optax.clip_by_global_norm(cfg.grad_clip) if cfg.grad_clip else optax.identity()
    parts = [clip, direction(cfg, params)]  # paths in checkpoints: the same with and without clip
    own = scale_by(rates(cfg, params)) if _has_rates(cfg) else optax.identity()
    if cfg.decay_convention == "torch":
        parts += [optax.add_decayed_weights(cfg.weight_decay, mask=decays), own]
    else:
        share = cfg.weight_decay / cfg.learning_rate
        parts += [own, optax.add_decayed_weights(share, mask=decays)]
    return optax.chain(*parts)


def direction(cfg: OptimConfig, params: Any) -> optax.GradientTransformation:
    """The optimizer's own rule, with neither learning rate nor decay."""
    if cfg.kind == "lion":  # Chen et al. 2023
        return optax.scale_by_lion(b1=cfg.b1, b2=cfg.b2, mu_dtype=cfg.mu_dtype)
    if cfg.kind == "adafactor":
        return by_layer(_adafactor(cfg), params)
    adam = optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, mu_dtype=cfg.mu_dtype)
    if cfg.kind == "muon":
        return _muon(cfg, adam, params)
    return adam


def _adafactor(cfg: OptimConfig) -> optax.GradientTransformation:
    """big_vision's (Zhai et al. 2022, section 3.2): no update clipping, momentum, beta 2 capped."""

    def beta2(step: Any, exponent: Any) -> Any:
        return jnp.minimum(cfg.b2, 1.0 - (step + 1.0) ** -exponent)

    moment = optax.scale_by_factored_rms(min_dim_size_to_factor=32, decay_rate_fn=beta2)
    if not cfg.b1:
        return moment
    momentum = optax.ema(cfg.b1, debias=False, accumulator_dtype=jnp.dtype(cfg.mu_dtype))
    return optax.chain(moment, momentum)


def _muon(
    cfg: OptimConfig, adam: optax.GradientTransformation, params: Any
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for the rest.

    Updates are scaled to AdamW's size (0.2 sqrt(max(d, f)), Liu et al. 2025), so that its learning
    rate and decay hold.
    """

    def sides(tree: Any) -> Any:
        return jax.tree.map(lambda x: MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), tree)

    muon = optax.chain(
        scale_by_muon(
            beta=0.95, eps=cfg.eps, mu_dtype=cfg.mu_dtype, weight_dimension_numbers=sides
        ),
        optax.stateless(lambda u, _: jax.tree.map(lambda x: 0.2 * max(x.shape[-2:]) ** 0.5 * x, u)),
    )
    label = lambda p, _: "muon" if MATRIX.fullmatch(path_of(p)) else "adam"  # noqa: E731
    labels = jax.tree_util.tree_map_with_path(label, params)
    return optax.partition({"muon": muon, "adam": adam}, labels)


def by_layer(tx: optax.GradientTransformation, params: Any) -> optax.GradientTransformation:
    """`tx` for each layer of stacked blocks by itself, and for the rest as it is."""
    stacked = optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))

    def label(path: Any, _: Any) -> str:
        side, _, rest = path_of(path).partition("/")
        return side if rest.startswith("blocks/") else "rest"

    labels = jax.tree_util.tree_map_with_path(label, params)
    found = set(jax.tree.leaves(labels))
    return optax.partition({x: tx if x == "rest" else stacked for x in found}, labels)


def scale_by(factors: Any) -> optax.GradientTransformation:
    """Multiplies by a tree of factors."""
    return optax.stateless(lambda u, _: jax.tree.map(lambda x, f: x * f, u, factors))


def _has_rates(cfg: OptimConfig) -> bool:
    return bool(cfg.rates) or cfg.image_layer_decay != 1 or cfg.text_layer_decay != 1
