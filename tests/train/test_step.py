"""The step on meshes against one device, skipping of non-finite losses, speed knobs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from clip_jax.config.schema import MeshConfig
from clip_jax.data.feed import put
from clip_jax.interop.table import leaves
from clip_jax.metrics.flops import count_jaxpr
from clip_jax.models.dual import DualEncoder
from clip_jax.sharding.mesh import make_mesh
from clip_jax.sharding.rules import path_of
from clip_jax.train import program
from clip_jax.train.state import init_state
from clip_jax.train.step import mean_cosine

CFG = tiny.config("unused")


def arrays(step, b=16):
    rng = np.random.default_rng(step)
    image = rng.integers(0, 256, (b, 16, 16, 3), np.uint8)
    text = rng.integers(1, 300, (b, 8)).astype(np.int32)
    text[:, 6:] = 0
    index = np.stack([np.zeros(b), step * b + np.arange(b)], 1).astype(np.uint32)
    return {
        "image": image,
        "text": text,
        "index": index,
        "group": np.arange(b, dtype=np.int32) // 2,
    }


def train(cfg, shape=(1, 1, 1), steps=10):
    mesh = make_mesh(MeshConfig(*shape))
    prog = program.build(cfg, mesh)
    with jax.set_mesh(mesh):
        state = init_state(prog.init, prog.abstract, CFG.seed)
    execute = prog.compile()
    losses = []
    for i in range(steps):
        state, metrics = execute(state, put(arrays(i), mesh))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state), state


@pytest.fixture(scope="module")
def one_device():
    return train(CFG)[:2]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_ten_steps_equal_one_device(one_device, shape):
    losses, state, placed = train(CFG, shape)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    flat = jax.tree_util.tree_flatten_with_path(state.params)[0]
    for (path, got), want in zip(flat, jax.tree.leaves(one_device[1].params), strict=True):
        if not path_of(path).endswith("attn/k/bias"):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4, err_msg=path_of(path))
    if shape[1] == 8:
        table = placed.params["text"]["token"]["embedding"]  # 300 x 16
        assert table.addressable_shards[0].data.shape == (300, 2)


def test_two_runs_are_bitwise_equal(one_device):
    losses, state, _ = train(CFG)
    assert losses == one_device[0]
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(one_device[1]), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"unroll": 2}, {"remat": "full"}, {"remat": "dots"}, {"remat": "offload"}]
)
def test_speed_knobs_change_neither_names_nor_results(one_device, change):
    cfg = dataclasses.replace(CFG, model=dataclasses.replace(CFG.model, **change))
    losses, state, _ = train(cfg)
    assert jax.tree.structure(state.params) == jax.tree.structure(one_device[1].params)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)


def test_bfloat16_stays_near_float32(one_device):
    cfg = dataclasses.replace(CFG, model=dataclasses.replace(CFG.model, dtype="bfloat16"))
    losses, state, _ = train(cfg)
    np.testing.assert_allclose(losses, one_device[0], rtol=2e-2)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1)])
def test_a_non_finite_loss_never_reaches_the_parameters(shape):
    mesh = make_mesh(MeshConfig(*shape))
    cfg = dataclasses.replace(CFG, optim=dataclasses.replace(CFG.optim, ema=0.5))
    prog = program.build(cfg, mesh)
    with jax.set_mesh(mesh):
        state = init_state(prog.init, prog.abstract, CFG.seed)
    execute = prog.compile()
    state, _ = execute(state, put(arrays(0), mesh))
    # A token row that is not a number reaches only the rows of a batch that use it.
    table = np.array(state.params["text"]["token"]["embedding"])
    text = arrays(1)["text"]
    unused = next(i for i in range(1, 300) if i not in text)
    table[unused] = np.nan
    params = jax.tree.map(lambda x: x, state.params)
    params["text"]["token"]["embedding"] = jax.device_put(
        table, state.params["text"]["token"]["embedding"].sharding
    )
    state = dataclasses.replace(state, params=params)
    before = jax.device_get(state)
    poisoned = arrays(1)
    poisoned["text"][3, 0] = unused
    state, metrics = execute(state, put(poisoned, mesh))
    assert not np.isfinite(float(metrics["loss"]))
    after = jax.device_get(state)
    for name in ("params", "opt_state", "ema"):
        for a, b in zip(
            jax.tree.leaves(getattr(before, name)),
            jax.tree.leaves(getattr(after, name)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (2, 1, 1)


def test_logit_scale_stays_in_its_range():
    optim = dataclasses.replace(CFG.optim, learning_rate=10.0, logit_scale_max=20.0)
    _, state, _ = train(dataclasses.replace(CFG, optim=optim), steps=4)
    assert 0.0 <= float(state.params["logit"]["scale"]) <= np.log(20.0) + 1e-6


def test_the_first_state_is_traced_twice(monkeypatch):
    """Once for shapes, once on the mesh: of a large model, each time takes seconds."""
    calls, tower = [], DualEncoder._tower
    monkeypatch.setattr(DualEncoder, "_tower", lambda *a: calls.append(1) or tower(*a))
    cfg = dataclasses.replace(CFG, model=dataclasses.replace(CFG.model, embed_dim=12))
    mesh = make_mesh(cfg.mesh)
    prog = program.build(cfg, mesh)
    assert len(calls) == 2  # towers
    with jax.set_mesh(mesh):
        init_state(prog.init, prog.abstract, cfg.seed)
    assert len(calls) == 4
    program.build(cfg, mesh)
    assert len(calls) == 4


def test_metrics_have_their_names():
    prog = program.build(CFG, make_mesh(MeshConfig(1, 1, 1)))
    _, metrics = jax.eval_shape(prog.step, prog.abstract, prog.batch)
    assert sorted(metrics) == [
        "accuracy/image_to_text",
        "accuracy/text_to_image",
        "cosine/image",
        "cosine/text",
        "learning_rate",
        "logit_scale",
        "loss",
        "loss_floor",
        "norm/gradient",
        "norm/parameter",
        "norm/update",
        "skipped",
        "skipped_in_row",
    ]


def test_the_mean_cosine_of_a_batch_whose_pairs_are_more_than_an_int32_counts():
    z = jax.ShapeDtypeStruct((86_016, 8), np.float32)
    assert jax.eval_shape(mean_cosine, z).shape == ()
    z = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    assert float(mean_cosine(jnp.asarray(z))) == pytest.approx(2 / 12)


def test_a_bfloat16_first_moment_takes_half_the_memory():
    optim = dataclasses.replace(CFG.optim, mu_dtype="bfloat16")
    _, state, _ = train(dataclasses.replace(CFG, optim=optim), steps=2)
    moments = {x.dtype for x in jax.tree.leaves(state.opt_state) if x.ndim}
    assert moments == {jnp.dtype("bfloat16"), jnp.dtype("float32")}


def test_a_tower_that_stands_still_has_no_optimizer_state_and_no_backward_pass():
    def changed(*rates):
        return dataclasses.replace(CFG, optim=dataclasses.replace(CFG.optim, rates=rates))

    def flops(cfg):
        prog = program.build(cfg, make_mesh(MeshConfig(1, 1, 1)))
        return count_jaxpr(prog.trace().jaxpr.jaxpr)

    _, before, _ = train(CFG, steps=0)
    losses, after, _ = train(changed("image/.*=0"), steps=3)
    assert len(set(losses)) == 3
    for path, x in leaves(before.params).items():
        same = np.array_equal(x, leaves(after.params)[path])
        assert same == path.startswith("image/"), path
    assert not [p for p in leaves(after.opt_state) if "image/" in p]
    assert [p for p in leaves(after.opt_state) if "text/" in p]
    towers = [flops(changed(f"(?!{side}/).*=0")) for side in ("image", "text")]
    nothing_but_scale = flops(changed("(?!logit/).*=0"))
    # Each tower's backward pass counts by itself.
    saved = flops(CFG) - nothing_but_scale
    assert sum(t - nothing_but_scale for t in towers) == pytest.approx(saved, rel=1e-6)
    assert nothing_but_scale < 0.4 * flops(CFG)


@pytest.mark.parametrize("parts", [1, 2])
def test_layer_decay_and_rates_reach_the_parameters(parts):
    def change(**changes):
        optim = dataclasses.replace(CFG.optim, weight_decay=0.0, grad_clip=0.0, **changes)
        cfg = dataclasses.replace(CFG, optim=optim, num_microbatches=parts)
        return leaves(train(cfg, steps=1)[1].params)

    start = leaves(train(CFG, steps=0)[1].params)
    plain = change()
    scaled = change(rates=("text/head/.*=0.25",), image_layer_decay=0.5)
    moved = {p: (scaled[p] - start[p], plain[p] - start[p]) for p in start}
    factors = {"text/head/kernel": 0.25, "text/posemb": 1.0, "image/posemb": 0.125}
    for path, factor in factors.items():
        got, want = moved[path]
        np.testing.assert_allclose(got, factor * want, rtol=2e-2, atol=1e-7, err_msg=path)
    got, want = moved["image/blocks/mlp/up/kernel"]
    np.testing.assert_allclose(got[0], 0.25 * want[0], rtol=2e-2, atol=1e-7)
    np.testing.assert_allclose(got[1], 0.5 * want[1], rtol=2e-2, atol=1e-7)


def test_the_moving_average_follows_the_parameters():
    cfg = dataclasses.replace(CFG, optim=dataclasses.replace(CFG.optim, ema=0.3))
    want = [leaves(train(CFG, steps=n)[1].params) for n in range(4)]
    average = dict(want[0])
    for step in range(3):
        decay = min(0.3, (1 + step) / (10 + step))
        average = {p: decay * x + (1 - decay) * want[step + 1][p] for p, x in average.items()}
    _, state, _ = train(cfg, steps=3)
    for path, x in leaves(state.ema).items():
        np.testing.assert_allclose(x, average[path], rtol=0, atol=2e-6, err_msg=path)
    assert leaves(train(CFG, steps=0)[1].ema) == {}
