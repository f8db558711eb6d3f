"""export(source, to, out): a model in the files that other programs read.

    clip_jax     a workdir for clip_jax.load: config.json and one checkpoint
    open_clip    open_clip_config.json, open_clip_model.safetensors    create_model("local-dir:DIR")
    hf           config.json, model.safetensors, tokenizer, preprocessor    from_pretrained(DIR)
    big_vision   big_vision.npz with the names of released SigLIP files
    diffusers    text_encoder/ and tokenizer/, as a Stable Diffusion pipeline has them

Written to a temporary folder that is renamed at the end; no account and no network are needed.
"""

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from clip_jax.checkpoint.manager import Checkpoints
from clip_jax.config.codec import to_dict
from clip_jax.config.stored import read_config, write_config
from clip_jax.errors import UserError, near
from clip_jax.files import is_remote, resolved, user_errors
from clip_jax.inference.api import Model
from clip_jax.inference.load import TOKENIZER_FILE
from clip_jax.interop import big_vision, hf, open_clip, open_clip_config
from clip_jax.interop.card import model_card
from clip_jax.interop.npz import write_npz
from clip_jax.interop.read import METADATA_KEY
from clip_jax.interop.safetensors import write_safetensors
from clip_jax.interop.table import Leaves, Rule, leaves, write_items
from clip_jax.interop.tokenizer_files import tokenizer_files
from clip_jax.metrics.writers import read_metrics
from clip_jax.tokenizers import is_missing

DTYPES = ("float32", "float16", "bfloat16")


def export(
    model: Model,
    to: str,
    out: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    scores: str = "",
) -> None:
    """Writes `model` to the new folder `out`.

    Args:
        model: of clip_jax.load.
        to: a key of FORMATS.
        out: a folder that does not exist yet, or is empty.
        dtype: of the weights, one of DTYPES.
        scores: Markdown for the model card, such as a table of zero-shot scores.

    Raises:
        UserError: `to` has no such model, or `out` cannot be written.
    """
    out = resolved(out)
    check(to, out, dtype)
    out = os.path.abspath(out)
    temporary = f"{out}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        with user_errors(out):
            os.makedirs(temporary)
            FORMATS[to](model, temporary, _numpy(dtype), scores)
            if os.path.isdir(out):
                os.rmdir(out)
            os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check(to: str, out: str, dtype: str) -> None:
    """Raises UserError for what `export` would refuse whatever the model is."""
    if to not in FORMATS:
        raise UserError(
            f"--to: must be one of {', '.join(FORMATS)} (got '{to}'){near(to, FORMATS)}"
        )
    if dtype not in DTYPES:
        raise UserError(f"--dtype: must be one of {', '.join(DTYPES)} (got '{dtype}')")
    if is_remote(out):
        raise UserError(f"{out}: is written to a local disk only; copy it from there")
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise UserError(f"{out}: is there already; choose another --out")


def run_scores(source: str, ema: bool = False) -> str:
    """The newest scores of a run as a Markdown table, "" for other sources.

    Also "" where the run scored its parameters and the moving average is meant, or vice versa.
    """
    try:
        lines = read_metrics(source)
        if not lines or read_config(source).eval.ema != ema:
            return ""
    except (FileNotFoundError, UserError):
        return ""
    scored = [m for m in lines if any(k.startswith("eval/") for k in m)]
    if not scored:
        return ""
    rows = [f"| {k.removeprefix('eval/')} | {v} |" for k, v in scored[-1].items() if "/top" in k]
    return "\n".join(
        [f"At step {scored[-1]['step']}:", "", "| score | value |", "|---|---|", *rows]
    )


def _numpy(dtype: str) -> np.dtype:
    return np.dtype(jax.numpy.dtype(dtype))


def _leaves(model: Model) -> Leaves:
    return {**leaves(model.params), **leaves(model.stats)}


def _weights(model: Model, path: str, rules: Sequence[Rule], flat: Leaves, dtype: np.dtype) -> None:
    """A .safetensors file whose header carries our config, so that nothing is guessed later."""
    tokenizer = dataclasses.replace(model.config.tokenizer, path="")
    own = {"model": to_dict(model.config.model), "tokenizer": to_dict(tokenizer)}
    metadata = {"format": "pt", METADATA_KEY: json.dumps(own)}
    write_safetensors(path, write_items(rules, flat, dtype), metadata)


def _json(folder: str, name: str, data: Any) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        f.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def _files(folder: str, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data)


def _card(model: Model, folder: str, usage: str, scores: str) -> None:
    text = model_card(model.config, usage, scores)
    _files(folder, {"README.md": text.encode()})


def _to_clip_jax(model: Model, folder: str, dtype: np.dtype, scores: str) -> None:
    if dtype != np.float32:
        raise UserError(f"--dtype: a run's parameters are float32 (got {dtype}); leave it out")
    write_config(folder, model.config)
    checkpoints = Checkpoints(folder, keep=1)
    items = {"params": model.params, "stats": model.stats}
    extra = {TOKENIZER_FILE: b"" if is_missing(model.tokenizer) else model.tokenizer.to_bytes()}
    checkpoints.save(0, items, {"position": 0, "order": {}, "batch_size": 0}, extra_files=extra)
    checkpoints.wait()
    checkpoints.close()


def _to_open_clip(model: Model, folder: str, dtype: np.dtype, scores: str) -> None:
    cfg = model.config.model
    model_cfg, pixels = open_clip_config.from_model(cfg)
    path = os.path.join(folder, "open_clip_model.safetensors")
    _weights(model, path, open_clip.table(cfg), _leaves(model), dtype)
    _json(folder, "open_clip_config.json", {"model_cfg": model_cfg, "preprocess_cfg": pixels})
    _files(folder, tokenizer_files(model.tokenizer, model.config, required=False))
    usage = 'import open_clip\n\nmodel = open_clip.create_model("local-dir:PATH")'
    _card(model, folder, usage, scores)


def _to_hf(model: Model, folder: str, dtype: np.dtype, scores: str) -> None:
    cfg = model.config.model
    config, pixels = hf.from_model(cfg)
    config["dtype"] = dtype.name
    path = os.path.join(folder, "model.safetensors")
    _weights(model, path, hf.table(cfg), _leaves(model), dtype)
    _json(folder, "config.json", config)
    _json(folder, "preprocessor_config.json", pixels)
    _files(folder, tokenizer_files(model.tokenizer, model.config, required=False))
    name = config["architectures"][0]
    usage = f'from transformers import {name}\n\nmodel = {name}.from_pretrained("PATH")'
    _card(model, folder, usage, scores)


def _to_big_vision(model: Model, folder: str, dtype: np.dtype, scores: str) -> None:
    rules = big_vision.table(model.config.model)
    items = write_items(rules, _leaves(model), dtype)
    write_npz(os.path.join(folder, "big_vision.npz"), items, {})


def _to_diffusers(model: Model, folder: str, dtype: np.dtype, scores: str) -> None:
    cfg = model.config.model
    encoder, words = os.path.join(folder, "text_encoder"), os.path.join(folder, "tokenizer")
    os.makedirs(encoder)
    os.makedirs(words)
    config, rules = hf.encoder(cfg)
    config["dtype"] = dtype.name
    flat = {p: x for p, x in _leaves(model).items() if p.startswith("text/")}
    path = os.path.join(encoder, "model.safetensors")
    write_safetensors(path, write_items(rules, flat, dtype), {"format": "pt"})
    _json(encoder, "config.json", config)
    _files(words, tokenizer_files(model.tokenizer, model.config, required=True))


FORMATS: dict[str, Callable[[Model, str, np.dtype, str], None]] = {
    "clip_jax": _to_clip_jax,
    "open_clip": _to_open_clip,
    "hf": _to_hf,
    "big_vision": _to_big_vision,
    "diffusers": _to_diffusers,
}
