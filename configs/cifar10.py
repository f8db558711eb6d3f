"""CIFAR-10 photographs with captions, from WebDataset tars; zero-shot accuracy on its test split.

    clip_jax train --config=cifar10 --workdir=runs/cifar10 \
      --config.data.train.paths='DIR/train-{00000..00009}.tar' \
      --config.data.test.paths='DIR/test-*.tar'

A sample is KEY.jpg + KEY.txt + KEY.json with `label` (0..9); examples/folders_to_tars.py makes such
tars of your own folders. Learns from the captions alone; `--config.data.group_by=label` makes all
pairs of a class positives of each other. Source of the numbers: our own trials on two cores.
"""

from clip_jax.config.codec import default
from clip_jax.config.load import variant
from clip_jax.config.schema import TaskConfig

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a blurry photo of a {}.", "{}")


def get_config(arg: str = ""):
    variant(arg, ())
    c = default()
    c.name = "CIFAR-10"
    c.batch_size, c.num_steps = 128, 1800

    image = c.model.image
    image.size, image.patch = 32, 8
    image.width, image.layers, image.heads, image.mlp_dim = 192, 4, 6, 768
    image.class_token, image.ln_pre, image.pool = False, False, "mean"
    image.activation = "gelu_tanh"
    image.mean, image.std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    text = c.model.text
    text.vocab_size, text.context, text.eos_id, text.pad_id = 400, 14, 1, 0
    text.width, text.layers, text.heads, text.mlp_dim = 128, 1, 4, 512
    text.causal, text.mask_pads, text.pool = False, True, "mean"
    text.activation = "gelu_tanh"
    c.model.embed_dim = 128
    c.model.logit_scale_init = 2.302585  # log 10

    c.data.train.kind = c.data.test.kind = "webdataset"
    c.data.group_by = "caption"  # equal ones are positives
    c.data.flip = True
    c.data.cache = True
    c.augment.shift = 4.0

    c.optim.learning_rate, c.optim.warmup_steps, c.optim.final_lr = 1e-3, 100, 0.01
    c.optim.weight_decay, c.optim.grad_clip = 0.05, 1.0

    c.eval.tasks = (TaskConfig(name="cifar10", classes=CLASSES, templates=TEMPLATES),)
    c.eval.every = c.checkpoint.every = 600
    return c
