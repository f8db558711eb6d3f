"""safetensors: every way to be malformed, the library as the judge, one array in memory."""

import errno
import json
import os
import random
import resource
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from clip_jax.errors import UserError
from clip_jax.interop.safetensors import (
    DTYPES,
    open_safetensors,
    open_sharded,
    write_safetensors,
)


def pack(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file from a header as text, bytes or JSON."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def items(arrays: dict[str, np.ndarray]) -> list:
    return [(name, x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()]


def samples() -> dict[str, np.ndarray]:
    """Every dtype, no dims and no elements included, with odd sizes in between."""
    rng = np.random.default_rng(0)
    arrays = {}
    for code, dtype in DTYPES.items():
        high = 2 if code == "BOOL" else 256
        raw = rng.integers(0, high, 15 * dtype.itemsize, np.uint8)
        arrays[f"a/{code}"] = raw.view(dtype).reshape(3, 5)
    arrays["scalar"] = np.array(2.5, ml_dtypes.bfloat16)
    arrays["empty"] = np.zeros((0, 3), np.float32)
    arrays["Größe 大 \n"] = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    return arrays


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def refusal(path, opener=open_safetensors) -> str:
    with pytest.raises(UserError) as e:
        opener(str(path))
    text = str(e.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 600, text
    return text.removeprefix(str(path))


# Reading and writing


def test_the_library_reads_what_we_write(tmp_path):
    path, arrays = str(tmp_path / "x.safetensors"), samples()
    write_safetensors(path, items(arrays), {"format": "pt"})
    with safetensors.safe_open(path, "np") as f:
        assert f.metadata() == {"format": "pt"} and set(f.keys()) == set(arrays)
    for name, info in safetensors.deserialize((tmp_path / "x.safetensors").read_bytes()):
        assert DTYPES[info["dtype"]] == arrays[name].dtype
        assert tuple(info["shape"]) == arrays[name].shape
        assert bytes(info["data"]) == arrays[name].tobytes()
    raw = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0 and len(raw) == 8 + length + sum(x.nbytes for x in arrays.values())


def test_we_read_what_the_library_writes(tmp_path):
    path, arrays = str(tmp_path / "x.safetensors"), samples()
    arrays = {k: v for k, v in arrays.items() if "F8" not in k}
    safetensors.numpy.save_file(arrays, path, {"by": "them"})
    tensors = open_safetensors(path)
    assert tensors.metadata == {"by": "them"} and set(tensors.shapes) == set(arrays)
    assert all(same(tensors.read(name), x) for name, x in arrays.items())
    tensors.close()


def test_our_own_round_trip(tmp_path):
    path, arrays = str(tmp_path / "new" / "x.safetensors"), samples()
    write_safetensors(path, items(arrays), {})
    tensors = open_safetensors(path)
    assert tensors.path == path and tensors.metadata == {}
    assert set(tensors.shapes) == set(arrays) == set(tensors.dtypes)
    for name, array in arrays.items():
        read = tensors.read(name)
        assert same(read, array) and read.flags.c_contiguous and read.flags.writeable
        assert tensors.shapes[name] == array.shape and tensors.dtypes[name] == array.dtype
    assert tensors.read("scalar") is not tensors.read("scalar")
    tensors.close()


def test_the_order_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {"b": entry(offsets=(8, 16)), "a": entry(), "c": entry(shape=(0,), offsets=(8, 8))}
    path.write_bytes(pack(header, bytes(range(16))))
    tensors = open_safetensors(str(path))
    assert list(tensors.shapes) == ["a", "c", "b"]
    assert tensors.read("b").tobytes() == bytes(range(8, 16))
    tensors.close()


def test_other_layouts_are_written_in_c_order(tmp_path):
    path, x = str(tmp_path / "x.safetensors"), np.arange(6, dtype=np.int32).reshape(2, 3)
    write_safetensors(path, items({"t": x.T, "s": x[:, ::2]}), {})
    tensors = open_safetensors(path)
    assert same(tensors.read("t"), x.T) and same(tensors.read("s"), x[:, ::2])
    tensors.close()


def test_a_file_without_tensors(tmp_path):
    path = str(tmp_path / "x.safetensors")
    write_safetensors(path, [], {})
    tensors = open_safetensors(path)
    assert tensors.shapes == {} and safetensors.numpy.load_file(path) == {}
    tensors.close()


def test_an_unknown_name(tmp_path):
    path = str(tmp_path / "x.safetensors")
    write_safetensors(path, items({"visual.proj": np.zeros(1)}), {})
    tensors = open_safetensors(path)
    with pytest.raises(UserError, match="no tensor 'visual.prj'; did you mean 'visual.proj'"):
        tensors.read("visual.prj")
    tensors.close()


def test_a_file_that_is_cut_after_it_was_opened(tmp_path):
    path = str(tmp_path / "x.safetensors")
    write_safetensors(path, items({"a": np.zeros(100)}), {})
    tensors = open_safetensors(path)
    os.truncate(path, os.path.getsize(path) - 1)
    with pytest.raises(UserError, match="x.safetensors: tensor 'a': its bytes end early"):
        tensors.read("a")
    tensors.close()


# Malformed files

HEADERS = {
    "duplicate": (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":1}',
        "key 'a' is giv",
    ),
    "duplicate inside": (b'{"a":{"dtype":"F32","dtype":"F16"}}', "key 'dtype' is given twice"),
    "not utf-8": (b'{"\xff":1}', "header is not JSON in UTF-8"),
    "half a character": (b'{"\\ud800":1}', "header is not JSON in UTF-8"),
    "not json": (b"{]", "header is not JSON in UTF-8"),
    "nan": (b'{"a":NaN}', "header is not JSON in UTF-8"),
    "two objects": (b"{} {}", "header is not JSON in UTF-8"),
    "deep": (b'{"a":' + b"[" * 100_000, "header is not JSON in UTF-8"),
    "digits": (b'{"a":' + b"1" * 10_000 + b"}", "header is not JSON in UTF-8"),
    "array": (b"[1, 2]   ", "not a safetensors file"),
    "metadata": (b'{"__metadata__":{"a":1}}', "__metadata__ is not an object of texts"),
    "metadata list": (b'{"__metadata__":[]}', "__metadata__ is not an object of texts"),
    "entry": ({"a": 1}, "tensor 'a': its entry is not an object (got 1)"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, "tensor 'a': has no dtype"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, "tensor 'a': has no shape"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, "tensor 'a': has no data_offsets"),
    "dtype": ({"a": entry("F33")}, "tensor 'a': unknown dtype 'F33'; did you mean 'F32'?"),
    "dtype number": ({"a": entry(7)}, "tensor 'a': unknown dtype 7"),
    "dtype list": ({"a": entry([])}, "tensor 'a': unknown dtype []"),
    "shape text": ({"a": {**entry(), "shape": "2"}}, "tensor 'a': shape '2' is not a list"),
    "shape negative": ({"a": entry(shape=(-2,))}, "tensor 'a': shape [-2] has other things"),
    "shape two negative": ({"a": entry(shape=(-2, -1))}, "tensor 'a': shape [-2, -1] has other"),
    "shape float": ({"a": entry(shape=(2.0,))}, "tensor 'a': shape [2.0] has other things"),
    "shape bool": ({"a": entry(shape=(True, 2))}, "tensor 'a': shape [True, 2] has other"),
    "shape null": ({"a": entry(shape=(None,))}, "tensor 'a': shape [None] has other things"),
    "shape huge": ({"a": entry(shape=(2**62, 4))}, "is too large for an array"),
    "shape huge and empty": (
        {"a": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))},
        "is too large for an array",
    ),
    "shape of 65 dims": ({"a": entry(shape=(1,) * 65, offsets=(0, 4))}, "is too large for an arr"),
    "offsets one": ({"a": entry(offsets=(8,))}, "data_offsets [8] are not a begin and an end"),
    "offsets three": ({"a": entry(offsets=(0, 8, 8))}, "data_offsets [0, 8, 8] are not"),
    "offsets float": ({"a": entry(offsets=(0, 8.0))}, "data_offsets [0, 8.0] are not"),
    "offsets bool": ({"a": entry("U8", (1,), (False, True))}, "[False, True] are not a begin"),
    "offsets text": ({"a": {**entry(), "data_offsets": "08"}}, "data_offsets '08' are not"),
    "offsets negative": ({"a": entry(offsets=(-8, 0))}, "data_offsets [-8, 0] are not"),
    "offsets backwards": ({"a": entry(offsets=(8, 0))}, "data_offsets [8, 0] are not"),
    "size": (
        {"a": entry(shape=(3,))},
        "tensor 'a': data_offsets [0, 8] span 8 bytes, but F32 [3] takes 12",
    ),
    "outside": ({"a": entry(shape=(3,), offsets=(0, 12))}, "'a': data_offsets [0, 12] end after"),
    "overlap": (
        {"a": entry(), "b": entry(shape=(1,), offsets=(4, 8))},
        "tensor 'b': data_offsets [4, 8] overlap with those of 'a'",
    ),
    "twins": ({"a": entry(), "b": entry()}, "tensor 'b': data_offsets [0, 8] overlap with"),
    "hole": ({"a": entry("U8", (4,), (4, 8))}, "'a': data_offsets [4, 8] leave a hole after by"),
    "rest": ({"a": entry("U8", (4,), (0, 4))}, "4 bytes after the last tensor"),
    "no tensor": ({}, "8 bytes after the last tensor"),
    "long name": ({"n" * 10_000: 1}, "its entry is not an object"),
    "name with newline": ({"a\nb": 1}, r"tensor 'a\nb'"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_malformed_header(tmp_path, case):
    header, text = HEADERS[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack(header, bytes(8)))
    assert text in refusal(path)
    if (
        "bool" not in case
    ):  # the library as a witness; serde takes no booleans either, but 1 == True
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(path.read_bytes())


BYTES = {
    "empty": (b"", "has 0 bytes, too few"),
    "seven": (bytes(7), "has 7 bytes, too few"),
    "nine": (pack(b"{"), "is not a safetensors file"),
    "length": (pack(b"{}", length=3), "header of 3 bytes in a file of 10"),
    "limit": (pack(b"{}", length=100_000_001), "header of 100000001 bytes, at most 100000000"),
    "astronomic": (pack(b"{}", length=2**64 - 1), "at most 100000000 allowed"),
    "zeros": (bytes(100), "no header that begins with {"),
    "zip": (b"PK\x03\x04" + bytes(100), "is a PyTorch file or another zip"),
    "pickle": (b"\x80\x02}q\x00." + bytes(100), "is a PyTorch file under the wrong name"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    "html": (b"\n<!DOCTYPE html><html>", "is a web page"),
}


@pytest.mark.parametrize("case", BYTES)
def test_other_files_under_this_name(tmp_path, case):
    data, text = BYTES[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert text in refusal(path)


def test_lengths_that_look_like_magic_numbers(tmp_path):
    path = str(tmp_path / "x.safetensors")
    for length in (0x280, 0x4B50):  # b"\x80\x02", b"PK"
        raw = json.dumps({"a": entry()}).encode().ljust(length)
        (tmp_path / "x.safetensors").write_bytes(pack(raw, bytes(8)))
        open_safetensors(path).close()


def test_a_cut_at_any_byte(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(str(path), items({"a": np.arange(4.0), "b": np.zeros(3, np.int8)}), {})
    raw = path.read_bytes()
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        refusal(path)


def test_flipped_bytes_in_the_header(tmp_path):
    """We accept what the library accepts, and read the same from it; nothing else is raised."""
    path, rng = tmp_path / "x.safetensors", random.Random(0)
    arrays = {"visual.positional_embedding": np.arange(6, dtype=np.float32).reshape(2, 3)}
    arrays |= {"logit_scale": np.ones((), np.float16), "transformer.mask": np.zeros(0, np.int8)}
    write_safetensors(str(path), items(arrays), {"format": "pt"})
    raw = path.read_bytes()
    end, accepted = 8 + int.from_bytes(raw[:8], "little"), 0
    for _ in range(1000):
        data = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2, 3))):
            new = (
                rng.choice(b'{}[]",:0123456789-.eE \\')
                if rng.random() < 0.6
                else rng.randrange(256)
            )
            data[rng.randrange(end)] = new
        path.write_bytes(data)
        try:
            tensors = open_safetensors(str(path))
        except UserError as e:
            assert str(e).startswith(str(path)) and "\n" not in str(e)
            with pytest.raises(safetensors.SafetensorError):
                safetensors.deserialize(bytes(data))
            continue
        accepted += 1
        theirs = dict(safetensors.deserialize(bytes(data)))
        assert set(theirs) == set(tensors.shapes)
        for name, info in theirs.items():
            read = tensors.read(name)
            assert tuple(info["shape"]) == read.shape and DTYPES[info["dtype"]] == read.dtype
            assert bytes(info["data"]) == read.tobytes()
        tensors.close()
    assert 100 < accepted < 900


@pytest.mark.parametrize("place", ["", "no/such", "gs://bucket/x"])
def test_no_such_file(tmp_path, place):
    if place.startswith("gs"):
        assert "read from a local disk only" in refusal(place)
    elif place:
        assert "no such file" in refusal(tmp_path / place)
    else:
        assert "is a folder" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack({}))
    path.chmod(0)
    assert "cannot be read (Permission denied)" in refusal(path)


# Shards


def shards(folder) -> dict[str, np.ndarray]:
    arrays = samples()
    halves = [dict(list(arrays.items())[i::2]) for i in (0, 1)]
    weight_map = {}
    for i, half in enumerate(halves):
        name = f"model-{i + 1:05d}-of-00002.safetensors"
        write_safetensors(str(folder / name), items(half), {"format": "pt"})
        weight_map |= dict.fromkeys(half, name)
    write_index(folder, {name: weight_map[name] for name in sorted(arrays)})
    return arrays


def write_index(folder, weight_map: object) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards(tmp_path):
    arrays = shards(tmp_path)
    tensors = open_sharded(str(tmp_path / "model.safetensors.index.json"))
    assert list(tensors.shapes) == sorted(arrays) and tensors.metadata == {"format": "pt"}
    for name, array in arrays.items():
        assert same(tensors.read(name), array)
        assert tensors.shapes[name] == array.shape and tensors.dtypes[name] == array.dtype
    with pytest.raises(UserError, match="index.json: holds no tensor 'x'"):
        tensors.read("x")
    tensors.close()


def test_malformed_lists_of_shards(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    shards(tmp_path)
    shard = "model-00001-of-00002.safetensors"
    write_index(tmp_path, {"a/F64": shard, "x": shard})
    text = refusal(index, open_sharded)
    assert f"tensor 'x' is not in '{shard}', where weight_map says" in text
    write_index(tmp_path, {"a/F64": shard, "x": "model-3.safetensors"})
    assert "shard 'model-3.safetensors' is missing" in refusal(index, open_sharded)
    for name in ("../x.safetensors", "/x.safetensors", "", "..", "pytorch_model-1.bin"):
        write_index(tmp_path, {"x": name})
        assert f"shard '{name}' is not the name of a .saf" in refusal(index, open_sharded)
    for weight_map in ([], None, {"x": 1}):
        write_index(tmp_path, weight_map)
        assert "has no weight_map" in refusal(index, open_sharded)
    for text, said in {
        "{": "the list of shards is not JSON",
        "[]": "the list of shards is not a JSON object",
        "{}": "has no weight_map",
        '{"weight_map":{"a":"x","a":"y"}}': "key 'a' is given twice",
    }.items():
        index.write_text(text)
        assert said in refusal(index, open_sharded)


def test_a_damaged_shard_is_named(tmp_path):
    shards(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    os.truncate(shard, 100)
    with pytest.raises(UserError, match="^[^ ]*model-00002-of-00002.safetensors: header of"):
        open_sharded(str(tmp_path / "model.safetensors.index.json"))


# Writing that fails


@pytest.mark.parametrize(
    "wrong",
    [
        [("a", (2,), np.dtype(np.float32), lambda: np.zeros(3, np.float32))],
        [("a", (2,), np.dtype(np.float32), lambda: np.zeros(2, np.float64))],
        [("a", (2,), np.dtype(np.complex64), lambda: np.zeros(2, np.complex64))],
        [("a", (2,), np.dtype(">f4"), lambda: np.zeros(2, ">f4"))],
        [("__metadata__", (2,), np.dtype(np.int8), lambda: np.zeros(2, np.int8))],
        2 * [("a", (2,), np.dtype(np.int8), lambda: np.zeros(2, np.int8))],
    ],
)
def test_not_as_announced(tmp_path, wrong):
    with pytest.raises(ValueError):
        write_safetensors(str(tmp_path / "x.safetensors"), wrong, {})
    assert os.listdir(tmp_path) == []


def test_metadata_must_be_texts(tmp_path):
    with pytest.raises(ValueError):
        write_safetensors(str(tmp_path / "x.safetensors"), [], {"step": 1})  # pyright: ignore
    assert os.listdir(tmp_path) == []


def test_not_to_a_store():
    with pytest.raises(UserError, match="gs://b/x: is written to a local disk only"):
        write_safetensors("gs://b/x", [], {})


def test_a_full_disk(tmp_path, monkeypatch):
    path = str(tmp_path / "x.safetensors")
    write_safetensors(path, items({"a": np.zeros(2)}), {})

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="x.safetensors: the disk is full"):
        write_safetensors(path, [("a", (2,), np.dtype(np.int8), full)], {})
    assert os.listdir(tmp_path) == ["x.safetensors"]
    open_safetensors(path).close()


def test_a_limit_in_the_middle_of_a_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(UserError, match="x.safetensors: the file would be larger than"):
            write_safetensors(str(tmp_path / "x.safetensors"), items({"a": np.zeros(1 << 17)}), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


KILLED = """
import os, signal, sys
import numpy as np
from clip_jax.interop.safetensors import write_safetensors
def die():
    os.kill(os.getpid(), signal.SIGKILL)
x = np.zeros(1 << 20, np.uint8)
items = [("a", x.shape, x.dtype, lambda: x), ("b", x.shape, x.dtype, die)]
write_safetensors(sys.argv[1], items, {})
"""


def test_killed_in_the_middle(tmp_path):
    path = tmp_path / "x.safetensors"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -9 and not path.exists()
    assert [name.startswith("x.safetensors.tmp-") for name in os.listdir(tmp_path)] == [True]


MEMORY = """
import resource, sys
from clip_jax.interop.open_file import open_tensors
tensors = open_tensors(sys.argv[1])
unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
tensors.read("0")
before = peak()
for name in tensors.shapes:
    tensors.read(name).sum()
streamed = peak()
kept = [tensors.read(name) for name in tensors.shapes]
print(streamed - before, peak() - streamed)
"""


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_one_array_in_memory(tmp_path, ending):
    from clip_jax.interop.npz import write_npz

    path = str(tmp_path / f"x.{ending}")
    size = 1 << 22
    pieces = [(str(i), (size,), np.dtype(np.uint8), lambda i=i: np.full(size, i, np.uint8))
              for i in range(16)]  # fmt: skip
    (write_npz if ending == "npz" else write_safetensors)(path, pieces, {})
    # A child starts with the peak of the process that it is a copy of; that of a shell is small.
    command = ["sh", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", MEMORY, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    streamed, kept = map(int, done.stdout.split())
    assert streamed < 10 << 20 and kept > 48 << 20, done.stdout
