"""The towers, the loss, the gradient and ten AdamW steps against OpenCLIP (torch, CPU, fp32).

Tolerances: the table of tests/golden/README.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
import open_clip_weights as oc
import pytest

from clip_jax.config.schema import LossConfig, OptimConfig
from clip_jax.losses import build as build_loss
from clip_jax.models import dual
from clip_jax.sharding.rules import path_of
from clip_jax.train.optimizer import make_optimizer
from clip_jax.train.schedule import make_schedule
from clip_jax.train.state import make_init
from clip_jax.train.step import loss_and_grads, make_step

CASES = ("vit_gelu", "vit_quickgelu")


class Case:
    def __init__(self, name):
        self.name = name
        folder = oc.GOLDEN / name
        self.cfg = oc.model_config(name)
        self.model = dual.build(self.cfg)
        self.read = lambda f: oc.params(oc.read_safetensors(folder / f), self.cfg)
        self.params = jax.tree.map(jnp.asarray, self.read("weights.safetensors"))
        self.out = np.load(folder / "outputs.npz")
        inputs = np.load(folder / "inputs.npz")
        # mean 0 and std 1: what goes in is multiplied by 255 and divided again
        pixels = inputs["images"].transpose(0, 2, 3, 1)
        b = len(pixels)
        self.batch = {
            "image": jnp.asarray(pixels) * 255.0,
            "text": jnp.asarray(inputs["tokens"]),
            "index": jnp.zeros((b, 2), jnp.uint32),
            "group": jnp.arange(b, dtype=jnp.int32),
        }


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


def close(got, want, tolerance):
    assert got.shape == want.shape
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=tolerance)


def embedded(case):
    return jax.jit(lambda p, b: case.model.embed(p, {}, b, None)[0])(case.params, case.batch)


def grads_of(case, batch=None):
    loss = build_loss(LossConfig())
    f = jax.jit(
        lambda p, b: loss_and_grads(case.model.embed, loss, p, {}, b, jax.random.key(0))[:2]
    )
    return f(case.params, batch or case.batch)


def test_features(case):
    image = jax.jit(case.model.image_features)(case.params, case.batch["image"] / 255.0)
    text = jax.jit(case.model.text_features)(case.params, case.batch["text"])
    close(image, case.out["image_features_raw"], 1e-5)
    close(text, case.out["text_features_raw"], 1e-5)
    z = embedded(case)
    close(z["image"], case.out["image_features"], 1e-5)
    close(z["text"], case.out["text_features"], 1e-5)


def test_logits_and_loss(case):
    z = embedded(case)
    logits = jnp.exp(case.params["logit"]["scale"]) * z["image"] @ z["text"].T
    close(logits, case.out["logits_per_image"], 1e-4)
    value, _ = build_loss(LossConfig())(z, case.params["logit"], case.batch["group"])
    assert abs(float(value) - float(case.out["loss"])) < 1e-5


def test_gradients(case):
    _, grads = grads_of(case)
    want = case.read("grads.safetensors")
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    assert len(flat) == len(jax.tree.leaves(want))
    absolute = 1e-4 if case.name == "vit_quickgelu" else 1e-5
    for (path, got), expected in zip(flat, jax.tree.leaves(want), strict=True):
        error = np.abs(np.asarray(got) - expected).max()
        assert error <= absolute, path_of(path)
        if not path_of(path).endswith("attn/k/bias"):  # exactly zero but for rounding
            assert error <= 2e-5 * max(np.abs(expected).max(), 1e-3), path_of(path)


def test_ten_adamw_steps(case):
    optim = OptimConfig(learning_rate=1e-3, weight_decay=0.2, schedule="constant")
    tx = make_optimizer(optim, case.params)
    state = make_init(lambda _: case.params, tx)(jax.random.key(0))
    step = make_step(
        case.model.embed, build_loss(LossConfig()), tx, make_schedule(optim, 10), optim
    )
    step = jax.jit(step)
    losses, scales = [], []
    for _ in range(10):
        state, metrics = step(state, case.batch)
        losses.append(float(metrics["loss"]))
        scales.append(float(state.params["logit"]["scale"]))
    np.testing.assert_allclose(losses, case.out["losses"], rtol=0, atol=3e-5)
    np.testing.assert_allclose(scales, case.out["logit_scale_param_after_step"], rtol=0, atol=1e-5)
    want = jax.tree.leaves(case.read("final.safetensors"))
    errors = []
    for (path, got), expected in zip(
        jax.tree_util.tree_flatten_with_path(state.params)[0], want, strict=True
    ):
        if path_of(path).endswith("attn/k/bias"):
            continue  # exactly zero gradient: Adam takes steps of the size of the noise there
        errors.append(np.abs(np.asarray(got) - expected).max())
        assert errors[-1] <= 1e-4, path_of(path)
    assert np.median(errors) <= 2e-6


def test_decayed_parameters_are_open_clips(case):
    import json

    from clip_jax.train.optimizer import decay_mask

    listed = json.loads((oc.GOLDEN / case.name / "config.json").read_text())["decayed_params"]
    names = oc.read_safetensors(oc.GOLDEN / case.name / "weights.safetensors")
    marked = {n: np.full(a.shape, float(n in listed), np.float32) for n, a in names.items()}
    want = jax.tree.map(lambda a: bool(np.all(a)), oc.params(marked, case.cfg))
    assert decay_mask(OptimConfig().decay, case.params) == want
