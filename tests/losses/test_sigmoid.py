"""The sigmoid loss: its floor. Values and gradients: test_exact.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.losses.sigmoid import sigmoid_loss

pytestmark = pytest.mark.core


def test_perfect_embeddings_reach_its_floor():
    z = np.eye(4, dtype=np.float32)
    logit = {"scale": jnp.float32(5.0), "bias": jnp.float32(-70.0)}
    value, metrics = sigmoid_loss({"image": z, "text": z}, logit, jnp.arange(4, dtype=jnp.int32))
    assert float(value) < 1e-6 and float(metrics["accuracy/image_to_text"]) == 1.0
    assert float(metrics["loss_floor"]) == 0.0
