"""The sigmoid loss against plain NumPy in float64: value, gradients, groups, meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.losses import build
from clip_jax.sharding.mesh import batch_sharding, make_mesh

MESHES = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]


def oracle(x, y, log_scale, bias, group):
    """Loss and gradients by hand, float64, one device, no shared code."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    b, dot = len(x), x @ y.T
    sign = np.where(group[:, None] == group[None, :], 1.0, -1.0)
    m = sign * (np.exp(np.float64(log_scale)) * dot + np.float64(bias))
    loss = np.logaddexp(0, -m).sum() / b
    ds = -sign / (1 + np.exp(m)) / b
    scale = np.exp(np.float64(log_scale))
    return loss, scale * ds @ y, scale * ds.T @ x, (ds * dot).sum() * scale, ds.sum()


def example(b=32, e=24, groups=None):
    rng = np.random.default_rng(3)
    unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    group = np.arange(b) if groups is None else rng.integers(0, groups, b)
    x, y = unit(rng.normal(size=(b, e))), unit(rng.normal(size=(b, e)))
    return x, y, np.float32(2.3), np.float32(-3.0), group.astype(np.int32)


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("groups", [None, 7])
def test_value_and_gradients_equal_the_oracle(shape, groups):
    args = example(groups=groups)
    mesh = make_mesh(MeshConfig(*shape))
    loss_fn = build(LossConfig("sigmoid"))

    def f(x, y, scale, bias, group):
        return loss_fn({"image": x, "text": y}, {"scale": scale, "bias": bias}, group)

    put = lambda a: jax.device_put(a, batch_sharding(mesh))  # noqa: E731
    x, y, scale, bias, group = args
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3), has_aux=True))
        (value, metrics), grads = step(
            put(x), put(y), jnp.asarray(scale), jnp.asarray(bias), put(group)
        )
    want, *wanted = oracle(*args)
    assert abs(float(value) - want) <= 1e-6 * want
    for got, expected in zip(grads, wanted, strict=True):
        difference = np.linalg.norm(np.asarray(got, np.float64) - expected)
        assert difference <= 1e-5 * np.linalg.norm(expected)
    assert float(metrics["loss_floor"]) == 0.0


def test_perfect_embeddings_reach_its_floor():
    z = np.eye(4, dtype=np.float32)
    logit = {"scale": jnp.float32(5.0), "bias": jnp.float32(-70.0)}
    value, metrics = build(LossConfig("sigmoid"))(
        {"image": z, "text": z}, logit, jnp.arange(4, dtype=jnp.int32)
    )
    assert float(value) < 1e-6 and float(metrics["accuracy/image_to_text"]) == 1.0
