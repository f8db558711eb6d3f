"""The CLIP tokenizer against open_clip's own class, on random strings."""

import random

import numpy as np
import pytest

from clip_jax.config.schema import TokenizerConfig
from clip_jax.tokenizers import build

pytestmark = pytest.mark.parity


def test_random_strings():
    from parity_open_clip import open_clip

    theirs = open_clip.tokenizer.SimpleTokenizer()
    ours = build(TokenizerConfig(kind="clip_bpe"), vocab_size=49408)
    rng = random.Random(0)
    letters = "abcdefghij XYZ 0123456789 .,;'!?&<>_-\t\nàéîøü ŠŽ 漢字 🎉"
    texts = ["".join(rng.choices(letters, k=rng.randrange(120))) for _ in range(2000)]
    np.testing.assert_array_equal(ours(texts, 77), theirs(texts, 77).numpy())
