"""Rules of a stack of transformer blocks and of the attention pool, by the names others use."""

from clip_jax.interop.table import FLAT, FUSED, FUSED_BIAS, INTO, OUT, PROBE, Rule


def linear(theirs: str, ours: str) -> list[Rule]:
    """A torch Linear with bias, (out, in), and our kernel (in, out)."""
    return [
        Rule(f"{theirs}.weight", (f"{ours}/kernel",), INTO),
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


def head_in(theirs: str, ours: str) -> list[Rule]:
    """A Linear from the width to the heads: kernel (d, h, k)."""
    return [
        Rule(f"{theirs}.weight", (f"{ours}/kernel",), INTO),
        Rule(f"{theirs}.bias", (f"{ours}/bias",), FLAT),
    ]


def head_out(theirs: str, ours: str) -> list[Rule]:
    """A Linear from the heads to the width: kernel (h, k, d)."""
    return [
        Rule(f"{theirs}.weight", (f"{ours}/kernel",), OUT),
        Rule(f"{theirs}.bias", (f"{ours}/bias",)),
    ]


def open_clip_blocks(theirs: str, ours: str) -> list[Rule]:
    """OpenAI's and OpenCLIP's residual attention blocks, `theirs`.{i}."""
    return [
        *norm(f"{theirs}.{{i}}.ln_1", f"{ours}/ln1"),
        *fused(f"{theirs}.{{i}}.attn.in_proj", f"{ours}/attn", "qkv", "_"),
        *head_out(f"{theirs}.{{i}}.attn.out_proj", f"{ours}/attn/out"),
        *norm(f"{theirs}.{{i}}.ln_2", f"{ours}/ln2"),
        *linear(f"{theirs}.{{i}}.mlp.c_fc", f"{ours}/mlp/up"),
        *linear(f"{theirs}.{{i}}.mlp.c_proj", f"{ours}/mlp/down"),
    ]


def timm_blocks(theirs: str, ours: str) -> list[Rule]:
    """timm's vision transformer blocks."""
    return [
        *norm(f"{theirs}.{{i}}.norm1", f"{ours}/ln1"),
        *fused(f"{theirs}.{{i}}.attn.qkv", f"{ours}/attn", "qkv", "."),
        *head_out(f"{theirs}.{{i}}.attn.proj", f"{ours}/attn/out"),
        *norm(f"{theirs}.{{i}}.norm2", f"{ours}/ln2"),
        *linear(f"{theirs}.{{i}}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.{{i}}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def hf_blocks(theirs: str, ours: str) -> list[Rule]:
    """The encoder layers of CLIPModel and SiglipModel."""
    attn = [head_in(f"{theirs}.{{i}}.self_attn.{x}_proj", f"{ours}/attn/{x}") for x in "qkv"]
    return [
        *(rule for rules in attn for rule in rules),
        *head_out(f"{theirs}.{{i}}.self_attn.out_proj", f"{ours}/attn/out"),
        *norm(f"{theirs}.{{i}}.layer_norm1", f"{ours}/ln1"),
        *linear(f"{theirs}.{{i}}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.{{i}}.mlp.fc2", f"{ours}/mlp/down"),
        *norm(f"{theirs}.{{i}}.layer_norm2", f"{ours}/ln2"),
    ]


def big_vision_blocks(theirs: str, ours: str) -> list[Rule]:
    """big_vision's Encoder1DBlock; kernels have our shapes. `theirs` may hold `{i}`."""
    attn = f"{theirs}/MultiHeadDotProductAttention_0"
    names = {"q": "query", "k": "key", "v": "value", "out": "out"}
    pairs = {f"{attn}/{b}": f"{ours}/attn/{a}" for a, b in names.items()}
    mlps = {
        f"{theirs}/MlpBlock_0/Dense_{i}": f"{ours}/mlp/{x}" for i, x in enumerate(("up", "down"))
    }
    norms = {f"{theirs}/LayerNorm_{i}": f"{ours}/ln{i + 1}" for i in (0, 1)}
    rules = [Rule(f"{a}/{x}", (f"{b}/{x}",)) for a, b in norms.items() for x in ("scale", "bias")]
    both = {**pairs, **mlps}
    return rules + [
        Rule(f"{a}/{x}", (f"{b}/{x}",)) for a, b in both.items() for x in ("kernel", "bias")
    ]


def timm_pool(theirs: str, ours: str) -> list[Rule]:
    """timm's AttentionPoolLatent."""
    return [
        Rule(f"{theirs}.latent", (f"{ours}/probe",), PROBE),
        *head_in(f"{theirs}.q", f"{ours}/attn/q"),
        *fused(f"{theirs}.kv", f"{ours}/attn", "kv", "."),
        *head_out(f"{theirs}.proj", f"{ours}/attn/out"),
        *norm(f"{theirs}.norm", f"{ours}/ln"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def hf_pool(theirs: str, ours: str) -> list[Rule]:
    """SiglipMultiheadAttentionPoolingHead."""
    return [
        Rule(f"{theirs}.probe", (f"{ours}/probe",), PROBE),
        *fused(f"{theirs}.attention.in_proj", f"{ours}/attn", "qkv", "_"),
        *head_out(f"{theirs}.attention.out_proj", f"{ours}/attn/out"),
        *norm(f"{theirs}.layernorm", f"{ours}/ln"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def big_vision_pool(theirs: str, ours: str) -> list[Rule]:
    """big_vision's MAPHead."""
    attn = f"{theirs}/MultiHeadDotProductAttention_0"
    names = {"q": "query", "k": "key", "v": "value", "out": "out"}
    pairs = {f"{attn}/{b}": f"{ours}/attn/{a}" for a, b in names.items()}
    pairs |= {
        f"{theirs}/MlpBlock_0/Dense_{i}": f"{ours}/mlp/{x}" for i, x in enumerate(("up", "down"))
    }
    norms = [Rule(f"{theirs}/LayerNorm_0/{x}", (f"{ours}/ln/{x}",)) for x in ("scale", "bias")]
    return [
        Rule(f"{theirs}/probe", (f"{ours}/probe",), PROBE),
        *norms,
        *(Rule(f"{a}/{x}", (f"{b}/{x}",)) for a, b in pairs.items() for x in ("kernel", "bias")),
    ]
