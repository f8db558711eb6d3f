"""OpenAI's nine CLIP models (Radford et al. 2021): --config=openai:ViT-B-32, RN50, ...

Source: table 18 of the paper; betas, epsilons, warm-up and decay also stand in OpenCLIP's params.py
and in MetaCLIP's configs. Uncertain, since the paper's text was not at hand: learning rates, the
random square crop (here OpenCLIP's crop of 0.9 to 1), rate and warm-up of the extra epoch at 336
pixels. Trained in float16 there, in bfloat16 here. ImageNet top-1 of the released weights stands
beside each.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant
from clip_jax.config.schema import StageConfig

RATES = {
    "RN50": 5e-4,  # 59.82 %
    "RN101": 5e-4,  # 62.28
    "RN50x4": 5e-4,  # 66.27
    "RN50x16": 4e-4,  # 70.72
    "RN50x64": 3.6e-4,  # 73.91
    "ViT-B-32": 5e-4,  # 63.32
    "ViT-B-16": 5e-4,  # 68.34
    "ViT-L-14": 4e-4,  # 75.54
    "ViT-L-14-336": 4e-4,  # 76.56: ViT-L-14, and one epoch more at 336 pixels
}


def get_config(arg: str = "ViT-B-32"):
    name = variant(arg or "ViT-B-32", tuple(RATES))
    c = published(f"{name}-quickgelu")
    c.name = name
    c.model.dtype = "bfloat16"
    c.data.epoch_size = 400_000_000
    c.data.crop_scale = (0.9, 1.0)
    c.batch_size, c.num_steps = 32_768, "32ep"
    o = c.optim
    o.learning_rate, o.warmup_steps, o.schedule = RATES[name], 2000, "cosine"
    o.weight_decay, o.decay_convention = 0.2, "torch"  # all but gains and biases
    o.b1, o.b2, o.eps = (0.9, 0.999, 1e-8) if name.startswith("RN") else (0.9, 0.98, 1e-6)
    o.logit_scale_max = 100.0
    if name == "ViT-L-14-336":
        c.stages = (
            StageConfig("224", ("num_steps=32ep", "model.image.size=224")),
            StageConfig("336", ("num_steps=1ep", "optim.learning_rate=2e-5")),
        )
    return c
