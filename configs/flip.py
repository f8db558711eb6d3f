"""FLIP (Li et al. 2022): half of the patches masked, then a short tuning on whole images.

    clip_jax train --config=flip:l16 --workdir=runs/flip --config.tokenizer.path=BERT/vocab.txt \
      --config.data.train.paths='DIR/{00000..00099}.tar'

Source: configs/default.py, cfg_flip_{base,large,huge14}.py and models_flip.py of facebookresearch/
flip; the tuning is in its README. ImageNet zero-shot top-1 (LAION-400M) stands beside each.

Uncertain: warm-up (20 virtual epochs of 1,281,167 pairs in the stored default.py, 40 elsewhere).
Different here: their texts start with the first word piece and ours with [CLS], which is pooled in
both cases; the mean of the image tokens leaves the class token out here.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant
from clip_jax.config.schema import StageConfig

RUNS = {"b16": "ViT-B-16", "l16": "ViT-L-16", "h14": "ViT-H-14"}  # 68.0, 74.3, 75.5 %


def get_config(arg: str = "l16"):
    name = variant(arg or "l16", tuple(RUNS))
    c = published(RUNS[name])
    c.name = f"FLIP {name}"
    image, text = c.model.image, c.model.text
    c.model.dtype, c.model.logit_scale_init = "bfloat16", 2.6593  # ln(1 / 0.07)
    image.ln_pre, image.pool, image.posemb = False, "mean", "sincos2d_mae"
    image.activation = text.activation = "gelu_tanh"
    image.ln_eps = text.ln_eps = 1e-6
    text.context, text.vocab_size, text.causal, text.pool = 32, 30_523, False, "first"
    text.eos_id, text.pad_id = 102, 0  # of bert-base-uncased
    c.tokenizer.kind, c.tokenizer.keep_eos = "wordpiece", False
    c.data.crop_scale, c.data.flip = (0.5, 1.0), True
    c.batch_size = 65_536
    o = c.optim
    o.b1, o.b2, o.schedule, o.logit_scale_max = 0.9, 0.95, "cosine", 100.0
    o.weight_decay, o.decay_convention = 0.2, "torch"
    o.decay = (".*/(kernel|embedding)",)  # not biases, norms, class token, positions
    warmup = 256_233_400 if name == "h14" else 25_623_340  # 200 or 20 virtual epochs
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
