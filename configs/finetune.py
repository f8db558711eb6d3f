"""Goes on from published weights on your own pairs without losing what they know.

    clip_jax train --config=finetune:ViT-B-32 --workdir=runs/mine --config.init[0].weights=WEIGHTS \
      --config.data.train.paths='DIR/{00000..00099}.tar'

Then, between the start and the end (0.5 is a good first share), and scored again:

    clip_jax export runs/mine --start=WEIGHTS --share=0.5 --to=clip_jax --out=between
    clip_jax eval between

Weights of OpenAI's want `finetune:ViT-B-32-quickgelu`. A low rate, lower still for early layers, a
moving average, and scores before the first step once there are `eval.tasks`, so that what is lost
can be seen. Captions are cut as the weights know them: `--config.tokenizer.path=` spiece.model for
SigLIP's, BERT's vocab.txt for CLIPA's, tokenizer.json for worldwide ones; where the weights come
with a tokenizer.json, that, and `--config.tokenizer.kind=hf`. After WiSE-FT (Wortsman et al. 2022)
and FLYP (Goyal et al. 2023); the numbers are a cautious start, none of them is tuned here.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import InitConfig


def get_config(arg: str = "ViT-B-32"):
    name = variant(arg or "ViT-B-32", tuple(MODELS))
    c = published(name)
    c.name = f"{name}, fine-tuned"
    text, tokenizer = MODELS[name].text, c.tokenizer  # of the weights, not to be trained
    c.model.text.eos_id, c.model.text.pad_id = text.eos_id, text.pad_id
    if tokenizer.kind != "clip_bpe":
        tokenizer.pad_id = text.pad_id  # SigLIP's file has another of its own
    if "CLIPA" in name:
        tokenizer.kind, tokenizer.keep_eos = "wordpiece", False
    elif "worldwide" in name:  # mT5's for L/14, XLM-V's
        tokenizer.kind, tokenizer.clean = "hf", "canonicalize" if "ViT-L" in name else "none"
    c.init = (InitConfig(config=name),)
    c.data.crop_scale = (0.9, 1.0)
    c.batch_size, c.num_steps = 512, "5ep"
    o = c.optim
    o.learning_rate, o.warmup_steps, o.schedule = 1e-5, "0.1ep", "cosine"
    o.weight_decay, o.decay_convention = 0.1, "torch"
    if "CLIPA" in name:
        o.logit_scale_max = 0.0  # free, as their weights were trained
    if c.model.image.kind == "vit":
        o.image_layer_decay = 0.75
    o.ema, o.grad_clip = 0.999, 1.0
    c.eval.start, c.eval.every = True, "1ep"
    return c
