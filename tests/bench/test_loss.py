"""The loss benchmark measures the same loss in all its forms; no test looks at times."""

import jax
import numpy as np
import pytest
from loss_oracle import example

from clip_jax.bench import loss as bench
from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.sharding.mesh import batch_sharding, make_mesh


def test_two_blocks_are_the_same_loss():
    mesh = make_mesh(MeshConfig())
    z, logit, group = example(b=32)
    put = lambda a: jax.device_put(a, batch_sharding(mesh))  # noqa: E731
    results = []
    with jax.set_mesh(mesh):
        for kind in ("softmax", "two blocks"):
            f = bench.gradient(kind, mesh, 32, LossConfig("softmax"))
            (value, _), (dz, _) = f(jax.tree.map(put, z), logit, put(group))
            results.append((float(value), np.asarray(dz["image"])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0, atol=1e-6)


def test_it_prints_a_line_for_each(capsys):
    args = ["--batch_sizes=64", "--embed_dim=16", "--rounds=1", "--kinds=softmax,softmax_ring"]
    assert bench.main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("8 devices (cpu), b = 64, e = 16")
    assert [line.split("  ")[0].strip() for line in lines[1:]] == [
        "softmax",
        "softmax_ring",
        "two blocks",
    ]
    assert "1.00 of softmax" in lines[1] and "1.00 of two blocks" in lines[3]
