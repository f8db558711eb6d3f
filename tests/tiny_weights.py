"""Published models with the smallest numbers, as files of other programs."""

import dataclasses

import jax

from clip_jax.config.presets import MODELS
from clip_jax.config.schema import Config, MeshConfig, ModelConfig, TokenizerConfig
from clip_jax.inference.api import Model
from clip_jax.inference.export import export
from clip_jax.models import dual
from clip_jax.sharding.mesh import make_mesh
from clip_jax.tokenizers import build, missing


def config(name: str) -> ModelConfig:
    """The preset with few and small layers; CLIP's vocabulary stays."""
    cfg = MODELS[name]
    image = dataclasses.replace(cfg.image, size=16, patch=8, width=8, layers=1, heads=1, mlp_dim=8)
    text = dataclasses.replace(cfg.text, width=8, layers=2, heads=1, mlp_dim=8)
    if text.vocab_size != 49408:
        text = dataclasses.replace(text, vocab_size=60)
    return dataclasses.replace(cfg, image=image, text=text, embed_dim=8)


def model(cfg: ModelConfig) -> Model:
    """Random parameters; CLIP's tokenizer where the vocabulary is CLIP's."""
    params, stats = dual.build(cfg).init(jax.random.key(0))
    tokenizer, kind = missing("no tokenizer"), TokenizerConfig()
    if cfg.text.vocab_size == 49408:
        kind = TokenizerConfig("clip_bpe")
        tokenizer = build(kind, vocab_size=49408)
    own = dataclasses.replace(Config(), model=cfg, tokenizer=kind)
    return Model(own, params, stats, tokenizer, make_mesh(MeshConfig(data=1)))


def write(name: str, to: str, folder: str) -> None:
    """Exports the small form of a preset."""
    export(model(config(name)), to, folder)
