"""One training step: embed, loss over the global batch, gradient, update. The heart.

Letters: b global batch, a micro-batches. All collectives come from the shardings of the arguments
and from losses/; nothing here knows how many devices there are.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax.config.schema import OptimConfig
from clip_jax.sharding.mesh import constrain_slices, each_part_of_data
from clip_jax.train.groups import merge, split
from clip_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def loss_and_grads(
    embed: Callable[..., Any],
    loss: Callable[..., Any],
    moving: Any,
    stats: Any,
    batch: Batch,
    rng: jax.Array,
    num_microbatches: int = 1,
    fixed: Any = {},  # noqa: B006 never changed
) -> tuple[jax.Array, Any, Any, Metrics]:
    """Loss of the whole batch and its exact gradient; also the new stats and the loss's metrics.

    `moving` and `fixed` are the parameters that have a gradient and the others: train/groups.py.

    The towers see `num_microbatches` slices, one after the other; the loss sees all embeddings
    once (Gao et al. 2021, GradCache). More than one costs another forward pass of the towers, and
    leaves running statistics as they are.
    """

    def in_turn(params: Any, slices: Batch) -> dict[str, jax.Array]:
        one = jax.checkpoint(lambda part: embed(params, stats, part, rng)[0])
        return jax.lax.map(one, slices)  # (a, b/a, e)

    def whole(moving: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
        params = merge(moving, fixed)
        if num_microbatches == 1:
            z, new_stats = embed(params, stats, batch, rng)  # {image, text}: (b, e)
        else:
            slices = jax.tree.map(lambda x: _split(x, num_microbatches), batch)  # (a, b/a, ...)
            z, new_stats = jax.tree.map(_join, each_part_of_data(in_turn)(params, slices)), stats
        value, metrics = loss(z, params["logit"], batch["group"])
        cosines = {f"cosine/{side}": mean_cosine(z[side]) for side in ("image", "text")}
        return value, (metrics | cosines, new_stats)

    (value, (metrics, stats)), grads = jax.value_and_grad(whole, has_aux=True)(moving)
    return value, grads, stats, metrics


def mean_cosine(z: jax.Array) -> jax.Array:
    """Mean over all pairs of different rows of z (b, e), unit length: near 1 = collapsed."""
    b = z.shape[0]
    total = jnp.sum(jax.lax.stop_gradient(z).astype(jnp.float32), axis=0)  # (e,)
    return (jnp.sum(total * total) - b) / float(b * max(b - 1, 1))  # above int32 from 46,342 on


def _split(x: jax.Array, parts: int) -> jax.Array:
    """(b, ...) -> (a, b/a, ...): every a-th example, so that each device slices its own."""
    return constrain_slices(x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1))


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def make_step(
    embed: Callable[..., Any],
    loss: Callable[..., Any],
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    cfg: OptimConfig,
    keep: Any,
    num_microbatches: int = 1,
    steps_before: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure step (state, batch) -> (state, metrics), to be jitted once with donation.

    `keep` has the structure of the parameters, True for those that move. The moving average has
    seen `steps_before` steps of earlier stages.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        moving, fixed = split(state.params, keep)
        value, grads, stats, metrics = loss_and_grads(
            embed, loss, moving, state.stats, batch, rng, num_microbatches, fixed
        )
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, moving)
        lr = jnp.asarray(schedule(state.step))
        updates = jax.tree.map(lambda u: -lr * u, updates)
        params: Any = merge(optax.apply_updates(moving, updates), fixed)
        if cfg.logit_scale_max:
            scale = jnp.clip(params["logit"]["scale"], 0.0, math.log(cfg.logit_scale_max))
            params = {**params, "logit": {**params["logit"], "scale": scale}}
        ema = averaged(state.ema, params, steps_before + state.step, cfg.ema) if cfg.ema else {}
        new = dataclasses.replace(state, params=params, stats=stats, opt_state=opt_state, ema=ema)

        # One number for all devices, so that all of them skip or none does.
        good = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        new = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, state)
        new = dataclasses.replace(
            new,
            step=state.step + 1,
            skipped=state.skipped + ~good,
            skipped_in_row=jnp.where(good, 0, state.skipped_in_row + 1),
        )
        metrics = metrics | {
            "loss": value,
            "logit_scale": jnp.exp(new.params["logit"]["scale"]),
            "learning_rate": lr,
            "norm/gradient": grad_norm,
            "norm/parameter": optax.tree.norm(new.params),
            "norm/update": optax.tree.norm(updates),
            "skipped": new.skipped,
            "skipped_in_row": new.skipped_in_row,
        }
        return new, metrics

    return step


def averaged(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The moving average after a step; at first it follows faster, (1 + step) / (10 + step)."""
    share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: e + share * (p - e), ema, params)
