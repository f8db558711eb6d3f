"""What a few GPUs should reach: --config=small:cc3m, cc12m, yfcc15m and more below.

Source: README, main.py and models.py of facebookresearch/SLIP for the ViTs (batch 4096, decay 0.5,
one epoch of warm-up: small data wants more of both), OpenCLIP's README and PRETRAINED.md for
ResNets. ImageNet zero-shot top-1 stands beside each. An epoch is all pairs that are there; links
rot, so its size differs from theirs.

Different here: image towers of the ViTs start as OpenCLIP's do, there as timm's (truncated normal
of 0.02); their warm-up begins at 1e-6; of YFCC15M's titles and descriptions they drew one anew
every time.
"""

from clip_jax.config.base import published
from clip_jax.config.codec import to_config_dict
from clip_jax.config.load import variant
from clip_jax.config.presets import IMAGENET, MODELS

RUNS = {  # model, epochs; ImageNet top-1, %
    "cc3m": ("ViT-B-16", 40),  # 17.1
    "cc12m": ("ViT-B-16", 35),  # 36.5
    "yfcc15m": ("ViT-B-16", 25),  # 37.6
    "yfcc15m-s16": ("ViT-S-16", 25),  # 32.7
    "yfcc15m-l16": ("ViT-L-16", 25),  # 40.4
    "cc12m-rn50": ("RN50-quickgelu", 30),  # 36.45
    "yfcc15m-rn50": ("RN50-quickgelu", 32),  # 32.7
    "yfcc15m-rn101": ("RN101-quickgelu", 32),  # 34.8
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
    if model.startswith("RN"):  # 8 GPUs of 128
        c.batch_size = 1024
        c.data.crop_scale = (0.9, 1.0)
        o.learning_rate = 1e-3 if name == "cc12m-rn50" else 5e-4
        o.warmup_steps, o.weight_decay = 10_000, 0.1
        o.b1, o.b2, o.eps = 0.9, 0.999, 1e-8
        return c
    image = c.model.image  # timm's; the text tower is CLIP's, the same for all
    image.ln_pre, image.patch_bias, image.ln_eps = False, True, 1e-6
    image.mean, image.std = IMAGENET
    if name == "yfcc15m-s16":
        image.heads = 12  # MoCo v3's
    c.model.text = to_config_dict(MODELS["ViT-B-16-quickgelu"].text)
    c.model.embed_dim = 512
    c.batch_size = 4096
    c.data.crop_scale = (0.5, 1.0)
    o.learning_rate, o.warmup_steps, o.final_lr = 5e-4, "1ep", 0.02
    o.weight_decay, o.decay = 0.5, (".*/(kernel|embedding|posemb|cls)",)
    o.b1, o.b2, o.eps = 0.9, 0.98, 1e-8
    return c
