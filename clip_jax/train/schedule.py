"""Learning rate over steps."""

from typing import Any

import jax.numpy as jnp
import optax

from clip_jax.config.schema import OptimConfig


def make_schedule(cfg: OptimConfig, num_steps: int) -> optax.Schedule:
    """step int32 () -> learning rate.

    A linear warm-up that starts above 0 and reaches the peak on its last step; then
    - cosine, linear: down to `final_lr` of the peak at the end;
    - rsqrt: by sqrt(timescale / steps) (Zhai et al. 2022), and a cooldown;
    - constant: and a cooldown (warm-up, stable, decay: Hägele et al. 2024).
    A cooldown multiplies by a line from 1 to `final_lr` over the last `cooldown_steps`.
    """
    peak, warmup, cooldown = cfg.learning_rate, cfg.warmup_steps, cfg.cooldown_steps
    first = peak / warmup if warmup else peak
    rising = optax.linear_schedule(first, peak, max(1, warmup - 1))
    length = num_steps - warmup
    rest: optax.Schedule
    if cfg.schedule == "cosine":
        rest = optax.cosine_decay_schedule(peak, length, alpha=cfg.final_lr)
    elif cfg.schedule == "linear":
        rest = optax.linear_schedule(peak, peak * cfg.final_lr, length)
    elif cfg.schedule == "rsqrt":
        timescale = cfg.timescale_steps or max(1, warmup)

        rest = lambda count: peak * jnp.sqrt(timescale / (jnp.maximum(count, 0) + timescale))  # noqa: E731
    else:
        rest = optax.constant_schedule(peak)
    joined = optax.join_schedules([rising, rest], [warmup])
    if not cooldown:
        return joined

    def cooled(step: Any) -> Any:
        left = jnp.clip((num_steps - step) / cooldown, 0.0, 1.0)
        return joined(step) * (cfg.final_lr + (1 - cfg.final_lr) * left)

    return cooled
