"""OpenCLIP and OpenAI: the names of their tensors.

Names are those of open_clip 3.3's state dicts: `CLIP` (visual.*, transformer.*), `CustomTextCLIP`
(text.*), ModifiedResNet, and timm's SigLIP towers (visual.trunk.*).
"""

from clip_jax.config.schema import ImageConfig, ModelConfig, TextConfig
from clip_jax.interop import blocks
from clip_jax.interop.table import CONV, COUNT, ROW, SAME, Rule, no_such_model
from clip_jax.models import vit

# What else may lie in a file and is not a weight: OpenAI's archives, buffers of old versions.
EXTRA = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")


def is_optional(name: str) -> bool:
    """Whether a tensor that the table lacks is known to carry no weight."""
    return name in EXTRA


def is_timm(cfg: ModelConfig) -> bool:
    """Whether OpenCLIP builds this image tower with timm: SigLIP's."""
    return cfg.image.kind == "vit" and cfg.image.pool == "map"


def table(cfg: ModelConfig, custom_text: bool = False) -> list[Rule]:
    """The rules of a model.

    Args:
        cfg: the model.
        custom_text: names of a CustomTextCLIP; SigLIP's models always are one.

    Raises:
        UserError: OpenCLIP has no such model.
    """
    check_model(cfg)
    if cfg.image.kind == "resnet":
        image = _resnet(cfg.image)
    else:
        image = _timm(cfg.image) if is_timm(cfg) else _vit(cfg.image)
    prefix = "text." if custom_text or is_timm(cfg) else ""
    logit = [Rule("logit_scale", ("logit/scale",))]
    if cfg.logit_bias:
        logit.append(Rule("logit_bias", ("logit/bias",)))
    return [*_text(cfg.text, prefix), *image, *logit]


def check_model(cfg: ModelConfig) -> None:
    image, text = cfg.image, cfg.text
    timm = is_timm(cfg)
    odd = {
        "image.kind": image.kind not in ("vit", "resnet") and image.kind,
        "image.registers": image.registers,
        "image.posemb": image.posemb == "sincos2d" and image.posemb,
        "image.class_token": image.kind == "vit" and image.class_token == timm and (
            f"{image.class_token} with pool '{image.pool}'"),
        "image.ln_pre": timm and image.ln_pre,
        "image.projection": (
            image.projection != "none" if timm else image.projection == "bias"
        ) and image.projection,
        "image.activation": timm and image.activation != "gelu_tanh" and image.activation,
        "image.ln_eps": timm and image.ln_eps != 1e-6 and image.ln_eps,
        "text.kind": text.kind != "transformer" and text.kind,
        "text.pool": text.pool in ("mean", "map") and text.pool,
        "text.mask_pads": text.mask_pads,
    }  # fmt: skip
    for name, value in odd.items():
        if value:
            raise no_such_model(name, "OpenCLIP", value)


def _vit(cfg: ImageConfig) -> list[Rule]:
    rules = [
        Rule("visual.class_embedding", ("image/cls",)),
        Rule("visual.conv1.weight", ("image/patch/kernel",), CONV),
    ]
    if cfg.patch_bias:
        rules.append(Rule("visual.conv1.bias", ("image/patch/bias",)))
    positions = "visual.positional_embedding"
    if cfg.posemb == "learned":
        rules.append(Rule(positions, ("image/posemb",)))
    else:
        rules.append(Rule(positions, (), constant=vit.fixed_positions(cfg)))
    if cfg.ln_pre:
        rules += blocks.norm("visual.ln_pre", "image/ln_pre")
    rules += blocks.open_clip_blocks("visual.transformer.resblocks", "image/blocks")
    if cfg.layer_scale:
        rules += [
            Rule(f"visual.transformer.resblocks.{{i}}.ls_{n}.gamma", (f"image/blocks/ls{n}",))
            for n in (1, 2)
        ]
    rules += blocks.norm("visual.ln_post", "image/ln_post")
    if cfg.projection != "none":
        rules.append(Rule("visual.proj", ("image/head/kernel",)))
    return rules


def _timm(cfg: ImageConfig) -> list[Rule]:
    patch = [Rule("visual.trunk.patch_embed.proj.weight", ("image/patch/kernel",), CONV)]
    if cfg.patch_bias:
        patch.append(Rule("visual.trunk.patch_embed.proj.bias", ("image/patch/bias",)))
    return [
        *patch,
        Rule("visual.trunk.pos_embed", ("image/posemb",), ROW),
        *blocks.timm_blocks("visual.trunk.blocks", "image/blocks"),
        *blocks.norm("visual.trunk.norm", "image/ln_post"),
        *blocks.timm_pool("visual.trunk.attn_pool", "image/pool"),
    ]


def _text(cfg: TextConfig, prefix: str) -> list[Rule]:
    rules = [
        Rule(f"{prefix}positional_embedding", ("text/posemb",)),
        Rule(f"{prefix}token_embedding.weight", ("text/token/embedding",)),
        *blocks.open_clip_blocks(f"{prefix}transformer.resblocks", "text/blocks"),
        *blocks.norm(f"{prefix}ln_final", "text/ln_post"),
    ]
    if cfg.projection == "bias":
        rules += blocks.linear(f"{prefix}text_projection", "text/head")
    elif cfg.projection == "linear":
        rules.append(Rule(f"{prefix}text_projection", ("text/head/kernel",), SAME))
    return rules


def _batch_norm(theirs: str, ours: str) -> list[Rule]:
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    rules = [Rule(f"{theirs}.{a}", (f"{ours}/{b}",)) for a, b in names.items()]
    return [*rules, Rule(f"{theirs}.num_batches_tracked", (f"{ours}/count",), COUNT)]


def _resnet(cfg: ImageConfig) -> list[Rule]:
    rules = []
    for i in (1, 2, 3):
        rules.append(Rule(f"visual.conv{i}.weight", (f"image/conv{i}/kernel",), CONV))
        rules += _batch_norm(f"visual.bn{i}", f"image/bn{i}")
    for stage, count in enumerate(cfg.stages, 1):
        for b in range(count):
            theirs, ours = f"visual.layer{stage}.{b}", f"image/stage{stage}/block{b}"
            for i in (1, 2, 3):
                rules.append(Rule(f"{theirs}.conv{i}.weight", (f"{ours}/conv{i}/kernel",), CONV))
                rules += _batch_norm(f"{theirs}.bn{i}", f"{ours}/bn{i}")
            if b == 0:  # every first block changes the width
                down = f"{theirs}.downsample"
                rules.append(Rule(f"{down}.0.weight", (f"{ours}/down_conv/kernel",), CONV))
                rules += _batch_norm(f"{down}.1", f"{ours}/down_bn")
    pool = "visual.attnpool"
    rules.append(Rule(f"{pool}.positional_embedding", ("image/pool/posemb",)))
    for theirs, ours in {"q_proj": "q", "k_proj": "k", "v_proj": "v", "c_proj": "out"}.items():
        rules += blocks.linear(f"{pool}.{theirs}", f"image/pool/{ours}")
    return rules
