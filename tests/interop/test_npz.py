"""npz: numpy as the judge, bfloat16 as big_vision keeps it, nothing unpickled."""

import io
import os
import pickle
import random
import resource
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.interop.npz import open_npz, write_npz


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "params/img/embedding/kernel": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "params/t": np.array(1.5, np.float32),
        "params/b": rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(3, ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float16),
        "int": np.arange(5),
        "bool": np.array([True, False]),
        "complex": np.ones(2, np.complex64),
    }


def items(arrays: dict[str, np.ndarray]) -> list:
    return [(name, x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def refusal(path) -> str:
    with pytest.raises(UserError) as e:
        open_npz(str(path))
    text = str(e.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 600, text
    return text.removeprefix(str(path))


def members(path, **contents: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def npy(text: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    raw = text.encode() + b"\n"
    return b"\x93NUMPY" + version + len(raw).to_bytes(2, "little") + raw + data


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_we_read_what_numpy_writes(tmp_path, save):
    path, arrays = str(tmp_path / "x.npz"), samples()
    save(path, **arrays)
    tensors = open_npz(path)
    assert list(tensors.shapes) == list(arrays) and tensors.metadata == {}
    for name, array in arrays.items():
        read = tensors.read(name)
        assert same(read, array) and read.flags.c_contiguous and read.flags.writeable
        assert tensors.shapes[name] == array.shape and tensors.dtypes[name] == array.dtype
    tensors.close()


def test_the_members_that_we_write_are_those_of_numpy(tmp_path):
    ours, theirs, arrays = tmp_path / "a.npz", tmp_path / "b.npz", samples()
    write_npz(str(ours), items(arrays), {"left": "out"})
    np.savez(theirs, **arrays)
    with zipfile.ZipFile(ours) as a, zipfile.ZipFile(theirs) as b:
        assert a.namelist() == b.namelist()
        assert all(a.read(name) == b.read(name) for name in a.namelist())
    loaded = np.load(ours)
    assert loaded["params/b"].dtype == np.dtype("V2")  # what big_vision takes for bfloat16
    assert same(loaded["params/b"].view(ml_dtypes.bfloat16), arrays["params/b"])


def test_other_layouts(tmp_path):
    path, x = str(tmp_path / "x.npz"), np.arange(6.0).reshape(2, 3)
    swapped = x.astype(">f8")
    np.savez(path, fortran=np.asfortranarray(x), swapped=swapped)
    tensors = open_npz(path)
    assert same(tensors.read("fortran"), x) and tensors.read("fortran").flags.c_contiguous
    assert same(tensors.read("swapped"), x) and tensors.dtypes["swapped"] == np.float64
    tensors.close()
    write_npz(path, items({"t": x.T}), {})
    tensors = open_npz(path)
    assert same(tensors.read("t"), x.T)
    tensors.close()
    with zipfile.ZipFile(path) as archive:  # one layout, whatever the array had
        assert b"'fortran_order': False" in archive.read("t.npy")


def test_an_archive_without_arrays(tmp_path):
    path = str(tmp_path / "x.npz")
    write_npz(path, [], {})
    tensors = open_npz(path)
    assert tensors.shapes == {} and np.load(path).files == []
    tensors.close()


def test_an_unknown_name(tmp_path):
    path = str(tmp_path / "x.npz")
    np.savez(path, kernel=np.zeros(1))
    tensors = open_npz(path)
    with pytest.raises(UserError, match="no tensor 'kernal'; did you mean 'kernel'"):
        tensors.read("kernal")
    tensors.close()


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["CLIP_JAX_BOMB"],)


def test_objects_are_refused_and_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "x.npz"
    np.savez(path, fine=np.zeros(2), bad=np.array([Bomb()], object))
    assert "array 'bad': holds Python objects, which are never unpickled" in refusal(path)
    path.write_bytes(pickle.dumps({"a": Bomb()}))
    assert "is a PyTorch file under the wrong name" in refusal(path)
    assert os.listdir(tmp_path) == ["x.npz"]


V1 = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
MEMBERS = {
    "magic": (b"\x93NUMPX" + npy(V1)[6:] + bytes(8), "array 'a': cannot be read (the magic string"),
    "version": (npy(V1, bytes(8), b"\x03\x00"), "version (3, 0) of the .npy format"),
    "nothing": (b"", "array 'a': cannot be read"),
    "no data": (npy(V1), "array 'a': 0 bytes, but float32 [2] takes 8"),
    "less data": (npy(V1, bytes(7)), "array 'a': 7 bytes, but float32 [2] takes 8"),
    "more data": (npy(V1, bytes(9)), "array 'a': 9 bytes, but float32 [2] takes 8"),
    "no python": (npy("{'descr': ", bytes(8)), "array 'a': cannot be read"),
    "keys": (npy("{'descr': '<f4'}", bytes(8)), "array 'a': cannot be read"),
    "negative": (npy(V1.replace("2", "-2"), bytes(8)), "shape [-2] has other things than sizes"),
    "bool": (npy(V1.replace("2", "True"), bytes(4)), "shape [True] has other things than sizes"),
    "huge": (npy(V1.replace("2", f"{2**70}, 0")), "is too large for an array"),
    "text": (npy(V1.replace("<f4", "<U1"), bytes(8)), "array 'a': has dtype '<U1', not numbers"),
    "raw": (npy(V1.replace("<f4", "V4"), bytes(8)), "array 'a': has dtype '|V4', not numbers"),
    "float8": (npy(V1.replace("<f4", "<f1"), bytes(2)), "array 'a': cannot be read"),
    "fields": (npy(V1.replace("'<f4'", "[('x', '<i2')]"), bytes(4)), "not numbers"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_malformed_member(tmp_path, case):
    content, text = MEMBERS[case]
    path = tmp_path / "x.npz"
    members(path, **{"fine.npy": npy(V1, bytes(8)), "a.npy": content})
    assert text in refusal(path)


def test_not_an_npz(tmp_path):
    path = tmp_path / "x.npz"
    for data, text in {
        b"": "is not an npz file",
        b"junk" * 100: "is not an npz file",
        b"PK\x03\x04" + bytes(100): "cannot be read (File is not a zip file)",
        b"\x02\0\0\0\0\0\0\0{}": "is a safetensors file under the wrong name",
        b"version https://git-lfs.github.com/spec/v1\n": "is a pointer of Git LFS",
    }.items():
        path.write_bytes(data)
        assert text in refusal(path)
    members(path, **{"x/data.pkl": b"", "x/data/0": b""})
    assert "is a PyTorch file under the wrong name; rename it to end in .pt" in refusal(path)
    members(path, **{"a.npy": npy(V1, bytes(8)), "readme.txt": b""})
    assert "member 'readme.txt' is not a .npy file" in refusal(path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a.npy", npy(V1, bytes(8)))
        archive.writestr("a.npy", npy(V1, bytes(8)))
    assert "array 'a': is there twice" in refusal(path)
    assert "no such file" in refusal(tmp_path / "y.npz")
    assert "is a folder" in refusal(tmp_path)


def test_a_cut_at_any_byte(tmp_path):
    path = tmp_path / "x.npz"
    write_npz(str(path), items({"a": np.arange(4.0), "b": np.zeros(3, np.int8)}), {})
    raw = path.read_bytes()
    for size in range(0, len(raw), 3):
        path.write_bytes(raw[:size])
        refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_bytes(tmp_path, save):
    """An array is read as it was written, or refused in one line; nothing else is raised."""
    arrays, rng, refused = samples(), random.Random(0), 0
    buffer, path = io.BytesIO(), tmp_path / "x.npz"
    save(buffer, **arrays)
    raw = buffer.getvalue()
    for _ in range(600):
        data = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            tensors = open_npz(str(path))
            for name in tensors.shapes:
                read = tensors.read(name)
                if name in arrays:
                    assert same(read, arrays[name])
            tensors.close()
        except UserError as e:
            refused += 1
            assert str(e).startswith(str(path)) and "\n" not in str(e)
    assert refused > 300


# Writing that fails


@pytest.mark.parametrize(
    "wrong",
    [
        [("a", (2,), np.dtype(np.float32), lambda: np.zeros(3, np.float32))],
        [("a", (2,), np.dtype(np.float32), lambda: np.zeros(2, np.float64))],
        [("a", (2,), np.dtype(object), lambda: np.zeros(2, object))],
        [("a", (2,), np.dtype("V2"), lambda: np.zeros(2, "V2"))],
        [("a", (2,), np.dtype(ml_dtypes.float8_e5m2), lambda: np.zeros(2, ml_dtypes.float8_e5m2))],
        2 * [("a", (2,), np.dtype(np.int8), lambda: np.zeros(2, np.int8))],
    ],
)
def test_not_as_announced(tmp_path, wrong):
    with pytest.raises(ValueError):
        write_npz(str(tmp_path / "x.npz"), wrong, {})
    assert os.listdir(tmp_path) == []


def test_a_limit_in_the_middle_of_a_file(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros(2))
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(UserError, match="x.npz: the file would be larger than"):
            write_npz(str(path), items({"a": np.zeros(1 << 17)}), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["x.npz"] and path.read_bytes() == old


def test_not_to_a_store():
    with pytest.raises(UserError, match="gs://b/x: is written to a local disk only"):
        write_npz("gs://b/x", [], {})
