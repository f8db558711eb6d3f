"""The dual encoder: names and shapes of the parameters, options, a tower of the user's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from clip_jax.config.schema import ImageConfig, ModelConfig, TextConfig
from clip_jax.metrics.flops import inner_jaxprs
from clip_jax.models import dual
from clip_jax.sharding.rules import path_of


def shapes(cfg):
    tree = jax.eval_shape(dual.build(cfg).init, jax.random.key(0))[0]
    return {path_of(p): x.shape for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def test_names_and_shapes_are_the_promised_ones():
    image = ImageConfig(size=8, patch=4, width=6, layers=2, heads=3, mlp_dim=10, patch_bias=True)
    text = TextConfig(context=5, vocab_size=11, width=4, layers=3, heads=2, mlp_dim=7, eos_id=1)
    got = shapes(ModelConfig(image, text, embed_dim=9, logit_bias=True))
    blocks = {
        "attn/k/bias": "ld", "attn/k/kernel": "ldd", "attn/out/bias": "ld",
        "attn/out/kernel": "ldd", "attn/q/bias": "ld", "attn/q/kernel": "ldd",
        "attn/v/bias": "ld", "attn/v/kernel": "ldd", "ln1/bias": "ld", "ln1/scale": "ld",
        "ln2/bias": "ld", "ln2/scale": "ld", "mlp/down/bias": "ld", "mlp/down/kernel": "lfd",
        "mlp/up/bias": "lf", "mlp/up/kernel": "ldf",
    }  # fmt: skip
    sizes = {"image": dict(l=2, d=6, f=10), "text": dict(l=3, d=4, f=7)}
    want = {
        f"{tower}/blocks/{name}": tuple(size[x] for x in letters)
        for tower, size in sizes.items()
        for name, letters in blocks.items()
    }
    want |= {
        "image/patch/kernel": (4, 4, 3, 6), "image/patch/bias": (6,), "image/cls": (6,),
        "image/posemb": (5, 6), "image/ln_pre/scale": (6,), "image/ln_pre/bias": (6,),
        "image/ln_post/scale": (6,), "image/ln_post/bias": (6,), "image/head/kernel": (6, 9),
        "text/token/embedding": (11, 4), "text/posemb": (5, 4), "text/ln_post/scale": (4,),
        "text/ln_post/bias": (4,), "text/head/kernel": (4, 9), "logit/scale": (), "logit/bias": (),
    }  # fmt: skip
    assert got == want


def test_speed_knobs_keep_names_and_values():
    base = dual.build(tiny.model())
    want = base.init(jax.random.key(0))[0]
    for change in ({"remat": "full"}, {"remat": "dots", "unroll": 2}):
        other = dual.build(dataclasses.replace(tiny.model(), **change))
        got = other.init(jax.random.key(0))[0]
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_unit_is_safe_at_zero():
    grad = jax.grad(lambda z: dual.unit(z).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(np.asarray(grad)).all()
    z = np.random.default_rng(0).normal(size=(4, 3)) * 1e4
    want = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(dual.unit(jnp.asarray(z)), want, rtol=1e-5)


def test_augmentation_needs_a_key():
    cfg = tiny.config("x")
    model = dual.build(cfg.model, cfg.augment)
    params = model.init(jax.random.key(0))[0]
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8),
        "text": np.ones((2, 8), np.int32),
        "index": np.zeros((2, 2), np.uint32),
    }
    embed = jax.jit(lambda rng: model.embed(params, {}, batch, rng)[0]["image"])
    plain = jax.jit(lambda: model.embed(params, {}, batch, None)[0]["image"])()
    assert np.abs(np.asarray(embed(jax.random.key(1)) - plain)).max() > 1e-6


def products(jaxpr):
    """The types of both sides of every matrix product and convolution."""
    for e in jaxpr.eqns:
        if e.primitive.name in ("dot_general", "conv_general_dilated"):
            yield {v.aval.dtype.name for v in e.invars}
        for inner in inner_jaxprs(e.params):
            yield from products(inner)


RESNET = {"kind": "resnet", "size": 32, "width": 8, "heads": 4, "stages": (1, 1, 1, 1)}
CLS = {"class_token": True, "pool": "cls", "ln_pre": True}


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (CLS, {"pool": "eos", "causal": True}),
        ({"pool": "map"}, {"pool": "map"}),
        (RESNET, {}),
    ],
    ids=["clip", "siglip", "resnet"],
)
def test_products_of_both_towers_are_in_bfloat16(image, text):
    """Backwards one side may be the slope of attention's scores, which are float32."""
    cfg = tiny.model()
    sides = {
        "image": dataclasses.replace(cfg.image, **image),
        "text": dataclasses.replace(cfg.text, **text),
    }
    model = dual.build(dataclasses.replace(cfg, dtype="bfloat16", **sides))
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    batch = {
        "image": jnp.zeros((4, *model.cfg.image.shape()), jnp.uint8),
        "text": jnp.zeros((4, 8), jnp.int32),
        "index": jnp.zeros((4, 2), jnp.uint32),
    }

    def total(params, stats):
        z, _ = model.embed(params, stats, batch, jax.random.key(1))
        return jnp.sum(z["image"] + z["text"])

    forward = list(products(jax.make_jaxpr(total)(params, stats).jaxpr))
    both = list(products(jax.make_jaxpr(jax.grad(total))(params, stats).jaxpr))
    assert len(forward) >= 16 and all(types == {"bfloat16"} for types in forward)
    assert len(both) >= 3 * len(forward) - 2 and all("bfloat16" in types for types in both)


def test_a_tower_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "own_tower.py").write_text(
        "from flax import linen as nn\n"
        "def build(cfg, model):\n"
        "    class Flat(nn.Module):\n"
        "        @nn.compact\n"
        "        def __call__(self, x, keys=None):\n"
        "            return nn.Dense(model.embed_dim, name='head')(x.reshape(x.shape[0], -1))\n"
        "    return Flat()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = tiny.model()
    cfg = dataclasses.replace(cfg, image=dataclasses.replace(cfg.image, kind="own_tower:build"))
    assert shapes(cfg)["image/head/kernel"] == (768, 16)
