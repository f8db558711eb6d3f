"""The count of FLOPs: by hand, through loops, and against XLA where nothing loops."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.config.presets import MODELS
from clip_jax.config.schema import MeshConfig
from clip_jax.metrics import flops
from clip_jax.models import dual
from clip_jax.sharding.mesh import BATCH_AXES, make_mesh


def test_products_and_convolutions_by_hand():
    a, b = jnp.zeros((3, 5, 7)), jnp.zeros((3, 7, 2))
    assert flops.count(lambda a, b: a @ b, a, b) == 2 * 3 * 5 * 7 * 2
    x, k = jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 2, 3, 6))

    def conv(x, k):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=dims)

    assert flops.count(conv, x, k) == 2 * (2 * 4 * 4 * 6) * (2 * 2 * 3)


def test_a_scan_counts_as_often_as_it_runs():
    w = jnp.zeros((4, 6, 6))

    def f(w, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    assert flops.count(jax.jit(f), w, jnp.zeros((2, 6))) == 4 * 2 * 2 * 6 * 6
    grad = jax.grad(lambda w, x: f(w, x).sum())
    assert flops.count(grad, w, jnp.zeros((2, 6))) >= 2 * 4 * 2 * 2 * 6 * 6


def test_of_branches_one_runs():
    a = jnp.zeros((3, 3))

    def f(a):
        return jax.lax.platform_dependent(a, cpu=lambda a: a @ a, default=lambda a: a @ a @ a)

    assert flops.count(f, a) == 2 * 2 * 3**3  # the dearest


@pytest.mark.slow
def test_scanned_vit_b_32_equals_xlas_count_of_the_unrolled_one():
    cfg = MODELS["ViT-B-32"]
    x = jax.ShapeDtypeStruct((1, *cfg.image.shape()), jnp.float32)

    def features(unroll):
        model = dual.build(dataclasses.replace(cfg, unroll=unroll))
        params, _ = jax.eval_shape(model.init, jax.random.key(0))
        return (lambda p, x: model.features("image", p, {}, x)), params

    scanned, params = features(1)
    unrolled, _ = features(12)
    cost = jax.jit(unrolled).lower(params, x).compile().cost_analysis()
    ours = flops.count(scanned, params, x)
    # XLA also counts what is no matrix product: norms, softmax, activations
    assert ours <= cost["flops"] <= 1.03 * ours


@pytest.mark.core
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1), (2, 2, 2)])
def test_a_part_of_the_batch_counts_on_every_device(shape):
    """Global: what a shard_map does on one part, times the parts; over `tensor` all do the same."""
    mesh = make_mesh(MeshConfig(*shape))
    spread = P(BATCH_AXES)
    x, w = jnp.zeros((16, 6)), jnp.zeros((6, 5))
    product = 2 * 16 * 6 * 5

    def local(x, w):
        return x @ w

    f = jax.shard_map(local, mesh=mesh, in_specs=(spread, P()), out_specs=spread)
    assert flops.count(f, x, w) == product * shape[2]
    inner = jax.shard_map(
        local, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"}
    )
    with jax.set_mesh(mesh):
        assert flops.count(jax.jit(inner), x, w) == product
