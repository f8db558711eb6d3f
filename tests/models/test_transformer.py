"""The token that NVIDIA's kernel wants changes nothing; train/test_gpu.py tries the kernel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

import tiny
from clip_jax.config.schema import MeshConfig
from clip_jax.errors import UserError
from clip_jax.models import dual
from clip_jax.models.layers import image_init
from clip_jax.models.transformer import blocks
from clip_jax.sharding.mesh import batch_sharding, make_mesh
from clip_jax.train import program

LOOK = jax.nn.dot_product_attention


def as_cudnn(seen):
    """Computes as XLA what the kernel would get, and refuses what it refuses."""

    def attention(q, k, v, *, mask, is_causal, key_value_seq_lengths, implementation):
        assert q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
        assert mask is None or mask.shape[2:] == (q.shape[1], k.shape[1])
        seen.append(implementation)
        return LOOK(
            q, k, v, mask=mask, is_causal=is_causal,
            key_value_seq_lengths=key_value_seq_lengths, implementation="xla",
        )  # fmt: skip

    return attention


def blocks_module(unroll):
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            return blocks(
                layers=3, heads=2, mlp_dim=64, activation="gelu", ln_eps=1e-5, causal=False,
                layer_scale=0.0, start=image_init(32, 64), dtype=jnp.float32, attention="cudnn",
                remat="none", unroll=unroll,
            )(x, None)  # fmt: skip

    return Stack()


@pytest.mark.parametrize(
    ("patch", "context", "causal", "pads"),
    [(8, 7, True, False), (8, 7, False, True), (4, 8, False, True), (4, 7, True, True)],
)
def test_an_odd_number_of_tokens(patch, context, causal, pads, monkeypatch):
    cfg = tiny.model()
    image = dataclasses.replace(cfg.image, patch=patch, class_token=True, pool="cls")
    text = dataclasses.replace(cfg.text, context=context, causal=causal, mask_pads=pads)
    cfg = dataclasses.replace(cfg, image=image, text=text)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 300, (4, context)).astype(np.int32)
    ids[1:, -2:] = cfg.text.pad_id
    batch = {"image": rng.integers(0, 256, (4, 16, 16, 3), np.uint8), "text": ids}
    plain = dual.build(cfg, tiny.config("unused").augment)
    params, stats = plain.init(jax.random.key(0))
    target = jax.random.normal(jax.random.key(1), (4, cfg.embed_dim))

    def gradient(kind):
        model = dual.build(dataclasses.replace(cfg, attention=kind), tiny.config("x").augment)

        def total(p):
            z = model.embed(p, stats, batch, None)[0]
            return jnp.sum((z["image"] + 2 * z["text"]) * target)

        return jax.device_get(jax.jit(jax.value_and_grad(total))(params))

    value, grads = gradient("xla")
    seen = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", as_cudnn(seen))
    other, others = gradient("cudnn")
    assert set(seen) == {"cudnn"}
    assert other == pytest.approx(value, rel=1e-5)
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5 * max(1, np.abs(one).max()))


@pytest.mark.parametrize("unroll", [1, 3])
def test_devices_keep_their_part_of_the_batch(unroll, monkeypatch):
    """Also where layers are written out, and x is told its layout."""
    monkeypatch.setattr(jax.nn, "dot_product_attention", as_cudnn([]))
    mesh = make_mesh(MeshConfig(data=8))
    stack = blocks_module(unroll)
    x = jax.ShapeDtypeStruct((16, 6, 32), jnp.float32, sharding=batch_sharding(mesh))
    with jax.set_mesh(mesh):
        params = jax.eval_shape(stack.init, jax.random.key(0), x)
        whole = NamedSharding(mesh, PartitionSpec())
        params = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=whole), params
        )
        total = lambda p, x: jnp.sum(stack.apply(p, x))  # noqa: E731
        text = jax.jit(jax.grad(total)).lower(params, x).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text


def test_without_gpus_it_is_refused_in_a_line():
    cfg = tiny.config("unused")
    model = dataclasses.replace(cfg.model, attention="cudnn", dtype="bfloat16")
    cfg = dataclasses.replace(cfg, model=model)
    with pytest.raises(UserError, match="'cudnn' needs NVIDIA GPUs.* platform cpu.; set it to xla"):
        program.build(cfg, make_mesh(MeshConfig(data=1)))
    assert program.model_flops(cfg) == program.model_flops(tiny.config("unused"))
