"""Sizes of the mesh, and the messages of sizes that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config.schema import MeshConfig
from clip_jax.errors import UserError
from clip_jax.sharding.mesh import constrain, make_mesh, mesh_shape, num_batch_shards, replicate


@pytest.mark.parametrize(
    ("cfg", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((-1, 4, 1), (2, 4, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 1, 1), (1, 1, 1)),
        ((2, 2, 1), (2, 2, 1)),
    ],
)
def test_sizes(cfg, shape):
    mesh = make_mesh(MeshConfig(*cfg))
    assert mesh_shape(MeshConfig(*cfg), 8) == shape == mesh.devices.shape
    assert num_batch_shards(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ((-1, -1, 1), "one axis may be -1"),
        ((0, 1, 1), "one axis may be -1"),
        ((16, 1, 1), "16 x 1 x 1 needs 16 devices, here are 8"),
        ((-1, 3, 1), "does not divide the 8 devices"),
    ],
)
def test_sizes_that_do_not_fit(cfg, message):
    with pytest.raises(UserError, match=f"config.mesh: .*{message}"):
        make_mesh(MeshConfig(*cfg))


def test_constraints_do_nothing_without_a_mesh():
    x = jnp.ones((4, 2))
    assert constrain(x) is x and replicate(x) is x


def test_constraints_place_arrays():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        x = jax.jit(lambda x: constrain(x * 1))(np.ones((8, 6), np.float32))
        y = jax.jit(replicate)(x)
    assert x.addressable_shards[0].data.shape == (2, 6)
    assert y.addressable_shards[0].data.shape == (8, 6)


class Chip:
    """Of a real device, what a mesh looks at."""

    platform, process_index, device_kind = "tpu", 0, "a chip"

    def __init__(self, id, slice_index):
        self.id, self.slice_index = id, slice_index


def test_data_spans_the_slices_and_fsdp_stays_inside_one():
    chips = [Chip(i, slice_index=i % 2) for i in range(8)]
    mesh = make_mesh(MeshConfig(-1, 2, 1, num_slices=2), chips)
    assert mesh.devices.shape == (4, 2, 1)
    assert [[c.slice_index for c in row] for row in mesh.devices[:, :, 0]] == [[0, 0]] * 2 + [
        [1, 1]
    ] * 2
    assert [c.id for c in mesh.devices[:2].ravel()] == [0, 2, 4, 6]  # their order stays


def test_cpus_stand_in_for_slices():
    assert make_mesh(MeshConfig(-1, 2, 1, num_slices=2)).devices.shape == (4, 2, 1)


@pytest.mark.parametrize(
    ("cfg", "chips", "message"),
    [
        (MeshConfig(-1, 8, 1, num_slices=2), None, "must divide the axis data, 1 here"),
        (MeshConfig(num_slices=3), None, "8 devices do not divide into 3; choose a div"),
        (MeshConfig(4, num_slices=2), None, "4 of 8 devices would leave a slice out"),
        (MeshConfig(num_slices=4), [Chip(i, i % 2) for i in range(8)], "are of 2 slices .got 4"),
        (MeshConfig(fsdp=8), [Chip(i, i % 2) for i in range(8)], "2 slices .got 1.; set it to 2"),
    ],
)
def test_slices_that_do_not_fit(cfg, chips, message):
    with pytest.raises(UserError, match=f"config.mesh.num_slices: .*{message}"):
        make_mesh(cfg, chips)
