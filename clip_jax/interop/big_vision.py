"""big_vision's SigLIP and SigLIP 2 archives (.npz): names, both ways.

Released files prefix every name with `params/`; `t` and `b` have one element. Checkpoints of
scanned models have one `encoderblock` with a leading layer dim instead of `encoderblock_0`, ...
"""

import re
from collections.abc import Iterable

from clip_jax.config.schema import ImageConfig, ModelConfig, TextConfig
from clip_jax.interop import blocks
from clip_jax.interop.table import ONE, ROW, Rule, no_such_model


def table(cfg: ModelConfig, prefix: str = "params/", scanned: bool = False) -> list[Rule]:
    """The rules of a model.

    Args:
        cfg: a SigLIP-like model.
        prefix: before every name.
        scanned: whether the layers are stacked there too.

    Raises:
        UserError: big_vision's two-tower model has no such parts.
    """
    image, text = cfg.image, cfg.text
    odd = {
        "image.pool": image.kind != "vit" or image.pool not in ("map", "mean"),
        "image.class_token": image.class_token,
        "image.registers": bool(image.registers),
        "image.ln_pre": image.ln_pre,
        "image.posemb": image.posemb != "learned",
        "image.layer_scale": bool(image.layer_scale),
        "image.patch_bias": not image.patch_bias,
        "image.ln_post": image.ln_post != "before",
        "image.activation": image.activation != "gelu_tanh",
        "image.ln_eps": image.ln_eps != 1e-6,
        "text.activation": text.activation != "gelu_tanh",
        "text.ln_eps": text.ln_eps != 1e-6,
        "text.causal": text.causal,
        "text.pool": text.pool == "eos",
    }
    for name, bad in odd.items():
        if bad:
            tower, field = name.split(".")
            got = getattr(getattr(cfg, tower), field)
            raise no_such_model(name, "big_vision's two_towers", repr(got))
    block = "encoderblock" if scanned else "encoderblock_{i}"
    rules = [
        Rule("img/embedding/kernel", ("image/patch/kernel",)),
        Rule("img/embedding/bias", ("image/patch/bias",)),
        Rule("img/pos_embedding", ("image/posemb",), ROW),
        *blocks.big_vision_blocks(f"img/Transformer/{block}", "image/blocks", image.heads),
        *blocks.big_vision_norm("img/Transformer/encoder_norm", "image/ln_post"),
        *_pool("img", "image", image),
        *_head("img/head", "image/head", image.projection),
        Rule("txt/Embed_0/embedding", ("text/token/embedding",)),
        Rule("txt/pos_embedding", ("text/posemb",), ROW),
        *blocks.big_vision_blocks(f"txt/Encoder_0/{block}", "text/blocks", text.heads),
        *blocks.big_vision_norm("txt/Encoder_0/encoder_norm", "text/ln_post"),
        *_pool("txt", "text", text),
        *_head("txt/head", "text/head", text.projection),
        Rule("t", ("logit/scale",), ONE),
        *([Rule("b", ("logit/bias",), ONE)] if cfg.logit_bias else []),
    ]
    return [Rule(prefix + r.theirs, r.ours, r.way) for r in rules]


def _pool(theirs: str, ours: str, cfg: ImageConfig | TextConfig) -> list[Rule]:
    if cfg.pool != "map":
        return []
    return blocks.big_vision_pool(f"{theirs}/MAPHead_0", f"{ours}/pool", cfg.heads)


def _head(theirs: str, ours: str, projection: str) -> list[Rule]:
    parts = {"none": (), "linear": ("kernel",), "bias": ("kernel", "bias")}[projection]
    return [Rule(f"{theirs}/{x}", (f"{ours}/{x}",)) for x in parts]


def dialect(names: Iterable[str]) -> tuple[str, bool]:
    """(prefix, scanned) of a file."""
    names = list(names)
    prefix = "params/" if any(n.startswith("params/") for n in names) else ""
    return prefix, any(re.search(r"/encoderblock/", n) for n in names)
