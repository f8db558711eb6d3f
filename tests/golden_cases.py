"""OpenCLIP state dicts of the golden cases in our layout; only what the tests need.

Letters: l layers, d width, h heads, k head dim.
"""

import json
import struct
from pathlib import Path

import numpy as np

from clip_jax.config.schema import ImageConfig, ModelConfig, TextConfig

GOLDEN = Path(__file__).parent / "golden"


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The format in ten lines: length, JSON header, bytes."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    out = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        assert info["dtype"] == "F32", name
        data = raw[8 + size + begin : 8 + size + end]
        out[name] = np.frombuffer(data, np.float32).reshape(info["shape"])
    return out


def model_config(case: str) -> ModelConfig:
    """Our config of a golden case."""
    c = json.loads((GOLDEN / case / "config.json").read_text())
    v, t = c["vision"], c["text"]
    return ModelConfig(
        image=ImageConfig(
            size=v["image_size"],
            patch=v["patch_size"],
            width=v["width"],
            layers=v["layers"],
            heads=v["heads"],
            mlp_dim=v["mlp_dim"],
            activation=v["act"],
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        ),
        text=TextConfig(
            context=t["context_length"],
            vocab_size=t["vocab_size"],
            width=t["width"],
            layers=t["layers"],
            heads=t["heads"],
            mlp_dim=t["mlp_dim"],
            activation=t["act"],
            eos_id=t["vocab_size"] - 1,
        ),
        embed_dim=c["embed_dim"],
        logit_scale_init=c["logit_scale_init"],
    )


def params(state: dict[str, np.ndarray], cfg: ModelConfig) -> dict:
    """Our tree from an OpenCLIP state dict (weights, gradients or final weights)."""
    image = {
        "patch": {"kernel": state["visual.conv1.weight"].transpose(2, 3, 1, 0)},
        "cls": state["visual.class_embedding"],
        "posemb": state["visual.positional_embedding"],
        "ln_pre": _norm(state, "visual.ln_pre"),
        "blocks": _blocks(state, "visual.transformer.resblocks", cfg.image.layers, cfg.image.heads),
        "ln_post": _norm(state, "visual.ln_post"),
        "head": {"kernel": state["visual.proj"]},
    }
    text = {
        "token": {"embedding": state["token_embedding.weight"]},
        "posemb": state["positional_embedding"],
        "blocks": _blocks(state, "transformer.resblocks", cfg.text.layers, cfg.text.heads),
        "ln_post": _norm(state, "ln_final"),
        "head": {"kernel": state["text_projection"]},
    }
    return {"image": image, "text": text, "logit": {"scale": state["logit_scale"]}}


def _norm(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def _blocks(state: dict[str, np.ndarray], prefix: str, layers: int, heads: int) -> dict:
    def stack(name: str) -> np.ndarray:
        return np.stack([state[f"{prefix}.{i}.{name}"] for i in range(layers)])

    weight, bias = stack("attn.in_proj_weight"), stack("attn.in_proj_bias")  # (l, 3d, d)
    d = weight.shape[-1]
    k = d // heads
    attn = {}
    for i, name in enumerate("qkv"):
        w = weight[:, i * d : (i + 1) * d].transpose(0, 2, 1)  # (l, d, h k)
        b = bias[:, i * d : (i + 1) * d]
        attn[name] = {
            "kernel": w.reshape(layers, d, heads, k),
            "bias": b.reshape(layers, heads, k),
        }
    out = stack("attn.out_proj.weight").transpose(0, 2, 1)  # (l, h k, d)
    attn["out"] = {
        "kernel": out.reshape(layers, heads, k, d),
        "bias": stack("attn.out_proj.bias"),
    }
    mlp = {
        ours: {
            "kernel": stack(f"mlp.{theirs}.weight").transpose(0, 2, 1),
            "bias": stack(f"mlp.{theirs}.bias"),
        }
        for ours, theirs in (("up", "c_fc"), ("down", "c_proj"))
    }
    norms = {
        ours: {"scale": stack(f"{theirs}.weight"), "bias": stack(f"{theirs}.bias")}
        for ours, theirs in (("ln1", "ln_1"), ("ln2", "ln_2"))
    }
    return {"attn": attn, "mlp": mlp, **norms}
