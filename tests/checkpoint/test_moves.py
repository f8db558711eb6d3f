"""The state of a training run moves between all meshes of the rule table, bit by bit."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import tiny
from clip_jax.checkpoint.checksum import checksums
from clip_jax.checkpoint.manager import Checkpoints
from clip_jax.config.schema import MeshConfig
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import program
from clip_jax.train.state import to_items

MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]
CFG = tiny.config("unused")
CFG = dataclasses.replace(CFG, optim=dataclasses.replace(CFG.optim, ema=0.5))


@functools.cache
def abstract(shape):
    return to_items(program.build(CFG, make_mesh(MeshConfig(*shape))).abstract)


def filled(shapes):
    """Every array with bits of its own, placed as its shape says."""
    rng = np.random.default_rng(0)

    def array(x):
        if x.dtype == np.float32:
            values = rng.normal(size=x.shape)
        else:
            values = rng.integers(0, 100, x.shape)
        return jax.device_put(np.asarray(values, x.dtype), x.sharding)

    return jax.tree.map(array, shapes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By mesh: (workdir of a checkpoint of that mesh, what is in it)."""
    found = {}
    for shape in MESHES:
        workdir, items = tmp_path_factory.mktemp("run"), filled(abstract(shape))
        checkpoints = Checkpoints(str(workdir), keep=1)
        checkpoints.save(3, items, {}, {})
        checkpoints.close()
        found[shape] = (workdir, items)
    return found


@pytest.mark.parametrize("target", MESHES)
@pytest.mark.parametrize("origin", MESHES)
def test_between_all_meshes(saved, origin, target):
    workdir, items = saved[origin]
    want = abstract(target)
    checkpoints = Checkpoints(str(workdir), keep=1)
    restored = checkpoints.restore_latest(lambda _: want, pytest.fail)
    checkpoints.close()
    assert checksums(restored.items) == checksums(items)
    for got, ask, x in zip(*map(jax.tree.leaves, (restored.items, want, items)), strict=True):
        assert got.sharding == ask.sharding
        np.testing.assert_array_equal(got, x)
