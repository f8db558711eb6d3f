"""What a program takes from the config beyond its parts, which have tests of their own."""

import dataclasses

import pytest

import tiny
from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.metrics.flops import inner_jaxprs
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import program


def rings(jaxpr):
    """The (source, target) pairs of every ppermute."""
    for e in jaxpr.eqns:
        if e.primitive.name == "ppermute":
            yield e.params["perm"]
        for inner in inner_jaxprs(e.params):
            yield from rings(inner)


@pytest.mark.parametrize("num_slices", [1, 2])
def test_the_ring_loss_turns_inside_slices(num_slices):
    mesh = MeshConfig(4, 2, num_slices=num_slices)
    cfg = dataclasses.replace(tiny.config("unused"), loss=LossConfig("softmax_ring"), mesh=mesh)
    jaxpr = program.build(cfg, make_mesh(cfg.mesh)).trace().jaxpr.jaxpr
    across = {frozenset(a // 4 != b // 4 for a, b in pairs) for pairs in rings(jaxpr)}
    inside, between, both = map(frozenset, ({False}, {True}, {False, True}))
    assert across == ({both} if num_slices == 1 else {inside, between})
