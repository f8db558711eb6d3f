"""Which loss `auto` is, and how large a slice is."""

import jax
import jax.numpy as jnp
import pytest

from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.losses import build, chosen, keeps, named
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


@pytest.mark.parametrize(
    ("cfg", "name"),
    [
        (LossConfig(), "softmax (auto: 96.0 MiB of logits fit into loss.memory_mib=512)"),
        (
            LossConfig(memory_mib=95),
            "softmax_ring (auto: 96.0 MiB of logits do not fit into loss.memory_mib=95)",
        ),
        (LossConfig("sigmoid_ring"), "sigmoid_ring"),
        (LossConfig("own_loss:make"), "own_loss:make"),
    ],
)
def test_auto_says_what_it_is_and_why(cfg, name):
    """Three blocks of 1,024 x 8,192 floats."""
    assert named(cfg, make_mesh(MeshConfig()), 8_192) == name


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


@pytest.mark.parametrize("kind", ["softmax_ring", "softmax_chunked", "sigmoid_ring"])
@pytest.mark.parametrize(
    ("memory_mib", "negatives", "products"), [(16, 0, 3), (15, 0, 4), (16, 1, 4)]
)
def test_similarities_stay_within_their_share_of_the_budget(kind, memory_mib, negatives, products):
    """512 pairs: 1 MiB of similarities on one device, a sixteenth of 16 MiB."""
    mesh, cfg = make_mesh(MeshConfig(1)), LossConfig(kind, memory_mib=memory_mib, chunk=512)
    assert keeps(cfg, mesh, 512, negatives) == (products == 3)
    loss = build(cfg, mesh, 512, negatives)
    z = {"image": jnp.zeros((512, 2)), "text": jnp.zeros((512, 2))}
    if negatives:
        z["negative"] = jnp.zeros((512, negatives, 2))
    step = jax.grad(lambda z: loss(z, {"scale": 1.0}, jnp.arange(512))[0])
    assert str(jax.make_jaxpr(step)(z)).count("dot_general[") == products


def test_a_device_keeps_its_own_similarities_only():
    mesh = make_mesh(MeshConfig())
    assert keeps(LossConfig("softmax_ring"), mesh, 8_192)  # 1,024 x 8,192 floats: 32 MiB
    assert not keeps(LossConfig("softmax_ring"), mesh, 8_200)
