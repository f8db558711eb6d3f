"""clip_jax.load of runs: a certain step, and a ResNet's running statistics all the way."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import clip_jax
import tiny
from clip_jax.config.schema import CheckpointConfig, ImageConfig, TokenizerConfig
from clip_jax.errors import UserError
from clip_jax.interop.build import model_shapes
from clip_jax.interop.table import leaves

RESNET = ImageConfig(kind="resnet", size=32, width=4, stages=(1, 1, 1, 1), heads=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny CLIP with a ResNet: causal text, pooled at its end, so that OpenCLIP has it too."""
    folder = tiny.write_folder(tmp_path_factory.mktemp("pairs"), 32)
    model = tiny.model()
    text = dataclasses.replace(model.text, pool="eos", causal=True, mask_pads=False)
    cfg = tiny.config(
        folder,
        num_steps=6,
        model=dataclasses.replace(model, image=RESNET, text=text),
        tokenizer=TokenizerConfig(),
        checkpoint=CheckpointConfig(every=2, keep=3),
    )
    workdir = str(tmp_path_factory.mktemp("run"))
    clip_jax.pretrain(dataclasses.replace(cfg, num_steps=4), workdir)
    clip_jax.pretrain(cfg, workdir, accept_changes=True)  # goes on with the statistics of step 4
    return workdir


@pytest.mark.slow
def test_running_statistics_are_saved_resumed_loaded_and_exported(run, tmp_path):
    model = clip_jax.load(run)
    assert int(model.stats["image"]["bn1"]["count"]) == 6
    image = np.asarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3)), np.uint8)
    want = model.embed_images([image])
    clip_jax.export(model, "open_clip", str(tmp_path / "out"))
    again = clip_jax.load(tmp_path / "out")
    for path, x in leaves(model.stats).items():
        np.testing.assert_array_equal(leaves(again.stats)[path], x, err_msg=path)
    np.testing.assert_allclose(again.embed_images([image]), want, atol=1e-6)
    fresh = dataclasses.replace(model, stats=jax.tree.map(lambda x: x + 1, model.stats))
    assert np.abs(fresh.embed_images([image]) - want).max() > 1e-3


@pytest.mark.slow
def test_a_certain_step(run):
    early, late = clip_jax.load(run, step=2), clip_jax.load(run)
    assert int(early.stats["image"]["bn1"]["count"]) == 2
    a, b = (np.asarray(m.params["text"]["token"]["embedding"]) for m in (early, late))
    assert np.abs(a - b).max() > 0
    with pytest.raises(UserError, match="no checkpoint of step 5; here: 2, 4, 6"):
        clip_jax.load(run, step=5)
    with pytest.raises(UserError, match="a run has its own config"):
        clip_jax.load(run, config="ViT-B-32")


@pytest.mark.slow
def test_a_run_with_the_attention_of_gpus_is_loaded_where_there_is_none(run, tmp_path):
    there = tmp_path / "run"
    shutil.copytree(run, there)
    stored = json.loads((there / "config.json").read_text())
    stored["model"] |= {"attention": "cudnn", "dtype": "bfloat16"}
    (there / "config.json").write_text(json.dumps(stored))
    images = [np.zeros((32, 32, 3), np.uint8)]
    model = clip_jax.load(there)
    assert model.config.model.attention == "xla"
    model_shapes(dataclasses.replace(model.config.model, attention="cudnn"))  # for config.init
    np.testing.assert_allclose(
        model.embed_images(images), clip_jax.load(run).embed_images(images), atol=0.03
    )
