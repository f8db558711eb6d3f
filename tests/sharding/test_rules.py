"""Placement by path."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.config.schema import MeshConfig
from clip_jax.sharding.mesh import make_mesh
from clip_jax.sharding.rules import large_copies, path_of, shardings, spec


@pytest.mark.parametrize(
    ("path", "shape", "want"),
    [
        ("image/blocks/attn/q/kernel", (2, 64, 64), P(None, "fsdp", "tensor")),
        ("0/mu/image/blocks/attn/k/kernel", (2, 64, 64), P(None, "fsdp", "tensor")),
        ("image/blocks/attn/q/kernel", (2, 63, 63), P(None, None, None)),
        ("image/blocks/attn/out/kernel", (2, 64, 64), P(None, "tensor", "fsdp")),
        ("text/blocks/attn/v/bias", (2, 64), P(None, ("tensor", "fsdp"))),
        ("text/blocks/mlp/up/kernel", (2, 64, 256), P(None, None, ("tensor", "fsdp"))),
        ("text/blocks/mlp/down/kernel", (2, 254, 64), P(None, "tensor", None)),
        ("text/blocks/mlp/up/bias", (2, 255), P(None, None)),
        ("text/token/embedding", (301, 64), P(None, "fsdp")),
        ("text/token/embedding", (300, 64), P("fsdp", None)),
        ("image/blocks/ln1/scale", (1024, 64), P(None, "fsdp")),
        ("image/head/kernel", (4, 4), P()),
        ("logit/scale", (), P()),
    ],
)  # fmt: skip
def test_spec(path, shape, want):
    assert spec(path, shape, make_mesh(MeshConfig(2, 2, 2))) == want


def test_shardings_of_a_tree():
    tree = {"text": {"token": {"embedding": jnp.ones((64, 32))}}}
    placed = shardings(tree, make_mesh(MeshConfig(1, 8, 1)))
    assert placed["text"]["token"]["embedding"].spec == P("fsdp", None)
    (path, _), *_ = jax.tree_util.tree_flatten_with_path(tree)[0]
    assert path_of(path) == "text/token/embedding"


def test_large_arrays_that_stay_whole_are_named():
    tree = {"text": {"token": {"embedding": jnp.ones((1025, 1027))}, "posemb": jnp.ones((8, 4))}}
    fsdp = make_mesh(MeshConfig(1, 8, 1))
    assert large_copies(tree, fsdp) == ["text/token/embedding (1025, 1027)"]
    assert large_copies({"text": {"head": jnp.ones((1024, 1024))}}, fsdp) == []
    assert large_copies(tree, make_mesh(MeshConfig(8, 1, 1))) == []  # nothing is shared there


def test_tables_are_whole_where_only_tensor_shares():
    tree = {"text": {"token": {"embedding": jnp.ones((1024, 1024))}}}
    kernels = {"image": {"blocks": {"mlp": {"up": {"kernel": jnp.ones((2, 1024, 1024))}}}}}
    found = ["text/token/embedding (1024, 1024)"]
    assert large_copies(tree | kernels, make_mesh(MeshConfig(1, 1, 8))) == found
    assert large_copies(tree | kernels, make_mesh(MeshConfig(1, 2, 4))) == []
