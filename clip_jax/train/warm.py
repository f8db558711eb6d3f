"""Parameters of a new run that are taken from other weights: `config.init`."""

import dataclasses
import re
from typing import Any

import jax

from clip_jax.config.schema import Config, InitConfig, ModelConfig
from clip_jax.errors import UserError
from clip_jax.inference.load import load, newest_config
from clip_jax.interop import build, read
from clip_jax.interop.table import leaves, tree
from clip_jax.tokenizers import Tokenizer, is_missing
from clip_jax.train.state import TrainState

TOKENS = "text/token/embedding"


def check(cfg: Config) -> None:
    """Refuses sources that contradict the config; looks at this host's files alone.

    A tower means something else with another activation, number of heads or normalisation of its
    pixels, though all shapes are the same.

    Raises:
        UserError: nothing usable lies there, or it has another model or other parameters.
    """
    if not cfg.init:
        return
    here = build.model_shapes(cfg.model)
    for i, item in enumerate(cfg.init):
        where = f"config.init[{i}]"
        model = _model(item)
        names = _taken(item, here, where)
        sides = {n.partition("/")[0] for n in names}
        odd = read.contradictions(model, cfg.model)
        odd = [text for field, text in odd.items() if field.partition(".")[0] in sides]
        if odd:
            raise UserError(
                f"{where}: {item.weights}: {'; '.join(f'model.{x}' for x in odd)}; set it so, or "
                "leave that tower out of parts"
            )
        there = build.model_shapes(model)
        for name in names:
            _check_shape(name, there, here[name].shape, where)


def warmed(cfg: Config, state: TrainState, tokenizer: Tokenizer) -> tuple[TrainState, list[str]]:
    """A first state with the parameters that `cfg.init` names; and a line about each source.

    Position tables of another resolution or context are resized. All processes call it, after
    `check`.

    Raises:
        UserError: the tokens of the source are those of another tokenizer.
    """
    if not cfg.init:
        return state, []
    params, stats, lines = leaves(state.params), leaves(state.stats), []
    for i, item in enumerate(cfg.init):
        config = item.config if read.is_foreign(item.weights) else None
        model = load(item.weights, config=config or None, ema=item.ema, mesh=cfg.mesh)
        names = _taken(item, {**params, **stats}, f"config.init[{i}]")
        if TOKENS in names:
            _check_tokens(cfg, model.tokenizer, tokenizer, f"config.init[{i}]")
        there = {**leaves(model.params), **leaves(model.stats)}
        for name in names:
            mine = params if name in params else stats
            leaf, old = there[name], mine[name]
            if leaf.shape != old.shape:
                leaf = build.resized(name, leaf, model.config.model, cfg.model)
            mine[name] = jax.device_put(leaf, old.sharding)
        lines.append(f"{len(names)} parameters start as in {item.weights}")
    average = jax.tree.map(jax.numpy.copy, tree(params)) if state.ema else {}
    changes = {"params": tree(params), "stats": tree(stats), "ema": average}
    return dataclasses.replace(state, **changes), lines


def _model(item: InitConfig) -> ModelConfig:
    """What lies there. The name in item.config is for weights that come without one."""
    if not read.is_foreign(item.weights):
        run = newest_config(item.weights)
        if item.ema and not run.optim.ema:
            raise UserError(f"{item.weights}: kept no moving average (config.optim.ema was 0)")
        return run.model
    found = read.read(item.weights, item.config or None)
    found.tensors.close()
    return found.config


def _taken(item: InitConfig, here: dict[str, Any], where: str) -> list[str]:
    names = [p for p in here if re.fullmatch(item.parts, p)]
    if not names:
        raise UserError(
            f"{where}.parts: '{item.parts}' matches no parameter; they are named like "
            f"'{next(iter(here))}'"
        )
    return names


def _check_shape(name: str, there: dict[str, Any], shape: tuple[int, ...], where: str) -> None:
    if name not in there:
        raise UserError(f"{where}: has no {name}; leave it out of parts")
    old = there[name].shape
    if old != shape and not (name.endswith("posemb") and old[-1] == shape[-1]):
        raise UserError(
            f"{where}: {name} is {old} there and {shape} here; leave it out of parts, or change "
            "config.model"
        )


def _check_tokens(cfg: Config, theirs: Tokenizer, ours: Tokenizer, where: str) -> None:
    """Rows of the token table belong to the words of one tokenizer."""
    trained = cfg.tokenizer.kind == "sentencepiece" and not cfg.tokenizer.path
    other = trained if is_missing(theirs) else theirs.to_bytes() != ours.to_bytes()
    if other:
        raise UserError(
            f"{where}: its texts were cut by another tokenizer than this run's; set "
            "config.tokenizer.path to the file of that one and config.tokenizer.kind to its kind "
            f"(tokenizer.json: hf), or leave {TOKENS} out of parts"
        )
