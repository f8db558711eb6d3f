"""The softmax loss: one gather, one block; ties, floors, tiny batches. Values: test_exact.py."""

import jax
import numpy as np
import pytest
from loss_oracle import example

from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.errors import UserError
from clip_jax.losses import build
from clip_jax.losses.softmax import softmax_loss
from clip_jax.sharding.mesh import batch_sharding, make_mesh


def compute(x, y, log_scale, group):
    f = lambda x, y: softmax_loss({"image": x, "text": y}, {"scale": log_scale}, group)  # noqa: E731
    (value, metrics), grads = jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(x, y)
    return value, metrics, grads


def test_one_side_is_gathered_and_logits_are_made_once():
    """On 8 devices: each computes (b/8, b) logits, once forward; gathers are of embeddings."""
    z, logit, group = example(b=64, e=16)
    x = z["image"]
    mesh = make_mesh(MeshConfig())
    f = lambda x, y: softmax_loss({"image": x, "text": y}, logit, group)[0]  # noqa: E731
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
    z, logit, group = example(b=b)
    value, _, grads = compute(z["image"], z["text"], logit["scale"], group)
    assert np.isfinite(float(value)) and all(np.isfinite(g).all() for g in grads)


def test_unknown_loss_names_the_nearest():
    with pytest.raises(UserError, match=r"config.loss.kind: unknown \(got 'sotfmax'\).*'softmax'"):
        build(LossConfig(kind="sotfmax"), make_mesh(MeshConfig()), 8)
