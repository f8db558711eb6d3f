"""Text tower: pooling by position, causality, pads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config.schema import TextConfig
from clip_jax.models.text import TextTransformer, eos_position


def tower(**changes):
    fields = {
        "context": 6, "vocab_size": 20, "eos_id": 3,
        "width": 8, "layers": 2, "heads": 2, "mlp_dim": 16,
    }  # fmt: skip
    cfg = TextConfig(**{**fields, **changes})
    module = TextTransformer(cfg, 5, jnp.float32, "none", 1)
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
    f = tower(pool=pool, causal=False)
    ids = np.array([[7, 8, 3, 0, 0, 0]], np.int32)
    short = np.asarray(f(ids))
    np.testing.assert_allclose(f(ids[:, :4]), short, atol=1e-6)
    changed = ids.copy()
    changed[0, 1] = 9
    assert np.abs(np.asarray(f(changed)) - short).max() > 1e-4


def test_a_row_of_pads_is_finite():
    f = tower(pool="mean", causal=False)
    assert np.isfinite(np.asarray(f(np.zeros((2, 6), np.int32)))).all()
