"""DataComp's four scales (Gadre et al. 2023): --config=datacomp:small, medium, large or xlarge.

Source: mlfoundations/datacomp, scale_configs.py; the rest is OpenCLIP's default. The benchmark
fixes model, samples and optimizer, and asks for the best choice of data. ImageNet top-1 of all data
(no filter), and of the best that was published, stand beside each.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant

SCALES = {  # model, batch, learning rate, warm-up, samples, beta 2; no filter, best published, %
    "small": ("ViT-B-32", 4096, 5e-4, 500, "12.8Mex", 0.98),  # 2.5, 5.1
    "medium": ("ViT-B-32", 4096, 5e-4, 500, "128Mex", 0.98),  # 17.6, 29.7
    "large": ("ViT-B-16", 8192, 5e-4, 500, "1.28Bex", 0.98),  # 45.9, 63.1
    "xlarge": ("ViT-L-14", 90_112, 1e-3, 10_000, "12.8Bex", 0.95),  # 72.3, 79.2
}


def get_config(arg: str = "small"):
    name = variant(arg or "small", tuple(SCALES))
    model, batch, rate, warmup, samples, b2 = SCALES[name]
    c = published(model)
    c.name = f"DataComp {name}"
    c.model.dtype = "bfloat16"
    c.data.crop_scale = (0.9, 1.0)
    c.batch_size, c.num_steps = batch, samples
    o = c.optim
    o.learning_rate, o.warmup_steps, o.schedule = rate, warmup, "cosine"
    o.b1, o.b2, o.eps = 0.9, b2, 1e-6
    o.weight_decay, o.decay_convention = 0.2, "torch"
    return c
