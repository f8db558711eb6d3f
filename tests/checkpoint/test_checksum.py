"""The checksum sees every change and no mesh; the oracle is numpy with Python integers."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.checkpoint.checksum import _odd, _sum, checksums, paths

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "uint16", "bool"]


def mix(n: int) -> int:
    n = (n ^ n >> 16) * 0x7FEB352D % 2**32
    n = (n ^ n >> 15) * 0x846CA68B % 2**32
    return n ^ n >> 16


def oracle(x: np.ndarray) -> int:
    """The definition, element by element."""
    bits = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}").reshape(-1).tolist()
    row = int(np.prod(x.shape[1:]))
    total = 0
    for i, n in enumerate(bits):
        place = i ^ mix(i // row) if x.shape else i
        total += mix(n) * (mix((place + 0x9E3779B9) % 2**32) | 1)
    return total % 2**32


def random(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    return np.asarray(jnp.asarray(rng.normal(size=shape) * 50).astype(dtype))


def test_equals_the_definition():
    tree = {dtype: random((3, 5), dtype) for dtype in DTYPES}
    tree["shapes"] = [random(shape) for shape in [(), (7,), (2, 3, 4, 2), (1, 9, 1)]]
    assert checksums(tree) == {path: oracle(x) for path, x in paths(tree).items()}


def test_wide_narrow_and_special_dtypes():
    key = jax.random.key(7)
    assert checksums({"k": key})["k"] == checksums({"k": jax.random.key_data(key)})["k"]
    keys = jax.random.split(key, 5)
    assert checksums({"k": keys})["k"] == oracle(np.asarray(jax.random.key_data(keys)))
    z = random((4,)) + 1j * random((4,), seed=1)
    parts = np.stack([z.real, z.imag], -1).astype("float32")
    assert checksums({"z": z.astype("complex64")})["z"] == oracle(parts)
    with jax.enable_x64(True):
        d = np.random.default_rng(0).normal(size=(3, 2))
        assert checksums({"d": d})["d"] == oracle(d.view("uint32").reshape(3, 2, 2))
    for dtype in ("int4", "float8_e4m3fn"):
        x = jnp.arange(6, dtype=dtype)
        assert checksums({"x": x})["x"] == oracle(np.arange(6, dtype=x.dtype).view("uint8"))
    assert checksums({"e": np.zeros((0, 3)), "n": np.zeros((2, 0))}) == {"e": 0, "n": 0}
    assert checksums({}) == {}


def placements():
    for shape, *specs in [
        ((1,), P()),
        ((8,), P(), P("a"), P(None, None, "a")),
        ((2, 4), P("a", "b"), P(None, "b"), P(None, None, ("a", "b"))),
    ]:
        devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
        names = ("a", "b")[: len(shape)]
        mesh = jax.sharding.Mesh(devices, names, axis_types=(AxisType.Auto,) * len(shape))
        yield from (NamedSharding(mesh, spec) for spec in specs)


def test_equal_on_every_mesh():
    tree = {"x": random((16, 8, 24)), "y": random((16, 8, 8), "bfloat16")}
    want = {path: oracle(x) for path, x in tree.items()}
    for sharding in placements():
        assert checksums(jax.device_put(tree, sharding)) == want, sharding


def test_nothing_is_gathered():
    *_, sharding = placements()
    x = jax.device_put(random((16, 8, 24)), sharding)
    compiled = _sum.lower(x).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
    assert compiled.memory_analysis().temp_size_in_bytes < x.nbytes / 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_flipped_bit_is_seen(dtype):
    x = random((5, 3), dtype)
    flipped = []
    for byte in range(x.nbytes):
        for bit in range(1 if dtype == "bool" else 8):
            bad = x.copy()
            bad.reshape(-1).view("uint8")[byte] ^= 1 << bit
            flipped.append(bad)
    sums = jax.vmap(_sum)(np.stack(flipped))
    assert checksums({"x": x})["x"] not in sums.tolist()


def test_changes_of_many_elements_are_seen():
    x = np.ones((64, 8), np.float32)  # few bits set, as in fresh layer norms
    good = checksums({"x": x})
    rng = np.random.default_rng(0)
    for _ in range(200):
        bad = x.copy()
        bad.reshape(-1)[rng.choice(512, 2, replace=False)] *= -1  # two sign bits
        assert checksums({"x": bad}) != good
    for start in range(0, 2000, 100):
        bad = x.copy()
        bad.reshape(-1).view("uint8")[start : start + 100] = 0
        assert checksums({"x": bad}) != good


def test_places_matter():
    x = random((16, 16))
    sums = [checksums({"x": y})["x"] for y in (x, x.T, x[::-1], np.roll(x, 1), x.reshape(8, 32))]
    assert len(set(sums)) == 5


def test_elements_2_to_the_32_apart_differ():
    """Row 2**11 starts 2**32 elements after row 0, so its row-major index is 0 again."""
    corner = jax.jit(lambda: _odd((2**12, 2**21))[:: 2**11, 0])  # one fusion: the rest is not made
    assert corner.lower().compile().memory_analysis().temp_size_in_bytes < 2**20
    assert corner().tolist() == [mix(mix(r) + 0x9E3779B9 & 0xFFFFFFFF) | 1 for r in (0, 2**11)]
    assert len(set(corner().tolist())) == 2


class Pair(NamedTuple):
    mu: jax.Array
    nu: dict


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: jax.Array
    params: dict
    opt: tuple


def test_paths():
    x = jnp.zeros(2)
    state = State(x, {"image": {"posemb": x}, "text": {}}, (Pair(x, {"w": x}), None, [x]))
    names = ["opt/0/mu", "opt/0/nu/w", "opt/2/0", "params/image/posemb", "step"]
    assert sorted(paths(state)) == names == sorted(checksums(state))
    adam = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init({"w": x})
    assert sorted(paths(adam)) == ["1/0/count", "1/0/mu/w", "1/0/nu/w"]
    with pytest.raises(ValueError, match="same path"):
        paths({"a/b": x, "a": {"b": x}})
