"""PyTorch files. What needs torch is marked parity; the rest runs with arrays for tensors."""

import os
import pickle
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.interop import torch_file
from clip_jax.interop.torch_file import open_torch


def is_array(value: object) -> bool:
    return isinstance(value, np.ndarray)


def refusal(path) -> str:
    with pytest.raises(UserError) as e:
        open_torch(str(path))
    text = str(e.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 600, text
    return text.removeprefix(str(path))


# Without torch


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pth"])
def test_no_torch(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / name
    path.write_bytes(b"\x80\x02}q\x00.")
    assert "needs torch to be read; pip install torch, or convert" in refusal(path)


def test_other_files_under_this_name(tmp_path):
    path = tmp_path / "x.bin"
    for data, text in {
        b"": "is not a PyTorch file",
        b"junk" * 100: "is not a PyTorch file",
        b"PK\x03\x04" + bytes(100): "is a PyTorch file or another zip archive, damaged",
        b"\x02\0\0\0\0\0\0\0{}": "is a safetensors file under the wrong name",
        b"version https://git-lfs.github.com/spec/v1\n": "is a pointer of Git LFS",
        b"<!doctype html>": "is a web page, not a PyTorch file",
    }.items():
        path.write_bytes(data)
        assert text in refusal(path)
    with open(path, "wb") as f:
        np.savez(f, a=np.zeros(2))
    assert "is an npz file under the wrong name" in refusal(path)
    assert "no such file" in refusal(tmp_path / "y.bin")


def test_torchscript_by_its_members():
    assert torch_file.is_torchscript(["m/data.pkl", "m/code/__torch__.py", "m/version"])
    assert torch_file.is_torchscript(["archive/constants.pkl"])
    assert not torch_file.is_torchscript(["archive/data.pkl", "archive/data/0", "archive/version"])
    assert not torch_file.is_torchscript([])


def state_dict(loaded: object) -> dict:
    return torch_file.state_dict("x.pt", loaded, is_array)


def test_state_dicts():
    a, b = np.zeros(1), np.ones(2)
    assert state_dict({"a": a, "b": b}) == {"a": a, "b": b}
    assert list(state_dict({"b": b, "a": a})) == ["b", "a"]
    checkpoint = {"epoch": 3, "name": "run", "state_dict": {"a": a}, "optimizer": {"state": {0: b}}}
    assert state_dict(checkpoint) == {"a": a}
    assert state_dict({"module.a": a, "module.b.module.c": b}) == {"a": a, "b.module.c": b}
    assert list(state_dict({"module.a": a, "b": b})) == ["module.a", "b"]
    assert state_dict({"a": a, "epoch": 3, "n": None, "c": {"x": [1]}}) == {"a": a}


@pytest.mark.parametrize(
    "loaded, text",
    [
        (np.zeros(2), "holds one ndarray, not named tensors"),
        ([np.zeros(2)], "holds one list, not named tensors"),
        ({}, "no tensors at the top or under 'state_dict' (got [])"),
        ({"epoch": 1, "model": {"a": np.zeros(2)}}, "(got ['epoch', 'model'])"),
        ({"state_dict": {"epoch": 1}}, "(got ['epoch'])"),
        ({"a": np.zeros(2), "ema": {"x": [{"a": np.zeros(2)}]}}, "'ema' is a dict of tensors"),
        ({"a": np.zeros(2), 3: np.zeros(2)}, "name 3 is not a text"),
    ],
)
def test_no_state_dict(loaded, text):
    with pytest.raises(UserError) as e:
        state_dict(loaded)
    assert text in str(e.value) and "\n" not in str(e.value)


def test_long_messages_become_one_line():
    message = "Weights only load failed.\n\tUnsupported global: GLOBAL a.B was not allowed\n\n..."
    text = torch_file.why_not_loaded(pickle.UnpicklingError(message))
    assert "other than tensors (a.B)" in text and "\n" not in text
    assert torch_file.why_not_loaded(EOFError()).startswith("cannot be read by torch (EOFError)")
    assert "(central directory)" in torch_file.why_not_loaded(
        RuntimeError("central directory\nC++")
    )


# With torch


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["CLIP_JAX_BOMB"],)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "visual.proj": rng.normal(size=(3, 4)).astype(np.float32),
        "fp16": rng.normal(size=5).astype(np.float16),
        "brain": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "logit_scale": np.array(4.6, np.float32),
        "brain_scalar": np.array(4.6, ml_dtypes.bfloat16),
        "num_batches_tracked": np.array(7),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 2), np.float32),
    }


def as_torch(array: np.ndarray):
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def check(path, expected: dict[str, np.ndarray]) -> None:
    tensors = open_torch(str(path))
    assert list(tensors.shapes) == list(expected) and tensors.metadata == {}
    for name, array in expected.items():
        read = tensors.read(name)
        assert read.dtype == array.dtype == tensors.dtypes[name], name
        assert read.shape == array.shape == tensors.shapes[name], name
        assert read.tobytes() == array.tobytes(), name
        assert read.flags.c_contiguous and read.flags.writeable
    with pytest.raises(UserError, match="no tensor 'visual.prj'"):
        tensors.read("visual.prj")
    tensors.close()


@pytest.mark.parity
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("form", ["plain", "checkpoint", "module", "parameters"])
def test_state_dicts_with_torch(tmp_path, new, form):
    import torch

    path, state = tmp_path / "x.pt", {name: as_torch(x) for name, x in arrays().items()}
    saved: object = state
    if form == "module":
        saved = {f"module.{name}": x for name, x in state.items()}
    elif form == "checkpoint":
        saved = {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}}
    elif form == "parameters":
        saved = {k: torch.nn.Parameter(x, x.is_floating_point()) for k, x in state.items()}
    torch.save(saved, path, _use_new_zipfile_serialization=new)
    check(path, arrays())


@pytest.mark.parity
def test_strided_views_and_other_dtypes(tmp_path):
    import torch

    x = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    saved = {"t": x.T, "s": x[:, 1::2].bfloat16(), "f8": x.to(torch.float8_e4m3fn)}
    torch.save({**saved, "u16": torch.tensor([65535], dtype=torch.uint16)}, tmp_path / "x.pt")
    tensors = open_torch(str(tmp_path / "x.pt"))
    np.testing.assert_array_equal(tensors.read("t"), np.arange(12.0).reshape(3, 4).T)
    assert tensors.read("t").flags.c_contiguous
    np.testing.assert_array_equal(tensors.read("s").astype(np.float32), x[:, 1::2].numpy())
    np.testing.assert_array_equal(tensors.read("f8").astype(np.float32), x.numpy())
    assert tensors.read("u16")[0] == 65535
    tensors.close()


@pytest.mark.parity
@pytest.mark.parametrize("wrong", ["sparse", "complex32", "meta"])
def test_tensors_that_are_no_arrays(tmp_path, wrong):
    import torch

    x = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "complex32": lambda: torch.zeros(2, dtype=torch.complex32),
        "meta": lambda: torch.zeros(2, device="meta"),
    }[wrong]()
    torch.save({"a": x}, tmp_path / "x.pt")
    assert "tensor 'a' is " in refusal(tmp_path / "x.pt")


@pytest.mark.parity
def test_torchscript(tmp_path):
    import torch

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, array in arrays().items():
                self.register_buffer(name.replace(".", "_"), as_torch(array))

        def forward(self, x):
            return x @ self.visual_proj

    torch.jit.script(Tower()).save(str(tmp_path / "x.pt"))
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert torch_file.is_torchscript(archive.namelist())
    tensors = open_torch(str(tmp_path / "x.pt"))
    expected = {name.replace(".", "_"): array for name, array in arrays().items()}
    assert set(tensors.shapes) == set(expected)
    for name, array in expected.items():
        assert tensors.read(name).tobytes() == array.tobytes()
        assert tensors.read(name).dtype == array.dtype
    tensors.close()


@pytest.mark.parity
@pytest.mark.parametrize("new", [True, False])
def test_other_objects_are_refused_and_not_made(tmp_path, monkeypatch, new):
    import torch

    monkeypatch.setenv("CLIP_JAX_BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "x.pt"
    saved = {"a": torch.zeros(2), "bomb": Bomb()}
    torch.save(saved, path, _use_new_zipfile_serialization=new)
    assert "holds Python objects other than tensors" in refusal(path)
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.parity
def test_damaged_files(tmp_path):
    import torch

    path = tmp_path / "x.pt"
    for new in (True, False):
        torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=new)
        raw = path.read_bytes()
        for size in (10, 100, len(raw) // 2, len(raw) - 1):
            path.write_bytes(raw[:size])
            refusal(path)
    path.write_bytes(pickle.dumps({"a": [1, 2]}))
    refusal(path)
