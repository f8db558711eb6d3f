"""Hugging Face CLIPModel and SiglipModel folders: tensor names and config.json, both ways.

Defaults of absent keys are those of transformers 5 (and 4): hub files leave many out.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.config.presets import HALF
from clip_jax.config.schema import ImageConfig, ModelConfig, TextConfig
from clip_jax.errors import UserError
from clip_jax.interop import blocks
from clip_jax.interop.table import CONV, LINEAR, ONE, SAME, Rule, no_such_model

ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
RESAMPLE = {2: "bilinear", 3: "bicubic"}
CLIP_SCALE = 2.6592
GEMMA = 256_000  # rows of the token table of SigLIP 2


def is_optional(name: str) -> bool:
    """Buffers of old checkpoints."""
    return name.endswith("embeddings.position_ids")


def is_siglip(cfg: ModelConfig) -> bool:
    """Whether SiglipModel is the class for it, and not CLIPModel."""
    return cfg.image.pool == "map"


def _check(cfg: ModelConfig) -> None:
    """Raises UserError for a model that neither class can be."""
    image, text, siglip = cfg.image, cfg.text, is_siglip(cfg)
    name = "SiglipModel" if siglip else "CLIPModel"
    want: dict[str, tuple[Any, ...]] = {
        "image.kind": ("vit",),
        "image.columns": (0,),
        "image.registers": (0,),
        "image.layer_scale": (0.0,),
        "image.posemb": ("learned",),
        "image.class_token": (not siglip,),
        "image.ln_pre": (not siglip,),
        "image.patch_bias": (siglip,),
        "image.ln_post": ("before",),
        "image.pool": ("map",) if siglip else ("cls",),
        "image.projection": ("none",) if siglip else ("linear",),
        "text.kind": ("transformer",),
        "text.causal": (not siglip,),
        "text.pool": ("last",) if siglip else ("eos",),
        "text.mask_pads": (False,),
        "text.projection": ("bias",) if siglip else ("linear",),
        "logit_bias": (siglip,),
    }
    for path, allowed in want.items():
        value: Any = cfg
        for part in path.split("."):
            value = getattr(value, part)
        if value not in allowed:
            raise no_such_model(path, f"transformers' {name}", f"{value!r}, not {allowed[0]!r}")
    if text.pool == "eos" and text.eos_id == 2:
        why = "2, which it takes for 'the highest id'"
        raise no_such_model("text.eos_id", "transformers' CLIPModel", why)
    if image.ln_eps != text.ln_eps and siglip:
        epsilons = f"{image.ln_eps} and {text.ln_eps}, not one for both"
        raise no_such_model("image.ln_eps", "transformers' SiglipModel", epsilons)


def text_table(cfg: TextConfig) -> list[Rule]:
    """The text tower without its projection: what diffusers reads."""
    return [
        Rule("text_model.embeddings.token_embedding.weight", ("text/token/embedding",)),
        Rule("text_model.embeddings.position_embedding.weight", ("text/posemb",)),
        *blocks.hf_blocks("text_model.encoder.layers", "text/blocks"),
        *blocks.norm("text_model.final_layer_norm", "text/ln_post"),
    ]


def table(cfg: ModelConfig) -> list[Rule]:
    """The rules of a model.

    Raises:
        UserError: neither class is this model.
    """
    _check(cfg)
    vision = "vision_model"
    patch = f"{vision}.embeddings.patch_embedding"
    image = [
        Rule(f"{patch}.weight", ("image/patch/kernel",), CONV),
        Rule(f"{vision}.embeddings.position_embedding.weight", ("image/posemb",)),
        *blocks.hf_blocks(f"{vision}.encoder.layers", "image/blocks"),
        *blocks.norm(f"{vision}.post_layernorm", "image/ln_post"),
    ]
    if is_siglip(cfg):
        return [
            *image,
            Rule(f"{patch}.bias", ("image/patch/bias",)),
            *blocks.hf_pool(f"{vision}.head", "image/pool"),
            *text_table(cfg.text),
            *blocks.linear("text_model.head", "text/head"),
            Rule("logit_scale", ("logit/scale",), ONE),
            Rule("logit_bias", ("logit/bias",), ONE),
        ]
    return [
        *image,
        Rule(f"{vision}.embeddings.class_embedding", ("image/cls",)),
        *blocks.norm(f"{vision}.pre_layrnorm", "image/ln_pre"),  # the typo is theirs
        Rule("visual_projection.weight", ("image/head/kernel",), LINEAR),
        *text_table(cfg.text),
        Rule("text_projection.weight", ("text/head/kernel",), LINEAR),
        Rule("logit_scale", ("logit/scale",), SAME),
    ]


def to_model(
    config: Mapping[str, Any], preprocess: Mapping[str, Any], where: str, pad_token: str = ""
) -> ModelConfig:
    """Our config of a config.json.

    Args:
        config: of a CLIPModel or SiglipModel.
        preprocess: preprocessor_config.json, or {}.
        where: the file, for messages.
        pad_token: of CLIP's tokenizer files; the usual one is the end of text.

    Raises:
        UserError: another model, or a part that we do not have.
    """
    kind = config.get("model_type")
    if kind not in ("clip", "siglip"):
        raise UserError(f"{where}: model_type must be clip or siglip (got {kind!r})")
    siglip = kind == "siglip"
    vision = {**config.get("vision_config", {}), **(config.get("vision_config_dict") or {})}
    text = {**config.get("text_config", {}), **(config.get("text_config_dict") or {})}
    image = _image(vision, siglip, f"{where}: vision_config")
    image = _with_pixels(image, preprocess, siglip, where)
    words = _text(text, siglip, f"{where}: text_config")
    if not siglip:
        words = dataclasses.replace(words, pad_id=0 if pad_token == "!" else words.eos_id)
    if siglip:
        embed_dim = int(text.get("projection_size") or words.width)
        if not vision.get("vision_use_head", True):
            raise UserError(f"{where}: vision_use_head=false is not supported")
    else:
        embed_dim = int(config.get("projection_dim", 512))
    scale = config.get("logit_scale_init_value", CLIP_SCALE)
    return ModelConfig(
        image=image,
        text=words,
        embed_dim=embed_dim,
        logit_scale_init=math.log(10) if siglip else float(scale),
        logit_bias=siglip,
        init="big_vision" if siglip else "open_clip",
    )


def _activation(cfg: Mapping[str, Any], siglip: bool, where: str) -> str:
    name = cfg.get("hidden_act", "gelu_pytorch_tanh" if siglip else "quick_gelu")
    if name not in ACTIVATIONS:
        raise UserError(f"{where}: hidden_act is not supported (got {name!r})")
    return ACTIVATIONS[name]


def _image(cfg: Mapping[str, Any], siglip: bool, where: str) -> ImageConfig:
    common = {
        "size": cfg.get("image_size", 224),
        "channels": cfg.get("num_channels", 3),
        "patch": cfg.get("patch_size", 16 if siglip else 32),
        "width": cfg.get("hidden_size", 768),
        "layers": cfg.get("num_hidden_layers", 12),
        "heads": cfg.get("num_attention_heads", 12),
        "mlp_dim": cfg.get("intermediate_size", 3072),
        "activation": _activation(cfg, siglip, where),
        "ln_eps": float(cfg.get("layer_norm_eps", 1e-6 if siglip else 1e-5)),
    }
    if not siglip:
        return ImageConfig(**common)
    return ImageConfig(
        **common, patch_bias=True, class_token=False, ln_pre=False, pool="map", projection="none"
    )


def _text(cfg: Mapping[str, Any], siglip: bool, where: str) -> TextConfig:
    vocab = cfg.get("vocab_size", 32_000 if siglip else 49_408)
    eos = cfg.get("eos_token_id", 49_407)
    if siglip:
        eos = 1
    elif eos == 2:
        eos = vocab - 1  # old exports: transformers then takes the highest id, and so do we
    width = cfg.get("hidden_size", 768 if siglip else 512)
    common = {
        "context": cfg.get("max_position_embeddings", 64 if siglip else 77),
        "vocab_size": vocab,
        "width": width,
        "layers": cfg.get("num_hidden_layers", 12),
        "heads": cfg.get("num_attention_heads", 12 if siglip else 8),
        "mlp_dim": cfg.get("intermediate_size", 3072 if siglip else 2048),
        "eos_id": eos,
        "activation": _activation(cfg, siglip, where),
        "ln_eps": float(cfg.get("layer_norm_eps", 1e-6 if siglip else 1e-5)),
    }
    if not siglip:
        return TextConfig(**common)
    # SigLIP fills rows with 1, SigLIP 2 (Gemma's vocabulary) with 0
    pad = 0 if vocab == GEMMA else 1
    return TextConfig(**common, causal=False, pool="last", projection="bias", pad_id=pad)


def _with_pixels(
    image: ImageConfig, cfg: Mapping[str, Any], siglip: bool, where: str
) -> ImageConfig:
    size = cfg.get("size")
    crop = cfg.get("crop_size", image.size)
    crop = crop.get("height") if isinstance(crop, Mapping) else crop
    odd = {
        "resample": cfg.get("resample", 3) not in RESAMPLE,
        "do_normalize": not cfg.get("do_normalize", True),
        "do_resize": not cfg.get("do_resize", True),
        "crop_size": cfg.get("do_center_crop", not siglip) and crop != image.size,
    }
    for name, bad in odd.items():
        if bad:
            raise UserError(
                f"{where}: the preprocessor_config.json beside it has a {name} that is not "
                f"supported (got {cfg.get(name)!r})"
            )
    squash = siglip or (isinstance(size, Mapping) and "shortest_edge" not in size)
    default = (HALF, HALF) if siglip else (image.mean, image.std)
    return dataclasses.replace(
        image,
        resize="squash" if squash else "shortest",
        interpolation=RESAMPLE[cfg.get("resample", 3)],
        mean=tuple(cfg.get("image_mean", default[0])),
        std=tuple(cfg.get("image_std", default[1])),
    )


def from_model(cfg: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and preprocessor_config.json, such that `to_model` gives `cfg` back.

    Raises:
        UserError: neither class is this model.
    """
    _check(cfg)
    siglip = is_siglip(cfg)
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    image, text = cfg.image, cfg.text

    def tower(c: ImageConfig | TextConfig) -> dict[str, Any]:
        return {
            "hidden_size": c.width,
            "intermediate_size": c.mlp_dim,
            "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads,
            "hidden_act": names[c.activation],  # never left out: the defaults differ
            "layer_norm_eps": c.ln_eps,
            "attention_dropout": 0.0,
        }

    kind = "siglip" if siglip else "clip"
    words = tower(text) | {
        "model_type": f"{kind}_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context,
        "bos_token_id": text.eos_id - 1 if not siglip else text.pad_id,
        "eos_token_id": text.eos_id,
        "pad_token_id": text.pad_id if siglip else text.eos_id,
    }
    pixels = tower(image) | {
        "model_type": f"{kind}_vision_model",
        "image_size": image.size,
        "patch_size": image.patch,
        "num_channels": image.channels,
    }
    config: dict[str, Any] = {
        "architectures": ["SiglipModel" if siglip else "CLIPModel"],
        "model_type": kind,
        "dtype": "float32",
        "text_config": words,
        "vision_config": pixels,
    }
    if siglip:
        words["projection_size"] = cfg.embed_dim
    else:
        words["projection_dim"] = pixels["projection_dim"] = cfg.embed_dim
        config |= {"projection_dim": cfg.embed_dim, "logit_scale_init_value": cfg.logit_scale_init}
    return config, preprocessor(image, siglip)


def preprocessor(image: ImageConfig, siglip: bool) -> dict[str, Any]:
    """preprocessor_config.json."""
    side = {"height": image.size, "width": image.size}
    crop = image.resize == "shortest"
    resample = {name: number for number, name in RESAMPLE.items()}[image.interpolation]
    return {
        "image_processor_type": "SiglipImageProcessor" if siglip else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image.size} if crop else side,
        "resample": resample,
        "do_center_crop": crop,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }


def encoder(cfg: ModelConfig) -> tuple[dict[str, Any], list[Rule]]:
    """config.json and rules of a text_encoder/ folder, a CLIPTextModelWithProjection.

    Raises:
        UserError: the text tower is none of CLIP's; the image tower may be anything.
    """
    image = ImageConfig()  # any that CLIPModel has
    config, _ = from_model(dataclasses.replace(cfg, image=image, logit_bias=False))
    rules = [*text_table(cfg.text), Rule("text_projection.weight", ("text/head/kernel",), LINEAR)]
    name = {"architectures": ["CLIPTextModelWithProjection"], "dtype": "float32"}
    return {**config["text_config"], **name}, rules
