"""SigLIP (Zhai et al. 2023): --config=siglip:b16, l16 or so400m.

Source: big_vision's siglip.py and its demo for loss, towers, tokenizer and the starts of scale and
bias. Uncertain: no public config has the WebLI pretraining, and the paper's text was not at hand
for batch, rate, decay, beta 2, warm-up, schedule and number of samples. ImageNet zero-shot top-1 of
the released models stands beside each.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant

MODELS = {  # ImageNet top-1, %
    "b16": "ViT-B-16-SigLIP",  # 76.0
    "l16": "ViT-L-16-SigLIP-256",  # 80.5
    "so400m": "ViT-SO400M-14-SigLIP",  # 82.0
}


def get_config(arg: str = "b16"):
    name = variant(arg or "b16", tuple(MODELS))
    c = published(MODELS[name])
    c.name = f"SigLIP {name}"
    c.model.dtype = "bfloat16"
    c.batch_size, c.num_steps = 32_768, "9Bex"
    o = c.optim
    o.kind, o.b1, o.b2, o.mu_dtype = "adafactor", 0.9, 0.95, "bfloat16"
    o.learning_rate, o.warmup_steps, o.schedule = 1e-3, 20_000, "rsqrt"
    o.timescale_steps = o.cooldown_steps = 20_000
    o.weight_decay, o.decay_convention = 1e-4, "big_vision"  # = 0.1 times the rate
    o.decay = (".*/kernel",)
    o.grad_clip = 1.0
    return c
