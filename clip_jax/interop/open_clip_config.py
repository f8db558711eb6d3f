"""open_clip_config.json, both ways; and the config of OpenAI's archives, by their shapes."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from clip_jax.config.presets import HALF
from clip_jax.config.schema import ImageConfig, ModelConfig, TextConfig, TokenizerConfig
from clip_jax.errors import UserError, near
from clip_jax.interop.open_clip import check_model, is_timm
from clip_jax.interop.table import no_such_model
from clip_jax.interop.tensors import Tensors

TIMM = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096),
        "so400m": (1152, 27, 16, 4304), "giantopt": (1536, 40, 16, 6144)}  # fmt: skip
GEMMA = 256_000  # rows of the token table of SigLIP 2
_TIMM_NAME = re.compile(r"vit_([a-z0-9]+)_patch(\d+)_siglip_(\d+)")
_NO_MEANING = {"timm_model_pretrained", "timm_drop", "timm_drop_path", "hf_tokenizer_name",
               "tokenizer_kwargs", "output_tokens", "embed_cls"}  # fmt: skip


def to_model(
    model_cfg: Mapping[str, Any], preprocess: Mapping[str, Any], where: str
) -> ModelConfig:
    """Our config of an open_clip_config.json.

    Args:
        model_cfg: its part of that name.
        preprocess: its `preprocess_cfg`; missing fields are OpenCLIP's defaults.
        where: the file, for messages.

    Raises:
        UserError: a part that we do not have, or do not know.
    """
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale",
             "init_logit_bias", "nonscalar_logit_scale"}  # fmt: skip
    _known(model_cfg, known, f"{where}: model_cfg")
    quick = bool(model_cfg.get("quick_gelu", False))
    bias, scale = model_cfg.get("init_logit_bias"), model_cfg.get("init_logit_scale")
    try:
        image = _to_image(model_cfg["vision_cfg"], quick, f"{where}: vision_cfg")
        text = _to_text(model_cfg["text_cfg"], quick, f"{where}: text_cfg", image.pool == "map")
        embed_dim = int(model_cfg["embed_dim"])
    except KeyError as e:
        raise UserError(f"{where}: model_cfg lacks {e}; give a whole open_clip_config.json") from e
    image = _with_pixels(image, preprocess, f"{where}: preprocess_cfg")
    return ModelConfig(
        image=image,
        text=text,
        embed_dim=embed_dim,
        logit_scale_init=float(ModelConfig().logit_scale_init if scale is None else scale),
        logit_bias=bias is not None,
        logit_bias_init=float(bias if bias is not None else -10.0),
        init="big_vision" if image.pool == "map" else "open_clip",
    )


def _known(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for key, value in given.items():
        if key not in known and value not in (None, False):
            raise UserError(f"{where}: {key} is not supported (got {value!r}){near(key, known)}")


def _activation(cfg: Mapping[str, Any], quick: bool) -> str:
    if quick:
        return "quick_gelu"
    approximate = (cfg.get("act_kwargs") or {}).get("approximate", "none")
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def _to_image(cfg: Mapping[str, Any], quick: bool, where: str) -> ImageConfig:
    size = cfg.get("image_size", 224)
    rows, columns = (size, 0) if isinstance(size, int) else (size[0], size[1])
    if "timm_model_name" in cfg:
        known = {"image_size", "timm_model_name", "timm_pool", "timm_proj"} | _NO_MEANING
        _known(cfg, known, where)
        found = _TIMM_NAME.fullmatch(cfg["timm_model_name"])
        if not found or found[1] not in TIMM or cfg.get("timm_pool", "map") != "map":
            raise UserError(
                f"{where}: only timm's SigLIP towers are supported (got {cfg['timm_model_name']})"
            )
        width, layers, heads, mlp_dim = TIMM[found[1]]
        return ImageConfig(
            size=rows, columns=columns, patch=int(found[2]), patch_bias=True, width=width,
            layers=layers, heads=heads, mlp_dim=mlp_dim, class_token=False, ln_pre=False,
            pool="map", projection="none", activation="gelu_tanh", ln_eps=1e-6,
        )  # fmt: skip
    known = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "no_ln_pre",
             "pool_type", "final_ln_after_pool", "ls_init_value", "pos_embed_type", "norm_kwargs",
             "act_kwargs", "patch_dropout"} | _NO_MEANING  # fmt: skip
    _known(cfg, known, where)
    layers, width = cfg.get("layers", 12), cfg.get("width", 768)
    head_width = cfg.get("head_width", 64)
    if isinstance(layers, list | tuple):
        return ImageConfig(
            kind="resnet", size=rows, columns=columns, width=width, stages=tuple(layers),
            heads=width * 32 // head_width, activation="quick_gelu" if quick else "gelu",
        )  # fmt: skip
    pools = {"tok": "cls", "avg": "mean"}
    pool = cfg.get("pool_type", "tok")
    if pool not in pools:
        raise UserError(f"{where}: pool_type is not supported (got '{pool}')")
    positions = {"learnable": "learned", "sin_cos_2d": "sincos2d_mae"}
    posemb = cfg.get("pos_embed_type", "learnable")
    if posemb not in positions:
        raise UserError(f"{where}: pos_embed_type is not supported (got {posemb!r})")
    return ImageConfig(
        size=rows,
        columns=columns,
        patch=cfg.get("patch_size", 16),
        width=width,
        layers=layers,
        heads=width // head_width,
        mlp_dim=int(width * cfg.get("mlp_ratio", 4.0)),
        posemb=positions[posemb],
        ln_pre=not cfg.get("no_ln_pre", False),
        pool=pools[pool],
        ln_post="after" if cfg.get("final_ln_after_pool", False) else "before",
        layer_scale=float(cfg.get("ls_init_value") or 0.0),
        activation=_activation(cfg, quick),
        ln_eps=float((cfg.get("norm_kwargs") or {}).get("eps", 1e-5)),
    )


def _to_text(cfg: Mapping[str, Any], quick: bool, where: str, siglip: bool) -> TextConfig:
    known = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type",
             "no_causal_mask", "proj_type", "proj_bias", "norm_kwargs", "act_kwargs", "eos_id",
             "pad_id"} | _NO_MEANING  # fmt: skip
    _known(cfg, known, where)
    width, vocab = cfg.get("width", 512), cfg.get("vocab_size", 49408)
    pools = {"argmax": "eos", "eos": "eos", "last": "last", "first": "first"}
    pool = cfg.get("pool_type", "argmax")
    if pool not in pools:
        raise UserError(f"{where}: pool_type is not supported (got '{pool}')")
    # argmax of the ids is the end of text only where that is the highest id
    eos = cfg.get("eos_id", 2) if pool == "eos" else vocab - 1 if pool == "argmax" else 1
    projection = "bias" if cfg.get("proj_bias", False) else "linear"
    # SigLIP fills its rows with 1, SigLIP 2 (Gemma's vocabulary) with 0; both have the tanh GELU
    pad = 1 if siglip and vocab != GEMMA else 0
    return TextConfig(
        context=cfg.get("context_length", 77),
        vocab_size=vocab,
        width=width,
        layers=cfg.get("layers", 12),
        heads=cfg.get("heads", 8),
        mlp_dim=int(width * cfg.get("mlp_ratio", 4.0)),
        pool=pools[pool],
        causal=not cfg.get("no_causal_mask", False),
        projection="none" if cfg.get("proj_type", "linear") in ("none", None) else projection,
        eos_id=eos,
        pad_id=cfg.get("pad_id", pad),
        activation="gelu_tanh" if siglip else _activation(cfg, quick),
        ln_eps=float((cfg.get("norm_kwargs") or {}).get("eps", 1e-5)),
    )


def tokenizer(model_cfg: Mapping[str, Any], cfg: ModelConfig) -> TokenizerConfig:
    """How captions become ids, from the same model_cfg; the file is found by the reader."""
    text = model_cfg["text_cfg"]
    given = text.get("tokenizer_kwargs") or {}
    plain = "hf_tokenizer_name" not in text
    clean = "canonicalize" if given.get("clean") == "canonicalize" or is_timm(cfg) else "none"
    return TokenizerConfig(
        "clip_bpe" if plain else "hf",
        clean="lower" if plain else clean,
        pad_id=cfg.text.pad_id,
        keep_eos=not given.get("strip_sep_token", False),
    )


def _with_pixels(image: ImageConfig, cfg: Mapping[str, Any], where: str) -> ImageConfig:
    timm = image.pool == "map"
    resize = cfg.get("resize_mode", "squash" if timm else "shortest")
    interpolation = cfg.get("interpolation", "bicubic")
    if resize not in ("shortest", "squash") or interpolation not in ("bicubic", "bilinear"):
        raise UserError(f"{where}: not supported (got resize_mode {resize}, {interpolation})")
    mean = cfg.get("mean", HALF if timm else image.mean)
    std = cfg.get("std", HALF if timm else image.std)
    return dataclasses.replace(
        image, resize=resize, interpolation=interpolation, mean=tuple(mean), std=tuple(std)
    )


def from_model(cfg: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """model_cfg and preprocess_cfg, such that `to_model` gives `cfg` back.

    Raises:
        UserError: OpenCLIP has no such model.
    """
    check_model(cfg)
    image, text = cfg.image, cfg.text
    quick = text.activation == "quick_gelu"
    if not is_timm(cfg) and (image.activation == "quick_gelu") != quick:
        both = f"{image.activation} and {text.activation}, not QuickGELU in both or in none"
        raise no_such_model("image.activation", "OpenCLIP", both)
    size = image.size if not image.columns else [image.size, image.columns]
    text_cfg: dict[str, Any] = {
        "context_length": text.context,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "pool_type": text.pool,
    }
    if text.mlp_dim != 4 * text.width:
        text_cfg["mlp_ratio"] = _ratio(text.width, text.mlp_dim)
    if text.pool == "eos":
        if text.eos_id == text.vocab_size - 1:
            text_cfg["pool_type"] = "argmax"
        else:
            text_cfg["eos_id"] = text.eos_id
    text_cfg |= {"no_causal_mask": True} if not text.causal else {}
    text_cfg |= {"proj_bias": True} if text.projection == "bias" else {}
    text_cfg |= {"proj_type": "none"} if text.projection == "none" else {}
    text_cfg |= {"pad_id": text.pad_id}
    text_cfg |= _layers(text)
    model: dict[str, Any] = {"embed_dim": cfg.embed_dim}
    model |= {"quick_gelu": True} if quick else {}
    model |= {"custom_text": True} if is_timm(cfg) else {}
    model["init_logit_scale"] = cfg.logit_scale_init
    model |= {"init_logit_bias": cfg.logit_bias_init} if cfg.logit_bias else {}
    vision = {"image_size": size, **_from_image(cfg.image)}
    pixels = {
        "size": [image.size, image.columns or image.size],
        "mode": "RGB",
        "mean": list(image.mean),
        "std": list(image.std),
        "interpolation": image.interpolation,
        "resize_mode": image.resize,
        "fill_color": 0,
    }
    return {**model, "vision_cfg": vision, "text_cfg": text_cfg}, pixels


def _ratio(width: int, hidden: int) -> float:
    """A ratio that int(width * ratio) brings back to `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _layers(tower: ImageConfig | TextConfig) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if tower.ln_eps != 1e-5:
        out["norm_kwargs"] = {"eps": tower.ln_eps}
    if tower.activation == "gelu_tanh":
        out["act_kwargs"] = {"approximate": "tanh"}
    return out


def _from_image(image: ImageConfig) -> dict[str, Any]:
    if image.pool == "map":
        shape = (image.width, image.layers, image.heads, image.mlp_dim)
        names = [n for n, s in TIMM.items() if s == shape]
        if not names:
            raise no_such_model("image", "timm", f"a SigLIP tower of {shape}")
        name = f"vit_{names[0]}_patch{image.patch}_siglip_{image.size}"
        return {"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "map",
                "timm_proj": "none"}  # fmt: skip
    if image.kind == "resnet":
        width = image.width * 32 // image.heads
        return {"layers": list(image.stages), "width": image.width, "head_width": width}
    out: dict[str, Any] = {
        "layers": image.layers,
        "width": image.width,
        "head_width": image.width // image.heads,
        "patch_size": image.patch,
    }
    if image.mlp_dim != 4 * image.width:
        out["mlp_ratio"] = _ratio(image.width, image.mlp_dim)
    out |= {"no_ln_pre": True} if not image.ln_pre else {}
    out |= {"pool_type": "avg"} if image.pool == "mean" else {}
    out |= {"final_ln_after_pool": True} if image.ln_post == "after" else {}
    out |= {"pos_embed_type": "sin_cos_2d"} if image.posemb != "learned" else {}
    out |= {"ls_init_value": image.layer_scale} if image.layer_scale else {}
    return out | _layers(image)


# OpenAI's archives carry no config: the shapes tell it, and all nine models are QuickGELU.


def from_shapes(tensors: Tensors) -> ModelConfig:
    """The config of OpenAI's weights (openai/CLIP `build_model`).

    Raises:
        UserError: these are not OpenAI's names.
    """
    s = tensors.shapes
    try:
        vocab, width = s["token_embedding.weight"]
        text = TextConfig(
            context=s["positional_embedding"][0], vocab_size=vocab, width=width,
            layers=_count(s, r"transformer\.resblocks\.(\d+)\."), heads=width // 64,
            mlp_dim=4 * width, eos_id=vocab - 1, activation="quick_gelu",
        )  # fmt: skip
        embed_dim = s["text_projection"][1]
        if "visual.proj" in s:
            d, channels, patch, _ = s["visual.conv1.weight"]
            side = round((s["visual.positional_embedding"][0] - 1) ** 0.5)
            image = ImageConfig(
                size=side * patch, channels=channels, patch=patch, width=d, heads=d // 64,
                layers=_count(s, r"visual\.transformer\.resblocks\.(\d+)\."), mlp_dim=4 * d,
                activation="quick_gelu",
            )  # fmt: skip
        else:
            stages = tuple(_count(s, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
            stem = s["visual.conv3.weight"][0]
            side = round((s["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
            image = ImageConfig(
                kind="resnet", size=32 * side, width=stem, stages=stages, heads=stem // 2,
                activation="quick_gelu",
            )  # fmt: skip
    except (KeyError, ValueError, IndexError) as e:
        raise UserError(
            f"{tensors.path}: not the names of OpenAI's weights (no {e}); give a config"
        ) from e
    return ModelConfig(image=image, text=text, embed_dim=embed_dim)


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    return 1 + max(int(m[1]) for n in shapes if (m := re.match(pattern, n)))
