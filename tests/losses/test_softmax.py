"""The softmax loss against plain NumPy in float64: value, gradients, groups, meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.errors import UserError
from clip_jax.losses import build
from clip_jax.losses.softmax import softmax_loss
from clip_jax.sharding.mesh import batch_sharding, make_mesh

MESHES = {
    "1": (1, 1, 1),
    "2": (2, 1, 1),
    "4": (4, 1, 1),
    "8": (8, 1, 1),
    "fsdp 8": (1, 8, 1),
    "2 x 4": (2, 4, 1),
    "2 x 2 x 2": (2, 2, 2),
}


def oracle(x, y, log_scale, group):
    """Loss and gradients by hand, float64, one device, no shared code."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    b, scale = len(x), np.exp(np.float64(log_scale))
    dot = x @ y.T
    s = scale * dot
    target = (group[:, None] == group[None, :]).astype(np.float64)
    target /= target.sum(1, keepdims=True)

    def log_softmax(a, axis):
        a = a - a.max(axis, keepdims=True)
        return a - np.log(np.exp(a).sum(axis, keepdims=True))

    rows, columns = log_softmax(s, 1), log_softmax(s, 0)
    loss = -(target * (rows + columns)).sum() / (2 * b)
    ds = (np.exp(rows) - target + np.exp(columns) - target) / (2 * b)
    return loss, scale * ds @ y, scale * ds.T @ x, (ds * s).sum()


def example(b=32, e=24, seed=0, log_scale=2.6, groups=None):
    rng = np.random.default_rng(seed)
    unit = lambda z: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    x, y = unit(rng.normal(size=(b, e))), unit(rng.normal(size=(b, e)))
    group = np.arange(b) if groups is None else rng.integers(0, groups, b)
    return x, y, np.float32(log_scale), group.astype(np.int32)


def compute(x, y, log_scale, group, shape=(1, 1, 1)):
    mesh = make_mesh(MeshConfig(*shape))
    put = lambda a: jax.device_put(a, batch_sharding(mesh))  # noqa: E731

    def f(x, y, scale, group):
        return softmax_loss({"image": x, "text": y}, {"scale": scale}, group)

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))
        (value, metrics), grads = step(put(x), put(y), jnp.asarray(log_scale), put(group))
    return value, metrics, grads


def relative(got, want):
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("groups", [None, 7])
def test_value_and_gradients_equal_the_oracle(shape, groups):
    args = example(groups=groups)
    value, _, grads = compute(*args, shape=shape)
    loss, *wanted = oracle(*args)
    assert abs(float(value) - loss) <= 1e-6 * loss
    for got, want in zip(grads, wanted, strict=True):
        assert relative(got, want) <= 1e-5


def test_large_scale_stays_exact():
    args = example(log_scale=np.log(100.0))
    value, _, grads = compute(*args, shape=(8, 1, 1))
    loss, *wanted = oracle(*args)
    assert abs(float(value) - loss) <= 1e-6 * loss
    assert all(relative(g, w) <= 1e-5 for g, w in zip(grads, wanted, strict=True))


def test_one_side_is_gathered_and_logits_are_made_once():
    """On 8 devices: each computes (b/8, b) logits, once forward; gathers are of embeddings."""
    x, y, scale, group = example(b=64, e=16)
    mesh = make_mesh(MeshConfig())
    f = lambda x, y: softmax_loss({"image": x, "text": y}, {"scale": scale}, group)[0]  # noqa: E731
    arg = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh))
    with jax.set_mesh(mesh):
        text = jax.jit(f).lower(arg, arg).compile().as_text()
    dots = [line for line in text.splitlines() if " dot(" in line or "__onednn" in line]
    assert len([line for line in dots if "f32[8,64]" in line]) == 1
    assert "f32[64,64]" not in text


def test_accuracy_counts_both_directions_and_ties_are_wrong():
    x = np.eye(4, dtype=np.float32)
    y = x[[0, 1, 3, 2]]
    _, metrics, _ = compute(x, y, np.float32(2.0), np.arange(4, dtype=np.int32))
    assert float(metrics["accuracy/image_to_text"]) == 0.5
    assert float(metrics["accuracy/text_to_image"]) == 0.5
    same = np.ones((4, 4), np.float32) / 2
    _, metrics, _ = compute(same, same, np.float32(2.0), np.arange(4, dtype=np.int32))
    assert float(metrics["accuracy/image_to_text"]) == 0.0


def test_floor_is_what_perfect_embeddings_reach():
    group = np.array([0, 0, 0, 1, 1, 2, 2, 2], np.int32)
    z = np.eye(3, dtype=np.float32)[group]
    value, metrics, _ = compute(z, z, np.float32(np.log(60.0)), group)
    assert abs(float(value) - float(metrics["loss_floor"])) < 1e-5


@pytest.mark.parametrize("b", [1, 2])
def test_tiny_batches_are_finite(b):
    value, _, grads = compute(*example(b=b))
    assert np.isfinite(float(value)) and all(np.isfinite(g).all() for g in grads)


def test_a_loss_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "own_loss.py").write_text("def make(cfg):\n    return lambda z, logit, group: 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert build(LossConfig(kind="own_loss:make"))({}, {}, None) == 7


def test_unknown_loss_names_the_nearest():
    with pytest.raises(UserError, match=r"config.loss.kind: unknown \(got 'sotfmax'\).*'softmax'"):
        build(LossConfig(kind="sotfmax"))
