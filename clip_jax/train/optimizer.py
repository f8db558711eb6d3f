"""AdamW from optax, without its learning rate: the step multiplies by the schedule itself."""

import re
from typing import Any

import jax
import optax

from clip_jax.config.schema import OptimConfig
from clip_jax.errors import UserError
from clip_jax.sharding.rules import path_of


def decay_mask(patterns: tuple[str, ...], params: Any) -> Any:
    """True where weight decay acts: by name, since stacked biases have two dims.

    Raises:
        UserError: a pattern that matches no parameter.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = [path_of(p) for p, _ in leaves]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, p) for p in paths):
            raise UserError(
                f"config.optim.decay: '{pattern}' matches no parameter; they are named like "
                f"'{paths[0]}'"
            )
    return jax.tree_util.tree_map_with_path(
        lambda p, _: any(re.fullmatch(x, path_of(p)) for x in patterns), params
    )


def make_optimizer(cfg: OptimConfig, params: Any) -> optax.GradientTransformation:
    """Gradient -> direction; parameters move by minus the learning rate times it.

    Args:
        cfg: of the run.
        params: parameters or their shapes, for the decay mask.
    """
    parts = [optax.clip_by_global_norm(cfg.grad_clip)] if cfg.grad_clip else []
    parts += [
        optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, mu_dtype=cfg.mu_dtype),
        optax.add_decayed_weights(cfg.weight_decay, mask=decay_mask(cfg.decay, params)),
    ]
    return optax.chain(*parts)
