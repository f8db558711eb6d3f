"""The text of all parameters."""

import dataclasses

import pytest

import tiny
from clip_jax.config.schema import MeshConfig
from clip_jax.interop.table import leaves
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import program, table

pytestmark = pytest.mark.core


def test_every_parameter_with_what_happens_to_it():
    cfg = tiny.config("x", mesh=MeshConfig(data=2, fsdp=4))
    optim = dataclasses.replace(
        cfg.optim, rates=("image/posemb=0", "text/token.*=10"), image_layer_decay=0.5
    )
    params = program.build(
        dataclasses.replace(cfg, optim=optim), make_mesh(cfg.mesh)
    ).abstract.params
    lines = table.text(params, optim).splitlines()
    rows = {line.split()[0]: " ".join(line.split()) for line in lines[1:-2]}
    assert rows.keys() == leaves(params).keys()
    assert rows["text/token/embedding"].endswith("300 x 16 4,800 fsdp yes 10")
    assert rows["image/posemb"] == "image/posemb 4 x 16 64 - yes 0"
    assert rows["logit/scale"] == "logit/scale () 1 - no 1"
    kernel = "image/blocks/mlp/up/kernel"
    assert rows[kernel] == f"{kernel} 2 x 16 x 32 1,024 tensor, fsdp yes 0.25 to 0.5"
    assert lines[-1] == f"{program.num_params(params):,} in {len(rows)} arrays"
