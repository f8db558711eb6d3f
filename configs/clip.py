"""A published model for your own data: --config=clip:NAME, any name of clip_jax.MODELS.

    clip_jax train --config=clip:ViT-B-32 --workdir=runs/b32 \
      --config.data.train.paths='DIR/{00000..00099}.tar'

Optimizer and crop are OpenCLIP's defaults for ViTs (lr 5e-4, betas 0.9 and 0.98, weight decay 0.2,
warm-up 10,000, crops of 0.9 to 1); SigLIP's models get the sigmoid loss and no clamp of the scale.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant
from clip_jax.config.presets import MODELS


def get_config(arg: str = "ViT-B-32"):
    c = published(variant(arg or "ViT-B-32", tuple(MODELS)))
    c.batch_size, c.num_steps = 4096, 100_000
    c.data.crop_scale = (0.9, 1.0)
    c.optim.learning_rate, c.optim.warmup_steps, c.optim.weight_decay = 5e-4, 10_000, 0.2
    return c
