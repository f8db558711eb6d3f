"""The README.md beside exported weights: what it is, how it was made, how to use it."""

import importlib.metadata

from clip_jax.config.schema import Config

_TEMPLATE = """---
library_name: {library}
tags:
- clip
- zero-shot-image-classification
---

# {name}

A CLIP-like dual encoder of images and texts, written by clip_jax.

```python
{usage}
```

## Model

| | image | text |
|---|---|---|
| tower | {image} | {text} |
| input | {pixels} | {context} tokens of {vocab:,} |
| activation, epsilon | {i.activation}, {i.ln_eps:g} | {t.activation}, {t.ln_eps:g} |

Embedding {embed}. Pixels: {i.resize}, {i.interpolation}, mean {mean}, standard deviation {std}.

## Training

{training}

## Scores

{scores}

Software: {software}.
"""


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return ""


def model_card(cfg: Config, usage: str, scores: str) -> str:
    """The card as Markdown.

    Args:
        cfg: of the run; a model that was imported has no data paths.
        usage: lines of Python.
        scores: Markdown, or "" if none are known.
    """
    image, text = cfg.model.image, cfg.model.text
    if image.kind == "resnet":
        tower = f"ModifiedResNet {'-'.join(map(str, image.stages))}, width {image.width}"
    else:
        tower = f"ViT, {image.layers} layers, width {image.width}, patch {image.patch}"
    paths = [p.rstrip("/").rpartition("/")[2] for p in cfg.data.train.paths]
    training = "Not trained by clip_jax: these weights were converted."
    if paths:
        training = (
            f"{cfg.num_steps:,} steps of {cfg.batch_size:,} pairs from {', '.join(paths)} with the "
            f"{cfg.loss.kind} loss; AdamW, learning rate {cfg.optim.learning_rate:g}, weight decay "
            f"{cfg.optim.weight_decay:g}, seed {cfg.seed}."
        )
    y, x, c = image.shape()
    names = ("clip-jax-pretrain", "jax", "flax", "optax")
    return _TEMPLATE.format(
        library="open_clip" if "open_clip" in usage else "transformers",
        name=cfg.name if paths else "CLIP",
        usage=usage,
        image=tower,
        text=f"Transformer, {text.layers} layers, width {text.width}",
        pixels=f"{y} x {x} x {c}",
        context=text.context,
        vocab=text.vocab_size,
        i=image,
        t=text,
        embed=cfg.model.embed_dim,
        mean=tuple(image.mean),
        std=tuple(image.std),
        training=training,
        scores=scores or "None are recorded with these weights.",
        software=", ".join(filter(None, map(_version, names))),
    )
