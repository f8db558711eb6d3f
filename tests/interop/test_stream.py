"""An import streams: what it needs beside the weights is a leaf, not a copy of the file.

CLIP_JAX_STREAM=ViT-L-14 python -m pytest tests/interop/test_stream.py is the long form.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import jax, numpy as np
import clip_jax
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import MeshConfig
from clip_jax.interop import build, open_clip, read, table
from clip_jax.interop.safetensors import write_safetensors
from clip_jax.sharding.mesh import make_mesh

name, path = sys.argv[1:]
shapes = build.model_shapes(MODELS[name])
flat = {p: np.broadcast_to(np.float32(0.5), x.shape) for p, x in shapes.items()}
write_safetensors(path, table.write_items(open_clip.table(MODELS[name]), flat, np.float32), {})
jax.block_until_ready(jax.numpy.ones(3) + 1)


def peak():  # since the last reset, KiB
    lines = open("/proc/self/status").read().splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1])


open("/proc/self/clear_refs", "w").write("5")
before = peak()
params, _ = build.build(read.read(path, name), make_mesh(MeshConfig(data=1)))
jax.block_until_ready(params)
size = sum(x.nbytes for x in jax.tree.leaves(params)) / 1024
print(round((peak() - before) / size, 3))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_an_import(tmp_path):
    name = os.environ.get("CLIP_JAX_STREAM", "ViT-B-32")
    args = [sys.executable, "-c", SCRIPT, name, str(tmp_path / "w.safetensors")]
    out = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    assert float(out.split()[-1]) <= 1.5
