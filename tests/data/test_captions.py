"""Choice and grouping of captions."""

import numpy as np
import pytest

from clip_jax.data.captions import group_of, pick
from clip_jax.data.record import Example

pytestmark = pytest.mark.core
EXAMPLE = Example("k", b"", ("a", "b", "c"), {"label": 3, "name": "cat"})


def test_every_caption_is_picked_about_equally_often():
    rng = np.random.default_rng(0)
    got = [pick(EXAMPLE.texts, rng) for _ in range(3000)]
    assert all(850 < got.count(t) < 1150 for t in "abc")


def test_one_caption_uses_no_randomness():
    rng = np.random.default_rng(0)
    assert pick(("only",), rng) == "only"
    assert rng.random() == np.random.default_rng(0).random()


def test_groups_are_stable_and_fit_int32():
    assert group_of(EXAMPLE, "a", "caption") == 0x68B7BE43  # crc32 of "a", 31 bits
    numbers = {group_of(EXAMPLE, str(i), "caption") for i in range(1000)}
    assert len(numbers) == 1000 and all(0 <= n < 2**31 for n in numbers)
    assert group_of(EXAMPLE, "a", "label") == group_of(EXAMPLE, "b", "label")
    assert group_of(EXAMPLE, "cat", "caption") == group_of(EXAMPLE, "x", "name")
    assert group_of(EXAMPLE, "half of an emoji \ud83d", "caption") >= 0


def test_an_unknown_field():
    with pytest.raises(KeyError):
        group_of(EXAMPLE, "a", "colour")
