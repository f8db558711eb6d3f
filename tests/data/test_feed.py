"""Rows of a host and global arrays on several meshes."""

import collections

import numpy as np
import pytest

from clip_jax.config.schema import MeshConfig
from clip_jax.data.feed import feed, host_rows, put
from clip_jax.data.pipeline import HostBatch
from clip_jax.sharding.mesh import make_mesh

SHAPES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_put_keeps_values_and_splits_the_batch(shape):
    mesh = make_mesh(MeshConfig(*shape))
    x = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
    y = put({"x": x}, mesh)["x"]
    assert np.array_equal(np.asarray(y), x)
    assert y.addressable_shards[0].data.shape[0] == 16 // (shape[0] * shape[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_one_host_has_all_rows(shape):
    assert host_rows(16, make_mesh(MeshConfig(*shape))) == list(range(16))


def test_feed_keeps_order_and_ends():
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=1))
    made = [HostBatch({"x": np.full((4,), i)}, collections.Counter({str(i): 1})) for i in range(5)]
    got = list(feed(iter(made), mesh))
    assert [int(batch["x"][0]) for batch, _ in got] == list(range(5))
    assert [host for _, host in got] == made
    assert list(feed(iter([]), mesh)) == []
