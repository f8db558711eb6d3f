"""The reader is chosen by the name, and the content must fit it."""

import json
import shutil
import sys

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.interop.npz import write_npz
from clip_jax.interop.open_file import FORMATS, open_tensors
from clip_jax.interop.safetensors import write_safetensors

X = np.arange(6, dtype=np.float32).reshape(2, 3)
ITEMS = [("x", X.shape, X.dtype, lambda: X)]


def refusal(path) -> str:
    with pytest.raises(UserError) as e:
        open_tensors(str(path))
    assert str(e.value).startswith(str(path)) and "\n" not in str(e.value)
    return str(e.value).removeprefix(str(path))


def test_every_kind(tmp_path):
    write_safetensors(str(tmp_path / "a.safetensors"), ITEMS, {})
    write_npz(str(tmp_path / "b.NPZ"), ITEMS, {})
    index = {"weight_map": {"x": "a.safetensors"}}
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps(index))
    for name in ("a.safetensors", "b.NPZ", "a.safetensors.index.json"):
        tensors = open_tensors(str(tmp_path / name))
        assert tensors.shapes == {"x": (2, 3)} and tensors.dtypes == {"x": np.float32}
        np.testing.assert_array_equal(tensors.read("x"), X)
        tensors.close()


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pth"])
def test_pytorch_files(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / name).write_bytes(b"\x80\x02}.")
    assert "needs torch" in refusal(tmp_path / name)


def test_a_wrong_name(tmp_path):
    write_safetensors(str(tmp_path / "a.safetensors"), ITEMS, {})
    write_npz(str(tmp_path / "b.npz"), ITEMS, {})
    for old, new, text in [
        ("a.safetensors", "c.npz", "is a safetensors file under the wrong name"),
        ("a.safetensors", "c.bin", "is a safetensors file under the wrong name"),
        ("b.npz", "c.safetensors", "is an npz file under the wrong name"),
        ("b.npz", "c.pt", "is an npz file under the wrong name"),
    ]:
        shutil.copy(tmp_path / old, tmp_path / new)
        assert text in refusal(tmp_path / new)


@pytest.mark.parametrize("name", ["x", "x.json", "x.ckpt", "x.msgpack", "x.safetensors.txt"])
def test_an_unknown_kind(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    text = refusal(tmp_path / name)
    assert "unknown kind of weight file" in text and all(suffix in text for suffix in FORMATS)


def test_nothing_there(tmp_path):
    assert "no such file" in refusal(tmp_path / "x.npz")
    assert "is a folder" in refusal(tmp_path)
    assert "local disk only" in refusal("gs://bucket/x.npz")
