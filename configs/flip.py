"""FLIP (Li et al. 2022): half of the patches masked, then a short tuning on whole images.

    clip_jax train --config=flip:l16 --workdir=runs/flip --config.tokenizer.path=BERT/vocab.txt \
      --config.data.train.paths='DIR/{00000..00099}.tar'

Source: configs/default.py, cfg_flip_{base,large,huge14}.py, models_flip.py and the files in utils/
of facebookresearch/flip; the tuning is in its README. ImageNet zero-shot top-1 (LAION-400M) stands
beside each.

Different here: their texts start with the first word piece and ours with [CLS], which is pooled in
both cases; the mean of the image tokens leaves the class token out here. Weights start as MAE's
there (Xavier, q, k and v with half its variance, tables and class token of 0.02), and here as
big_vision's (Xavier, LeCun for patches and heads, tables of width^-0.5, class token 0). Their code
counts 19 steps to a virtual epoch of 1,281,167 pairs, rounded down, so its runs are 3 % shorter
than the 12.8B pairs of the README; here they are not.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant
from clip_jax.config.presets import IMAGENET
from clip_jax.config.schema import StageConfig

RUNS = {"b16": "ViT-B-16", "l16": "ViT-L-16", "h14": "ViT-H-14"}  # 68.0, 74.3, 75.5 %


def get_config(arg: str = "l16"):
    name = variant(arg or "l16", tuple(RUNS))
    c = published(RUNS[name])
    c.name = f"FLIP {name}"
    image, text = c.model.image, c.model.text
    c.model.dtype, c.model.init = "bfloat16", "big_vision"
    image.ln_pre, image.pool, image.posemb, image.patch_bias = False, "mean", "sincos2d_mae", True
    image.mean, image.std = IMAGENET
    image.activation = text.activation = "gelu_tanh"
    image.ln_eps = text.ln_eps = 1e-6
    text.context, text.vocab_size, text.causal, text.pool = 32, 30_523, False, "first"
    text.eos_id, text.pad_id = 102, 0  # of bert-base-uncased
    c.tokenizer.kind = "wordpiece"
    c.tokenizer.keep_eos = c.tokenizer.sticky_eos = False  # pieces to the end: input_pipeline_laion
    c.data.crop_scale, c.data.flip = (0.5, 1.0), True
    c.batch_size = 65_536
    o = c.optim
    o.b1, o.b2, o.eps, o.schedule, o.logit_scale_max = 0.9, 0.95, 1e-8, "cosine", 100.0
    o.weight_decay, o.decay_convention = 0.2, "torch"
    o.decay = (".*/(kernel|embedding|cls)", "logit/scale")  # not biases, norms, positions
    warmup = 256_233_400 if name == "h14" else 51_246_680  # 200 or 40 virtual epochs
    c.stages = (
        StageConfig(
            "masked",
            (
                "num_steps=12_811_670_000ex", "model.image.patch_dropout=0.5",
                "optim.learning_rate=1.024e-3", f"optim.warmup_steps={warmup}ex",
            ),
        ),
        StageConfig(
            "unmasked",
            (
                "num_steps=128_116_700ex", "model.image.patch_dropout=0.0",
                "optim.learning_rate=1.024e-5", "optim.warmup_steps=25_623_340ex",
            ),
        ),
    )  # fmt: skip
    return c
