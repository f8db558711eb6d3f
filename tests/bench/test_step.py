"""The step benchmark runs the training step and says what it measured; no test looks at rates."""

import pytest

from clip_jax.bench import step as bench
from clip_jax.errors import UserError

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
