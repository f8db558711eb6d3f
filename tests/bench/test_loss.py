"""The loss benchmark measures the same loss in all its forms; no test looks at times."""

import os
from unittest import mock

import jax
import numpy as np
import pytest
from loss_oracle import example

from clip_jax.bench import loss as bench
from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.errors import UserError
from clip_jax.losses import LOSSES
from clip_jax.planner import ENVIRONMENT
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


@pytest.fixture
def cpus_as_tpus(monkeypatch):
    """The compiler for the CPU in place of libtpu's; the variables for libtpu end with the test."""
    monkeypatch.setattr(
        bench.compiler, "topology_devices", lambda topology: jax.devices()[: topology.num_devices]
    )
    with mock.patch.dict(os.environ):
        yield


@pytest.mark.parametrize("more", [[], ["--topology=v5e:2x4"]])
def test_batches_divide_over_the_devices(cpus_as_tpus, more):
    with pytest.raises(UserError, match=r"multiples of 8, the devices .got 35.; the next is 40"):
        bench.main(["--batch_sizes=35", *more])


def test_every_loss_is_weighed_on_the_chips_of_an_accelerator_type(cpus_as_tpus, capsys):
    os.environ.pop("TPU_SKIP_MDS_QUERY", None)
    assert bench.main(["--topology=v5litepod-4", "--batch_sizes=256", "--embed_dim=32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("v5litepod-4: 4 devices, e = 32")
    assert [line.split()[1] for line in lines[1:]] == list(LOSSES)
    assert all(" MiB (temporaries " in line for line in lines[1:])
    assert {k: os.environ[k] for k in ENVIRONMENT} == {**ENVIRONMENT, "JAX_PLATFORMS": "cpu"}


def test_the_peak_holds_what_goes_in_and_out(cpus_as_tpus):
    """A CPU's temporaries are not part of it."""
    mesh = bench.topology_mesh("v5e:2x2")
    most, temporaries = bench.peak("softmax", mesh, 256, 32, LossConfig("softmax"))
    arrays = 2 * 2 * (256 // 4 * 32) * 2  # two sides and their gradients, bfloat16
    logits = 256 // 4 * 256 * 4
    assert arrays <= most < 1.1 * arrays and temporaries >= logits


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("Used 27.46G of 15.75G hbm. Exceeded", "does not fit: 27.46 of 15.75 GiB"),
        ("temporaries (19.03G) exceeds available HBM (15.75G)", "does not fit: 19.03 of 15.75 GiB"),
        ("who knows", "does not fit"),
    ],
)
def test_what_does_not_fit_is_a_line(monkeypatch, message, text):
    def none(*_):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    monkeypatch.setattr(bench, "peak", none)
    assert bench.peak_text("softmax", None, 0, 0, None) == text


def test_gpus_are_not_weighed():
    with pytest.raises(UserError, match="only TPU programs .*got H100:8"):
        bench.topology_mesh("H100:8")
