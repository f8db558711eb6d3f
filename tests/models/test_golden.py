"""Towers, losses, gradients and ten AdamW steps against OpenCLIP and transformers (torch, fp32).

Tolerances: the table of tests/golden/README.md.
"""

import golden_cases as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config.schema import LossConfig, MeshConfig, OptimConfig
from clip_jax.interop.table import leaves, tree
from clip_jax.losses import build as build_loss
from clip_jax.models import dual
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train.groups import decay_mask, moving
from clip_jax.train.optimizer import make_optimizer
from clip_jax.train.schedule import make_schedule
from clip_jax.train.state import make_begin
from clip_jax.train.step import loss_and_grads, make_step

# tower outputs, gradients (absolute, relative), losses of ten steps, final parameters, median
VIT = (1e-5, 1e-5, 2e-5, 3e-5, 1e-4, 2e-6)
RESNET = (2e-5, 3e-4, 2e-4, 1e-4, 1e-3, 5e-5)


class Case:
    def __init__(self, name):
        self.name = name
        self.cfg = golden.model_config(name)
        self.model = dual.build(self.cfg)
        params, stats = golden.weights(name, self.cfg)
        self.params, self.stats = jax.tree.map(jnp.asarray, (params, stats))
        self.loss = build_loss(
            LossConfig(golden.settings(name)["loss"]), make_mesh(MeshConfig(data=1)), 8
        )
        self.out = np.load(golden.GOLDEN / name / "outputs.npz")
        self.use = RESNET if name == "resnet" else VIT
        inputs = np.load(golden.GOLDEN / name / "inputs.npz")
        # mean 0 and std 1: what goes in is multiplied by 255 and divided again
        pixels = inputs["images"].transpose(0, 2, 3, 1)
        b = len(pixels)
        self.batch = {
            "image": jnp.asarray(pixels) * 255.0,
            "text": jnp.asarray(inputs["tokens"]),
            "index": jnp.zeros((b, 2), jnp.uint32),
            "group": jnp.arange(b, dtype=jnp.int32),
        }


@pytest.fixture(scope="module", params=golden.OPEN_CLIP + golden.HF)
def case(request):
    return Case(request.param)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(n, marks=[pytest.mark.core] if n == "vit_gelu" else [])
        for n in golden.OPEN_CLIP
    ],
)
def trained(request):
    return Case(request.param)


def close(got, want, tolerance):
    assert got.shape == want.shape
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=tolerance)


def is_key_bias(path):
    return path.endswith(("attn/k/bias", "pool/k/bias"))


@pytest.mark.core
def test_features(case):
    features = jax.jit(case.model.features, static_argnums=0)
    image = features("image", case.params, case.stats, case.batch["image"] / 255.0)
    text = features("text", case.params, case.stats, case.batch["text"])
    close(image, case.out["image_features_raw"], case.use[0])
    close(text, case.out["text_features_raw"], case.use[0])


def test_logits_and_loss(case):
    embed = jax.jit(lambda p, s, b: case.model.embed(p, s, b, None)[0])
    z = embed(case.params, case.stats, case.batch)
    close(z["image"], case.out["image_features"], case.use[0])
    close(z["text"], case.out["text_features"], case.use[0])
    logit = case.params["logit"]
    logits = jnp.exp(logit["scale"]) * z["image"] @ z["text"].T + logit.get("bias", 0.0)
    close(logits, case.out["logits_per_image"], 1e-4)
    value, _ = case.loss(z, logit, case.batch["group"])
    assert abs(float(value) - float(case.out["loss"])) < 1e-5


def test_gradients(case):
    rng = jax.random.key(0) if case.stats else None  # batch norms were in training mode
    f = jax.jit(lambda p, s, b: loss_and_grads(case.model.embed, case.loss, p, s, b, rng))
    _, grads, stats, _ = f(case.params, case.stats, case.batch)
    want = golden.flat(case.name, case.cfg, "grads.safetensors")
    got = leaves(grads)
    assert set(got) == set(want)
    absolute = 1e-4 if case.name == "vit_quickgelu" else case.use[1]
    for path, expected in want.items():
        error = np.abs(np.asarray(got[path]) - expected).max()
        assert error <= absolute, path
        if not is_key_bias(path):  # exactly zero but for rounding
            assert error <= case.use[2] * max(np.abs(expected).max(), 1e-3), path
    for path, value in leaves(stats).items():
        if not path.endswith("/count"):
            close(value, running(case, path), 2e-6)


def running(case, path):
    """Running statistics after one training forward."""
    shapes = {path: leaves(case.stats)[path].shape}
    (rule,) = [r for r in golden.rules(case.name, case.cfg) if r.ours == (path,)]
    return case.out[f"bn1/{rule.theirs}"].reshape(shapes[path])


def test_training_mode_of_batch_norm():
    case = Case("resnet")
    z, _ = jax.jit(case.model.embed)(case.params, case.stats, case.batch, jax.random.key(0))
    close(z["image"], case.out["train_image_features"], 2e-5)


def test_ten_adamw_steps(trained):
    case = trained
    optim = OptimConfig(learning_rate=1e-3, weight_decay=0.2, schedule="constant")
    keep = moving(optim, case.params)
    tx = make_optimizer(optim, case.params, decay_mask(optim.decay, case.params))
    state = make_begin(tx, keep)(case.params, case.stats, {}, jax.random.key(0))
    step = make_step(case.model.embed, case.loss, tx, make_schedule(optim, 10), optim, keep)
    step = jax.jit(step)
    losses, scales = [], []
    for _ in range(10):
        state, metrics = step(state, case.batch)
        losses.append(float(metrics["loss"]))
        scales.append(float(state.params["logit"]["scale"]))
    np.testing.assert_allclose(losses, case.out["losses"], rtol=0, atol=case.use[3])
    np.testing.assert_allclose(scales, case.out["logit_scale_param_after_step"], rtol=0, atol=1e-5)
    got = {**leaves(state.params), **leaves(state.stats)}
    errors = []
    for path, expected in golden.flat(case.name, case.cfg, "final.safetensors").items():
        error = np.abs(np.asarray(got[path]) - expected).max()
        if path.endswith("/count"):
            assert error == 0
        elif path.endswith(("/mean", "/var")):
            assert error <= 5e-4, path
        elif not is_key_bias(path):  # Adam takes steps of the size of the noise there
            errors.append(error)
            assert error <= case.use[4], path
    assert np.median(errors) <= case.use[5]


def test_decayed_parameters_are_open_clips(trained):
    case = trained
    listed = set(golden.settings(case.name)["decayed_params"])
    mask = leaves(decay_mask(OptimConfig().decay, case.params))
    for rule in golden.rules(case.name, case.cfg):
        for path in rule.ours:
            if path in mask:
                assert mask[path] == (rule.theirs.replace("{i}", "0") in listed), path


def test_tree_is_the_inverse_of_leaves():
    nested = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert tree(leaves(nested)) == nested
