"""Position tables: against Pillow's antialiased bicubic, and the formulas written out."""

import jax.numpy as jnp
import numpy as np
from PIL import Image

from clip_jax.models import posemb


def pillow(table, old, new):
    """Each channel of a grid resized by Pillow in float32."""
    planes = table.reshape(*old, -1)
    out = [
        np.asarray(
            Image.fromarray(planes[..., i]).resize((new[1], new[0]), Image.Resampling.BICUBIC)
        )
        for i in range(planes.shape[-1])
    ]
    return np.stack(out, -1).reshape(new[0] * new[1], -1)


def test_grids_grow_and_shrink_as_pillow_does():
    rng = np.random.default_rng(0)
    for old, new in (((7, 7), (14, 14)), ((14, 14), (7, 9)), ((6, 4), (5, 8))):
        table = rng.normal(size=(old[0] * old[1], 5)).astype(np.float32)
        got = posemb.resize_grid(jnp.asarray(table), old, new)
        np.testing.assert_allclose(got, pillow(table, old, new), atol=1e-5)


def test_the_class_token_stays_as_it_is():
    table = np.random.default_rng(1).normal(size=(1 + 4, 3)).astype(np.float32)
    got = posemb.resize_grid(jnp.asarray(table), (2, 2), (3, 3))
    assert got.shape == (10, 3)
    np.testing.assert_array_equal(got[0], table[0])
    np.testing.assert_allclose(got[1:], pillow(table[1:], (2, 2), (3, 3)), atol=1e-5)


def test_lines_are_linear():
    table = np.arange(4, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    got = np.asarray(posemb.resize_line(jnp.asarray(table), 8))
    np.testing.assert_allclose(got[1:-1, 0], np.arange(8)[1:-1] * 0.5 - 0.25, atol=1e-6)


def test_fixed_tables_follow_their_formulas():
    for mae, last in ((True, 1 / 10_000.0 ** (3 / 4)), (False, 1 / 10_000.0)):
        table = posemb.sincos2d((3, 5), 16, mae=mae)
        assert table.shape == (15, 16) and table.dtype == np.float32
        row, column = 2, 4
        got = table[row * 5 + column].reshape(4, 4)
        np.testing.assert_allclose(got[0, 0], np.sin(column), atol=1e-6)
        np.testing.assert_allclose(got[1, 3], np.cos(column * last), atol=1e-6)
        np.testing.assert_allclose(got[2, 0], np.sin(row), atol=1e-6)
        np.testing.assert_allclose(got[3, 3], np.cos(row * last), atol=1e-6)
