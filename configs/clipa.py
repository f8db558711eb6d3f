"""CLIPA (Li, Wang & Xie 2023): short images and texts first, whole ones at the end, in one job.

    clip_jax train --config=clipa:b16 --workdir=runs/clipa --config.tokenizer.path=BERT/vocab.txt \
      --config.data.train.paths='DIR/{00000..00099}.tar'

b16 is version 1 (class token), h14 version 2 (mean of the patches). Source: clipa_jax/configs,
model_b/112_32_pre_training, model_b/unmask_tuning, model_h/84_8_pre_training and
model_h/unmask_tuning_{224_scheduleX4,336_scheduleX1} of UCSC-VLAA/CLIPA. ImageNet zero-shot top-1
after each stage stands beside it.

Uncertain: the number of pairs in an epoch of LAION-400M (400 million here; b16 counts 7 epochs).
Different here: all of version 2 also changes colours (simclr_jitter_gray(0.4)), and its `pretrain`
cuts texts to their nouns, then adjectives and verbs (noun_tokenize), evaluated so too; neither is
built. Crops are drawn by torchvision's rule, there by TensorFlow's. Image blocks start as
OpenCLIP's, there by Xavier's rule with biases and class token of 0. An optimizer starts afresh in
every stage there, too.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import StageConfig

RUNS = {"b16": "ViT-B-16", "h14": "ViT-H-14"}  # towers of these widths and depths
STAGES = {
    "b16": (
        StageConfig(
            "pretrain",  # 59.7 %
            (
                "num_steps=2.8Bex", "batch_size=32768", "model.image.size=112",
                "optim.learning_rate=1.024e-3", "optim.warmup_steps=1600",
            ),
        ),
        StageConfig(
            "tune",  # 63.2 %
            (
                "num_steps=4000", "batch_size=32768", "model.image.size=224",
                "optim.learning_rate=1.024e-4", "optim.warmup_steps=800",
            ),
        ),
    ),
    "h14": (
        StageConfig(
            "pretrain",  # DataComp-1B: 75.6 %
            (
                "num_steps=12_811_670_000ex", "batch_size=65536", "model.image.size=84",
                "model.text.context=8", "optim.learning_rate=2.048e-3", "optim.warmup_steps=3200",
            ),
        ),
        StageConfig(
            "tune224",  # 81.5 %
            (
                "num_steps=524_288_000ex", "batch_size=32768", "model.image.size=224",
                "model.image.patch_dropout=0.3", "optim.learning_rate=5.12e-5",
                "optim.warmup_steps=800",
            ),
        ),
        StageConfig(
            "tune336",  # 81.8 %
            (
                "num_steps=131_072_000ex", "batch_size=16384", "model.image.size=336",
                "model.image.patch_dropout=0.4", "optim.learning_rate=6.4e-6",
                "optim.warmup_steps=1600",
            ),
        ),
    ),
}  # fmt: skip


def get_config(arg: str = "b16"):
    name = variant(arg or "b16", tuple(RUNS))
    c = published("ViT-L-14-CLIPA")
    c.name = f"CLIPA {name}"
    like = MODELS[RUNS[name]]
    for field in ("patch", "width", "layers", "heads", "mlp_dim"):
        setattr(c.model.image, field, getattr(like.image, field))
    for field in ("width", "layers", "heads", "mlp_dim"):
        setattr(c.model.text, field, getattr(like.text, field))
    c.model.embed_dim, c.model.dtype = like.embed_dim, "bfloat16"
    c.model.image.posemb = "sincos2d"
    if name == "b16":
        c.model.image.pool = "cls"
        c.model.image.resize = "shortest"  # pp_img of its evaluation; squashed in version 2
    c.model.text.eos_id, c.model.text.pad_id = 102, 0  # of bert-base-uncased
    c.tokenizer.kind = "wordpiece"
    c.tokenizer.keep_eos = c.tokenizer.sticky_eos = False  # pieces to the end: transforms/bert_ops
    c.data.crop_scale = (0.4, 1.0)
    c.data.crop_ratio = (0.75, 1.33)  # TensorFlow's, which inception_crop leaves as it is
    c.stages = STAGES[name]
    o = c.optim
    o.b1, o.b2, o.eps, o.schedule = 0.9, 0.95, 1e-8, "cosine"
    o.logit_scale_max = 0.0  # theirs is free
    o.mu_dtype = "bfloat16" if name == "h14" else "float32"
    o.weight_decay, o.decay_convention, o.decay = 0.2, "torch", (".*/kernel",)
    return c
