"""Against transformers and OpenCLIP (torch, CPU): they load what we export, and agree."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import Config, MeshConfig, TokenizerConfig
from clip_jax.inference.api import Model
from clip_jax.inference.export import export
from clip_jax.inference.load import load
from clip_jax.interop import open_clip, table
from clip_jax.models import dual
from clip_jax.sharding.mesh import make_mesh
from clip_jax.tokenizers import build as build_tokenizer
from clip_jax.tokenizers import missing

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    import parity_open_clip

    parity_open_clip.torch.set_num_threads(2)
    return parity_open_clip.torch


@pytest.fixture(scope="module")
def peer(torch):
    import parity_open_clip

    return parity_open_clip.open_clip


def small(name, context=11, pad_id=0):
    """A preset with small numbers; CLIP's vocabulary, so that its tokenizer fits."""
    cfg = MODELS[name]
    image = dataclasses.replace(
        cfg.image, size=24, patch=8, width=24, layers=3, heads=2, mlp_dim=40
    )
    text = dataclasses.replace(cfg.text, context=context, width=24, layers=3, heads=3, mlp_dim=50)
    return dataclasses.replace(cfg, image=image, text=text, embed_dim=24)


def random_model(cfg, seed=0, tokenizer=None, scale=0.2):
    """All parameters random, norms and biases too, so that a missing one shows."""
    import jax

    params, stats = jax.eval_shape(dual.build(cfg).init, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def fill(path, x):
        name = table.path_of(path)
        if name == "logit/scale":
            return np.float32(np.log(14.0))
        noise = (scale * rng.normal(size=x.shape)).astype(x.dtype)
        return noise + 1 if name.endswith(("/scale", "/var")) else noise

    tree = jax.tree_util.tree_map_with_path(fill, params)
    stats = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), stats)
    kind = TokenizerConfig("clip_bpe" if tokenizer else "sentencepiece")
    config = dataclasses.replace(Config(), model=cfg, tokenizer=kind)
    tokenizer = tokenizer or missing("none")
    return Model(config, tree, stats, tokenizer, make_mesh(MeshConfig(data=1)), 8)


def clip_tokenizer():
    return build_tokenizer(TokenizerConfig("clip_bpe"), vocab_size=49408)


def raw(model, side, x):
    import jax

    f = jax.jit(dual.build(model.config.model).features, static_argnums=0)
    return np.asarray(f(side, model.params, model.stats, x))


def inputs(cfg, b=4, seed=1):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(b, *cfg.image.shape())).astype(np.float32)
    text = cfg.text
    ids = rng.integers(2, min(text.vocab_size, 300) - 2, (b, text.context)).astype(np.int32)
    if text.pool == "eos":
        at = rng.integers(3, text.context, b)
        for row, i in zip(ids, at, strict=True):
            row[i] = text.eos_id
            row[i + 1 :] = text.pad_id
    return image, ids


def nchw(torch, image):
    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def pooled(output):
    return (output if hasattr(output, "numpy") else output.pooler_output).detach().numpy()


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP"])
def test_transformers_loads_ours_and_agrees(name, torch, tmp_path):
    import transformers

    cfg = small(name)
    model = random_model(cfg)
    export(model, "hf", str(tmp_path / "out"))
    kind = transformers.SiglipModel if "SigLIP" in name else transformers.CLIPModel
    theirs, report = kind.from_pretrained(str(tmp_path / "out"), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    theirs.eval()
    image, ids = inputs(cfg)
    with torch.no_grad():
        want = pooled(theirs.get_image_features(pixel_values=nchw(torch, image)))
        words = pooled(theirs.get_text_features(input_ids=torch.from_numpy(ids).long()))
    np.testing.assert_allclose(raw(model, "image", image), want, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(raw(model, "text", ids), words, atol=1e-5, rtol=1e-5)
    # and back: what transformers saves, we load
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = load(str(tmp_path / "theirs"))
    for path, x in table.leaves(model.params).items():
        np.testing.assert_array_equal(np.asarray(table.leaves(again.params)[path]), x)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14-CLIPA", "RN50"])
def test_open_clip_loads_ours_and_agrees(name, peer, torch, tmp_path):
    if name == "RN50":
        cfg = MODELS[name]
        image = dataclasses.replace(cfg.image, size=64, width=8, stages=(1, 2, 1, 1), heads=4)
        text = small("ViT-B-32").text
        cfg = dataclasses.replace(cfg, image=image, text=text, embed_dim=24)
    else:
        cfg = small(name)
        # OpenCLIP's towers have heads of one width each
        cfg = dataclasses.replace(cfg, image=dataclasses.replace(cfg.image, mlp_dim=48))
    model = random_model(cfg)
    export(model, "open_clip", str(tmp_path / "out"))
    theirs = peer.create_model(f"local-dir:{tmp_path / 'out'}", device="cpu").eval()
    image, ids = inputs(cfg)
    with torch.no_grad():
        want = theirs.encode_image(nchw(torch, image)).numpy()
        words = theirs.encode_text(torch.from_numpy(ids).long()).numpy()
    np.testing.assert_allclose(raw(model, "image", image), want, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(raw(model, "text", ids), words, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "sdxl"), [("ViT-L-14-quickgelu", 49407), ("ViT-bigG-14", 0)])
def test_text_encoders_for_generators(name, sdxl, torch, tmp_path):
    """SDXL pads its first tower (OpenAI's) with ends of text, its second (bigG) with zeros."""
    import transformers

    cfg = small(name, context=16)
    model = random_model(cfg, tokenizer=clip_tokenizer())
    export(model, "diffusers", str(tmp_path / "out"))
    folder = tmp_path / "out" / "text_encoder"
    plain, report = transformers.CLIPTextModel.from_pretrained(
        str(folder), output_loading_info=True
    )
    assert not report["missing_keys"]
    both = transformers.CLIPTextModelWithProjection.from_pretrained(str(folder))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(tmp_path / "out" / "tokenizer"))
    prompts = ["a photo of a cat", "two red cubes on a blue table"]
    for preset, pad in (("sd1", 49407), ("sd2", 0), ("sdxl", sdxl)):
        ids = np.full((2, 16), pad, np.int64)
        for row, text in zip(ids, prompts, strict=True):
            found = tokenizer(text)["input_ids"]
            row[: len(found)] = found
        with torch.no_grad():
            out = plain(torch.from_numpy(ids), output_hidden_states=True)
        want = {
            "sd1": out.last_hidden_state,
            "sd2": plain.text_model.final_layer_norm(out.hidden_states[-2])
            if hasattr(plain, "text_model")
            else plain.final_layer_norm(out.hidden_states[-2]),
            "sdxl": out.hidden_states[-2],
        }[preset]
        got = model.embed_texts(prompts, output=preset)
        assert got.shape == (2, 16, 24)
        np.testing.assert_allclose(got, want.detach().numpy(), atol=1e-5, rtol=1e-5)
    ids = model.tokenize(prompts)
    with torch.no_grad():
        embeds = both(torch.from_numpy(ids).long()).text_embeds.numpy()
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed_texts(prompts), embeds, atol=1e-5)


def photo(height=61, width=90, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (7, 9, 3), np.uint8)
    big = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    big.save(out, "png")
    return out.getvalue()


def test_the_example_of_the_model_card(torch, tmp_path):
    """Two prompts, one picture, logits_per_image, softmax: theirs and ours."""
    import transformers

    # 24 x 36 after the resize: of an odd border transformers cuts the smaller half first, while
    # torchvision, and so openai/CLIP, rounds
    picture = photo(60, 90)
    cfg = small("ViT-B-32-quickgelu")
    export(random_model(cfg, tokenizer=clip_tokenizer()), "hf", str(tmp_path / "out"))
    model = transformers.CLIPModel.from_pretrained(str(tmp_path / "out")).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(tmp_path / "out"))
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    texts = ["a photo of a cat", "a photo of a dog"]
    words = tokenizer(texts, return_tensors="pt", padding=True)
    # the slow processor works on Pillow's own resize, as ours does
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    pixels = kind.from_pretrained(str(tmp_path / "out"))(images=image, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=words["input_ids"], pixel_values=pixels["pixel_values"])
    ours = clip_jax.load(str(tmp_path / "out"))
    p = ours.classify([picture], ["cat", "dog"], templates=["a photo of a {}"])
    want = out.logits_per_image.softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(p, want, atol=1e-4)
    z, t = ours.embed_images([picture]), ours.embed_texts(texts)
    logits = ours.logit_scale() * z @ t.T
    np.testing.assert_allclose(logits, out.logits_per_image.detach().numpy(), atol=1e-3)


@pytest.mark.parametrize("shape", [(61, 90), (90, 61), (224, 224), (40, 333), (33, 1000)])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_preprocessing_is_open_clips(shape, resize, peer, tmp_path):
    image = dataclasses.replace(MODELS["ViT-B-32"].image, size=56, patch=8, resize=resize)
    cfg = dataclasses.replace(small("ViT-B-32"), image=image)
    model = random_model(cfg)
    transform = peer.image_transform(
        56, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=resize
    )
    data = photo(*shape, seed=shape[0])
    want = transform(Image.open(io.BytesIO(data))).numpy().transpose(1, 2, 0) * 255
    got = model.preprocess(data).astype(np.float64)
    assert np.abs(got - want).max() <= 1.01


def nested_module(torch, state):
    """A module with these names, as an archive of openai/CLIP has them."""
    root = torch.nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        here = root
        for part in path:
            if not hasattr(here, part):
                here.add_module(part, torch.nn.Module())
            here = getattr(here, part)
        if value.dtype.is_floating_point:
            here.register_parameter(last, torch.nn.Parameter(value))
        else:
            here.register_buffer(last, value)
    return root


def test_openai_archives(torch, tmp_path):
    """fp16 weights in a TorchScript archive with the three extra keys; QuickGELU by knowledge."""
    cfg = small("ViT-B-32-quickgelu")
    image = dataclasses.replace(cfg.image, width=64, heads=1, mlp_dim=256)
    text = dataclasses.replace(cfg.text, width=64, heads=1, mlp_dim=256)
    cfg = dataclasses.replace(cfg, image=image, text=text)
    model = random_model(cfg)
    flat = {**table.leaves(model.params), **table.leaves(model.stats)}
    state = {
        n: torch.from_numpy(make().astype(np.float16))
        for n, _, _, make in table.write_items(open_clip.table(cfg), flat, np.float32)
    }
    facts = {"input_resolution": 24, "context_length": 11, "vocab_size": 49408}
    state |= {k: torch.tensor(v) for k, v in facts.items()}
    path = tmp_path / "ViT-X.pt"
    torch.jit.script(nested_module(torch, state)).save(str(path))
    ours = clip_jax.load(str(path))
    assert ours.config.model.image.activation == "quick_gelu"
    neutral = {"init": "open_clip", "logit_scale_init": 0.0}
    assert dataclasses.replace(ours.config.model, **neutral) == dataclasses.replace(cfg, **neutral)
    for name, x in table.leaves(model.params).items():
        want = np.asarray(x).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(table.leaves(ours.params)[name]), want)
    with pytest.raises(clip_jax.UserError, match="activation is 'quick_gelu' there"):
        clip_jax.load(str(path), config=small("ViT-B-32"))


def test_pytorch_bin_files(torch, tmp_path):
    cfg = small("ViT-B-32")
    model = random_model(cfg)
    export(model, "open_clip", str(tmp_path / "out"))
    items = table.write_items(open_clip.table(cfg), table.leaves(model.params), np.float32)
    state = {f"module.{n}": torch.from_numpy(make()) for n, _, _, make in items}
    (tmp_path / "out" / "open_clip_model.safetensors").unlink()
    torch.save(
        {"epoch": 3, "state_dict": state}, str(tmp_path / "out" / "open_clip_pytorch_model.bin")
    )
    again = clip_jax.load(str(tmp_path / "out"))
    for name, x in table.leaves(model.params).items():
        np.testing.assert_array_equal(np.asarray(table.leaves(again.params)[name]), x)


def test_positions_resize_as_in_open_clip(peer, torch):
    from types import SimpleNamespace

    from open_clip.model import resize_pos_embed

    from clip_jax.models import posemb

    old = np.random.default_rng(0).normal(size=(1 + 7 * 7, 6)).astype(np.float32)
    for side in (5, 12):
        state = {"visual.positional_embedding": torch.from_numpy(old.copy())}
        visual = SimpleNamespace(grid_size=(side, side))
        resize_pos_embed(state, SimpleNamespace(visual=visual))
        want = state["visual.positional_embedding"].numpy()
        np.testing.assert_allclose(posemb.resize_grid(old, (7, 7), (side, side)), want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP"])
def test_full_size_against_open_clip(name, peer, torch, tmp_path):
    torch.manual_seed(0)
    theirs = peer.create_model(name).eval()
    cfg = MODELS[name]
    path = tmp_path / "w.safetensors"
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, str(path))
    ours = clip_jax.load(str(path), config=name)
    if (
        "SigLIP" in name
    ):  # OpenCLIP's towers have the exact GELU; trained was the tanh (decision 008)
        image, text = (dataclasses.replace(x, activation="gelu") for x in (cfg.image, cfg.text))
        model = dataclasses.replace(cfg, image=image, text=text)
        ours = dataclasses.replace(ours, config=dataclasses.replace(ours.config, model=model))
    image, ids = inputs(cfg, b=2)
    with torch.no_grad():
        want = theirs.encode_image(nchw(torch, image), normalize=True).numpy()
        words = theirs.encode_text(torch.from_numpy(ids).long(), normalize=True).numpy()
    np.testing.assert_allclose(unit(raw(ours, "image", image)), want, atol=1e-5)
    np.testing.assert_allclose(unit(raw(ours, "text", ids)), words, atol=1e-5)


@pytest.mark.slow
def test_full_size_siglip_against_transformers(torch, tmp_path):
    import transformers

    torch.manual_seed(0)
    theirs = transformers.SiglipModel(transformers.SiglipConfig()).eval()
    theirs.save_pretrained(str(tmp_path / "out"))
    ours = clip_jax.load(str(tmp_path / "out"), config="ViT-B-16-SigLIP")
    image, ids = inputs(ours.config.model, b=2)
    with torch.no_grad():
        want = pooled(theirs.get_image_features(pixel_values=nchw(torch, image)))
        words = pooled(theirs.get_text_features(input_ids=torch.from_numpy(ids).long()))
    np.testing.assert_allclose(unit(raw(ours, "image", image)), unit(want), atol=1e-5)
    np.testing.assert_allclose(unit(raw(ours, "text", ids)), unit(words), atol=1e-5)


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_siglip_names_of_open_clip(peer, torch, tmp_path):
    """timm's tower: names, shapes and features; the one of base size that has the tanh GELU."""
    cfg = peer.get_model_config("ViT-B-32-SigLIP2-256")
    cfg = json.loads(json.dumps(cfg))
    cfg["text_cfg"] |= {"layers": 1, "vocab_size": 64, "width": 768, "heads": 12}
    cfg.pop("custom_text")
    cfg["vision_cfg"]["timm_model_pretrained"] = False
    torch.manual_seed(0)
    theirs = peer.CustomTextCLIP(**cfg).eval()
    from safetensors.torch import save_file

    folder = tmp_path / "out"
    folder.mkdir()
    state = {k: v.contiguous() for k, v in theirs.state_dict().items()}
    save_file(state, str(folder / "open_clip_model.safetensors"))
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**cfg, "custom_text": True}, "preprocess_cfg": {}})
    )
    ours = clip_jax.load(str(folder))
    image, ids = inputs(ours.config.model, b=2)
    with torch.no_grad():
        want = theirs.encode_image(nchw(torch, image), normalize=True).numpy()
        words = theirs.encode_text(torch.from_numpy(ids).long(), normalize=True).numpy()
    np.testing.assert_allclose(unit(raw(ours, "image", image)), want, atol=1e-5)
    np.testing.assert_allclose(unit(raw(ours, "text", ids)), words, atol=1e-5)
