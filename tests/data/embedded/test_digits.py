import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from clip_jax.data import embedded
from clip_jax.errors import UserError

WORDS = "zero one two three four five six seven eight nine".split()


def records(folder, split):
    return list(tfds.builder_from_directory(folder).as_data_source(split))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_splits_hold_every_image_once_in_order(digits_folder):
    data = load_digits()
    rule = {"train": {2, 3, 4, 6, 7, 8, 9}, "validation": {1}, "test": {0, 5}}  # index mod 10
    for split, count in {"train": 1257, "validation": 180, "test": 360}.items():
        found = records(digits_folder, split)
        index = [i for i in range(1797) if i % 10 in rule[split]]
        assert len(found) == len(index) == count
        images = np.stack([r["image"] for r in found])
        assert images.shape == (count, 8, 8, 1)
        assert images.dtype == np.uint8
        np.testing.assert_allclose(images[..., 0] * (16 / 255), data.images[index], atol=0.04)
        assert [r["label"] for r in found] == list(data.target[index])


def test_captions_say_the_digit(digits_folder):
    (seven,) = [
        r["captions"] for r in records(digits_folder, "train")[:10] if r["name"] == b"seven"
    ]
    assert seven == [
        b"a photo of the number seven",
        b"a handwritten seven",
        b"the digit seven",
        b"a small grey picture of the digit seven",
        b"someone wrote the number seven",
        b"seven",
    ]
    for split, count in {"train": 6, "validation": 6, "test": 1}.items():
        for record in records(digits_folder, split):
            word = WORDS[record["label"]].encode()
            assert record["name"] == word
            assert len(record["captions"]) == count
            assert record["captions"][0] == b"a photo of the number " + word
            assert all(c.endswith(word) for c in record["captions"])


def test_rebuild_gives_the_same_records(digits_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_DATA", str(tmp_path))
    again = embedded.EMBEDDED["digits"]()
    assert again != digits_folder
    for split in ("train", "validation", "test"):
        pairs = zip(records(digits_folder, split), records(again, split), strict=True)
        assert all(same(a, b) for a, b in pairs)


def test_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r'^digits: .*pip install "clip-jax-pretrain\[digits\]"$'):
        embedded.EMBEDDED["digits"]()


def test_needs_no_tensorflow(digits_folder):
    records(digits_folder, "test")
    assert "tensorflow" not in sys.modules
