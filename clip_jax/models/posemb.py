"""Positions: the two published sin-cos tables, and resizing a learned table.

Letters: t tokens, d width, y x rows and columns of the patch grid.
"""

import jax
import jax.numpy as jnp
import numpy as np


def sincos2d(grid: tuple[int, int], width: int, *, mae: bool) -> np.ndarray:
    """Fixed positions of a grid of patches, rows in order.

    Args:
        grid: (y, x).
        width: d, a multiple of 4.
        mae: the exponents of He et al. 2021 (OpenCLIP's sin_cos_2d), i / (d/4); else those of
            big_vision's posemb_sincos_2d, i / (d/4 - 1).

    Returns:
        float32 (t, d): sin and cos of the column, sin and cos of the row.
    """
    quarter = width // 4
    omega = 1.0 / 10_000.0 ** (np.arange(quarter) / (quarter if mae else quarter - 1))
    row, column = np.mgrid[: grid[0], : grid[1]]
    x, y = (p.reshape(-1, 1) * omega for p in (column, row))  # (t, d/4)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1).astype(np.float32)


def resize_grid(table: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """A table for another grid: bicubic, antialiased, as OpenCLIP's resize_pos_embed.

    Args:
        table: (t, d); tokens before the y x patches, such as the class token's, stay as they are.
        old: (y, x) of the table.
        new: (y, x) wanted.
    """
    before = table.shape[0] - old[0] * old[1]
    patches = table[before:].reshape(*old, -1)  # (y, x, d)
    patches = jax.image.resize(patches, (*new, table.shape[1]), "cubic", antialias=True)
    return jnp.concatenate([table[:before], patches.reshape(new[0] * new[1], -1)])


def resize_line(table: jax.Array, tokens: int) -> jax.Array:
    """A table (t, d) for another context: linear, antialiased, as OpenCLIP's for texts."""
    return jax.image.resize(table, (tokens, table.shape[1]), "linear", antialias=True)
