"""Exact gradient accumulation: every leaf of the gradient, with dropout of patches, on meshes."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

import tiny
from clip_jax import losses
from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.data.feed import put
from clip_jax.errors import UserError
from clip_jax.models import dual
from clip_jax.planner import counts, hlo
from clip_jax.sharding.mesh import make_mesh
from clip_jax.sharding.rules import path_of
from clip_jax.train import program
from clip_jax.train.step import loss_and_grads

B = 32


def config(**changes):
    """A tiny run with patch dropout (of 16 patches) and augmentation."""
    cfg = tiny.config("unused")
    image = dataclasses.replace(cfg.model.image, patch=4, patch_dropout=0.5, layers=1)
    model = dataclasses.replace(cfg.model, image=image, logit_bias=True, logit_bias_init=-2.0)
    augment = dataclasses.replace(cfg.augment, shift=2.0)
    return dataclasses.replace(cfg, batch_size=B, model=model, augment=augment, **changes)


def arrays(negatives=0):
    rng = np.random.default_rng(7)
    batch = {
        "image": rng.integers(0, 256, (B, 16, 16, 3), np.uint8),
        "text": rng.integers(1, 300, (B, 8)).astype(np.int32),
        "index": np.stack([np.zeros(B), np.arange(B)], 1).astype(np.uint32),
        "group": (np.arange(B) // 2).astype(np.int32),
    }
    if negatives:
        batch["negative"] = rng.integers(1, 300, (B, negatives, 8)).astype(np.int32)
    return batch


def gradient(kind, parts, shape, negatives=0):
    cfg, mesh = config(), make_mesh(MeshConfig(*shape))
    model = dual.build(cfg.model, cfg.augment)
    loss = losses.build(LossConfig(kind, chunk=3), mesh, B, negatives)
    params, stats = model.init(jax.random.key(0))
    with jax.set_mesh(mesh):
        f = jax.jit(
            lambda p, batch: loss_and_grads(
                model.embed, loss, p, stats, batch, jax.random.key(5), parts
            )[:2]
        )
        value, grads = f(params, put(arrays(negatives), mesh))
    return float(value), jax.device_get(grads)


@functools.cache
def whole(kind):
    """Of the whole batch at once, on one device."""
    return gradient(kind, 1, (1, 1, 1), negatives=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "parts", "shape"),
    [
        ("softmax", 2, (1, 1, 1)),
        ("softmax", 8, (1, 1, 1)),
        ("softmax", 4, (8, 1, 1)),
        ("softmax_ring", 4, (8, 1, 1)),
        ("softmax_ring", 2, (2, 2, 2)),
        ("sigmoid_ring", 2, (2, 2, 2)),
    ],
)
def test_the_gradient_is_that_of_the_whole_batch(kind, parts, shape):
    loss, wanted = whole(kind)
    value, grads = gradient(kind, parts, shape, negatives=1)
    assert abs(value - loss) <= 1e-6 * loss
    flat = {path_of(p): g for p, g in jax.tree_util.tree_flatten_with_path(grads)[0]}
    for (key_path, want), got in zip(
        jax.tree_util.tree_flatten_with_path(wanted)[0], flat.values(), strict=True
    ):
        path = path_of(key_path)
        # Nothing depends on a key's bias, nor the softmax on that of the logits: rounding alone.
        nothing = path.endswith("attn/k/bias") or (path == "logit/bias" and "softmax" in kind)
        tolerance = 1e-6 if nothing else 1e-5 * max(1e-3, np.abs(want).max())
        assert np.abs(got - want).max() <= tolerance, path
        assert nothing or np.abs(want).max() > 1e-4, f"{path}: the test sees nothing"


def test_patches_are_dropped_by_sample():
    """Another key gives another gradient: the test above saw the dropout."""
    cfg, mesh = config(), make_mesh(MeshConfig(1, 1, 1))
    model = dual.build(cfg.model, cfg.augment)
    params, _ = model.init(jax.random.key(0))
    batch = put(arrays(), mesh)
    embed = jax.jit(lambda rng: model.embed(params, {}, batch, rng)[0]["image"])
    one, two = embed(jax.random.key(1)), embed(jax.random.key(2))
    assert np.abs(np.asarray(one) - np.asarray(two)).max() > 1e-3


def test_memory_is_that_of_one_microbatch_and_no_batch_is_gathered():
    def compiled(parts):
        cfg = config(num_microbatches=parts)
        model = dataclasses.replace(cfg.model, image=dataclasses.replace(cfg.model.image, layers=6))
        cfg = dataclasses.replace(cfg, batch_size=512, model=model)
        prog = program.build(cfg, make_mesh(MeshConfig()))
        return prog.compile(), prog.abstract.params

    (whole, params), (parts, _) = compiled(1), compiled(8)
    temp = [c.memory_analysis().temp_size_in_bytes for c in (whole, parts)]
    assert temp[1] < 0.5 * temp[0]
    text = parts.as_text()
    once = 2 * 7 / 8 * sum(4 * x.size for x in jax.tree.leaves(params))  # a ring sends it twice
    sent = [reduced(c.as_text()) for c in (whole, parts)]
    assert sent[0] == sent[1] < 1.6 * once, "the gradient, and sums of the loss, once each"
    assert "all-to-all" not in text
    assert reductions(text) == {"ENTRY"}, "the gradient is summed over data once, not in a loop"
    assert not [line for line in text.splitlines() if " all-gather" in line and "u8[" in line]


def reduced(text):
    """Bytes that a device sends in all-reduces of a step."""
    found = counts.collectives(hlo.parse(text), {"data": 8, "fsdp": 1, "tensor": 1})
    return sum(c.sent for c in found if c.kind == "all-reduce")


def reductions(text):
    """The kinds of computations of an HLO text that hold an all-reduce."""
    found, kind = set(), ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?[\w.\-]+ \(.*\{", line):
            kind = "ENTRY" if header[1] else "called"
        if re.search(r" all-reduce(-start)?\(", line):
            found.add(kind)
    return found


def test_it_needs_a_batch_that_divides():
    with pytest.raises(UserError, match=r"multiple of 24: 8, .* num_microbatches=3 .* 24 and 48"):
        program.build(config(num_microbatches=3), make_mesh(MeshConfig()))


def test_batch_norm_is_refused():
    cfg = config(num_microbatches=2)
    image = dataclasses.replace(
        cfg.model.image, kind="resnet", size=32, width=8, heads=4, stages=(1, 1, 1, 1)
    )
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, image=image))
    with pytest.raises(UserError, match="num_microbatches: must be 1 for a tower with batch norm"):
        program.build(cfg, make_mesh(MeshConfig()))
