"""Decay by name; a pattern that matches nothing is an error. The update itself: test_golden.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config.schema import OptimConfig
from clip_jax.errors import UserError
from clip_jax.train.optimizer import decay_mask, make_optimizer

pytestmark = pytest.mark.core
PARAMS = {
    "image": {"blocks": {"attn": {"q": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))}}}}
}


def test_stacked_biases_do_not_decay():
    q = decay_mask((".*/kernel",), PARAMS)["image"]["blocks"]["attn"]["q"]
    assert q == {"kernel": True, "bias": False}


def test_a_pattern_without_a_match():
    with pytest.raises(UserError, match=r"config.optim.decay: '.*/kernal' matches no parameter"):
        decay_mask((".*/kernel", ".*/kernal"), PARAMS)


def test_gradient_clipping_bounds_the_norm():
    cfg = OptimConfig(grad_clip=1.0, decay=(".*/kernel",), weight_decay=0.0, b1=0.0, b2=0.0)
    big = make_optimizer(cfg, PARAMS)
    small = make_optimizer(OptimConfig(**{**vars(cfg), "grad_clip": 0.0}), PARAMS)
    grads = {"image": {"blocks": {"attn": {"q": {"kernel": jnp.full((2, 4, 4), 3.0),
                                                 "bias": jnp.zeros((2, 4))}}}}}  # fmt: skip
    _, clipped = big.update(grads, big.init(PARAMS), PARAMS)
    _, plain = small.update(grads, small.init(PARAMS), PARAMS)
    moment = lambda s: np.asarray(s.nu["image"]["blocks"]["attn"]["q"]["kernel"])  # noqa: E731
    adam = [x for x in clipped if hasattr(x, "nu")][0], [x for x in plain if hasattr(x, "nu")][0]
    norm = 3.0 * np.sqrt(32)
    np.testing.assert_allclose(moment(adam[0]), moment(adam[1]) / norm**2, rtol=1e-5)
