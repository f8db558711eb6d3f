"""Suggestions for misspelt names."""

from clip_jax.errors import near


def test_near():
    assert near("widht", ["width", "heads"]) == "; did you mean 'width'?"
    assert near("zzz", ["width"]) == ""
