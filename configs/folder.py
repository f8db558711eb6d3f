"""Your own folder of images and captions: a small model that trains on a laptop.

    clip_jax train --config=folder --config.data.train.paths=DIR --workdir=runs/mine

DIR holds images with a CSV, TSV or JSONL of captions, images with a .txt each, or one folder of
images per class. Start values for a first look, not tuned on any data set.
"""

from clip_jax.config.codec import default
from clip_jax.config.load import variant


def get_config(arg: str = ""):
    variant(arg, ())
    c = default()
    c.name = "my folder"
    c.batch_size, c.num_steps = 64, 1000

    image = c.model.image
    image.size, image.patch = 64, 16
    image.width, image.layers, image.heads, image.mlp_dim = 192, 4, 6, 768
    image.class_token, image.ln_pre, image.pool = False, False, "mean"
    image.activation = "gelu_tanh"
    image.mean, image.std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    text = c.model.text
    text.vocab_size, text.context, text.eos_id, text.pad_id = 2000, 32, 1, 0
    text.width, text.layers, text.heads, text.mlp_dim = 192, 2, 6, 768
    text.causal, text.mask_pads, text.pool = False, True, "mean"
    text.activation = "gelu_tanh"
    c.model.embed_dim = 192

    c.data.train.kind = c.data.test.kind = "folder"
    c.data.group_by = "caption"
    c.data.crop_scale, c.data.flip = (0.5, 1.0), True

    c.optim.learning_rate, c.optim.warmup_steps, c.optim.final_lr = 1e-3, 50, 0.01
    c.optim.weight_decay, c.optim.grad_clip = 0.1, 1.0
    c.checkpoint.every = 250
    return c
