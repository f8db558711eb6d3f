"""What a few GPUs should reach: --config=small:cc3m, cc12m, yfcc15m or cc12m-rn50.

Source: facebookresearch/SLIP's README for the ViTs (batch 4096, decay 0.5, one epoch of warm-up:
small data wants more of both), OpenCLIP's README and PRETRAINED.md for RN50. Uncertain: the crop of
the ViTs. ImageNet zero-shot top-1 stands beside each. An epoch is all pairs that are there; links
rot, so its size differs from theirs.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant

RUNS = {  # model, epochs; ImageNet top-1, %
    "cc3m": ("ViT-B-16", 40),  # 17.1
    "cc12m": ("ViT-B-16", 35),  # 36.5
    "yfcc15m": ("ViT-B-16", 25),  # 37.6
    "cc12m-rn50": ("RN50-quickgelu", 30),  # 36.45
}


def get_config(arg: str = "cc3m"):
    name = variant(arg or "cc3m", tuple(RUNS))
    model, epochs = RUNS[name]
    c = published(model)
    c.name = f"{model}, {name}"
    c.model.dtype = "bfloat16"
    c.num_steps = f"{epochs}ep"
    o = c.optim
    o.schedule, o.decay_convention = "cosine", "torch"
    if name == "cc12m-rn50":  # 8 GPUs of 128
        c.batch_size = 1024
        c.data.crop_scale = (0.9, 1.0)
        o.learning_rate, o.warmup_steps, o.weight_decay = 1e-3, 10_000, 0.1
        o.b1, o.b2, o.eps = 0.9, 0.999, 1e-8
    else:
        c.batch_size = 4096
        c.data.crop_scale = (0.5, 1.0)
        o.learning_rate, o.warmup_steps, o.weight_decay = 5e-4, "1ep", 0.5
        o.b1, o.b2, o.eps = 0.9, 0.98, 1e-8
    return c
