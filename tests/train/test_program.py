"""What a program takes from the config beyond its parts, which have tests of their own."""

import dataclasses

import gathered
import jax
import pytest

import tiny
from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.errors import UserError
from clip_jax.metrics.flops import inner_jaxprs
from clip_jax.planner import analytic
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import program


def rings(jaxpr):
    """The (source, target) pairs of every ppermute."""
    for e in jaxpr.eqns:
        if e.primitive.name == "ppermute":
            yield e.params["perm"]
        for inner in inner_jaxprs(e.params):
            yield from rings(inner)


@pytest.mark.parametrize("num_slices", [1, 2])
def test_the_ring_loss_turns_inside_slices(num_slices):
    mesh = MeshConfig(4, 2, num_slices=num_slices)
    cfg = dataclasses.replace(tiny.config("unused"), loss=LossConfig("softmax_ring"), mesh=mesh)
    jaxpr = program.build(cfg, make_mesh(cfg.mesh)).trace().jaxpr.jaxpr
    across = {frozenset(a // 4 != b // 4 for a, b in pairs) for pairs in rings(jaxpr)}
    inside, between, both = map(frozenset, ({False}, {True}, {False, True}))
    assert across == ({both} if num_slices == 1 else {inside, between})


OWN_LOSS = """
import jax.numpy as jnp

def build(cfg):
    def loss(z, logit, group):
        apart = z["image"] - z["text"]  # (b, e)
        return jnp.exp(logit["scale"]) * jnp.mean(apart**2), {"own/pairs": jnp.size(group) + 0.0}
    return loss
"""


@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_of_the_users_own_is_trained_and_planned(parts, tmp_path, monkeypatch):
    (tmp_path / "own_program_loss.py").write_text(OWN_LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = tiny.config("x", loss=LossConfig("own_program_loss:build"), num_microbatches=parts)
    prog = program.build(cfg, make_mesh(MeshConfig()))
    state, metrics = jax.eval_shape(prog.step, prog.abstract, prog.batch)
    assert {"loss", "own/pairs", "norm/gradient"} <= set(metrics)
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, prog.abstract)
    found, least = analytic.measure(cfg, {"data": 8, "fsdp": 1, "tensor": 1})
    assert found.flops >= program.model_flops(cfg) > 0 and least > found.optimizer


def test_batch_norm_is_refused_with_advice_that_helps():
    """Remat does nothing for the tower that holds the memory."""
    cfg = tiny.config("unused", num_microbatches=2)
    image = dataclasses.replace(
        cfg.model.image, kind="resnet", size=32, width=8, heads=4, stages=(1, 1, 1, 1)
    )
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, image=image))
    with pytest.raises(UserError, match="more devices or a lower config.batch_size$") as e:
        program.build(cfg, make_mesh(MeshConfig(data=1)))
    assert "remat" not in str(e.value)


@pytest.mark.slow
def test_layers_gather_their_own_weights_and_no_states():
    """On eight CPU devices; tests/planner/test_libtpu.py looks at the program for TPUs."""
    cfg = gathered.config()
    text = program.build(cfg, make_mesh(cfg.mesh)).compile().as_text()
    assert gathered.faults(*gathered.travelling(text)) == []
