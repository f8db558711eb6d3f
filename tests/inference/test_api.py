"""clip_jax.load and the Model: embeddings, classification, padding, messages."""

import io

import numpy as np
import pytest
from PIL import Image

import clip_jax
import tiny
from clip_jax.errors import UserError


def picture(name):
    return tiny.png(999, tiny.COLOURS[name])


def test_embeddings_are_unit_and_do_not_depend_on_the_batch(model):
    images = [picture(n) for n in tiny.COLOURS] * 5  # 40: more than two batches of 16
    z = model.embed_images(images)
    assert z.shape == (40, 16) and z.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(z[:1], model.embed_images(images[:1]), atol=1e-6)
    t = model.embed_texts([f"a {n} square" for n in tiny.COLOURS])
    np.testing.assert_allclose(t[3:4], model.embed_texts(["a yellow square"]), atol=1e-6)
    assert model.embed_texts([]).shape == (0, 16)


def test_kinds_of_images_agree(model, tmp_path):
    data = picture("red")
    path = tmp_path / "red.png"
    path.write_bytes(data)
    array = np.asarray(Image.open(io.BytesIO(data)))
    z = model.embed_images([data, path, str(path), array])
    np.testing.assert_allclose(z, np.repeat(z[:1], 4, 0), atol=1e-6)


def test_it_learned_its_colours(model):
    names = list(tiny.COLOURS)
    p = model.classify([picture(n) for n in names], names, templates=["a {} square"])
    assert p.shape == (8, 8) and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert (p.argmax(1) == np.arange(8)).mean() >= 0.75


def test_probabilities_are_softmax_of_scaled_cosines(model):
    labels = ["red", "blue"]
    z = model.embed_images([picture("red")]).astype(np.float64)
    t = model.embed_texts(labels).astype(np.float64)
    logits = np.exp(float(model.params["logit"]["scale"])) * z @ t.T
    want = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(model.classify([picture("red")], labels), want, rtol=1e-4)


def test_templates_are_averaged_in_embedding_space(model):
    templates = ["a {} square", "{}"]
    t = model.embed_texts([x.replace("{}", n) for n in ("red", "blue") for x in templates])
    mean = t.reshape(2, 2, -1).mean(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    logits = model.logit_scale() * model.embed_images([picture("red")]) @ mean.T
    want = np.exp(logits) / np.exp(logits).sum()
    got = model.classify([picture("red")], ["red", "blue"], templates)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_messages(model, tmp_path):
    with pytest.raises(UserError, match="nowhere: no config.json"):
        clip_jax.load("nowhere")
    with pytest.raises(UserError, match="image: cannot be read"):
        model.embed_images([b"not a picture"])
    with pytest.raises(UserError, match="gone.png: cannot be read"):
        model.embed_images([tmp_path / "gone.png"])
    with pytest.raises(UserError, match="uint8"):
        model.embed_images([np.zeros((16, 16, 3), np.float32)])
