"""On an NVIDIA GPU: env JAX_PLATFORMS=cuda,cpu XLA_FLAGS= python -m pytest -m gpu tests/train."""

import dataclasses
import functools
import os
import signal
import time

import command
import jax
import numpy as np
import pytest

import tiny
from clip_jax import losses
from clip_jax.bench.step import arrays, config
from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.data.feed import put
from clip_jax.errors import RESTART
from clip_jax.models import dual
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train.step import loss_and_grads

pytestmark = pytest.mark.gpu
ON_GPU = {"JAX_PLATFORMS": "cuda,cpu", "XLA_FLAGS": "", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@functools.cache
def cfg():
    """Two layers of ViT-B-32's kind: heads of 64, 13 of 17 and 77 tokens, causal text."""
    sides = [
        f"--config.model.{side}.{field}"
        for side in ("image", "text")
        for field in ("width=128", "layers=2", "heads=2", "mlp_dim=256")
    ]
    own = ("--config.model.image.size=128", "--config.model.image.patch_dropout=0.25")
    return config("ViT-B-32", 16, (*sides, *own))


def gradient(platform, dtype, attention="xla", precision="highest", loss="softmax", chunk=0):
    """(loss, flat float64 gradient) on the first device of a platform, from the same weights."""
    model = dataclasses.replace(cfg().model, dtype=dtype, attention=attention)
    devices = jax.devices(platform)[:1]
    mesh = make_mesh(MeshConfig(data=1), devices)
    whole = dual.build(model, cfg().augment)
    compute = losses.build(LossConfig(loss, chunk=chunk), mesh, 16)
    with jax.default_device(jax.devices("cpu")[0]):
        plain = dual.build(cfg().model, cfg().augment)
        params, stats = plain.init(jax.random.key(0))
        key = jax.random.key(5)
    place = functools.partial(jax.device_put, device=devices[0])
    with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
        step = jax.jit(
            lambda p, s, batch, k: loss_and_grads(whole.embed, compute, p, s, batch, k, 1)[:2]
        )
        value, grads = step(place(params), place(stats), put(arrays(cfg()), mesh), place(key))
    flat = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(jax.device_get(grads))]
    return float(value), np.concatenate(flat)


@functools.cache
def oracle():
    return gradient("cpu", "float32")


def far(one, two):
    return np.linalg.norm(one - two) / np.linalg.norm(two)


def test_float32_as_on_the_cpu():
    value, grads = gradient("cuda", "float32")
    assert value == pytest.approx(oracle()[0], rel=1e-5)
    assert far(grads, oracle()[1]) < 1e-4


@pytest.mark.parametrize("kind", ["softmax", "softmax_chunked", "softmax_ring"])
def test_losses_as_on_the_cpu(kind):
    value, grads = gradient("cuda", "float32", loss=kind, chunk=4)
    assert value == pytest.approx(oracle()[0], rel=1e-5)
    assert far(grads, oracle()[1]) < 1e-4


def test_fused_attention_is_as_exact_as_xla():
    """Both in bfloat16, against float32 on the CPU."""
    plain, fused = (gradient("cuda", "bfloat16", kind)[1] for kind in ("xla", "cudnn"))
    print(f"error of the gradient: xla {far(plain, oracle()[1])}, cudnn {far(fused, oracle()[1])}")
    assert far(fused, oracle()[1]) < 1.3 * far(plain, oracle()[1]) < 0.1


def test_the_fused_kernel_is_in_the_program():
    model = dataclasses.replace(cfg().model, dtype="bfloat16", attention="cudnn")
    whole = dual.build(model, cfg().augment)
    params, stats = jax.eval_shape(whole.init, jax.random.key(0))
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in arrays(cfg()).items()}
    text = jax.jit(lambda p, s, b: whole.embed(p, s, b, None)[0]).lower(params, stats, batch)
    assert "__cudnn$fmha" in text.as_text()


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    """Not run yet; without the preset 1,769 of these losses differed between two runs (H200)."""
    folder = tiny.write_folder(tmp_path / "pairs")
    more = (
        "--config.num_steps=2000",
        "--config.checkpoint.every=500",
        "--config.compile.preset=gpu_deterministic",
    )

    def run(name, stop_after=0):
        child = command.start(*command.train_args(folder, tmp_path / name, *more), **ON_GPU)
        while stop_after and child.poll() is None:
            log = tmp_path / name / "metrics.jsonl"
            if log.exists() and len(log.read_text().splitlines()) > stop_after:
                os.killpg(child.pid, signal.SIGTERM)
                break
            time.sleep(0.01)
        out, err = child.communicate(timeout=200)
        assert child.returncode == (RESTART if stop_after else 0), out + err
        return command.losses(tmp_path / name)

    whole = run("whole")
    assert len(run("parts", stop_after=100)) < 2000
    parts = run("parts")
    differ = [k for k, v in whole.items() if parts[k] != v]
    assert not differ, f"{len(differ)} of {len(whole)} losses differ: {differ[:5]}"
