"""Locked-image tuning (Zhai et al. 2022) with the sigmoid loss on COCO captions.

    clip_jax train --config=lit --workdir=runs/lit --config.init[0].weights=IMAGE_WEIGHTS \
      --config.data.train.paths='COCO/{00000..00059}.tar'

The image tower is taken from IMAGE_WEIGHTS (anything that clip_jax.load takes) and stands still: no
gradient, no optimizer state. Batch, steps, rate, decay, mirroring and starts of scale and bias are
those of big_vision's siglip_lit_coco.py. Its towers are not: there a ViT-B/16 of ImageNet-21k with
a class token and BERT-base with its own tokenizer, both pretrained, and RandAugment; here the image
tower of SigLIP, and a text tower and tokenizer from scratch. So no score of theirs is to be
expected; README_lit.md has 20.7 % on ImageNet for COCO alone with towers such as theirs and the
softmax loss.
"""

from clip_jax.config.base import published
from clip_jax.config.load import variant
from clip_jax.config.schema import InitConfig


def get_config(arg: str = ""):
    variant(arg, ())
    c = published("ViT-B-16-SigLIP")
    c.name = "LiT on COCO"
    c.model.dtype = "bfloat16"
    c.model.text.context = 16
    c.model.logit_bias_init = -2.71
    c.data.flip = True
    c.init = (InitConfig(parts="image/.*"),)
    c.batch_size, c.num_steps = 512, 5000
    o = c.optim
    o.rates = ("image/.*=0",)
    o.learning_rate, o.warmup_steps, o.schedule = 1e-3, 150, "cosine"
    o.weight_decay, o.decay_convention, o.decay = 0.01, "big_vision", (".*/kernel",)
    o.b1, o.b2, o.eps, o.grad_clip = 0.9, 0.999, 1e-8, 1.0
    return c
