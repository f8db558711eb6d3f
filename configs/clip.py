"""A published model for your own data: --config=clip:NAME, any name of clip_jax.MODELS.

    clip_jax train --config=clip:ViT-B-32 --workdir=runs/b32 \
      --config.data.train.paths='DIR/{00000..00099}.tar'

Optimizer and crop are OpenCLIP's defaults for ViTs (lr 5e-4, betas 0.9 and 0.98, weight decay 0.2,
warm-up 10,000, crops of 0.9 to 1); SigLIP's models get the sigmoid loss and no clamp of the scale.
"""

from clip_jax.config.codec import default, to_config_dict
from clip_jax.config.load import variant
from clip_jax.config.presets import MODELS


def get_config(arg: str = "ViT-B-32"):
    name = variant(arg or "ViT-B-32", tuple(MODELS))
    c = default()
    c.name = name
    c.model = to_config_dict(MODELS[name])
    c.batch_size, c.num_steps = 4096, 100_000

    c.data.train.kind = "webdataset"
    c.data.crop_scale = (0.9, 1.0)
    c.optim.learning_rate, c.optim.warmup_steps, c.optim.weight_decay = 5e-4, 10_000, 0.2
    if c.model.logit_bias:
        c.loss.kind, c.optim.logit_scale_max = "sigmoid", 0.0

    text = c.model.text
    if text.vocab_size == 49408:
        c.tokenizer.kind = "clip_bpe"
    else:  # trained here on the captions, unless tokenizer.path names their file
        c.tokenizer.clean = "canonicalize" if c.model.logit_bias else "lower"
        text.eos_id, text.pad_id = 1, 0
    return c
