"""OpenCLIP's runs on LAION data (Cherti et al. 2023): --config=openclip:b32-400m ... g14-2b.

Source: LAION-AI/scaling-laws-openclip, trained_models_info.csv and zeroshot_results.csv; what is
not there is OpenCLIP's default (betas 0.9 and 0.98, epsilon 1e-6, decay 0.2 of all but gains and
biases, crops of 0.9 to 1, cosine to 0). An "epoch" is what those runs called one.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant

RUNS = {  # model, learning rate, warm-up, pairs of an epoch, epochs, batch; ImageNet top-1, %
    "b32-80m": ("ViT-B-32", 5e-4, 2_000, 80_000_000, 32, 128 * 256),  # 51.9
    "b32-400m": ("ViT-B-32", 1e-3, 2_000, 413_000_000, 32, 128 * 672),  # 63.2
    "b16-400m": ("ViT-B-16", 5e-4, 10_000, 407_000_000, 32, 176 * 192),  # 67.0
    "l14-400m": ("ViT-L-14", 1e-3, 2_000, 413_000_000, 32, 768 * 112),  # 73.1
    "b32-2b": ("ViT-B-32", 1e-3, 2_000, 135_600_000, 256, 824 * 96),  # 66.5
    "b16-2b": ("ViT-B-16", 1e-3, 10_000, 200_000_000, 171, 344 * 256),  # 70.2
    "l14-2b": ("ViT-L-14", 1e-3, 10_000, 200_000_000, 160, 384 * 224),  # 75.2
    "h14-2b": ("ViT-H-14", 5e-4, 2_000, 135_600_000, 256, 824 * 96),  # 78.0
    "g14-2b": ("ViT-g-14", 5e-4, 2_000, 135_600_000, 90, 800 * 80),  # 76.7
}


def get_config(arg: str = "b32-400m"):
    name = variant(arg or "b32-400m", tuple(RUNS))
    model, rate, warmup, epoch, epochs, batch = RUNS[name]
    c = published(model)
    c.name = f"{model}, {name}"
    c.model.dtype = "bfloat16"
    c.data.epoch_size = epoch
    c.data.crop_scale = (0.9, 1.0)
    if name == "l14-2b":  # its pixels lie in -1..1
        c.model.image.mean = c.model.image.std = (0.5, 0.5, 0.5)
    c.batch_size, c.num_steps = batch, f"{epochs}ep"
    o = c.optim
    o.learning_rate, o.warmup_steps, o.schedule = rate, warmup, "cosine"
    o.b1, o.b2, o.eps = 0.9, 0.98, 1e-6
    o.weight_decay, o.decay_convention = 0.2, "torch"
    o.logit_scale_max = 100.0
    return c
