"""What a user is told about folders and configs that are not what they should be."""

import dataclasses
import fnmatch
import json
import shutil

import golden_cases as golden
import numpy as np
import pytest
import tiny_weights

import clip_jax
from clip_jax.errors import UserError
from clip_jax.inference import load
from clip_jax.interop import hf, read
from clip_jax.interop.open_file import open_tensors
from clip_jax.interop.safetensors import write_safetensors


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden CLIPModel."""
    return shutil.copytree(golden.GOLDEN / "hf_clip" / "model", tmp_path / "model")


def change(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in fields.items():
        part, _, key = name.partition("__")
        if key:
            config[part][key] = value
        else:
            config[name] = value
    path.write_text(json.dumps(config))


def told(folder, **options):
    with pytest.raises(UserError) as e:
        clip_jax.load(folder, **options)
    text = str(e.value)
    assert "\n" not in text and "Traceback" not in text
    return text


def test_the_copy_loads(folder):
    model = clip_jax.load(folder)
    assert model.config.model == hf.to_model(
        json.loads((folder / "config.json").read_text()), {}, ""
    )


CONFIGS = {
    "another family": ({"model_type": "bert"}, "model_type must be clip or siglip (got 'bert')"),
    "an activation that we lack": ({"text_config__hidden_act": "relu"}, "hidden_act is not"),
    "a text for a number": ({"vision_config__hidden_size": "32"}, "config.json"),
    "nothing for a number": ({"text_config__num_hidden_layers": None}, "config.json"),
    "heads that do not divide": ({"vision_config__num_attention_heads": 5}, "multiple of heads=5"),
    "another width": ({"vision_config__hidden_size": 64}, "has shape"),
    "more layers": ({"text_config__num_hidden_layers": 3}, "16 missing (text_model.encoder.lay"),
    "a list for a group": ({"vision_config": [1]}, "config.json"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name, folder):
    fields, text = CONFIGS[name]
    change(folder, **fields)
    assert text in told(folder)


def test_broken_json(folder):
    (folder / "config.json").write_text('{"model_type": ')
    assert "config.json: not JSON" in told(folder)
    (folder / "config.json").write_text("[]")
    assert "config.json: must be a JSON object" in told(folder)


def test_old_end_of_text(folder):
    """Old exports write 2; the highest id is meant."""
    change(folder, text_config__eos_token_id=2)
    assert clip_jax.load(folder).config.model.text.eos_id == 199


def test_a_pickle_under_a_wrong_name(folder):
    (folder / "model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    assert "model.safetensors" in told(folder)


def test_cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in told(folder)


def test_a_key_too_many(folder):
    path = str(folder / "model.safetensors")
    tensors = open_tensors(path)
    arrays = {n: tensors.read(n) for n in tensors.shapes} | {"vision_model.extra": tensors.read(
        "logit_scale")}  # fmt: skip
    tensors.close()
    write_safetensors(path, [(n, x.shape, x.dtype, lambda x=x: x) for n, x in arrays.items()], {})
    assert "1 extra (vision_model.extra)" in told(folder)


def test_names_of_nobody(tmp_path):
    path = tmp_path / "x.safetensors"
    zero = np.zeros((), np.float32)
    write_safetensors(str(path), [("a.b", (), zero.dtype, lambda: zero)], {})
    assert "not the names of OpenCLIP, Hugging Face or big_vision (got a.b)" in told(path)


def test_nothing_there(tmp_path):
    assert "no config.json, so no run lies there" in told(tmp_path)
    assert "is no weights" in told("ViT-B-32")
    assert "init: 'random' needs a config" in told("", init="random")
    assert "init: must be 'weights' or 'random'" in told("", init="rnd")


def test_a_random_model_must_be_asked_for():
    cfg = golden.model_config("vit_gelu")
    model = clip_jax.load(config=cfg, init="random")
    assert model.embed_images([]).shape == (0, cfg.embed_dim)
    with pytest.raises(UserError, match="a random model has no tokenizer"):
        model.embed_texts(["a cat"])


def test_the_hub_without_network(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*_, **__):
        raise OSError("no network\nat all")

    monkeypatch.setattr(hub.HfApi, "list_repo_files", refuse)
    monkeypatch.setattr(hub, "snapshot_download", refuse)
    text = told("hf-hub:openai/clip-vit-base-patch32")
    assert "cannot be had (no network at all)" in text
    assert "hf download openai/clip-vit-base-patch32" in text


@pytest.mark.parametrize(
    ("there", "kept"),
    [
        (
            ["open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin",
             "pytorch_model.bin", "tf_model.h5", "merges.txt"],
            ["model.safetensors", "merges.txt"],
        ),
        (["config.json", "pytorch_model.bin"], ["config.json", "pytorch_model.bin"]),
        (
            [read.hub.PARTS, "model-00001-of-00002.safetensors",
             "model-00002-of-00002.safetensors", "pytorch_model.bin"],
            [read.hub.PARTS, "model-00001-of-00002.safetensors",
             "model-00002-of-00002.safetensors"],
        ),
        (["README.md"], []),
    ],
)  # fmt: skip
def test_one_set_of_weights_is_fetched(monkeypatch, there, kept):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def fetch(name, **settings):
        asked.update(settings, name=name)
        raise OSError("enough")

    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda self, name: there)
    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert "cannot be had (enough)" in told("hf-hub:laion/some")
    assert asked["name"] == "laion/some"
    got = [
        n
        for n in there
        if any(fnmatch.fnmatch(n, p) for p in asked["allow_patterns"])
        and n not in asked["ignore_patterns"]
    ]
    assert got == kept


def test_a_refusal_closes_the_file(folder, monkeypatch):
    opened = []

    def recording(path):
        opened.append(open_tensors(path))
        return opened[-1]

    monkeypatch.setattr(read, "open_tensors", recording)
    change(folder, model_type="bert")
    told(folder)
    assert len(opened) == 1 and opened[0]._file.closed


def test_a_tokenizer_of_other_weights_is_not_used(tmp_path):
    """The model would look for an end of text that never comes."""
    tiny_weights.write("ViT-B-32", "hf", str(tmp_path / "out"))
    found = read.read(str(tmp_path / "out"))
    text = dataclasses.replace(found.config.text, eos_id=99)
    found = dataclasses.replace(found, config=dataclasses.replace(found.config, text=text))
    with pytest.raises(UserError, match="ends texts with id 49407, but the model looks for 99"):
        load._tokenizer_of(found)(["a cat"], 77)


def test_merges_inside_a_tokenizer_json(tmp_path):
    """What transformers 5 saves has no merges.txt; two spellings of the pairs are about."""
    tiny_weights.write("ViT-B-32", "hf", str(tmp_path / "out"))
    folder = tmp_path / "out"
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    want = clip_jax.load(folder).tokenize(["two red cats, 4k"])
    for name in ("merges.txt", "vocab.json"):
        (folder / name).unlink()
    for pairs in (lines, [line.split(" ") for line in lines]):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"merges": pairs}}))
        found = read.read(str(folder))
        assert found.tokenizer.kind == "clip_bpe" and found.tokenizer_file
        np.testing.assert_array_equal(clip_jax.load(folder).tokenize(["two red cats, 4k"]), want)


def test_a_broken_header_of_our_own(tmp_path):
    tiny_weights.write("ViT-B-32", "open_clip", str(tmp_path / "out"))
    path = str(tmp_path / "out" / "open_clip_model.safetensors")
    tensors = open_tensors(path)
    arrays = {n: tensors.read(n) for n in tensors.shapes}
    tensors.close()
    items = [(n, x.shape, x.dtype, lambda x=x: x) for n, x in arrays.items()]
    for header in ("{", "[]", json.dumps({"model": {"image": {"heads": 0}}}), json.dumps({})):
        write_safetensors(path, items, {read.METADATA_KEY: header})
        assert "open_clip_model.safetensors" in told(tmp_path / "out")
