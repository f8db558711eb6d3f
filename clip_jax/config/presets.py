"""Published models under OpenCLIP's names: MODELS["ViT-B-32"] is a ModelConfig.

Sources: OpenCLIP's model_configs/*.json; for SigLIP and CLIPA activations and epsilons are those
that the weights were trained with (big_vision, clipa), where OpenCLIP's own configs differ.
All numbers stand as integers: ratios lose a unit in rounding.
"""

import dataclasses
import math

from clip_jax.config.schema import ImageConfig, ModelConfig, TextConfig

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# width, layers, heads, mlp_dim of a tower
S = (384, 12, 6, 1536)
M = (512, 12, 8, 2048)
B = (768, 12, 12, 3072)
B_PLUS = (896, 12, 14, 3584)
L = (1024, 24, 16, 4096)
SO400M = (1152, 27, 16, 4304)
H = (1280, 32, 16, 5120)
G_SMALL = (1408, 40, 16, 6144)
G_OPT = (1536, 40, 16, 6144)
G = (1664, 48, 16, 8192)
E = (1792, 56, 16, 15360)
T256 = (256, 10, 4, 1024)
T640 = (640, 12, 10, 2560)
T1024 = (1024, 12, 16, 4096)
T1280 = (1280, 32, 20, 5120)
T1280_36 = (1280, 36, 20, 5120)


def _vit(
    size: int,
    patch: int,
    width: int,
    layers: int,
    heads: int,
    mlp_dim: int,
    layer_scale: float = 0.0,
) -> ImageConfig:
    return ImageConfig(
        size=size, patch=patch, width=width, layers=layers, heads=heads, mlp_dim=mlp_dim,
        layer_scale=layer_scale,
    )  # fmt: skip


def _resnet(size: int, width: int, stages: tuple[int, ...], heads: int) -> ImageConfig:
    return ImageConfig(kind="resnet", size=size, width=width, stages=stages, heads=heads)


def _text(width: int, layers: int, heads: int, mlp_dim: int) -> TextConfig:
    return TextConfig(width=width, layers=layers, heads=heads, mlp_dim=mlp_dim)


def _clip(image: ImageConfig, text: TextConfig, embed_dim: int) -> ModelConfig:
    return ModelConfig(image=image, text=text, embed_dim=embed_dim)


def _worldwide(
    image: ImageConfig, text: TextConfig, embed_dim: int, vocab: int, eos: int, pad: int
) -> ModelConfig:
    """MetaCLIP 2 and OpenCLIP's multilingual L/14: another tokenizer."""
    text = dataclasses.replace(text, vocab_size=vocab, eos_id=eos, pad_id=pad)
    return ModelConfig(image=image, text=text, embed_dim=embed_dim)


def _clipa(image: ImageConfig, text: TextConfig, embed_dim: int) -> ModelConfig:
    """CLIPA (Li et al. 2023): mean of the patches, both texts' ways, BERT's word pieces."""
    image = dataclasses.replace(
        image, ln_pre=False, pool="mean", ln_post="after", activation="gelu_tanh", ln_eps=1e-6,
        resize="squash", interpolation="bilinear", mean=IMAGENET[0], std=IMAGENET[1],
    )  # fmt: skip
    text = dataclasses.replace(
        text, context=32, vocab_size=32_000, causal=False, pool="last", activation="gelu_tanh",
        ln_eps=1e-6, eos_id=102, pad_id=0,
    )  # fmt: skip
    return ModelConfig(image=image, text=text, embed_dim=embed_dim)


def _siglip(
    image: ImageConfig,
    text: TextConfig,
    embed_dim: int,
    context: int = 64,
    vocab: int = 32_000,
    projection: str = "bias",
    pad: int = 1,
) -> ModelConfig:
    """SigLIP (Zhai et al. 2023): attention pooling, sigmoid loss; to train with loss 'sigmoid'."""
    image = dataclasses.replace(
        image, patch_bias=True, class_token=False, ln_pre=False, pool="map", projection="none",
        activation="gelu_tanh", ln_eps=1e-6, resize="squash", mean=HALF, std=HALF,
    )  # fmt: skip
    text = dataclasses.replace(
        text, context=context, vocab_size=vocab, causal=False, pool="last", projection=projection,
        activation="gelu_tanh", ln_eps=1e-6, eos_id=1, pad_id=pad,
    )  # fmt: skip
    return ModelConfig(
        image=image, text=text, embed_dim=embed_dim, logit_scale_init=math.log(10),
        logit_bias=True, init="big_vision",
    )  # fmt: skip


def _siglip2(image: ImageConfig, text: TextConfig, embed_dim: int) -> ModelConfig:
    """SigLIP 2 (Tschannen et al. 2025) at fixed resolution: Gemma's tokenizer, pads of 0."""
    return _siglip(image, text, embed_dim, vocab=256_000, pad=0)


# _vit: size, patch, tower. _resnet: size, stem width, blocks per stage, heads of the pool.
# The number after both towers is the size of the embedding.
MODELS: dict[str, ModelConfig] = {
    "RN50": _clip(_resnet(224, 64, (3, 4, 6, 3), 32), _text(*M), 1024),
    "RN101": _clip(_resnet(224, 64, (3, 4, 23, 3), 32), _text(*M), 512),
    "RN50x4": _clip(_resnet(288, 80, (4, 6, 10, 6), 40), _text(*T640), 640),
    "RN50x16": _clip(_resnet(384, 96, (6, 8, 18, 8), 48), _text(*B), 768),
    "RN50x64": _clip(_resnet(448, 128, (3, 15, 36, 10), 64), _text(*T1024), 1024),
    "ViT-S-32": _clip(_vit(224, 32, *S), _text(*S), 384),
    "ViT-S-32-alt": _clip(_vit(224, 32, *S), _text(*T256), 256),
    "ViT-S-16": _clip(_vit(224, 16, *S), _text(*S), 384),
    "ViT-S-16-alt": _clip(_vit(224, 16, *S), _text(*T256), 256),
    "ViT-M-32": _clip(_vit(224, 32, *M), _text(*M), 512),
    "ViT-M-32-alt": _clip(_vit(224, 32, *M), _text(*S), 384),
    "ViT-M-16": _clip(_vit(224, 16, *M), _text(*M), 512),
    "ViT-M-16-alt": _clip(_vit(224, 16, *M, layer_scale=1e-4), _text(*S), 384),
    "ViT-B-32": _clip(_vit(224, 32, *B), _text(*M), 512),
    "ViT-B-32-256": _clip(_vit(256, 32, *B), _text(*M), 512),
    "ViT-B-32-plus-256": _clip(_vit(256, 32, *B_PLUS), _text(*T640), 640),
    "ViT-B-16": _clip(_vit(224, 16, *B), _text(*M), 512),
    "ViT-B-16-plus": _clip(_vit(224, 16, *B_PLUS), _text(*T640), 640),
    "ViT-B-16-plus-240": _clip(_vit(240, 16, *B_PLUS), _text(*T640), 640),
    "ViT-L-16": _clip(_vit(224, 16, *L), _text(*B), 768),
    "ViT-L-16-320": _clip(_vit(320, 16, *L), _text(*B), 768),
    "ViT-L-14": _clip(_vit(224, 14, *L), _text(*B), 768),
    "ViT-L-14-280": _clip(_vit(280, 14, *L), _text(*B), 768),
    "ViT-L-14-336": _clip(_vit(336, 14, *L), _text(*B), 768),
    "ViT-H-16": _clip(_vit(224, 16, *H), _text(*L), 1024),
    "ViT-H-14": _clip(_vit(224, 14, *H), _text(*L), 1024),
    "ViT-H-14-378": _clip(_vit(378, 14, *H), _text(*L), 1024),
    "ViT-g-14": _clip(_vit(224, 14, *G_SMALL), _text(*L), 1024),
    "ViT-bigG-14": _clip(_vit(224, 14, *G), _text(*T1280), 1280),
    "ViT-e-14": _clip(_vit(224, 14, *E), _text(*T1280_36), 1280),
    "ViT-H-14-worldwide": _worldwide(_vit(224, 14, *H), _text(*L), 1024, 901_629, eos=2, pad=1),
    "ViT-L-14-worldwide": _worldwide(_vit(224, 14, *L), _text(*B), 768, 250_100, eos=1, pad=0),
    "ViT-bigG-14-worldwide": _worldwide(
        _vit(224, 14, *G), _text(*T1280), 1280, 901_629, eos=2, pad=1
    ),
    "ViT-L-14-CLIPA": _clipa(_vit(224, 14, *L), _text(*B), 768),
    "ViT-L-14-CLIPA-336": _clipa(_vit(336, 14, *L), _text(*B), 768),
    "ViT-H-14-CLIPA": _clipa(_vit(224, 14, *H), _text(*L), 1024),
    "ViT-H-14-CLIPA-336": _clipa(_vit(336, 14, *H), _text(*L), 1024),
    "ViT-bigG-14-CLIPA": _clipa(_vit(224, 14, *G), _text(*T1280), 1280),
    "ViT-bigG-14-CLIPA-336": _clipa(_vit(336, 14, *G), _text(*T1280), 1280),
    "ViT-B-16-SigLIP": _siglip(_vit(224, 16, *B), _text(*B), 768),
    "ViT-B-16-SigLIP-256": _siglip(_vit(256, 16, *B), _text(*B), 768),
    "ViT-B-16-SigLIP-i18n-256": _siglip(_vit(256, 16, *B), _text(*B), 768, vocab=250_000),
    "ViT-B-16-SigLIP-384": _siglip(_vit(384, 16, *B), _text(*B), 768),
    "ViT-B-16-SigLIP-512": _siglip(_vit(512, 16, *B), _text(*B), 768),
    "ViT-L-16-SigLIP-256": _siglip(_vit(256, 16, *L), _text(*L), 1024),
    "ViT-L-16-SigLIP-384": _siglip(_vit(384, 16, *L), _text(*L), 1024),
    "ViT-SO400M-14-SigLIP": _siglip(_vit(224, 14, *SO400M), _text(*SO400M), 1152, context=16),
    "ViT-SO400M-14-SigLIP-378": _siglip(_vit(378, 14, *SO400M), _text(*SO400M), 1152),
    "ViT-SO400M-14-SigLIP-384": _siglip(_vit(384, 14, *SO400M), _text(*SO400M), 1152),
    "ViT-SO400M-16-SigLIP-i18n-256": _siglip(
        _vit(256, 16, *SO400M), _text(*SO400M), 1152, vocab=250_000, projection="none"
    ),
    "ViT-B-32-SigLIP2-256": _siglip2(_vit(256, 32, *B), _text(*B), 768),
    "ViT-B-16-SigLIP2": _siglip2(_vit(224, 16, *B), _text(*B), 768),
    "ViT-B-16-SigLIP2-256": _siglip2(_vit(256, 16, *B), _text(*B), 768),
    "ViT-B-16-SigLIP2-384": _siglip2(_vit(384, 16, *B), _text(*B), 768),
    "ViT-B-16-SigLIP2-512": _siglip2(_vit(512, 16, *B), _text(*B), 768),
    "ViT-L-16-SigLIP2-256": _siglip2(_vit(256, 16, *L), _text(*L), 1024),
    "ViT-L-16-SigLIP2-384": _siglip2(_vit(384, 16, *L), _text(*L), 1024),
    "ViT-L-16-SigLIP2-512": _siglip2(_vit(512, 16, *L), _text(*L), 1024),
    "ViT-SO400M-14-SigLIP2": _siglip2(_vit(224, 14, *SO400M), _text(*SO400M), 1152),
    "ViT-SO400M-14-SigLIP2-378": _siglip2(_vit(378, 14, *SO400M), _text(*SO400M), 1152),
    "ViT-SO400M-16-SigLIP2-256": _siglip2(_vit(256, 16, *SO400M), _text(*SO400M), 1152),
    "ViT-SO400M-16-SigLIP2-384": _siglip2(_vit(384, 16, *SO400M), _text(*SO400M), 1152),
    "ViT-SO400M-16-SigLIP2-512": _siglip2(_vit(512, 16, *SO400M), _text(*SO400M), 1152),
    "ViT-gopt-16-SigLIP2-256": _siglip2(_vit(256, 16, *G_OPT), _text(*SO400M), 1536),
    "ViT-gopt-16-SigLIP2-384": _siglip2(_vit(384, 16, *G_OPT), _text(*SO400M), 1536),
}

QUICK_GELU = (
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14",
    "ViT-L-14-336", "ViT-H-14", "ViT-H-14-378", "ViT-bigG-14", "ViT-L-14-worldwide",
    "ViT-H-14-worldwide",
)  # fmt: skip


def with_activation(model: ModelConfig, activation: str) -> ModelConfig:
    """The same model with another activation in both towers."""
    return dataclasses.replace(
        model,
        image=dataclasses.replace(model.image, activation=activation),
        text=dataclasses.replace(model.text, activation=activation),
    )


# OpenAI's nine models, DFN and MetaCLIP want this one: the activation belongs to the weights.
MODELS |= {f"{name}-quickgelu": with_activation(MODELS[name], "quick_gelu") for name in QUICK_GELU}
