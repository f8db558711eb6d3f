"""OpenCLIP's runs on LAION data (Cherti et al. 2023): --config=openclip:b32-400m ... g14-2b.

Source: LAION-AI/scaling-laws-openclip, trained_models_info.csv and zeroshot_results.csv; what is
not there is OpenCLIP's default (betas 0.9 and 0.98, epsilon 1e-6, decay 0.2 of all but gains and
biases, crops of 0.9 to 1, cosine to 0). An "epoch" is what those runs called one, its pairs rounded
(407M were 407,332,084, 135.6M 135,646,078 and 200M of b16-2b 200,092,953).
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant

RUNS = {  # model, learning rate, warm-up, pairs of an epoch, epochs, batch; ImageNet top-1, %
    "b32-80m": ("ViT-B-32", 5e-4, 2_000, 80_000_000, 32, 128 * 256),  # 51.9
    "b32-400m": ("ViT-B-32", 1e-3, 2_000, 413_000_000, 32, 128 * 672),  # 63.2
    "b16-400m": ("ViT-B-16", 5e-4, 10_000, 407_000_000, 32, 176 * 192),  # 67.0
    "l14-400m": ("ViT-L-14", 1e-3, 2_000, 413_000_000, 32, 768 * 112),  # 73.1
    "b32-2b-13b": ("ViT-B-32", 5e-4, 2_000, 200_000_000, 65, 128 * 256),  # 62.5
    "b32-2b": ("ViT-B-32", 1e-3, 2_000, 135_600_000, 256, 824 * 96),  # 66.5
    "b16-2b": ("ViT-B-16", 1e-3, 10_000, 200_000_000, 171, 344 * 256),  # 70.2
    "l14-2b": ("ViT-L-14", 1e-3, 10_000, 200_000_000, 160, 384 * 224),  # 75.2
    "h14-2b": ("ViT-H-14", 5e-4, 2_000, 135_600_000, 256, 824 * 96),  # 78.0
    "g14-2b": ("ViT-g-14", 5e-4, 2_000, 135_600_000, 90, 800 * 80),  # 76.7
}

# ImageNet top-1 after so many pairs: imagenet_zeroshot_learning_curves.csv of the same repository.
CURVES = {
    "b32-80m": (
        "80Mex=0.116", "160Mex=0.267", "240Mex=0.326", "320Mex=0.358", "480Mex=0.392",
        "800Mex=0.431", "1.6Bex=0.489", "2.56Bex=0.519",
    ),
    "b32-400m": (
        "413Mex=0.335", "826Mex=0.423", "1.2Bex=0.459", "2.5Bex=0.470", "6.6Bex=0.548",
        "11.6Bex=0.619", "13.2Bex=0.633",
    ),
    "b16-400m": (
        "407Mex=0.440", "814Mex=0.489", "1.2Bex=0.509", "2.4Bex=0.530", "6.5Bex=0.584",
        "9.8Bex=0.621", "13Bex=0.671",
    ),
    "l14-400m": (
        "413Mex=0.489", "826Mex=0.565", "1.2Bex=0.589", "4.1Bex=0.632", "13.2Bex=0.730",
    ),
    "b32-2b-13b": (
        "200Mex=0.303", "400Mex=0.385", "600Mex=0.413", "800Mex=0.435", "1.2Bex=0.452",
        "2Bex=0.473", "4Bex=0.495", "6Bex=0.513", "8Bex=0.546", "10Bex=0.585", "12Bex=0.618",
        "13Bex=0.626",
    ),
}  # fmt: skip


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
    c.eval.reference = CURVES.get(name, ())  # compared with a task that is named imagenet
    return c
