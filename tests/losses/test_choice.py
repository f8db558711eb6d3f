"""Which loss `auto` is, and how large a slice is."""

import pytest

from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.losses import build, chosen
from clip_jax.sharding.mesh import make_mesh

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("batch_size", "negatives", "kind"),
    [
        (8_192, 0, "softmax"),  # 3 blocks of 1,024 x 8,192 floats: 96 MiB
        (18_916, 0, "softmax"),  # 512 MiB, just below
        (18_928, 0, "softmax_ring"),
        (8_192, 8, "softmax_ring"),
    ],
)
def test_auto_goes_by_bytes(batch_size, negatives, kind):
    mesh = make_mesh(MeshConfig())
    assert chosen(LossConfig(), mesh, batch_size // 8 * 8, negatives).kind == kind


def test_a_slice_fits_its_share_of_the_budget():
    mesh = make_mesh(MeshConfig())
    ring = chosen(LossConfig("softmax_ring"), mesh, 8 * 16_384)
    assert ring.chunk == 256 and ring.chunk * 16_384 * 4 == 512 * 2**20 // 32
    gathered = chosen(LossConfig("softmax_chunked"), mesh, 8 * 16_384)
    assert gathered.chunk == 32  # its rows are eight times as long
    assert chosen(LossConfig("softmax_ring", chunk=7), mesh, 8 * 16_384).chunk == 7
    assert chosen(LossConfig("softmax_ring"), mesh, 8).chunk == 1


def test_no_slice_is_larger_than_what_a_device_has():
    assert chosen(LossConfig("softmax_ring"), make_mesh(MeshConfig()), 64).chunk == 8


def test_a_loss_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "own_loss.py").write_text("def make(cfg):\n    return lambda z, logit, group: 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    loss = build(LossConfig(kind="own_loss:make"), make_mesh(MeshConfig()), 8)
    assert loss({}, {}, None) == 7
