"""Rules of a stack of transformer blocks and of the attention pool, by the names others use."""

from clip_jax.interop.table import (
    FUSED,
    FUSED_BIAS,
    LINEAR,
    PROBE,
    Rule,
    from_heads,
    into_heads,
)


def linear(theirs: str, ours: str) -> list[Rule]:
    """A torch Linear with bias, (out, in), and our kernel (in, out)."""
    return [
        Rule(f"{theirs}.weight", (f"{ours}/kernel",), LINEAR),
        Rule(f"{theirs}.bias", (f"{ours}/bias",)),
    ]


def norm(theirs: str, ours: str) -> list[Rule]:
    """A layer norm: weight, bias and scale, bias."""
    return [Rule(f"{theirs}.weight", (f"{ours}/scale",)), Rule(f"{theirs}.bias", (f"{ours}/bias",))]


def fused(theirs: str, ours: str, parts: str, dot: str) -> list[Rule]:
    """q, k, v (`parts`) in one matrix; `dot` is '.' or '_' before weight and bias."""
    paths = [f"{ours}/{x}" for x in parts]
    return [
        Rule(f"{theirs}{dot}weight", tuple(f"{p}/kernel" for p in paths), FUSED),
        Rule(f"{theirs}{dot}bias", tuple(f"{p}/bias" for p in paths), FUSED_BIAS),
    ]


def open_clip_blocks(theirs: str, ours: str) -> list[Rule]:
    """OpenAI's and OpenCLIP's residual attention blocks, `theirs`.{i}."""
    return [
        *norm(f"{theirs}.{{i}}.ln_1", f"{ours}/ln1"),
        *fused(f"{theirs}.{{i}}.attn.in_proj", f"{ours}/attn", "qkv", "_"),
        *linear(f"{theirs}.{{i}}.attn.out_proj", f"{ours}/attn/out"),
        *norm(f"{theirs}.{{i}}.ln_2", f"{ours}/ln2"),
        *linear(f"{theirs}.{{i}}.mlp.c_fc", f"{ours}/mlp/up"),
        *linear(f"{theirs}.{{i}}.mlp.c_proj", f"{ours}/mlp/down"),
    ]


def timm_blocks(theirs: str, ours: str) -> list[Rule]:
    """timm's vision transformer blocks."""
    return [
        *norm(f"{theirs}.{{i}}.norm1", f"{ours}/ln1"),
        *fused(f"{theirs}.{{i}}.attn.qkv", f"{ours}/attn", "qkv", "."),
        *linear(f"{theirs}.{{i}}.attn.proj", f"{ours}/attn/out"),
        *norm(f"{theirs}.{{i}}.norm2", f"{ours}/ln2"),
        *linear(f"{theirs}.{{i}}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.{{i}}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def hf_blocks(theirs: str, ours: str) -> list[Rule]:
    """The encoder layers of CLIPModel and SiglipModel."""
    attn = [linear(f"{theirs}.{{i}}.self_attn.{x}_proj", f"{ours}/attn/{x}") for x in "qkv"]
    return [
        *(rule for rules in attn for rule in rules),
        *linear(f"{theirs}.{{i}}.self_attn.out_proj", f"{ours}/attn/out"),
        *norm(f"{theirs}.{{i}}.layer_norm1", f"{ours}/ln1"),
        *linear(f"{theirs}.{{i}}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.{{i}}.mlp.fc2", f"{ours}/mlp/down"),
        *norm(f"{theirs}.{{i}}.layer_norm2", f"{ours}/ln2"),
    ]


def big_vision_attention(theirs: str, ours: str, heads: int) -> list[Rule]:
    """flax's MultiHeadDotProductAttention, whose kernels have a dim of heads."""
    names = {"q": "query", "k": "key", "v": "value"}
    into, out = into_heads(heads), from_heads(heads)
    return [
        *(
            Rule(f"{theirs}/{b}/{x}", (f"{ours}/{a}/{x}",), into)
            for a, b in names.items()
            for x in ("kernel", "bias")
        ),
        Rule(f"{theirs}/out/kernel", (f"{ours}/out/kernel",), out),
        Rule(f"{theirs}/out/bias", (f"{ours}/out/bias",)),
    ]


def big_vision_mlp(theirs: str, ours: str) -> list[Rule]:
    """big_vision's MlpBlock."""
    return [
        Rule(f"{theirs}/Dense_{i}/{x}", (f"{ours}/{name}/{x}",))
        for i, name in enumerate(("up", "down"))
        for x in ("kernel", "bias")
    ]


def big_vision_blocks(theirs: str, ours: str, heads: int) -> list[Rule]:
    """big_vision's Encoder1DBlock. `theirs` may hold `{i}`."""
    return [
        *big_vision_norm(f"{theirs}/LayerNorm_0", f"{ours}/ln1"),
        *big_vision_norm(f"{theirs}/LayerNorm_1", f"{ours}/ln2"),
        *big_vision_attention(f"{theirs}/MultiHeadDotProductAttention_0", f"{ours}/attn", heads),
        *big_vision_mlp(f"{theirs}/MlpBlock_0", f"{ours}/mlp"),
    ]


def timm_pool(theirs: str, ours: str) -> list[Rule]:
    """timm's AttentionPoolLatent."""
    return [
        Rule(f"{theirs}.latent", (f"{ours}/probe",), PROBE),
        *linear(f"{theirs}.q", f"{ours}/attn/q"),
        *fused(f"{theirs}.kv", f"{ours}/attn", "kv", "."),
        *linear(f"{theirs}.proj", f"{ours}/attn/out"),
        *norm(f"{theirs}.norm", f"{ours}/ln"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def hf_pool(theirs: str, ours: str) -> list[Rule]:
    """SiglipMultiheadAttentionPoolingHead."""
    return [
        Rule(f"{theirs}.probe", (f"{ours}/probe",), PROBE),
        *fused(f"{theirs}.attention.in_proj", f"{ours}/attn", "qkv", "_"),
        *linear(f"{theirs}.attention.out_proj", f"{ours}/attn/out"),
        *norm(f"{theirs}.layernorm", f"{ours}/ln"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def big_vision_norm(theirs: str, ours: str) -> list[Rule]:
    """flax's LayerNorm."""
    return [Rule(f"{theirs}/{x}", (f"{ours}/{x}",)) for x in ("scale", "bias")]


def big_vision_pool(theirs: str, ours: str, heads: int) -> list[Rule]:
    """big_vision's MAPHead."""
    return [
        Rule(f"{theirs}/probe", (f"{ours}/probe",), PROBE),
        *big_vision_norm(f"{theirs}/LayerNorm_0", f"{ours}/ln"),
        *big_vision_attention(f"{theirs}/MultiHeadDotProductAttention_0", f"{ours}/attn", heads),
        *big_vision_mlp(f"{theirs}/MlpBlock_0", f"{ours}/mlp"),
    ]
