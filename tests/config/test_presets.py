"""The presets against the published table (parameters, FLOPs) and OpenCLIP's own configs."""

import csv
import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from clip_jax.config import check
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import Config
from clip_jax.interop import open_clip_config
from clip_jax.metrics import flops
from clip_jax.models import dual

# tests/golden/presets.tsv: open_clip 3.3's docs/model_profile.csv, and its models counted on
# torch's meta device where the csv lacks them.
ROWS = {
    row["name"]: row
    for row in csv.DictReader(
        (Path(__file__).parents[1] / "golden" / "presets.tsv").open(), delimiter="\t"
    )
}


def millions(tree):
    return sum(x.size for x in jax.tree.leaves(tree)) / 1e6


@functools.cache
def shapes(name):
    return jax.eval_shape(dual.build(MODELS[name]).init, jax.random.key(0))


def unread_queries(cfg):
    """FLOPs of OpenCLIP's attention pool that ours leaves out: queries that nobody reads."""
    tokens, d = (cfg.image.size // 32) ** 2 + 1, 32 * cfg.image.width
    queries = tokens - 1
    return 2 * queries * d * d + 4 * queries * tokens * d + 2 * queries * d * cfg.embed_dim


def test_every_published_model_is_there():
    assert len(ROWS) == 65 and set(ROWS) <= set(MODELS)
    assert {n.removesuffix("-quickgelu") for n in MODELS} == set(ROWS)


@pytest.mark.slow
def test_parameter_counts_equal_the_table():
    for name, row in ROWS.items():
        params, _ = shapes(name)
        got = {"total_m": millions(params), "image_m": millions(params["image"])}
        got["text_m"] = millions(params["text"])
        for column, value in got.items():
            assert abs(value - float(row[column])) <= 0.0051, (name, column, value)


@pytest.mark.slow
def test_forward_flops_equal_the_table():
    for name, row in ROWS.items():
        cfg = MODELS[name]
        model = dual.build(cfg)
        params, stats = shapes(name)
        inputs = {
            "image": jax.ShapeDtypeStruct((1, *cfg.image.shape()), jnp.float32),
            "text": jax.ShapeDtypeStruct((1, cfg.text.context), jnp.int32),
        }
        for side, x in inputs.items():
            printed = row[f"{side}_gflop"].rstrip("*")
            want = float(printed)
            unit = 10.0 ** -len(printed.partition(".")[2])
            got = flops.count(functools.partial(model.features, side), params, stats, x) / 1e9
            if side == "image" and cfg.image.kind == "resnet":
                got += unread_queries(cfg) / 1e9
            assert abs(got - want) <= max(0.01 * want, unit / 2), (name, side, got, want)


def test_the_presets_are_configs_that_can_be_trained():
    for name, model in MODELS.items():
        loss = dataclasses.replace(Config().loss, kind="sigmoid" if model.logit_bias else "softmax")
        cfg = dataclasses.replace(Config(), model=model, loss=loss)
        found = [x for x in check.findings(cfg) if "config.data.train.paths" not in x]
        assert not found, (name, found)


def test_the_presets_are_open_clips():
    spec = importlib.util.find_spec("open_clip")
    assert spec and spec.submodule_search_locations, "launch/setup.sh test installs it"
    folder = Path(spec.submodule_search_locations[0]) / "model_configs"
    for name, ours in MODELS.items():
        theirs = open_clip_config.to_model(
            json.loads((folder / f"{name}.json").read_text()), {}, name
        )
        family = next((f for f in DIFFERS if f in name), "")
        for side in ("image", "text"):
            a, b = getattr(ours, side), getattr(theirs, side)
            differing = {
                f"{side}.{f.name}"
                for f in dataclasses.fields(a)
                if getattr(a, f.name) != getattr(b, f.name)
            }
            allowed = {f for f in DIFFERS.get(family, ()) if f.startswith(side)}
            assert differing == allowed, (name, differing ^ allowed)
        assert ours.embed_dim == theirs.embed_dim and ours.logit_bias == theirs.logit_bias


# What the weights were trained with, where OpenCLIP's configs of models say otherwise or nothing:
# CLIPA's (docs/decisions/008), and the pad of XLM's tokenizer.
DIFFERS = {
    "CLIPA": {
        *("image.activation", "image.ln_eps", "text.activation", "text.ln_eps", "text.eos_id"),
        *("image.mean", "image.std", "image.resize", "image.interpolation"),
    },
    "H-14-worldwide": {"text.pad_id"},
    "bigG-14-worldwide": {"text.pad_id"},
}


def test_hidden_widths_survive_the_ratio():
    for name in ("ViT-g-14", "ViT-bigG-14", "ViT-e-14"):
        model, _ = open_clip_config.from_model(MODELS[name])
        assert (
            open_clip_config.to_model(model, {}, name).image.mlp_dim == MODELS[name].image.mlp_dim
        )
