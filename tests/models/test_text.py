"""Text tower: pooling by position, causality, pads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from clip_jax.config.schema import TextConfig
from clip_jax.models import dual
from clip_jax.models.text import TextTransformer, eos_position, pooled


def tower(**changes):
    fields = {
        "context": 6, "vocab_size": 20, "eos_id": 3,
        "width": 8, "layers": 2, "heads": 2, "mlp_dim": 16,
    }  # fmt: skip
    cfg = TextConfig(**{**fields, **changes})
    module = TextTransformer(cfg, 5, "open_clip", jnp.float32, "xla", "none", 1)
    params = jax.jit(module.init)(jax.random.key(1), jnp.zeros((1, 6), jnp.int32))
    return jax.jit(lambda ids: module.apply(params, ids))


def test_eos_is_found_by_its_id_not_by_the_largest():
    ids = jnp.array([[9, 3, 19, 0], [3, 3, 0, 0], [9, 9, 9, 9]])
    assert eos_position(ids, 3).tolist() == [1, 0, 3]


def test_a_causal_tower_does_not_see_what_follows_its_eos():
    f = tower(pool="eos", causal=True)
    ids = np.array([[7, 8, 3, 0, 0, 0]], np.int32)
    after, before = ids.copy(), ids.copy()
    after[0, 3:] = 9
    before[0, 0] = 9
    np.testing.assert_array_equal(f(ids), f(after))
    assert np.abs(np.asarray(f(ids) - f(before))).max() > 1e-4


@pytest.mark.parametrize("pool", ["eos", "mean"])
def test_pads_do_not_matter_to_a_bidirectional_tower(pool):
    f = tower(pool=pool, causal=False, mask_pads=True)
    ids = np.array([[7, 8, 3, 0, 0, 0]], np.int32)
    short = np.asarray(f(ids))
    np.testing.assert_allclose(f(ids[:, :4]), short, atol=1e-6)
    changed = ids.copy()
    changed[0, 1] = 9
    assert np.abs(np.asarray(f(changed)) - short).max() > 1e-4


def test_a_row_of_pads_is_finite():
    f = tower(pool="mean", causal=False, mask_pads=True)
    assert np.isfinite(np.asarray(f(np.zeros((2, 6), np.int32)))).all()


@pytest.mark.parametrize("seed", range(3))
def test_pools_take_the_token_that_they_name(seed):
    """With all branches closed the state of a token is its own embedding plus position."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, 20, (4, 6)).astype(np.int32)
    at = rng.integers(1, 6, 4)
    for row, i in zip(ids, at, strict=True):
        row[i], row[i + 1 :] = 3, 0
    x = rng.normal(size=(4, 6, 8)).astype(np.float32)
    cfg = TextConfig(eos_id=3, pad_id=0)
    take = lambda pool: np.asarray(pooled(x, ids, dataclasses.replace(cfg, pool=pool)))  # noqa: E731
    np.testing.assert_array_equal(take("first"), x[:, 0])
    np.testing.assert_array_equal(take("last"), x[:, -1])
    np.testing.assert_array_equal(take("eos"), x[np.arange(4), at])
    mean = np.stack([r[: i + 1].mean(0) for r, i in zip(x, at, strict=True)])
    np.testing.assert_allclose(take("mean"), mean, rtol=1e-5, atol=1e-6)


def test_without_a_mask_pads_are_looked_at():
    """SigLIP's tower attends to its pads: which id fills a row matters."""
    f = tower(pool="last", causal=False)
    ids = np.array([[7, 8, 3, 0, 0, 0]], np.int32)
    other = ids.copy()
    other[0, 4] = 5
    assert np.abs(np.asarray(f(ids) - f(other))).max() > 1e-4


def test_attention_pooling_leaves_masked_pads_out():
    ids = np.array([[7, 8, 3, 0, 0, 0]], np.int32)
    f = tower(pool="map", causal=False, mask_pads=True)
    np.testing.assert_allclose(f(ids[:, :4]), f(ids), atol=1e-6)
    g = tower(pool="map", causal=False)
    assert np.abs(np.asarray(g(ids[:, :4]) - g(ids))).max() > 1e-4


@pytest.mark.parametrize("projection", ["linear", "bias", "none"])
def test_projections(projection):
    cfg = TextConfig(
        context=6, vocab_size=20, eos_id=3, width=8, layers=1, heads=2, mlp_dim=16,
        projection=projection,
    )  # fmt: skip
    module = TextTransformer(cfg, 5, "big_vision", jnp.float32, "xla", "none", 1)
    params = jax.jit(module.init)(jax.random.key(1), jnp.zeros((1, 6), jnp.int32))["params"]
    want = {"linear": {"kernel"}, "bias": {"kernel", "bias"}, "none": set()}[projection]
    assert set(params.get("head", {})) == want


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_a_sequence_is_what_the_blocks_leave(layer):
    """Against a tower of fewer layers, and the last norm by hand."""
    cfg = tiny.model()
    text = dataclasses.replace(cfg.text, layers=3, causal=True, mask_pads=False)
    model = dual.build(dataclasses.replace(cfg, text=text))
    params, _ = model.init(jax.random.key(0))
    ids = np.random.default_rng(0).integers(3, 300, (2, 8)).astype(np.int32)
    raw = np.asarray(model.text_sequence(params, ids, layer, final_norm=False))
    normed = np.asarray(model.text_sequence(params, ids, layer, final_norm=True))
    assert raw.shape == normed.shape == (2, 8, 16)
    norm = params["text"]["ln_post"]
    z = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + text.ln_eps)
    np.testing.assert_allclose(
        normed, z * np.asarray(norm["scale"]) + np.asarray(norm["bias"]), atol=1e-5
    )
    if layer == -1:  # the pooled embedding comes from the same states
        pooled_mean = normed.mean(1) @ np.asarray(params["text"]["head"]["kernel"])
        want = model.features("text", params, {}, ids)
        np.testing.assert_allclose(pooled_mean, want, atol=1e-5)
