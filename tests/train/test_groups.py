"""Decay, factors of the learning rate and standing still, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config.schema import OptimConfig
from clip_jax.errors import UserError
from clip_jax.interop.table import leaves
from clip_jax.train.groups import decay_mask, merge, moving, rates, split

pytestmark = pytest.mark.core
PARAMS = {
    "image": {
        "patch": {"kernel": jnp.ones((2, 2, 3, 4))},
        "blocks": {"attn": {"q": {"kernel": jnp.ones((3, 4, 4)), "bias": jnp.ones((3, 4))}}},
        "ln_post": {"scale": jnp.ones(4)},
        "head": {"kernel": jnp.ones((4, 5))},
    },
    "text": {"token": {"embedding": jnp.ones((7, 4))}, "head": {"kernel": jnp.ones((4, 5))}},
    "logit": {"scale": jnp.ones(())},
}  # fmt: skip


def config(**changes):
    return OptimConfig(**changes)


def test_stacked_biases_do_not_decay():
    q = decay_mask((".*/kernel",), PARAMS)["image"]["blocks"]["attn"]["q"]
    assert q == {"kernel": True, "bias": False}


@pytest.mark.parametrize("field", ["decay", "rates"])
def test_a_pattern_without_a_match(field):
    with pytest.raises(UserError, match=rf"config.optim.{field}: '.*/kernal' matches no parameter"):
        if field == "decay":
            decay_mask((".*/kernel", ".*/kernal"), PARAMS)
        else:
            moving(config(rates=(".*/kernel=1", ".*/kernal=0")), PARAMS)


def test_the_first_pattern_that_matches_counts():
    cfg = config(rates=("image/head/.*=2", "image/.*=0", "text/.*=0.5"))
    keep = leaves(moving(cfg, PARAMS))
    assert [p for p, k in keep.items() if k] == [
        "image/head/kernel", "logit/scale", "text/head/kernel", "text/token/embedding"
    ]  # fmt: skip
    found = leaves(rates(cfg, PARAMS))
    assert found["image/head/kernel"] == 2 and found["text/head/kernel"] == 0.5
    assert found["logit/scale"] == 1


def test_nothing_left_to_train():
    with pytest.raises(UserError, match="nothing is left to train"):
        moving(config(rates=(".*=0",)), PARAMS)


def test_layer_decay_is_beits():
    got = leaves(rates(config(image_layer_decay=0.5, rates=("image/.*/bias=10",)), PARAMS))
    want = [0.5**3, 0.5**2, 0.5]
    np.testing.assert_allclose(got["image/blocks/attn/q/kernel"][:, 0, 0], want)
    np.testing.assert_allclose(got["image/blocks/attn/q/bias"][:, 0], 10 * np.array(want))
    assert got["image/patch/kernel"] == 0.5**4
    assert got["image/ln_post/scale"] == got["image/head/kernel"] == 1
    assert got["text/token/embedding"] == got["logit/scale"] == 1


def test_layer_decay_needs_layers():
    with pytest.raises(UserError, match="text_layer_decay: this tower has no blocks that move"):
        rates(config(text_layer_decay=0.5), PARAMS)


def test_split_leaves_no_gaps_and_merges_again():
    keep = moving(config(rates=("image/(patch|blocks)/.*=0", "text/.*=0")), PARAMS)
    kept, rest = split(PARAMS, keep)
    assert set(leaves(kept)) == {"image/ln_post/scale", "image/head/kernel", "logit/scale"}
    assert set(leaves(rest)) == set(leaves(PARAMS)) - set(leaves(kept))
    assert "text" not in kept and "logit" not in rest
    again = merge(kept, rest)
    assert jax.tree.structure(again) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, again, PARAMS)
