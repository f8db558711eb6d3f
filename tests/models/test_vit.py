"""Options of the image tower: what each may change, and what it must not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config.schema import ImageConfig, ModelConfig, TextConfig
from clip_jax.models import dual
from clip_jax.models.vit import drop

TEXT = TextConfig(context=8, vocab_size=300, width=8, layers=1, heads=1, mlp_dim=8, eos_id=1)
BASE = ImageConfig(size=16, patch=4, width=16, layers=2, heads=2, mlp_dim=32)


def model(**changes):
    image = dataclasses.replace(BASE, **changes)
    built = dual.build(ModelConfig(image=image, text=TEXT, embed_dim=16))
    params, stats = built.init(jax.random.key(0))
    return built, params, stats


def features(built, params, stats, image):
    return np.asarray(jax.jit(built.features, static_argnums=0)("image", params, stats, image))


def picture(b=2, y=16, x=16, seed=0):
    return np.random.default_rng(seed).normal(size=(b, y, x, 3)).astype(np.float32)


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_each_pool_sees_every_patch(pool):
    built, params, stats = model(pool=pool)
    base = picture()
    want = features(built, params, stats, base)
    assert want.shape == (2, 16)
    for y, x in ((0, 0), (3, 3), (1, 2)):
        changed = base.copy()
        changed[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 1
        assert np.abs(features(built, params, stats, changed) - want).max() > 1e-4


def test_mean_pool_leaves_class_token_and_registers_out():
    built, params, stats = model(pool="mean", ln_post="after", registers=3, layers=1)
    # with all residual branches closed, the tower is a mean of patches plus positions
    blocks = jax.tree.map(jnp.zeros_like, params["image"]["blocks"])
    params = {**params, "image": {**params["image"], "blocks": blocks}}
    image = picture()
    want = features(built, params, stats, image)
    for name in ("cls", "registers"):
        other = dict(params["image"])
        other[name] = np.asarray(other[name]) + np.arange(16.0)  # a norm swallows a constant
        got = features(built, {**params, "image": other}, stats, image)
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_registers_change_what_the_others_see():
    built, params, stats = model(registers=2)
    want = features(built, params, stats, picture())
    noise = np.random.default_rng(0).normal(size=(2, 16))
    other = {**params["image"], "registers": params["image"]["registers"] + noise}
    got = features(built, {**params, "image": other}, stats, picture())
    assert np.abs(got - want).max() > 1e-4


def test_rectangular_images():
    built, params, stats = model(size=8, columns=16)
    assert params["image"]["posemb"].shape == (1 + 2 * 4, 16)
    assert features(built, params, stats, picture(y=8, x=16)).shape == (2, 16)


def test_pixels_that_fill_no_patch_are_not_seen():
    built, params, stats = model(size=18)
    image = picture(y=18, x=18)
    want = features(built, params, stats, image)
    image[:, 16:] += 3
    image[:, :, 16:] += 3
    np.testing.assert_array_equal(features(built, params, stats, image), want)


@pytest.mark.parametrize("posemb", ["sincos2d", "sincos2d_mae"])
def test_fixed_positions_are_no_parameters(posemb):
    built, params, stats = model(posemb=posemb, class_token=False, pool="mean")
    assert "posemb" not in params["image"]
    image = picture()
    swapped = image[:, :, ::-1]
    a, b = (features(built, params, stats, x) for x in (image, swapped))
    assert np.abs(a - b).max() > 1e-4


def test_layer_scale_of_nothing_closes_the_branches():
    built, params, stats = model(layer_scale=1e-4)
    shapes = {k: v.shape for k, v in params["image"]["blocks"].items() if k.startswith("ls")}
    assert shapes == {"ls1": (2, 16), "ls2": (2, 16)}
    blocks = dict(params["image"]["blocks"])
    blocks |= {"ls1": jnp.zeros((2, 16)), "ls2": jnp.zeros((2, 16))}
    closed = {**params, "image": {**params["image"], "blocks": blocks}}
    want = features(built, closed, stats, picture())
    blocks = jax.tree.map(lambda x: x * 3, blocks)
    again = {**params, "image": {**params["image"], "blocks": blocks}}
    np.testing.assert_array_equal(features(built, again, stats, picture()), want)


def batch(b=8):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (b, 16, 16, 3), np.uint8),
        "text": rng.integers(1, 300, (b, 8)).astype(np.int32),
        "index": np.stack([np.zeros(b), np.arange(b)], 1).astype(np.uint32),
    }


def test_patch_dropout_belongs_to_the_sample_and_to_training():
    built, params, stats = model(patch_dropout=0.5)
    full = batch()
    embed = jax.jit(lambda b, rng: built.embed(params, stats, b, rng)[0]["image"])
    z = embed(full, jax.random.key(1))
    order = np.array([5, 2, 7, 0, 1, 3, 4, 6])
    moved = embed({k: v[order] for k, v in full.items()}, jax.random.key(1))
    np.testing.assert_allclose(moved, z[order], atol=1e-6)
    plain = jax.jit(lambda b: built.embed(params, stats, b, None)[0]["image"])(full)
    assert np.abs(np.asarray(z) - np.asarray(plain)).max() > 1e-4
    off, _, _ = model()
    same = jax.jit(lambda b: off.embed(params, stats, b, None)[0]["image"])(full)
    np.testing.assert_array_equal(plain, same)


def test_drop_keeps_whole_patches_and_differs_between_samples():
    x = jnp.arange(10, dtype=jnp.float32)[None, :, None] * jnp.ones((3, 1, 2))
    kept = np.asarray(drop(x, jax.random.split(jax.random.key(0), 3), 0.65))
    assert kept.shape == (3, 3, 2)
    rows = [tuple(sorted(r[:, 0])) for r in kept]
    assert all(len(set(r)) == 3 for r in rows) and len(set(rows)) > 1
    assert drop(x, jax.random.split(jax.random.key(0), 3), 0.99).shape == (3, 1, 2)
    counts = np.zeros(10)
    for seed in range(200):
        kept = drop(x, jax.random.split(jax.random.key(seed), 3), 0.5)
        counts += np.bincount(np.asarray(kept)[..., 0].astype(int).ravel(), minlength=10)
    assert counts.sum() == 200 * 3 * 5 and counts.min() > 240 and counts.max() < 360
