"""Every family there and back: golden weights, and all presets at small width."""

import dataclasses
import json
from pathlib import Path

import golden_cases as golden
import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.config.codec import to_dict
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import Config, MeshConfig, TokenizerConfig
from clip_jax.errors import UserError
from clip_jax.inference.api import Model
from clip_jax.inference.export import export
from clip_jax.interop import big_vision, build, hf, open_clip, open_clip_config, read, table
from clip_jax.interop.npz import write_npz
from clip_jax.interop.open_file import open_tensors
from clip_jax.interop.safetensors import write_safetensors
from clip_jax.interop.table import leaves
from clip_jax.models import dual
from clip_jax.sharding.mesh import make_mesh
from clip_jax.tokenizers import build as build_tokenizer
from clip_jax.tokenizers import missing


def everything(path):
    tensors = open_tensors(str(path))
    return {n: tensors.read(n) for n in tensors.shapes}


def same(got, want):
    assert set(got) == set(want)
    for name, x in want.items():
        assert got[name].dtype == x.dtype and got[name].shape == x.shape, name
        assert got[name].tobytes() == x.tobytes(), name


def load_flat(path, cfg):
    params, stats = build.build(read.read(str(path), cfg), make_mesh(MeshConfig()))
    return {**leaves(params), **leaves(stats)}


@pytest.mark.parametrize("case", golden.OPEN_CLIP + golden.HF)
def test_golden_weights_come_back_byte_for_byte(case, tmp_path):
    cfg = golden.model_config(case)
    path = golden.GOLDEN / case / golden.WEIGHTS[case in golden.HF]
    if case in golden.HF:  # the pixel constants are the test's own: read without them
        flat = golden.flat(case, cfg, golden.WEIGHTS[1])
    else:
        flat = load_flat(path, cfg)
    items = table.write_items(golden.rules(case, cfg), flat, np.float32)
    write_safetensors(str(tmp_path / "back.safetensors"), items, {})
    same(everything(tmp_path / "back.safetensors"), everything(path))


def test_big_vision_equals_open_clip_and_comes_back(tmp_path):
    cfg = golden.model_config("siglip")
    path = golden.GOLDEN / "siglip" / "bigvision.npz"
    flat = load_flat(path, cfg)
    torch_flat = golden.flat("siglip", cfg, "weights.safetensors")
    for name, x in torch_flat.items():
        np.testing.assert_array_equal(np.asarray(flat[name]), x, err_msg=name)
    items = table.write_items(big_vision.table(cfg), flat, np.float32)
    write_npz(str(tmp_path / "back.npz"), items, {})
    same(everything(tmp_path / "back.npz"), dict(np.load(path)))


def test_scanned_big_vision_checkpoints(tmp_path):
    cfg = golden.model_config("siglip")
    flat = golden.flat("siglip", cfg, "weights.safetensors")
    rules = big_vision.table(cfg, prefix="", scanned=True)
    path = tmp_path / "scanned.npz"
    write_npz(str(path), table.write_items(rules, flat, np.float32), {})
    assert "img/Transformer/encoderblock/LayerNorm_0/scale" in open_tensors(str(path)).shapes
    got = load_flat(path, cfg)
    for name, x in flat.items():
        np.testing.assert_array_equal(np.asarray(got[name]), x)


def small(cfg):
    """The same family with small numbers."""
    resnet = cfg.image.kind == "resnet"
    image = dataclasses.replace(
        cfg.image, size=64 if resnet else 4 * cfg.image.patch, width=8, layers=2, heads=2,
        mlp_dim=12, stages=(1, 2, 1, 1) if resnet else (),
    )  # fmt: skip
    text = dataclasses.replace(
        cfg.text, context=7, vocab_size=60, width=8, layers=2, heads=2, mlp_dim=12,
        eos_id=59 if cfg.text.eos_id == cfg.text.vocab_size - 1 else min(cfg.text.eos_id, 58),
    )  # fmt: skip
    return dataclasses.replace(cfg, image=image, text=text, embed_dim=8)


def random_model(cfg, seed=0):
    built = dual.build(cfg)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def fill(x):
        if x.dtype == np.int32:
            return np.full(x.shape, 3, np.int32)
        return (np.abs(rng.normal(size=x.shape)) + 0.1).astype(np.float32)

    params, stats = jax.tree.map(fill, shapes)
    config = dataclasses.replace(Config(), model=cfg)
    mesh = make_mesh(MeshConfig(data=1))
    return Model(config, params, stats, missing("none"), mesh, 4)


FORMATS = {
    "open_clip": (open_clip.table, "open_clip_model.safetensors"),
    "hf": (hf.table, "model.safetensors"),
    "big_vision": (big_vision.table, "big_vision.npz"),
}


def names(format_, cfg):
    """The tensors' names; None where the format has no such model."""
    try:
        return tuple(r.theirs for r in FORMATS[format_][0](small(cfg)))
    except UserError:
        return None


@pytest.mark.parametrize(
    ("format_", "change"),
    [
        ("open_clip", {"registers": 4}),
        ("hf", {"class_token": False}),
        ("big_vision", {"class_token": True}),
    ],
)
def test_a_refusal_names_the_field_its_value_and_a_format_that_takes_it(format_, change, tmp_path):
    cfg = small(MODELS["ViT-B-32"])
    (field, value), *_ = change.items()
    cfg = dataclasses.replace(cfg, image=dataclasses.replace(cfg.image, **change))
    with pytest.raises(UserError) as e:
        FORMATS[format_][0](cfg)
    if format_ == "big_vision":
        field, value = "pool", "'cls'"  # which is asked for first
    text = str(e.value)
    assert text.startswith(f"config.model.image.{field}: ") and f"(got {value}" in text
    assert text.endswith("; export to clip_jax, which holds every model")


def families():
    """(format, preset) for one preset of each kind that differs in more than numbers."""
    seen = {}
    for name, cfg in MODELS.items():
        for format_ in FORMATS:
            if found := names(format_, cfg):
                seen.setdefault((format_, found, cfg.text.activation), (format_, name))
    return list(seen.values())


def test_which_presets_a_format_has():
    has = {f: {n for n, cfg in MODELS.items() if names(f, cfg)} for f in FORMATS}
    assert has["open_clip"] == set(MODELS)
    assert has["big_vision"] == {n for n in MODELS if "SigLIP" in n}
    # transformers has no batch norm, no layer scale, not CLIPA's pools nor these text towers
    lacking = (
        "RN",
        "ViT-M-16-alt",
        "CLIPA",
        "H-14-worldwide",
        "bigG-14-worldwide",
        "SO400M-16-SigLIP-i18n",
    )
    assert has["hf"] == {n for n in MODELS if not any(x in n for x in lacking)}


@pytest.mark.parametrize(("to", "name"), families())
def test_every_preset_family_goes_there_and_back(to, name, tmp_path):
    cfg = small(MODELS[name])
    model = random_model(cfg)
    if to == "open_clip" and open_clip.is_timm(cfg):  # timm's towers have names, not sizes
        items = table.write_items(open_clip.table(cfg), all_leaves(model), np.float32)
        (tmp_path / "out").mkdir()
        write_safetensors(str(tmp_path / "out" / FORMATS[to][1]), items, {})
        again = load_flat(tmp_path / "out" / FORMATS[to][1], cfg)
    else:
        export(model, to, str(tmp_path / "out"))
        given = cfg if to == "big_vision" else None
        source = tmp_path / "out" / FORMATS[to][1] if to == "big_vision" else tmp_path / "out"
        again = load_flat(source, given)
    want = all_leaves(model)
    assert set(again) == set(want)
    for path, x in want.items():
        np.testing.assert_array_equal(np.asarray(again[path]), x, err_msg=path)


def all_leaves(model):
    return {**leaves(model.params), **leaves(model.stats)}


def test_configs_survive_the_way_through_open_clip():
    for name, cfg in MODELS.items():
        model_cfg, pixels = open_clip_config.from_model(cfg)
        back = open_clip_config.to_model(json.loads(json.dumps(model_cfg)), pixels, name)
        assert alike(back, cfg), name


def test_configs_survive_the_way_through_hugging_face():
    """ViTs with a class token, and SigLIP's with a biased projection; the others are refused."""
    refused = set()
    for name, cfg in MODELS.items():
        try:
            config, pixels = hf.from_model(cfg)
        except UserError:
            refused.add(name)
            continue
        back = hf.to_model(json.loads(json.dumps(config)), pixels, name, pad_token="!")
        assert alike(back, cfg), name
    wanted = {n for n in MODELS if n.startswith("RN") or "CLIPA" in n}
    wanted |= {n for n in MODELS if "H-14-worldwide" in n or "bigG-14-worldwide" in n}
    assert refused == wanted | {"ViT-M-16-alt", "ViT-SO400M-16-SigLIP-i18n-256"}


def alike(a, b):
    """Equal but for how training starts, and for an end of text that nobody reads."""
    a, b = (dataclasses.replace(c, logit_scale_init=0.0, init="open_clip") for c in (a, b))
    if a.text.pool == "last":
        a = dataclasses.replace(a, text=dataclasses.replace(a.text, eos_id=b.text.eos_id))
    if not a.logit_bias:
        a = dataclasses.replace(a, logit_bias_init=b.logit_bias_init)
    return a == b


def test_open_clips_siglip_pads_with_one_and_siglip_2_with_zero():
    """Its configs do not say it; every short caption would be another one."""
    for name, pad in (("ViT-B-16-SigLIP", 1), ("ViT-B-16-SigLIP2", 0)):
        model_cfg, pixels = open_clip_config.from_model(MODELS[name])
        del model_cfg["text_cfg"]["pad_id"]
        back = open_clip_config.to_model(model_cfg, pixels, name)
        assert back.text.pad_id == pad and back.text.activation == "gelu_tanh"


def test_parameters_land_sharded(tmp_path):
    cfg = golden.model_config("vit_gelu")
    path = golden.GOLDEN / "vit_gelu" / "weights.safetensors"
    model = clip_jax.load(path, config=cfg, mesh=MeshConfig(fsdp=8))
    kernel = model.params["image"]["blocks"]["mlp"]["up"]["kernel"]  # (2, 40, 160)
    assert kernel.addressable_shards[0].data.shape == (2, 40, 20)
    whole = clip_jax.load(path, config=cfg)
    image = np.zeros((1, 32, 32, 3), np.uint8)
    got, want = (m.embed_images([image[0]]) for m in (model, whole))
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_models_without_tokenizer_travel_too(tmp_path):
    model = random_model(small(MODELS["ViT-B-32"]))
    export(model, "clip_jax", str(tmp_path / "run"))
    again = clip_jax.load(tmp_path / "run")
    for path, x in all_leaves(model).items():
        np.testing.assert_array_equal(np.asarray(all_leaves(again)[path]), x, err_msg=path)
    with pytest.raises(UserError, match="without a tokenizer"):
        again.embed_texts(["a cat"])


def test_what_a_peer_cannot_be_is_refused_in_one_line(tmp_path):
    base = small(MODELS["ViT-B-16-SigLIP"])
    for side, field, value, to in (
        ("image", "ln_pre", True, "open_clip"),
        ("image", "activation", "gelu", "open_clip"),
        ("image", "projection", "linear", "open_clip"),
        ("image", "activation", "gelu", "big_vision"),
        ("image", "patch_bias", False, "big_vision"),
        ("text", "projection", "bias", "diffusers"),
    ):
        part = dataclasses.replace(getattr(base, side), **{field: value})
        model = random_model(dataclasses.replace(base, **{side: part}))
        with pytest.raises(UserError, match="config.model") as e:
            export(model, to, str(tmp_path / "out"))
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="local disk only"):
        export(random_model(base), "hf", "gs://bucket/x")
    assert list(tmp_path.iterdir()) == []


def test_text_encoders_come_from_any_image_tower(tmp_path):
    cfg = small(MODELS["RN50"])
    model = random_model(cfg)
    bpe = TokenizerConfig("clip_bpe")
    model = dataclasses.replace(model, tokenizer=build_tokenizer(bpe, vocab_size=49408))
    export(model, "diffusers", str(tmp_path / "out"))
    names = open_tensors(str(tmp_path / "out" / "text_encoder" / "model.safetensors")).shapes
    assert names["text_projection.weight"] == (8, 8)
    assert (tmp_path / "out" / "tokenizer" / "vocab.json").exists()


def test_half_precision_comes_back_to_the_same_bytes(tmp_path):
    cfg = small(MODELS["ViT-B-32"])
    model = random_model(cfg)
    for dtype in ("float16", "bfloat16"):
        export(model, "open_clip", str(tmp_path / dtype), dtype=dtype)
        first = everything(tmp_path / dtype / "open_clip_model.safetensors")
        assert {x.dtype.name for x in first.values()} == {dtype}
        again = clip_jax.load(str(tmp_path / dtype))
        export(again, "open_clip", str(tmp_path / f"{dtype}2"), dtype=dtype)
        same(everything(tmp_path / f"{dtype}2" / "open_clip_model.safetensors"), first)


def test_a_contradiction_is_named(tmp_path):
    cfg = small(MODELS["ViT-B-32-quickgelu"])
    export(random_model(cfg), "hf", str(tmp_path / "out"))
    wrong = small(MODELS["ViT-B-32"])
    with pytest.raises(UserError, match="image.activation is 'quick_gelu' there and 'gelu' in the"):
        clip_jax.load(str(tmp_path / "out"), config=wrong)


def test_bare_weights_want_a_config(tmp_path):
    path = golden.GOLDEN / "vit_gelu" / "weights.safetensors"
    with pytest.raises(UserError, match="says nothing of its architecture"):
        clip_jax.load(str(path))
    with pytest.raises(UserError, match="no such model .*did you mean 'ViT-B-32'"):
        clip_jax.load(str(path), config="ViT-B32")


def test_another_resolution_and_context_resize_the_positions():
    cfg = golden.model_config("vit_gelu")
    path = golden.GOLDEN / "vit_gelu" / "weights.safetensors"
    image = dataclasses.replace(cfg.image, size=cfg.image.size + 2 * cfg.image.patch)
    text = dataclasses.replace(cfg.text, context=cfg.text.context + 5)
    larger = dataclasses.replace(cfg, image=image, text=text)
    flat = load_flat(path, larger)
    base = load_flat(path, cfg)
    side = larger.image.size // cfg.image.patch
    assert flat["image/posemb"].shape == (1 + side * side, cfg.image.width)
    np.testing.assert_array_equal(flat["image/posemb"][0], base["image/posemb"][0])
    assert flat["text/posemb"].shape[0] == text.context
    np.testing.assert_array_equal(flat["image/head/kernel"], base["image/head/kernel"])


MALFORMED = {
    "another width": ({"image": {"width": 48}}, r"has shape .* but the config wants"),
    "fewer layers": ({"text": {"layers": 1}}, r"16 extra|12 extra"),
    "more layers": ({"text": {"layers": 3}}, r"missing"),
    "another family": ({"image": {"ln_pre": False}}, r"2 extra \(visual.ln_pre"),
    "no square": ({"image": {"patch": 7, "size": 35}}, r"has shape|positions"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_config_that_does_not_fit_names_file_and_key(name):
    changes, message = MALFORMED[name]
    cfg = golden.model_config("vit_gelu")
    for side, fields in changes.items():
        cfg = dataclasses.replace(cfg, **{side: dataclasses.replace(getattr(cfg, side), **fields)})
    path = golden.GOLDEN / "vit_gelu" / "weights.safetensors"
    with pytest.raises(UserError, match=message) as e:
        load_flat(path, cfg)
    assert "weights.safetensors" in str(e.value) and "\n" not in str(e.value)


def test_a_changed_fixed_table_is_refused(tmp_path):
    cfg = golden.model_config("clipa")
    names = everything(golden.GOLDEN / "clipa" / "weights.safetensors")
    names["visual.positional_embedding"] = names["visual.positional_embedding"] + 0.01
    path = tmp_path / "w.safetensors"
    items = [(n, x.shape, x.dtype, lambda x=x: x) for n, x in names.items()]
    write_safetensors(str(path), items, {})
    with pytest.raises(UserError, match="visual.positional_embedding: not the fixed table"):
        load_flat(path, cfg)


def test_an_export_leaves_nothing_half_written(tmp_path):
    image = dataclasses.replace(MODELS["ViT-B-32"].image, registers=2)
    model = random_model(small(dataclasses.replace(MODELS["ViT-B-32"], image=image)))
    with pytest.raises(UserError, match="config.model.image.registers"):
        export(model, "hf", str(tmp_path / "out"))
    with pytest.raises(UserError, match="--to: must be one of .*did you mean 'hf'"):
        export(model, "hff", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        export(model, "open_clip", str(tmp_path / "full"))
    assert (tmp_path / "full" / "x").read_text() == "mine"


def test_our_own_header_tells_the_config(tmp_path):
    cfg = small(MODELS["ViT-B-32-quickgelu"])
    export(random_model(cfg), "open_clip", str(tmp_path / "out"))
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((tmp_path / "out" / "open_clip_model.safetensors").read_bytes())
    assert to_dict(clip_jax.load(str(alone)).config.model) == to_dict(cfg)


def test_the_card_says_what_it_is(tmp_path):
    export(random_model(small(MODELS["ViT-B-32"])), "hf", str(tmp_path / "out"), scores="| a |")
    text = Path(tmp_path / "out" / "README.md").read_text()
    assert "CLIPModel.from_pretrained" in text and "ViT, 2 layers" in text and "| a |" in text
