"""clip_jax.load: a model of our own runs, of other programs, or a random one that is asked for."""

import dataclasses
import os
from typing import Any

import jax
from jax.sharding import Mesh

from clip_jax.checkpoint.manager import Checkpoints
from clip_jax.config import stages
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import Config, MeshConfig, ModelConfig
from clip_jax.config.stored import read_config
from clip_jax.errors import UserError
from clip_jax.files import resolved
from clip_jax.inference.api import Model
from clip_jax.interop import build, read
from clip_jax.models import dual
from clip_jax.sharding import processes
from clip_jax.sharding.mesh import make_mesh
from clip_jax.sharding.rules import shardings
from clip_jax.tokenizers import Tokenizer, missing
from clip_jax.tokenizers import build as build_tokenizer

TOKENIZER_FILE = "tokenizer"


def load(
    source: str | os.PathLike[str] = "",
    *,
    config: ModelConfig | str | None = None,
    init: str = "weights",
    step: int | None = None,
    ema: bool = False,
    mesh: MeshConfig | None = None,
) -> Model:
    """A model, on all devices.

    Args:
        source: workdir of a run (its newest good checkpoint), a Hugging Face or OpenCLIP folder,
            `hf-hub:OWNER/NAME`, or a file of weights (.safetensors, .bin, .pt, .npz).
        config: a name of clip_jax.MODELS or a ModelConfig, for weights that come without; with
            another size or context the positions are resized.
        init: "random" for fresh parameters of `config`, and no source.
        step: of a certain checkpoint of a run.
        ema: the moving average that a run kept (`config.optim.ema`), instead of its parameters.
        mesh: how the devices share it; by default each holds all parameters. MeshConfig(fsdp=8)
            spreads them over eight.

    Raises:
        UserError: nothing usable lies there, or it contradicts `config`.
    """
    source = resolved(source)
    if init not in ("weights", "random"):
        raise UserError(f"init: must be 'weights' or 'random' (got {init!r})")
    devices = make_mesh(mesh or MeshConfig())
    if init == "random":
        return _random(source, config, devices)
    if not source or (source in MODELS and not os.path.exists(source)):
        raise UserError(
            f"load: '{source}' is no weights; give a run, a folder, a file or hf-hub:OWNER/NAME, "
            "or config=NAME with init='random'"
        )
    if read.is_foreign(source):
        if ema:
            raise UserError(f"{source}: is no run, and has no moving average; leave ema out")
        return _foreign(source, config, devices)
    if config is not None:
        raise UserError(f"{source}: a run has its own config; leave config out")
    return _run(source, step, ema, devices)


def _random(source: str, config: ModelConfig | str | None, mesh: Mesh) -> Model:
    if source or config is None:
        raise UserError("init: 'random' needs a config, such as ViT-B-32, and no source")
    cfg = _anywhere(read.preset(config) if isinstance(config, str) else config)
    model = dual.build(cfg)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    make = jax.jit(model.init, out_shardings=shardings(shapes, mesh))
    params, stats = make(jax.random.key(0))
    tokenizer = missing("load: a random model has no tokenizer; call embed_images")
    return Model(Config(model=cfg), params, stats, tokenizer, mesh, progress=True)


def _foreign(source: str, config: ModelConfig | str | None, mesh: Mesh) -> Model:
    found = read.read(source, config)
    params, stats = build.build(found, mesh)
    cfg = dataclasses.replace(Config(), model=found.config, tokenizer=found.tokenizer)
    return Model(cfg, params, stats, _tokenizer_of(found), mesh, progress=True)


def _tokenizer_of(found: read.Foreign) -> Tokenizer:
    """The tokenizer that came along; else CLIP's if it is installed; else one that says so."""
    text, cfg = found.config.text, found.tokenizer
    if not found.tokenizer_file and cfg.kind != "clip_bpe":
        return missing(
            f"{found.where}: came without its tokenizer; put spiece.model or tokenizer.json "
            "beside the weights"
        )
    stored = found.tokenizer_file or None
    try:
        tokenizer = build_tokenizer(cfg, vocab_size=text.vocab_size, stored=stored)
    except UserError as e:  # the images can be used without
        return missing(f"{found.where}: its tokenizer cannot be used: {e}")
    if text.pool == "eos" and tokenizer.eos_id != text.eos_id:
        return missing(
            f"{found.where}: its tokenizer ends texts with id {tokenizer.eos_id}, but the model "
            f"looks for {text.eos_id}; give the tokenizer of these weights"
        )
    return tokenizer


def newest_config(run: str, step: int | None = None) -> Config:
    """The config of a run, as it was when its newest checkpoint (or that of `step`) was saved."""
    steps = Checkpoints(run).steps() if step is None else [step]
    return stages.at(stages.expand(read_config(run)), max(steps, default=0)).cfg


def _anywhere(cfg: ModelConfig) -> ModelConfig:
    """A run's model for the devices at hand, which may not be those that it was trained on."""
    return cfg if jax.default_backend() == "gpu" else dataclasses.replace(cfg, attention="xla")


def _run(run: str, step: int | None, ema: bool, mesh: Mesh) -> Model:
    parts = stages.expand(read_config(run))

    def abstract(step: int) -> dict[str, Any]:
        cfg = stages.at(parts, step).cfg
        params, stats = jax.eval_shape(dual.build(_anywhere(cfg.model)).init, jax.random.key(0))
        shapes = {"ema" if ema else "params": params, "stats": stats}
        if ema and not cfg.optim.ema:
            raise UserError(f"{run}: kept no moving average (config.optim.ema was 0)")
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            shardings(shapes, mesh),
        )

    checkpoints = Checkpoints(run)
    restored = checkpoints.restore_latest(abstract, print, only=step)
    checkpoints.close()
    if restored is None:
        raise UserError(f"{run}: no checkpoint yet; train until the first is saved")
    cfg = stages.at(parts, restored.step).cfg
    # Beside a run that is alive, one process could find a newer one than another.
    processes.same({"checkpoint": restored.step}, "start again, with a checkpoint that stays")
    stored = restored.extra_files[TOKENIZER_FILE]
    tokenizer = missing(f"{run}: was exported from weights without a tokenizer")
    if stored:
        tokenizer = build_tokenizer(
            cfg.tokenizer, vocab_size=cfg.model.text.vocab_size, stored=stored
        )
    params, stats = restored.items["ema" if ema else "params"], restored.items["stats"]
    cfg = dataclasses.replace(cfg, model=_anywhere(cfg.model))
    return Model(cfg, params, stats, tokenizer, mesh, cfg.eval.batch_size, progress=True)
