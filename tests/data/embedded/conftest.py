"""The built sets, shared by the tests of a session (and by later ones, through CLIP_JAX_DATA)."""

import pytest

from clip_jax.data.embedded import EMBEDDED


@pytest.fixture(scope="session")
def digits_folder() -> str:
    return EMBEDDED["digits"]()


@pytest.fixture(scope="session")
def glyphs_folder() -> str:
    return EMBEDDED["glyphs"]()
