"""What recipes start from: a published model with the settings that all of its family share."""

from typing import Any

from clip_jax.config.codec import default, to_config_dict
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import Config


def published(name: str) -> Any:
    """A ConfigDict with the model `name` of clip_jax.MODELS, its loss and its tokenizer.

    SigLIP's models get the sigmoid loss and no clamp of the scale. Without CLIP's own vocabulary,
    the tokenizer is trained on the captions, unless tokenizer.path names its file.
    """
    c = default()
    c.name = name
    c.model = to_config_dict(MODELS[name])
    c.data.train.kind = "webdataset"
    if c.model.logit_bias:
        c.loss.kind, c.optim.logit_scale_max = "sigmoid", 0.0
    text = c.model.text
    if text.vocab_size == 49408:
        c.tokenizer.kind = "clip_bpe"
    else:
        c.tokenizer.clean = "canonicalize" if c.model.logit_bias else "lower"
        text.eos_id, text.pad_id = 1, 0
    return c


def overfit(config: Any) -> None:
    """Changes a recipe into a check of data and model: learn 128 pairs by heart."""
    config.overfit, config.stages = True, ()
    config.name += ", overfit"
    config.batch_size, config.num_steps, config.data.limit = 128, 300, 128
    config.data.group_by = "caption"
    config.data.crop_scale, config.data.flip = (), False
    config.augment = to_config_dict(Config().augment)
    optim = Config().optim
    plain = ("kind", "b1", "b2", "eps", "mu_dtype", "decay_convention", "cooldown_steps",
             "timescale_steps", "ema", "image_layer_decay", "text_layer_decay")  # fmt: skip
    for name in plain:
        setattr(config.optim, name, getattr(optim, name))
    config.optim.learning_rate = 1e-3
    config.optim.schedule, config.optim.warmup_steps = "constant", 20
    config.optim.weight_decay, config.optim.grad_clip = 0.0, 1.0
    config.eval.start = config.eval.ema = False
    config.eval.every = 0
    config.eval.tasks = config.eval.reference = ()
    config.checkpoint.every = config.num_steps


def tiny(config: Any) -> None:
    """Changes a recipe into a trial of itself: four steps of 16 pairs, some thousand parameters.

    Kinds of towers, pools, activations, losses and optimizers stay; sizes and lengths go.
    """
    config.name += ", tiny"
    image, text = config.model.image, config.model.text
    image.columns, image.size = 0, 16
    if image.kind == "resnet":
        image.size, image.width, image.stages, image.heads = 32, 4, (1, 1, 1, 1), 4
    else:
        image.patch, image.width, image.layers = 8, 16, 2
        image.heads, image.mlp_dim = 2, 32
    text.context, text.vocab_size, text.eos_id, text.pad_id = 8, 300, 1, 0
    text.width, text.layers, text.heads, text.mlp_dim = 16, 2, 2, 32
    config.model.embed_dim, config.model.dtype = 16, "float32"
    config.tokenizer.kind, config.tokenizer.path = "sentencepiece", ""
    config.init = ()
    config.batch_size, config.num_steps, config.num_microbatches = 16, 4, 1
    config.optim.warmup_steps = min(1, _count(config.optim.warmup_steps))
    config.optim.cooldown_steps = min(1, _count(config.optim.cooldown_steps))
    config.optim.timescale_steps = min(2, _count(config.optim.timescale_steps))
    config.eval.every, config.eval.batch_size, config.checkpoint.every = 0, 16, 4
    config.eval.reference = ()
    config.log.every = 1
    config.mesh = to_config_dict(Config().mesh)
    shapes = [("16", "8"), ("24", "6"), ("32", "7")]  # as different as those of the recipe
    for i, stage in enumerate(config.stages):
        size, context = shapes[i % 3]
        sizes = {"num_steps": "2", "batch_size": "16", "num_microbatches": "1"}
        sizes |= {"optim.warmup_steps": "1", "optim.cooldown_steps": "0"}
        sizes |= {"model.image.size": size, "model.text.context": context}
        stage.changes = tuple(_resized(change, sizes) for change in stage.changes)


def _count(length: Any) -> int:
    """0 for none, else at least 1, whatever the unit."""
    return length if isinstance(length, int) else 1


def _resized(change: str, sizes: dict[str, str]) -> str:
    path, _, value = change.partition("=")
    return f"{path}={sizes.get(path, value)}"
