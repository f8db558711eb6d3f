"""The step benchmark runs the training step and says what it measured; no test looks at rates."""

import dataclasses

import pytest

from clip_jax.bench import step as bench
from clip_jax.errors import UserError
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import program

SMALL = [
    *(f"--config.model.{side}.{field}" for side in ("image", "text")
      for field in ("width=32", "layers=1", "heads=2", "mlp_dim=64")),
    "--config.model.image.size=32", "--config.model.embed_dim=16",
    "--config.mesh.data=1",
]  # fmt: skip


def test_it_prints_the_program_and_a_line(capsys):
    assert bench.main(["--models=ViT-B-32", "--batch_size=4", "--turns=1", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ViT-B-32, batch 4, float32, remat none, ")
    assert "compiled in" in lines[0] and "memory per device" in lines[0]
    assert lines[1].split()[0] == "ours" and "examples/s" in lines[1] and len(lines) == 2


def test_other_peers_are_refused():
    with pytest.raises(UserError, match="--peer: only open_clip"):
        bench.main(["--peer=big_vision"])


@pytest.mark.parametrize("negatives", [(), ("swapped", "counted")])
def test_the_batch_is_that_of_the_program(negatives):
    cfg = bench.config("ViT-B-32", 4, SMALL)
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, negatives=negatives))
    made = {k: (x.shape, x.dtype) for k, x in bench.arrays(cfg).items()}
    wanted = program.abstract_batch(cfg, make_mesh(cfg.mesh))
    assert made == {k: (x.shape, x.dtype) for k, x in wanted.items()}
