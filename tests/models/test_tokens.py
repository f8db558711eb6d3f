"""The table of tokens against flax's, and its gradient against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clip_jax.models.tokens import TokenTable


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_start_and_rows_are_those_of_flax(dtype):
    init = nn.initializers.normal(0.02)
    ids = jnp.asarray([[0, 3, 3], [4, 1, 7]], jnp.int32)  # 7: there is none
    ours = TokenTable(5, 8, init, jnp.dtype(dtype))
    flax = nn.Embed(5, 8, embedding_init=init, dtype=jnp.dtype(dtype))
    variables = flax.init(jax.random.key(0), ids)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, ours.init(jax.random.key(0), ids), variables))
    got, want = (m.apply(variables, ids) for m in (ours, flax))
    assert got.dtype == want.dtype == dtype
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))
    assert np.isnan(np.asarray(got, np.float32)[1, 2]).all()


def test_gradients_of_a_common_token_are_summed_in_float32():
    """8,192 texts with the same token, slopes of one sign: in bfloat16 the sum stands still."""
    rng = np.random.default_rng(0)
    slopes = jnp.asarray(rng.normal(0.3, 1.0, (8192, 2, 4)), jnp.bfloat16)
    ids = jnp.stack([jnp.zeros(8192, jnp.int32), jnp.asarray(rng.integers(1, 5, 8192))], axis=1)
    table = TokenTable(6, 4, nn.initializers.normal(1.0), jnp.bfloat16)

    @jax.jit
    def gradient(variables, ids, slopes):
        loss = lambda v: jnp.sum((table.apply(v, ids) * slopes).astype(jnp.float32))  # noqa: E731
        return jax.grad(loss)(variables)

    got = gradient(table.init(jax.random.key(0), ids), ids, slopes)["params"]["embedding"]
    want = np.zeros((6, 4))
    np.add.at(want, np.asarray(ids), np.asarray(slopes, np.float64))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-3)
