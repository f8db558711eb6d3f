"""Learning rate over steps."""

import optax

from clip_jax.config.schema import OptimConfig


def make_schedule(cfg: OptimConfig, num_steps: int) -> optax.Schedule:
    """step int32 () -> learning rate: linear warm-up that starts above 0, then cosine or flat."""
    peak, warmup = cfg.learning_rate, cfg.warmup_steps
    first = peak / warmup if warmup else peak
    if cfg.schedule == "constant":
        rest = optax.constant_schedule(peak)
    else:
        rest = optax.cosine_decay_schedule(peak, num_steps - warmup, alpha=cfg.final_lr)
    return optax.join_schedules(
        [optax.linear_schedule(first, peak, max(1, warmup - 1)), rest], [warmup]
    )
